"""What can go wrong with the store, as one exception. urllib3's own end here."""

import ssl

from urllib3 import exceptions as failures

_MAY_PASS = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"}

_ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


class S3Error(Exception):
    """The store gave no usable answer. The message is fit for a log.

    `code` is the store's own (`SlowDown`), or one of ours: `unreachable`, `insecure`, `timeout`, `broken`, `garbage`,
    `oversize`, `credentials`, `mismatch`. `status` is 0 when there was no answer. `region` is where the store says the
    bucket is, `date` its clock (seconds since the epoch).
    """

    def __init__(
        self, message: str, code: str = "", *, status: int = 0, region: str = "", date: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.region = region
        self.date = date

    @property
    def may_pass(self) -> bool:
        """Whether the same request may do better at once."""
        return self.code == "broken" or self.status in {429, 500, 502, 503, 504} or self.code in _MAY_PASS

    @property
    def is_busy(self) -> bool:
        """Whether the store wants fewer requests."""
        return self.status in {429, 503} or self.code == "SlowDown"


def explain(exc: Exception, who: str) -> S3Error:
    """The fault behind an exception of urllib3, http.client or the socket."""
    inner = exc.args[-1] if isinstance(exc, failures.ProtocolError) and exc.args else exc
    match inner:
        case failures.NameResolutionError():
            return S3Error(f"{who} is unknown to the name server", "unreachable")
        case failures.NewConnectionError():
            return S3Error(f"{who} does not take connections", "unreachable")
        case failures.ConnectTimeoutError():
            return S3Error(f"{who} cannot be reached in time", "unreachable")
        case failures.TimeoutError() | TimeoutError():
            return S3Error(f"{who} was silent for too long", "timeout")
        case failures.SSLError() if isinstance(inner.args[0], _ENDED):
            return S3Error(f"{who} broke the connection off", "broken")
        case failures.SSLError() | ssl.SSLError() if not isinstance(inner, _ENDED):
            return S3Error(f"no trusted TLS connection to {who}", "insecure")
        case failures.LocationValueError() | failures.InvalidHeader():
            return S3Error(f"{who} sent something that is not HTTP", "garbage")
    return S3Error(f"{who} broke the connection off", "broken")
