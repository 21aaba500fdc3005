"""Rubrics, and how a reply is read."""
