"""`python -m alpasift.batcher.cli` is `alpasift`."""

from alpasift.batcher.cli import main

main()
