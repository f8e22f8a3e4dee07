"""The login of `dockyard pull`: where it comes from, to whom it is sent, and what is said if it is refused."""

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockyard.oci.origin import Origin
from dockyard.pull.client import DockyardClient
from dockyard.pull.command import ArgumentsError, parse_arguments
from dockyard.pull.login import NO_LOGIN, ServerLogin, find_login, given_login, is_private
from dockyard.pull.retries import PullError
from tests.support.paths import ROOT
from tests.support.raw_server import RawConnection, RawServer, response

PASSWORD = "canary-of-the-pull-4c1d"
LOGIN = "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
PAGE = json.dumps({"version": "9", "prefixes": ["up.test"]}).encode()
UNAUTHORIZED = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "the login is wrong"}]}).encode()
DENIED = json.dumps({"errors": [{"code": "DENIED", "message": "ask the team"}]}).encode()
HTTPS = Origin("https", "dockyard.example", 443)
HTTP = Origin("http", "dockyard.example", 5000)
LOCAL = Origin("http", "localhost", 5000)


class LoggingServer(RawServer):
    """A Dockyard that keeps the logins of its requests, and responds with what it is given."""

    def __init__(self, respond: Callable[[str, str], bytes]) -> None:
        self.logins: list[str] = []
        self._respond_with = respond
        super().__init__(self._respond)

    def _respond(self, connection: RawConnection) -> None:
        while request := connection.receive_request():
            fields = [line.partition(": ") for line in self.heads[-1].decode().splitlines()]
            login = next((value for name, _, value in fields if name.lower() == "authorization"), "")
            self.logins.append(login)
            connection.send(self._respond_with(request.split(" ")[1], login))


@contextlib.contextmanager
def client_of(url: str, login: ServerLogin) -> Iterator[DockyardClient]:
    """A client with a login."""
    client = DockyardClient(url, 1, login=login)
    try:
        yield client
    finally:
        client.close()


def unauthorized(body: bytes = UNAUTHORIZED) -> bytes:
    """The response to a wrong login."""
    return response(body, 'WWW-Authenticate: Basic realm="dockyard"', status=401)


def write_keychain(tmp_path: Path, host: str) -> dict[str, str]:
    """Write Docker's config.json; return the environment that leads to it."""
    auth = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return {"DOCKER_CONFIG": str(tmp_path), "PATH": "/usr/bin:/bin"}


def test_the_login_is_sent_to_the_server() -> None:
    """With every request, so that the page has what it may pull."""
    with LoggingServer(lambda *_: response(PAGE, "Content-Type: application/json")) as server:
        with client_of(server.url, given_login("ann", PASSWORD)) as client:
            assert client.check() == {"up.test"}
        assert server.logins == [LOGIN]
        with client_of(server.url, NO_LOGIN) as client:
            client.check()
        assert server.logins == [LOGIN, ""]


def test_the_login_is_not_sent_to_where_a_response_redirects() -> None:
    """Such as a bucket, or another port of the same host."""
    with LoggingServer(lambda *_: response(PAGE, "Content-Type: application/json")) as other:
        redirect = response(b"", f"Location: {other.url}/", status=307)
        with (
            LoggingServer(lambda *_: redirect) as server,
            client_of(server.url, given_login("ann", PASSWORD)) as client,
        ):
            assert client.check() == {"up.test"}
            assert (server.logins, other.logins) == ([LOGIN], [""])


@pytest.mark.parametrize(
    ("origin", "may_be_read", "is_found"),
    [(HTTPS, False, True), (LOCAL, False, True), (HTTP, False, False), (HTTP, True, True)],
)
def test_the_keychain_has_the_login_of_the_server(
    tmp_path: Path,
    origin: Origin,
    may_be_read: bool,  # noqa: FBT001
    is_found: bool,  # noqa: FBT001
) -> None:
    """It is not sent without encryption to another machine, unless the user says so."""
    authority = origin.host if origin.scheme == "https" else f"{origin.host}:{origin.port}"
    environ = write_keychain(tmp_path, authority)
    login = find_login(origin, authority, environ, may_be_read=may_be_read)
    assert login.authorization == (LOGIN if is_found else "")
    assert PASSWORD not in repr(login)
    assert str(tmp_path) in login.cure
    if not is_found:
        assert "--insecure-login" in login.cure
    assert is_private(origin) == (origin != HTTP)


