"""Workers and their peers in one process: shards, messages, rendezvous order, watchdog, metrics directories."""
