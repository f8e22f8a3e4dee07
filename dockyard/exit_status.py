"""The exit statuses of all commands, besides 0."""

from typing import Final

FAILED: Final = 1
USAGE: Final = 2  # errors in the settings or the arguments
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it