def test_the_login_of_another_server_is_not_used(tmp_path: Path) -> None:
    """Nor that of the same host with another port."""
    environ = write_keychain(tmp_path, "dockyard.example:5001")
    login = find_login(HTTPS, "dockyard.example", environ, may_be_read=False)
    assert login.authorization == ""
    assert "docker login dockyard.example" in login.cure


def test_a_keychain_that_cannot_be_read_is_no_failure(tmp_path: Path) -> None:
    """The server may need no login. If it does, the reason is shown."""
    (tmp_path / "config.json").write_text("{")
    login = find_login(HTTPS, "dockyard.example", {"DOCKER_CONFIG": str(tmp_path)}, may_be_read=False)
    assert login.authorization == ""
    assert "cannot be read" in login.cure


@pytest.mark.parametrize(
    ("login", "cure"),
    [
        (given_login("ann", PASSWORD), "the login is wrong: correct --username"),
        (ServerLogin("run `docker login x`"), "run `docker login x`"),
    ],
)
def test_a_refused_login_is_explained(login: ServerLogin, cure: str) -> None:
    """On the page, and for an image that needs one while others do not."""
    with (
        LoggingServer(lambda *_: unauthorized()) as server,
        client_of(server.url, login) as client,
        pytest.raises(PullError) as caught,
    ):
        client.check()
    assert caught.value.message.startswith(f"{server.url} requires a login ({cure}")
    assert PASSWORD not in str(caught.value)


def test_a_denial_is_explained() -> None:
    """With the reason of the rule."""
    denied = response(DENIED, status=403)
    with (
        LoggingServer(lambda *_: denied) as server,
        client_of(server.url, NO_LOGIN) as client,
        pytest.raises(PullError, match="admits no client from here"),
    ):
        client.check()


@pytest.mark.parametrize(
    ("server", "login", "error"),
    [
        ("http://dockyard.example:5000", ("ann", PASSWORD), "everybody on the way could read the password"),
        ("https://dockyard.example", ("a:n", PASSWORD), "must not contain a colon"),
        ("https://dockyard.example", ("ann", ""), "standard input is empty"),
    ],
)
def test_logins_that_cannot_be_used(server: str, login: tuple[str, str], error: str) -> None:
    """All are errors of the arguments; none shows the password."""
    with pytest.raises(ArgumentsError) as caught:
        parse_arguments(["x"], server, [], all_platforms=True, jobs=1, login=login)
    assert error in str(caught.value)
    assert PASSWORD not in str(caught.value)
    if "http:" in server:
        assert parse_arguments(["x"], server, [], all_platforms=True, jobs=1, login=login, may_be_read=True)


def pull(url: str, *words: str, stdin: str = "", **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "dockyard", "pull", "up.test/app", *words],
        env={"DOCKYARD_URL": url, "PATH": "/usr/bin:/bin", **environ},
        cwd=ROOT,
        text=True,
        input=stdin,
        capture_output=True,
        check=False,
    )


def test_the_command_reads_the_password_from_standard_input(tmp_path: Path) -> None:
    """And otherwise Docker's keychain; what fails is one line without the password."""

    def respond(path: str, login: str) -> bytes:
        if login != LOGIN:
            return unauthorized()
        page = response(PAGE, "Content-Type: application/json")
        return page if path == "/" else response(DENIED, status=403)

    with LoggingServer(respond) as server:
        authority = server.url.removeprefix("http://")
        denied = pull(server.url, "--username", "ann", "--password-stdin", stdin=f"{PASSWORD}\n")
        by_keychain = pull(server.url, **write_keychain(tmp_path, authority))
        without = pull(server.url)
        wrong = pull(server.url, "--username", "ann", "--password-stdin", stdin="other")
    for done in (denied, by_keychain):
        assert done.returncode == 1
        assert "403 DENIED: ask the team (ask the operator of that server" in done.stdout + done.stderr
    assert f"requires a login (run `docker login {authority}`" in without.stderr
    assert "the login is wrong" in wrong.stderr
    assert server.logins.count(LOGIN) >= 4
    for done in (denied, by_keychain, without, wrong):
        assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "words", [["--username", "ann"], ["--password-stdin"], ["--username", "ann", "--password-stdin", "--file", "-"]]
)
def test_options_that_do_not_go_together(words: list[str]) -> None:
    """Exit with status 2."""
    done = pull("http://127.0.0.1:9", *words, stdin="x")
    assert done.returncode == 2
    assert "stdin" in done.stderr
