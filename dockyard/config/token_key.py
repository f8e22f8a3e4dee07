"""The file in `access.token_key_file`: a secret from which the key of access tokens is derived."""

from typing import Final

from dockyard.config.files import read_file

MIN_CHARS: Final = 32
MAX_FILE_BYTES: Final = 4096


def read_token_key(path: str) -> bytes:
    """Return the secret, without white space around it. Raises ValueError, whose message quotes nothing of it."""
    secret = read_file(path, MAX_FILE_BYTES)[0].strip()
    if len(secret) < MIN_CHARS:
        raise ValueError(
            f"must have at least {MIN_CHARS} random characters, and has {len(secret)}: whoever guesses them can make "
            f"tokens; write it with `openssl rand -hex 32`"
        )
    return secret
