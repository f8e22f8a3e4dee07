"""The workloads: the load on each cache in a round, and the numbers that it gives.

A workload generates its content once per round for all caches, so that each gets the same bytes. What must be warm is
read before, with every byte verified, and not measured.
"""
