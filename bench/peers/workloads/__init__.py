"""What is done to each peer in a round, and the numbers that come of it.

A workload prepares once per round what all peers are asked, so that each peer gets the same bytes; what must be warm is
read before, every byte checked, with the clock off.
"""
