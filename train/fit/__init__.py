"""What a fine-tune takes on a card: bytes, seconds, dollars, and which configuration fits. No torch.

    model_dims, train_config, workload -> memory, seconds -> forecast -> calibration -> choice

Each name is a module, imported in this order.
"""
