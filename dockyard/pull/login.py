"""The login of `dockyard pull` at the server: given as options, or in Docker's keychain for the host of the server.

It is sent to the origin of the server's URL and nowhere else: not to where a response redirects to, such as a bucket.
It is not sent without encryption, except to this machine, unless the user allows it: others on the way could read it.
"""

from collections.abc import Mapping

import attrs

from dockyard.config.hosts import is_loopback
from dockyard.oci.origin import Origin
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.keychain import Credential, Keychain


@attrs.frozen
class ServerLogin:
    """A login, or none. `authorization` is the value of the header; `cure` says what to do if the server refuses it."""

    cure: str
    authorization: str = attrs.field(default="", repr=False)


NO_LOGIN = ServerLogin("")


def is_private(origin: Origin) -> bool:
    """Whether nobody on the way can read what is sent: by encryption, or because it does not leave this machine."""
    return origin.scheme == "https" or is_loopback(origin.host)


def given_login(username: str, password: str) -> ServerLogin:
    """Return the login that was given as options."""
    return ServerLogin(
        "the login is wrong: correct --username and the password on standard input",
        Credential(username, password).basic(),
    )


def find_login(origin: Origin, authority: str, environ: Mapping[str, str], *, may_be_read: bool) -> ServerLogin:
    """Return the login of a server in Docker's keychain. `may_be_read`: it may be sent without encryption."""
    how = f"run `docker login {authority}`, or use --username and --password-stdin"
    try:
        found = Keychain(environ).credential_for(authority, "")
    except UpstreamError as exc:
        return ServerLogin(f"the login of {authority} cannot be read: {exc.error.message}; or {how}")
    if found.is_anonymous:
        return ServerLogin(how)
    if not may_be_read and not is_private(origin):
        return ServerLogin(
            f"the login in {found.source} was not sent, because everybody on the way could read it: use an https URL "
            "in --server, or --insecure-login"
        )
    authorization = f"Bearer {found.registry_token}" if found.registry_token else found.basic()
    return ServerLogin(f"the login in {found.source} is wrong: {how}", authorization)
