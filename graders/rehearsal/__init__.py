"""A local server that speaks the OpenAI APIs and misbehaves on request: see `server`, and `faults` for the faults."""
