"""What a client sees that sends its request directly to a server, without Dockyard."""

import hashlib
import ssl

from tests.support.http_client import StreamedResponse
from tests.support.raw_http import Request

DIRECT_HEADER = ("X-Direct-Client", "yes")
RESPONSE_TIMEOUT_S = 1.0


def is_direct(request: Request) -> bool:
    """Whether a request was sent by `describe_response` or another direct client, not by Dockyard."""
    return request.header(DIRECT_HEADER[0]) is not None


def describe_response(
    address: tuple[str, int],
    path: str,
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
    token: str | None = None,
    timeout_s: float = RESPONSE_TIMEOUT_S,
) -> str:
    """Send a request and describe the response in a few words.

    `refused`, `no connection`, `reset`, `closed` or `silence` if there is no response, `tls` and the reason if the
    handshake fails; else the status and `whole`, `wrong` (whole, with another digest than the response names),
    what is odd about it, or how it ended and where.
    """
    headers = {DIRECT_HEADER[0]: DIRECT_HEADER[1]} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with StreamedResponse(address, path, headers, method=method, tls=tls, timeout_s=timeout_s) as response:
            try:
                response.head()
            except TimeoutError:
                return "silence"
            if oddity := _find_oddity(response):
                return f"{response.status} {oddity}"
            body, ended = response.rest()
            if ended != "length":
                return f"{response.status} {ended} at {response.received}"
            digest = response.header("Docker-Content-Digest") or ""
            is_right = method == "HEAD" or not digest or digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            return f"{response.status} {'whole' if is_right else 'wrong'}"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except ssl.SSLError as exc:
        return f"tls {exc.reason}"
    except TimeoutError:
        return "no connection"
    except ConnectionError:
        return "closed"


def _find_oddity(response: StreamedResponse) -> str:
    lengths = {value for name, value in response.headers if name.lower() == "content-length"}
    if len(lengths) > 1:
        return "two lengths"
    if lengths and response.header("Transfer-Encoding"):
        return "length and chunks"
    is_page = response.header("Content-Type") in ("text/html", "application/json")
    return "page" if is_page and response.status == 200 else ""
