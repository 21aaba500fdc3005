"""The types, protocols and errors that every backend shares; import them from `alpasift.graders`."""
