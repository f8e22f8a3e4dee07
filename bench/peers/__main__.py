"""Run the command."""

from bench.peers.command import main

main()
