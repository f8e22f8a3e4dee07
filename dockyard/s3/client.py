"""One signed request to an S3-compatible store, and its answer.

minio-py makes the URLs and the signatures; urllib3 carries them. minio-py's own client is not used: it cannot stream a
body whose hash is known, it hashes every body again (and with MD5 over TLS), a HEAD of a missing bucket looks like a
missing object there, and its waits and retries are its own.

Its one rule: only the store's own word that there is no such object is None. Everything else that is no success is a
`S3Error`. Requests that can be sent again are sent twice at most.
"""

import ipaddress
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlunsplit

import minio.time
import urllib3
from minio.helpers import BaseURL, check_bucket_name
from minio.signer import presign_v4, sign_v4_s3
from urllib3 import exceptions as failures

from dockyard import __version__
from dockyard.config.settings import StorageSettings
from dockyard.s3.connections import STALL_TIMEOUT_S, make_pools
from dockyard.s3.credentials import CredentialChain, NoCredentials
from dockyard.s3.errors import S3Error, explain
from dockyard.s3.responses import (
    RESPONSE_TIMEOUT_S,
    S3Response,
    S3StreamingResponse,
    find_hidden_error,
    find_text,
    parse_date,
)

CONNECT_TIMEOUT_S = 3.0
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
RETRY_DELAY_S = (0.05, 0.25)
BUCKET_KNOWN_FOR_S = 60.0
UNSIGNED = "UNSIGNED-PAYLOAD"

_MISSING = {"NoSuchKey", "NoSuchVersion"}
WRONG_LOGIN = {
    *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    "XAdminUserNotFound",  # versitygw's InvalidAccessKeyId
}

Body = bytes | Iterable[bytes]
T = TypeVar("T")


