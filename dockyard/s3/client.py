"""Signed requests to one bucket of an S3-compatible service, and their responses. Blocking.

minio-py creates the URLs and the signatures, urllib3 sends the requests. The client of minio-py is not used: it cannot
stream a body whose hash is known already, it hashes each body again (over TLS also with MD5), it reports a missing
bucket as a missing object after a HEAD, and its timeouts and retries cannot be configured.

A response is None only when the service states that there is no such object. All other failures raise `S3Error`.
Requests that can be sent again are retried once.
"""

import ipaddress
import random
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlunsplit

import attrs
import minio.time
import structlog
import urllib3
from minio.helpers import BaseURL, check_bucket_name
from minio.signer import presign_v4, sign_v4_s3
from urllib3 import exceptions as urllib3_errors

from dockyard import __version__
from dockyard.config.settings import StorageSettings
from dockyard.s3.connections import STALL_TIMEOUT_S, make_pools
from dockyard.s3.credentials import CredentialChain, NoCredentials
from dockyard.s3.errors import REJECTED_CREDENTIALS, S3Error, to_s3_error
from dockyard.s3.explanation import explain
from dockyard.s3.responses import (
    RESPONSE_TIMEOUT_S,
    S3Response,
    S3StreamingResponse,
    embedded_error_code,
    error_message,
    parse_http_date,
    xml_text,
)

CONNECT_TIMEOUT_S = 3.0
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
MAX_ATTEMPTS = 2
RETRY_DELAY_S = (0.05, 0.25)  # chosen at random between these
# For this long after a response from the bucket, a HEAD with the status 404 means a missing object.
BUCKET_CHECK_INTERVAL_S = 60.0

EMPTY_HASH = sha256().hexdigest()
CHECKSUM_HEADER = "x-amz-checksum-sha256"
_MISSING_OBJECT = {"NoSuchKey", "NoSuchVersion"}

Body = bytes | Iterable[bytes]
T = TypeVar("T")

log = structlog.get_logger()


@attrs.frozen
class _Request:
    """A request before it is signed. `payload_hash` is the SHA-256 of the body in hex."""

    operation: str
    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Body
    payload_hash: str
    read_timeout_s: float

    @property
    def can_be_retried(self) -> bool:
        """Whether the body can be sent again."""
        return isinstance(self.body, bytes)

    @property
    def uploads_body(self) -> bool:
        """Whether the body becomes an object or a part of one."""
        return self.method == "PUT" and bool(self.key) and "x-amz-copy-source" not in self.headers


