"""What can go wrong with an upstream, and whom it speaks against.

`Fault` is the one exception that moves between the rooms of `upstream/`; `registry.py` turns it into the error that it
carries. The blame decides what the breaker makes of it.

A message names the upstream by its configured prefix. It never has an address, a path, a query or anything secret.
"""

from enum import Enum, auto

from dockyard import metrics
from dockyard.errors import BadUpstream, Denied, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout

RETRY_AFTER_S = 3


class Blame(Enum):
    """What a fault says about the registry."""

    SILENCE = auto()  # no answer: refused, no such host, TLS, timeout, token service down
    SERVER = auto()  # it answered 5xx
    LIMIT = auto()  # it answered 429
    NONE = auto()  # it is up, or somebody else is at fault: bad content, a dead CDN, our own keychain


class Fault(Exception):
    """The upstream gave no usable answer.

    `is_broken`: the connection broke, so that another try may do better. `is_elsewhere`: it was a host that the
    registry redirected to.
    """

    def __init__(
        self, error: RegistryError, blame: Blame, *, is_broken: bool = False, is_elsewhere: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.blame = blame
        self.is_broken = is_broken
        self.is_elsewhere = is_elsewhere

    def blameless(self, *, is_elsewhere: bool = False) -> "Fault":
        """The same, but the registry is not to blame."""
        return Fault(self.error, Blame.NONE, is_broken=self.is_broken, is_elsewhere=is_elsewhere)


class LoginRefused(Exception):
    """The registry or its token service does not take the login (or will not have anonymous clients)."""

    def __init__(self, *, is_anonymous: bool, remembered: bool = False) -> None:
        super().__init__("the login was refused")
        self.is_anonymous = is_anonymous
        self.remembered = remembered


def unreachable(who: str, why: str) -> Fault:
    """Nobody listens, or the name is unknown, or there is no way there."""
    return Fault(Unavailable(f"{who} cannot be reached: {why}", retry_after_s=RETRY_AFTER_S), Blame.SILENCE)


def broken(who: str) -> Fault:
    """The connection ended before the answer did."""
    error = Unavailable(f"{who} broke the connection off", retry_after_s=RETRY_AFTER_S)
    return Fault(error, Blame.SILENCE, is_broken=True)


def late(who: str, what: str = "did not answer in time") -> Fault:
    """A time limit passed."""
    return Fault(UpstreamTimeout(f"{who} {what}", retry_after_s=RETRY_AFTER_S), Blame.SILENCE)


def insecure(who: str) -> Fault:
    """No TLS connection that can be trusted. Counted, as all that might be an attack."""
    metrics.upstream_untrusted.labels(who, "tls").inc()
    return Fault(BadUpstream(f"no trusted TLS connection to {who}"), Blame.SILENCE)


def garbage(who: str, what: str) -> Fault:
    """An answer that cannot be right."""
    return Fault(BadUpstream(f"{who} {what}"), Blame.NONE)


def forbidden(who: str, what: str) -> Fault:
    """An answer that sends us where we do not go. Counted, as `insecure`."""
    metrics.upstream_untrusted.labels(who, "place").inc()
    return Fault(BadUpstream(f"{who} {what}: refused"), Blame.NONE)


def failing(who: str, status: int, retry_after_s: int = RETRY_AFTER_S) -> Fault:
    """A 5xx answer."""
    return Fault(Unavailable(f"{who} answered {status}", retry_after_s=retry_after_s), Blame.SERVER)


def limited(who: str, retry_after_s: int) -> Fault:
    """A 429 answer."""
    return Fault(TooManyRequests(f"{who} limits our requests", retry_after_s=retry_after_s), Blame.LIMIT)


def withheld(who: str) -> Fault:
    """A secret that would travel unencrypted. Counted, as `insecure`."""
    metrics.upstream_untrusted.labels(who, "secret").inc()
    return Fault(Denied(f"{who} speaks plain HTTP: credentials are not sent there"), Blame.NONE)


def helpless(message: str) -> Fault:
    """Our own keychain does not work."""
    return Fault(Unavailable(message, retry_after_s=RETRY_AFTER_S), Blame.NONE)
