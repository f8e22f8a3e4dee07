"""The error of every request to an S3 service. Exceptions of urllib3 and http.client are converted here."""

import ssl

from urllib3 import exceptions as urllib3_errors

from dockyard.http1.tls import TLSProblem, explain_failure

REJECTED_CREDENTIALS = {
    *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    "XAdminUserNotFound",  # versitygw's InvalidAccessKeyId
}
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"}
_TLS_CONNECTION_CLOSED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


class S3Error(Exception):
    """A request to the S3 service failed. The message may be logged: it contains no credentials and no URL.

    `code` is the error code of the service (`SlowDown`), or one of these: `unreachable`, `insecure`, `timeout`,
    `broken`, `garbage`, `oversize`, `credentials`, `mismatch`. `status` is 0 when there was no response.
    `service_message` is the explanation of the service, which the message ends with. `region` is the region of the
    bucket, if the service named it, and `date` its clock (seconds since the epoch). `operation` is what was requested;
    `is_upload`: it would have created an object. `explanation` is for the log: what the error means, what to change.
    """

    def __init__(
        self,
        message: str,
        code: str = "",
        *,
        status: int = 0,
        service_message: str = "",
        region: str = "",
        date: float | None = None,
        operation: str = "",
        is_upload: bool = False,
        tls_problem: TLSProblem | None = None,
    ) -> None:
        super().__init__(f"{message}: {service_message}" if service_message else message)
        self.code = code
        self.status = status
        self.service_message = service_message
        self.region = region
        self.date = date
        self.operation = operation
        self.is_upload = is_upload
        self.tls_problem = tls_problem
        self.explanation = str(self)

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed when it is retried at once."""
        return self.code == "broken" or self.status in {429, 500, 502, 503, 504} or self.code in _TRANSIENT_CODES

    @property
    def rejects_checksums(self) -> bool:
        """Whether the service does not know the checksum headers of uploads."""
        is_header_unknown = self.code in {"NotImplemented", "InvalidArgument"}
        return is_header_unknown and "x-amz-checksum-" in self.service_message.lower()

    @property
    def is_overload(self) -> bool:
        """Whether the service is overloaded and rejects requests for that reason."""
        return self.status in {429, 503} or self.code == "SlowDown"


def to_s3_error(exc: Exception, service: str) -> S3Error:
    """Convert an exception of urllib3, http.client or the socket. `service` names the S3 service in the message."""
    inner = exc.args[-1] if isinstance(exc, urllib3_errors.ProtocolError) and exc.args else exc
    match inner:
        case urllib3_errors.NameResolutionError():
            return S3Error(f"cannot resolve the host name of {service}{_system_error(inner)}", "unreachable")
        case urllib3_errors.NewConnectionError():
            return S3Error(f"cannot connect to {service}{_system_error(inner)}", "unreachable")
        case urllib3_errors.ConnectTimeoutError():
            return S3Error(f"connecting to {service} timed out", "unreachable")
        case urllib3_errors.TimeoutError() | TimeoutError():
            return S3Error(f"{service} did not respond in time", "timeout")
        case urllib3_errors.SSLError() if isinstance(inner.args[0], _TLS_CONNECTION_CLOSED):
            return S3Error(f"{service} closed the connection", "broken")
        case urllib3_errors.SSLError() | ssl.SSLError() if not isinstance(inner, _TLS_CONNECTION_CLOSED):
            failure = explain_failure(inner)
            message = f"no trusted TLS connection to {service}: {failure.reason}"
            return S3Error(message, "insecure", tls_problem=failure.problem)
        case urllib3_errors.LocationValueError() | urllib3_errors.InvalidHeader():
            return S3Error(f"{service} sent a response that is not HTTP", "garbage")
    return S3Error(f"{service} closed the connection", "broken")


def _system_error(exc: BaseException) -> str:
    """The error of the system behind an exception of urllib3, which does not name the host again."""
    cause = exc.__cause__ or exc.__context__
    return f": {cause.strerror}" if isinstance(cause, OSError) and cause.strerror else ""