class S3Client:
    """Sends requests to one bucket. For many threads; not to be used across a fork.

    `requests` counts the requests sent, by operation. `unaborted_uploads` are the key and id of multipart uploads that
    could not be aborted. `sends_checksums` becomes False when the service rejects the header with the checksum, which
    buckets with Object Lock require. Raises ValueError when the settings do not give a valid URL.
    """

    def __init__(self, settings: StorageSettings, credentials: CredentialChain) -> None:
        self.bucket = settings.bucket
        self.region = settings.region
        self.requests: Counter[str] = Counter()
        self.unaborted_uploads: list[tuple[str, str]] = []
        self.sends_checksums = True
        self._settings = settings
        self._credentials = credentials
        self._base_url = make_base_url(settings)
        self.host = self._base_url.build(method="GET", region=self.region, bucket_name=self.bucket).netloc
        self._pools = make_pools()
        self._lock = threading.Lock()
        self._bucket_found_at = float("-inf")

    @property
    def is_tls(self) -> bool:
        return bool(self._base_url.is_https)

    def close(self) -> None:
        """Close the idle connections."""
        self._pools.clear()

    def request(
        self,
        operation: str,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        read_timeout_s: float = STALL_TIMEOUT_S,
        max_bytes: int = MAX_RESPONSE_BYTES,
    ) -> S3Response | None:
        """Send a request and read the whole response; None when there is no such object.

        The SHA-256 of the body is signed, so that the service rejects any other body. Raises S3Error, with the code
        `oversize` when the response is longer than `max_bytes`.
        """

        def read(response: S3StreamingResponse) -> S3Response:
            return S3Response(response.headers, response.read_all(max_bytes, max(RESPONSE_TIMEOUT_S, read_timeout_s)))

        payload_hash = sha256(body).hexdigest()
        request = _Request(operation, method, key, query or {}, headers or {}, body, payload_hash, read_timeout_s)
        response = self._send_with_retry(request, read)
        if response and method in {"PUT", "POST"} and (code := embedded_error_code(response.body)):
            service_message = self._service_message(response.body)
            message = f"S3 at {self.host} responded with 200 and the error {code} to {operation}"
            raise self._explained(
                S3Error(message, code, status=200, service_message=service_message, operation=operation)
            )
        return response

    def open_response(
        self,
        operation: str,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        payload_hash: str = EMPTY_HASH,
        read_timeout_s: float = STALL_TIMEOUT_S,
    ) -> S3StreamingResponse | None:
        """Send a request and return the response without its body; None when there is no such object.

        A body that is an iterator is sent once, with a Content-Length that must be among the `headers`. An exception of
        the iterator is raised here, after the connection was closed in the middle of the request. `read_timeout_s` is
        how long the service may send nothing. Raises S3Error.
        """
        request = _Request(operation, method, key, query or {}, headers or {}, body, payload_hash, read_timeout_s)
        return self._send_with_retry(request, lambda response: response)

    def presign(self, key: str, expires_s: int) -> str:
        """Return a URL that reads an object without credentials. Raises S3Error. Sends no request to the bucket."""
        credentials = self._get_credentials()
        token = credentials.session_token
        query: dict[str, Any] = {"X-Amz-Security-Token": token} if token else {}
        url = presign_v4(
            method="GET",
            url=self._url("GET", key, query),
            region=self.region,
            credentials=credentials,
            date=minio.time.utcnow(),
            expires=expires_s,
        )
        return urlunsplit(url)

    def _send_with_retry(self, request: _Request, read: Callable[[S3StreamingResponse], T]) -> T | None:
        """Send a request, and once more if that may help; return the result of `read`. Raises S3Error."""
        attempts_left = MAX_ATTEMPTS if request.can_be_retried else 1
        while True:
            attempts_left -= 1
            try:
                response = self._check_status(self._send(request), request)
                return read(response) if response else None
            except S3Error as exc:
                may_help = self._credentials.renew() if exc.code in REJECTED_CREDENTIALS else exc.is_transient
                if exc.rejects_checksums and self.sends_checksums:
                    log.info("the S3 service rejects checksums of uploads, they are not sent", error=str(exc))
                    self.sends_checksums = False
                    may_help = True
                if not (may_help and attempts_left):
                    raise self._explained(exc) from exc.__cause__
            time.sleep(random.uniform(*RETRY_DELAY_S))

    def _send(self, request: _Request) -> urllib3.BaseHTTPResponse:
        url = self._url(request.method, request.key, request.query)
        headers = self._sign(request, url)
        with self._lock:
            self.requests[request.operation] += 1
        try:
            return self._pools.urlopen(
                request.method,
                urlunsplit(url),
                body=request.body if request.body or request.method in {"PUT", "POST"} else None,
                headers={**headers, "User-Agent": f"dockyard/{__version__}", "Accept-Encoding": "identity"},
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=request.read_timeout_s),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3_errors.HTTPError, HTTPException, OSError, ValueError) as exc:
            # The messages of some exceptions contain the URL.
            cause = None if isinstance(exc, urllib3_errors.LocationValueError) else exc
            raise to_s3_error(exc, f"S3 at {self.host}") from cause

    def _sign(self, request: _Request, url: SplitResult) -> dict[str, Any]:
        """Return the headers of a request with its signature (AWS Signature Version 4)."""
        credentials = self._get_credentials()
        now = minio.time.utcnow()
        headers: dict[str, Any] = {
            **request.headers,
            "Host": url.netloc,
            "x-amz-content-sha256": request.payload_hash,
            "x-amz-date": minio.time.to_amz_date(now),
        }
        if credentials.session_token:
            headers["x-amz-security-token"] = credentials.session_token
        if request.uploads_body and self.sends_checksums:
            headers[CHECKSUM_HEADER] = encode_checksum(request.payload_hash)
        return sign_v4_s3(
            method=request.method,
            url=url,
            region=self.region,
            headers=headers,
            credentials=credentials,
            content_sha256=request.payload_hash,
            date=now,
        )

    def _get_credentials(self) -> Any:
        try:
            return self._credentials.get()
        except NoCredentials as exc:
            raise S3Error(f"no credentials for S3: {exc}", "credentials") from exc

    def _url(self, method: str, key: str, query: Mapping[str, str]) -> SplitResult:
        # The path of the bucket itself ends with a slash, in path style as in virtual-hosted style.
        url = self._base_url.build(
            method="GET" if not key else method,
            region=self.region,
            bucket_name=self.bucket,
            object_name=key or None,
            query_params=dict(query) or None,
        )
        return url if url.path.endswith("/") or key else url._replace(path=f"{url.path}/")

    def _check_status(self, raw: urllib3.BaseHTTPResponse, request: _Request) -> S3StreamingResponse | None:
        """Return a successful response, None when there is no such object. Raises S3Error."""
        response = S3StreamingResponse(raw, raw.connection)
        if raw.status in {200, 204, 206}:
            self._bucket_found_at = time.monotonic()
            return response
        body = response.read_all(MAX_RESPONSE_BYTES)
        code = xml_text(body, "Code") or raw.headers.get("x-minio-error-code", "")
        match raw.status:
            case 404 if code in _MISSING_OBJECT and request.key:
                self._bucket_found_at = time.monotonic()
                return None
            case 404 if request.method == "HEAD" and request.key and not code:
                self._check_that_bucket_exists()
                return None
            case 412 | 416 if request.key:
                return None
        raise S3Error(
            f"S3 at {self.host} responded with {raw.status} {code} to {request.operation}".replace("  ", " "),
            code,
            status=raw.status,
            service_message=self._service_message(body),
            region=raw.headers.get("x-amz-bucket-region") or xml_text(body, "Region"),
            date=parse_http_date(raw.headers.get("Date")),
            operation=request.operation,
            is_upload=request.uploads_body,
        )

    def _explained(self, exc: S3Error) -> S3Error:
        exc.explanation = explain(exc, self._settings, self.host, is_tls=self.is_tls)
        return exc

    def _service_message(self, body: bytes) -> str:
        """Return the message in an error response; empty when there is none. Without secrets of this client."""
        try:
            credentials = self._credentials.get()
        except NoCredentials:
            return ""
        return error_message(body, [credentials.secret_key, credentials.session_token])

    def _check_that_bucket_exists(self) -> None:
        """Raise S3Error when the bucket is missing: a HEAD of an object has the same response in both cases."""
        if time.monotonic() - self._bucket_found_at >= BUCKET_CHECK_INTERVAL_S:
            self.request("head bucket", "HEAD")


