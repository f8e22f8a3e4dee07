"""Run the command."""

from bench.fleet.command import main

main()
