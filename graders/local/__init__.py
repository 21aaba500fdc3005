"""What the backends share that run a model on this machine."""