def encode_checksum(payload_hash: str) -> str:
    """Return a SHA-256 in the encoding of the checksum headers and elements: base64 instead of hex."""
    return b64encode(bytes.fromhex(payload_hash)).decode()


def make_base_url(settings: StorageSettings) -> BaseURL:
    """Create the builder of the URLs of a bucket. Raises ValueError when the settings do not give a valid URL."""
    is_china = settings.region.startswith("cn-")
    endpoint = settings.endpoint or f"s3.{settings.region}.amazonaws.com{'.cn' if is_china else ''}"
    scheme = "https" if settings.use_ssl or not settings.endpoint else "http"
    try:
        base_url = BaseURL(f"{scheme}://{endpoint}", settings.region)
        # Virtual-hosted style is the default, but an IP address cannot have the bucket as a subdomain.
        base_url.virtual_style_flag = not settings.force_path_style and not _is_ip_address(base_url.host)
        check_bucket_name(settings.bucket, s3_check=base_url.is_aws_host)
    except ValueError as exc:
        raise ValueError(f"storage.endpoint, storage.region and storage.bucket do not give a valid URL: {exc}") from exc
    return base_url


def _is_ip_address(netloc: str) -> bool:
    host = netloc[1:].partition("]")[0] if netloc.startswith("[") else netloc.partition(":")[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
