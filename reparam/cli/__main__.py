"""`python -m reparam.cli`."""

from reparam.cli import main

main()
