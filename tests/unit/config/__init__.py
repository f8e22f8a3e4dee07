"""Settings, hosts and value types, read from text and environments that the tests write."""
