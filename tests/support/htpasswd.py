"""An htpasswd file whose hashes are cheap: servers verify the password of each request."""

from collections.abc import Mapping
from pathlib import Path

from dockyard.access.passwords import hash_password
from dockyard.config.htpasswd import MIN_COST


def htpasswd_line(username: str, password: str, cost: int = MIN_COST) -> str:
    """The line of one user, with the cost of its bcrypt hash."""
    return f"{username}:{hash_password(password, cost)}\n"


def write_htpasswd(path: Path, users: Mapping[str, str], cost: int = MIN_COST) -> Path:
    """Write the file, or replace it at once, with these names and passwords. Returns its path."""
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(htpasswd_line(name, password, cost) for name, password in users.items()))
    return new.replace(path)
