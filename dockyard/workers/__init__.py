"""The worker processes of one server: which keys each owns, and the messages between them."""
