"""Seals the logins of clients, so that no message between the workers of one server has one in clear.

The supervisor makes the key at each start, and the workers inherit it with the memory of the supervisor: it is in no
file, no environment and no log.
"""

from cryptography.fernet import Fernet, InvalidToken

from dockyard.oci.login import Login


class LoginSeal:
    """Encrypts and authenticates logins with a key of its own (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self) -> None:
        self._fernet = Fernet(Fernet.generate_key())

    def seal(self, login: Login) -> str:
        """The sealed login, as ASCII text."""
        # Not JSON, in which a character may take six bytes: the longest login must fit into a message.
        head = f"{login.is_bearer:d} {len(login.username)} "
        return self._fernet.encrypt(f"{head}{login.username}{login.password}".encode()).decode()

    def unseal(self, sealed: str) -> Login:
        """The login. Raises ValueError for what this key has not sealed."""
        try:
            text = self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as exc:
            raise ValueError("not sealed by this server") from exc
        is_bearer, length, rest = text.split(" ", 2)
        return Login(rest[: int(length)], rest[int(length) :], is_bearer=is_bearer == "1")
