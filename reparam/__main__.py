"""`python -m reparam` is the command line."""

from reparam.cli import main

main()
