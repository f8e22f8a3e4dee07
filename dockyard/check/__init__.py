"""The `dockyard check` command: finds out whether the server could start with the settings, without starting it."""
