"""A GGUF file as a model folder that can be trained. Call `import_model.import_gguf`."""
