"""`dockyard pull`: reads images through a running Dockyard, so that its cache is warm."""
