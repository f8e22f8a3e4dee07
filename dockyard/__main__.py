"""`python -m dockyard` is `dockyard`."""

from dockyard.cli import main

main(prog_name="dockyard")
