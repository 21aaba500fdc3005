"""Exports of a trained model: adapter, merged weights or GGUF. Call `export.export_model`."""
