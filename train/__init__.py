"""A fine-tune that fits the card. Imports nothing of `batcher`."""
