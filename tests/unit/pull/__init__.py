"""`dockyard pull`: what it selects, and its HTTP client against a fake registry."""
