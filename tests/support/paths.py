"""Where the project is: for tests that read its files or start it from there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
