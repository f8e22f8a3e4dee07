"""Seals the logins of clients, so that nobody else reads or changes them: between workers, and in access tokens.

Without a secret, the key is made by the supervisor at each start, and the workers inherit it with the memory of the
supervisor: it is in no file, no environment and no log.
"""

import base64
import hmac

from cryptography.fernet import Fernet, InvalidToken

from dockyard.oci.login import Login


class Seal:
    """Encrypts and authenticates bytes with a key of its own (Fernet: AES-128-CBC and HMAC-SHA256).

    With a `secret`, the key is derived from it for this `purpose`, and is the same wherever the secret is; else it is
    random.
    """

    def __init__(self, secret: bytes = b"", purpose: bytes = b"") -> None:
        derived = base64.urlsafe_b64encode(hmac.digest(secret, purpose, "sha256"))
        self._fernet = Fernet(derived if secret else Fernet.generate_key())

    def seal(self, content: bytes) -> str:
        """The sealed bytes, as ASCII text."""
        return self._fernet.encrypt(content).decode()

    def unseal(self, sealed: str) -> bytes:
        """The bytes. Raises ValueError for what this key has not sealed."""
        try:
            return self._fernet.decrypt(sealed.encode("utf-8", "surrogatepass"))
        except InvalidToken as exc:
            raise ValueError("not sealed by this server") from exc


class LoginSeal:
    """Seals logins in messages between workers."""

    def __init__(self) -> None:
        self._seal = Seal()

    def seal(self, login: Login) -> str:
        """The sealed login, as ASCII text."""
        # Not JSON, in which a character may take six bytes: the longest login must fit into a message.
        head = f"{login.is_bearer:d} {len(login.username)} "
        return self._seal.seal(f"{head}{login.username}{login.password}".encode())

    def unseal(self, sealed: str) -> Login:
        """The login. Raises ValueError for what this key has not sealed."""
        is_bearer, length, rest = self._seal.unseal(sealed).decode().split(" ", 2)
        return Login(rest[: int(length)], rest[int(length) :], is_bearer=is_bearer == "1")
