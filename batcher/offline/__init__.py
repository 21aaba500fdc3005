"""What a machine without a network needs, has and lacks."""
