"""The words of the registry protocol: pure values that parse or raise."""
