"""The login in the Authorization header of a request: Basic (RFC 7617) or Bearer (RFC 6750)."""

import base64
import binascii

import attrs


@attrs.frozen
class Login:
    """What a client has sent. It is not verified yet.

    `is_bearer`: `password` is a bearer token, and there is no user name.
    """

    username: str = attrs.field(repr=False)
    password: str = attrs.field(repr=False)
    is_bearer: bool = False


def format_authorization(login: Login) -> str:
    """The value of an Authorization header for a login."""
    if login.is_bearer:
        return f"Bearer {login.password}"
    return f"Basic {base64.b64encode(f'{login.username}:{login.password}'.encode()).decode()}"


def parse_authorization(header: str) -> Login:
    """Parse the value of an Authorization header. Raises ValueError, whose message quotes nothing of it.

    User names and passwords are UTF-8, else Latin-1.
    """
    scheme, _, value = header.strip().partition(" ")
    value = value.strip()
    match scheme.lower():
        case "bearer" if value and value.isascii() and value.isprintable() and " " not in value:
            return Login("", value, is_bearer=True)
        case "basic":
            try:
                decoded = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as exc:
                raise ValueError("the Authorization header is not valid Base64") from exc
            try:
                text = decoded.decode()
            except UnicodeDecodeError:
                text = decoded.decode("latin-1")
            username, colon, password = text.partition(":")
            if not colon:
                raise ValueError("the Authorization header has no colon between user name and password")
            return Login(username, password)
    raise ValueError("the Authorization header must be Basic or Bearer")
