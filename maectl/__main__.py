"""``python -m maectl`` is the command ``maectl``."""

from maectl.cli import main

main()
