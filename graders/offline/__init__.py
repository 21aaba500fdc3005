"""No connection but to this machine."""