class S3Client:
    """The way to one bucket. For many threads; not across a fork.

    `requests` counts what was sent, by operation. Raises ValueError when the settings make no address.
    """

    def __init__(self, settings: StorageSettings, credentials: CredentialChain) -> None:
        self.unaborted_uploads: list[tuple[str, str]] = []  # key and id of uploads that could not be aborted
        self.bucket = settings.bucket
        self.region = settings.region
        self._credentials = credentials
        self._urls = make_base_url(settings)
        self.host = self._urls.build(method="GET", region=self.region, bucket_name=self.bucket).netloc
        self._pools = make_pools()
        self._lock = threading.Lock()
        self._bucket_seen_at = float("-inf")
        self.requests: Counter[str] = Counter()

    @property
    def is_tls(self) -> bool:
        return bool(self._urls.is_https)

    def close(self) -> None:
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
        """Send a request and read the answer; None when there is no such object (any more). Raises S3Error.

        The store is told the SHA-256 of the body and refuses another one. An answer of more than `max_bytes` bytes is a
        fault with the code `oversize`.
        """

        def read(opened: S3StreamingResponse) -> S3Response:
            return S3Response(opened.headers, opened.read_all(max_bytes, max(RESPONSE_TIMEOUT_S, read_timeout_s)))

        hashed = sha256(body).hexdigest()
        answer = self._try(operation, method, key, query or {}, headers or {}, body, hashed, read_timeout_s, read)
        if answer and method in {"PUT", "POST"} and (code := find_hidden_error(answer.body)):
            raise S3Error(f"S3 at {self.host} answered 200 and {code} to {operation}", code, status=200)
        return answer

    def open_response(
        self,
        operation: str,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        payload: str = sha256().hexdigest(),
        read_timeout_s: float = STALL_TIMEOUT_S,
    ) -> S3StreamingResponse | None:
        """As `ask`, with the body of the answer still to come.

        `payload` is the SHA-256 of the body in hex, or UNSIGNED. A body that is not bytes is sent once; its
        Content-Length is in `headers`, and what its iterator raises comes out of here, the request having been cut.
        `read_timeout_s` is how long the store may be silent.
        """
        return self._try(
            operation, method, key, query or {}, headers or {}, body, payload, read_timeout_s, lambda opened: opened
        )

    def _try(
        self,
        operation: str,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body,
        payload: str,
        read_timeout_s: float,
        take: Callable[[S3StreamingResponse], T],
    ) -> T | None:
        """Send a request, and once more if that may help and it can be sent again; what `take` makes of the answer."""
        tries_left = 2 if isinstance(body, bytes) else 1
        while True:
            tries_left -= 1
            try:
                response = self._send(operation, method, key, query, headers, body, payload, read_timeout_s)
                opened = self._judge(response, operation, method, key)
                return take(opened) if opened else None
            except S3Error as fault:
                if fault.code in WRONG_LOGIN:
                    if not self._credentials.renew() or not tries_left:
                        raise
                elif not (tries_left and fault.may_pass):
                    raise
            time.sleep(random.uniform(*RETRY_DELAY_S))

    def presign(self, key: str, expires_s: int) -> str:
        """A URL that reads an object without credentials. Raises S3Error."""
        login = self._login()
        query: dict[str, Any] = {"X-Amz-Security-Token": login.session_token} if login.session_token else {}
        url = presign_v4(
            method="GET",
            url=self._url("GET", key, query),
            region=self.region,
            credentials=login,
            date=minio.time.utcnow(),
            expires=expires_s,
        )
        return urlunsplit(url)

    def _send(
        self,
        operation: str,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body,
        payload: str,
        read_timeout_s: float,
    ) -> urllib3.BaseHTTPResponse:
        url = self._url(method, key, query)
        signed = self._signed(method, url, headers, payload)
        sent = {**signed, "User-Agent": f"dockyard/{__version__}", "Accept-Encoding": "identity"}
        with self._lock:
            self.requests[operation] += 1
        try:
            return self._pools.urlopen(
                method,
                urlunsplit(url),
                body=body if body or method in {"PUT", "POST"} else None,
                headers=sent,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=read_timeout_s),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (failures.HTTPError, HTTPException, OSError, ValueError) as exc:
            # urllib3 puts whole URLs into some of its messages.
            raise explain(exc, f"S3 at {self.host}") from (
                None if isinstance(exc, failures.LocationValueError) else exc
            )

    def _signed(self, method: str, url: SplitResult, headers: Mapping[str, str], payload: str) -> dict[str, Any]:
        login = self._login()
        now = minio.time.utcnow()
        signed: dict[str, Any] = {
            **headers,
            "Host": url.netloc,
            "x-amz-content-sha256": payload,
            "x-amz-date": minio.time.to_amz_date(now),
        }
        if login.session_token:
            signed["x-amz-security-token"] = login.session_token
        return sign_v4_s3(
            method=method,
            url=url,
            region=self.region,
            headers=signed,
            credentials=login,
            content_sha256=payload,
            date=now,
        )

    def _login(self) -> Any:
        try:
            return self._credentials.find()
        except NoCredentials as exc:
            raise S3Error(f"no credentials for S3: {exc}", "credentials") from exc

    def _url(self, method: str, key: str, query: Mapping[str, str]) -> SplitResult:
        # A bucket itself is asked about with a slash behind it: so path style and virtual host style end alike.
        url = self._urls.build(
            method="GET" if not key else method,
            region=self.region,
            bucket_name=self.bucket,
            object_name=key or None,
            query_params=dict(query) or None,
        )
        return url if url.path.endswith("/") or key else url._replace(path=f"{url.path}/")

    def _judge(
        self, response: urllib3.BaseHTTPResponse, operation: str, method: str, key: str
    ) -> S3StreamingResponse | None:
        """The answer if it is one, None if there is no such object. Raises S3Error."""
        opened = S3StreamingResponse(response, response.connection)
        if response.status in {200, 204, 206}:
            self._bucket_seen_at = time.monotonic()
            return opened
        said = opened.read_all(MAX_RESPONSE_BYTES)
        code = find_text(said, "Code") or response.headers.get("x-minio-error-code", "")
        match response.status:
            case 404 if code in _MISSING and key:
                self._bucket_seen_at = time.monotonic()
                return None
            case 404 if method == "HEAD" and key and not code:
                self._check_bucket()
                return None
            case 412 | 416 if key:
                return None
        region = response.headers.get("x-amz-bucket-region") or find_text(said, "Region")
        raise S3Error(
            f"S3 at {self.host} answered {response.status} {code} to {operation}".replace("  ", " "),
            code,
            status=response.status,
            region=region,
            date=parse_date(response.headers.get("Date")),
        )

    def _check_bucket(self) -> None:
        """Tell a missing object from a missing bucket: to HEAD both are 404 and nothing else."""
        if time.monotonic() - self._bucket_seen_at < BUCKET_KNOWN_FOR_S:
            return
        self.request("head bucket", "HEAD")


def make_base_url(settings: StorageSettings) -> BaseURL:
    """Where the bucket's objects are. Raises ValueError for settings that name no place."""
    is_china = settings.region.startswith("cn-")
    endpoint = settings.endpoint or f"s3.{settings.region}.amazonaws.com{'.cn' if is_china else ''}"
    scheme = "https" if settings.use_ssl or not settings.endpoint else "http"
    try:
        urls = BaseURL(f"{scheme}://{endpoint}", settings.region)
        # The original's rule: virtual host style unless told otherwise. Nothing can stand before an address, though.
        urls.virtual_style_flag = not settings.force_path_style and not _is_address(urls.host)
        check_bucket_name(settings.bucket, s3_check=urls.is_aws_host)
    except ValueError as exc:
        raise ValueError(f"storage.endpoint, storage.region and storage.bucket make no address: {exc}") from exc
    return urls


def _is_address(netloc: str) -> bool:
    host = netloc[1:].partition("]")[0] if netloc.startswith("[") else netloc.partition(":")[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
