"""`python -m batcher.cli` is `alpasift`."""

from batcher.cli import main

main()
