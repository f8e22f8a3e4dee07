"""What a registry cache decides and does."""
