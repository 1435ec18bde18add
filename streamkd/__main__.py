"""``python -m streamkd``: the same as the command ``streamkd``."""

from streamkd.cli import main

main()
