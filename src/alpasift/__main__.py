"""`python -m alpasift` is the command `alpasift`."""

from alpasift.batcher.cli import main

main()
