"""Random input: for the parsers, for the HTTP endpoints of a real Dockyard, and as what the upstream or bucket sends.

Each run tries a few hundred examples; `DOCKYARD_FUZZ_TIMES=100` tries as many times more. `python -m tests.fuzz` fuzzes
one parser with coverage feedback (atheris).
"""
