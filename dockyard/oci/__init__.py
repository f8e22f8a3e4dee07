"""The formats of the registry protocol, as pure values: parsing returns a value or raises."""
