"""Data files: `source` says what a file is, `rows` reads it, `writing` writes one; a module for each kind of text."""
