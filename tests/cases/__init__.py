"""What public bug reports say that registries, disks and operators do: one input of each kind, grouped by class."""
