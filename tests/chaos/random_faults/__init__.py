"""Random sequences of pulls and faults: a state machine, a long soak test, and the rules for the history of a tag."""
