"""Docker's keychain: which file, which entry, which helper."""

import base64
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from dockyard.errors import Unavailable
from dockyard.upstream.credential_helper import HelperFailed, HelperLogin, run_helper
from dockyard.upstream.errors import Cause, UpstreamError
from dockyard.upstream.keychain import ANONYMOUS, FOUND_FOR_S, NOT_FOUND_FOR_S, Credential, Keychain
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.upstreams import error_text, together

SECRET = "s3cret"
HUB = "registry-1.docker.io"
HUB_KEY = "https://index.docker.io/v1/"


def login(username: str) -> dict[str, str]:
    """An entry that differs from all others."""
    return {"auth": base64.b64encode(f"{username}:s3cret".encode()).decode()}


def write(path: Path, document: object) -> Path:
    """A file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def user_of(document: object, host: str, repository: str, directory: Path) -> str:
    """Who is logged in."""
    write(directory / "config.json", document)
    return Keychain({"DOCKER_CONFIG": str(directory)}).credential_for(host, repository).username


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Helpers:
    """Helpers in a directory of their own: what they print comes from a file, each run is noted with its question."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ: Mapping[str, str] = {"DOCKER_CONFIG": str(directory), "PATH": f"{directory}:/usr/bin:/bin"}

    def install(self, name: str, username: str = "ann", status: int = 0, *, secret: str = SECRET) -> None:
        answer = self.directory / f"{name}.answer"
        answer.write_text(json.dumps({"ServerURL": "x", "Username": username, "Secret": secret}))
        self.program(
            name,
            f"cat > {self.directory}/last; cat {self.directory}/last >> {self.directory}/{name}.runs\n"
            f"echo >> {self.directory}/{name}.runs; cat {answer}; exit {status}",
        )

    def program(self, name: str, script: str) -> None:
        path = self.directory / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def asked(self, name: str) -> list[str]:
        path = self.directory / f"{name}.runs"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    """Give a place for helpers, which is also where `config.json` is."""
    return Helpers(tmp_path)


# Which entry


@pytest.mark.parametrize(
    ("keys", "host", "found"),
    [
        (["ghcr.io"], "ghcr.io", "ghcr.io"),
        (["ghcr.io"], "other.test", ""),
        (["ghcr.io"], "ghcr.io:8443", ""),
        (["ghcr.io:8443", "ghcr.io"], "ghcr.io:8443", "ghcr.io:8443"),
        (["https://ghcr.io"], "ghcr.io", "https://ghcr.io"),
        (["https://ghcr.io/v1/"], "ghcr.io", "https://ghcr.io/v1/"),
        (["ghcr.io/v2/"], "ghcr.io", "ghcr.io/v2/"),
        (["https://ghcr.io/v1/", "ghcr.io"], "ghcr.io", "ghcr.io"),
        (["ghcr.io/org"], "ghcr.io", "ghcr.io/org"),
        (["ghcr.io/org/app", "ghcr.io/org", "ghcr.io"], "ghcr.io", "ghcr.io/org/app"),
        (["ghcr.io/org/ap", "ghcr.io"], "ghcr.io", "ghcr.io"),
        (["ghcr.io/other"], "ghcr.io", ""),
        ([HUB_KEY], HUB, HUB_KEY),
        ([HUB_KEY], "index.docker.io", HUB_KEY),
        ([HUB_KEY], "docker.io", HUB_KEY),
        ([HUB_KEY], "registry.hub.docker.com", HUB_KEY),
        (["docker.io"], HUB, "docker.io"),
        (["docker.io/org"], HUB, "docker.io/org"),
        (["index.docker.io/v1/"], HUB, "index.docker.io/v1/"),
        ([HUB_KEY], "docker.io.evil.test", ""),
    ],
)
def test_the_most_specific_entry_is_found(tmp_path: Path, keys: list[str], host: str, found: str) -> None:
    """By repository, by host, by the host in a URL; Docker Hub under all its names."""
    document = {"auths": {key: login(key.replace(":", ";")) for key in keys}}
    assert user_of(document, host, "org/app", tmp_path) == found.replace(":", ";")


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        (login("ann"), Credential("ann", "s3cret")),
        ({"auth": base64.b64encode(b"ann:a:b\0\0").decode()}, Credential("ann", "a:b")),
        ({"auth": base64.b64encode(b"ann:pw").decode().rstrip("=")}, Credential("ann", "pw")),
        ({"auth": base64.b64encode("ann:pä€".encode()).decode() + "\n"}, Credential("ann", "pä€")),
        ({"username": "ann", "password": "pw"}, Credential("ann", "pw")),
        ({**login("ann"), "username": "bob", "password": "pw"}, Credential("ann", "s3cret")),
        ({**login("ann"), "identitytoken": "id"}, Credential("ann", "s3cret", "id")),
        ({"registrytoken": "rt"}, Credential("", "", "", "rt")),
        ({}, ANONYMOUS),
        ({"auth": ""}, ANONYMOUS),
    ],
)
def test_an_entry_becomes_a_credential(tmp_path: Path, entry: dict[str, str], credential: Credential) -> None:
    """As docker login, podman login and Kubernetes write them."""
    write(tmp_path / "config.json", {"auths": {"r.test": entry}})
    assert Keychain({"DOCKER_CONFIG": str(tmp_path)}).credential_for("r.test", "a") == credential


@pytest.mark.parametrize(
    "document",
    [
        "",
        "not json",
        "[]",
        "[" * 100_000,
        {"auths": []},
        {"auths": {"r.test": "s3cret"}},
        {"auths": {"r.test": {"auth": "s3cret!"}}},
        {"auths": {"r.test": {"auth": base64.b64encode(b":s3cret").decode()}}},
        {"auths": {"r.test": {"auth": base64.b64encode(b"s3cret").decode()}}},
        {"auths": {"r.test": {"username": ["s3cret"]}}},
        {"credHelpers": []},
        {"credsStore": 5},
        " " * (1024 * 1024 + 1),
    ],
)
def test_a_file_that_makes_no_sense_is_an_error(tmp_path: Path, document: object) -> None:
    """Not an anonymous pull; and the error does not quote it."""
    write(tmp_path / "config.json", document)
    with pytest.raises(UpstreamError) as caught:
        Keychain({"DOCKER_CONFIG": str(tmp_path)}).credential_for("r.test", "a")
    assert isinstance(caught.value.error, Unavailable)
    assert caught.value.cause is Cause.NOT_COUNTED
    assert "s3cret" not in error_text(caught.value)
    assert str(tmp_path) not in caught.value.error.message


def test_a_credential_shows_nothing() -> None:
    """Whatever it holds."""
    assert "s3cret" not in repr(Credential("s3cret-1", "s3cret-2", "s3cret-3", "s3cret-4"))


# Which file


def test_the_first_file_that_is_there_counts(tmp_path: Path) -> None:
    """DOCKER_CONFIG or the home directory, REGISTRY_AUTH_FILE, then podman's places."""
    places = {
        "docker": tmp_path / "docker/config.json",
        "home": tmp_path / "home/.docker/config.json",
        "file": tmp_path / "file.json",
        "runtime": tmp_path / "run/containers/auth.json",
        "podman": tmp_path / "home/.config/containers/auth.json",
    }
    environ = {
        "HOME": str(tmp_path / "home"),
        "REGISTRY_AUTH_FILE": str(places["file"]),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
    }
    for name, path in places.items():
        write(path, {"auths": {"r.test": login(name)}})
    assert (
        Keychain({**environ, "DOCKER_CONFIG": str(tmp_path / "docker")}).credential_for("r.test", "a").username
        == "docker"
    )
    keychain = Keychain(environ)
    for name in ("home", "file", "runtime", "podman"):
        assert keychain.credential_for("r.test", "a").username == name
        places[name].unlink()
    assert keychain.credential_for("r.test", "a") == ANONYMOUS
    assert Keychain({}).credential_for("r.test", "a") == ANONYMOUS


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Also when a symlink is swapped, as Kubernetes does."""
    keychain = Keychain({"DOCKER_CONFIG": str(tmp_path)})
    path = write(tmp_path / "config.json", {"auths": {"r.test": login("one")}})
    assert keychain.credential_for("r.test", "a").username == "one"
    write(path, {"auths": {"r.test": login("three")}})
    assert keychain.credential_for("r.test", "a").username == "three"
    write(tmp_path / "next", {"auths": {"r.test": login("four!")}})
    os.utime(tmp_path / "next", ns=(path.stat().st_mtime_ns,) * 2)
    path.unlink()
    path.symlink_to(tmp_path / "next")
    assert keychain.credential_for("r.test", "a").username == "four!"


# Which helper


@pytest.mark.parametrize(
    ("document", "host", "asked"),
    [
        ({"credHelpers": {"r.test": "ours"}}, "r.test", ["r.test"]),
        ({"credHelpers": {"other.test": "ours"}}, "r.test", []),
        ({"credsStore": "ours"}, "r.test", ["r.test"]),
        ({"credHelpers": {"r.test": "ours"}, "credsStore": "missing"}, "r.test", ["r.test"]),
        ({"credsStore": "ours"}, HUB, [HUB_KEY]),
        ({"credHelpers": {HUB_KEY: "ours"}}, HUB, [HUB_KEY]),
        ({"credHelpers": {"docker.io": "ours"}}, HUB, [HUB_KEY]),
        ({"credHelpers": {HUB: "ours"}}, HUB, [HUB]),
        ({"credHelpers": {"r.test": "ours"}}, "r.test:5000", []),
    ],
)
def test_the_helper_of_a_host_is_run(helpers: Helpers, document: object, host: str, asked: list[str]) -> None:
    """Its own before the one for all, and by the name that docker login would have used."""
    helpers.install("ours")
    write(helpers.directory / "config.json", document)
    credential = Keychain(helpers.environ).credential_for(host, "a")
    assert credential == (Credential("ann", "s3cret") if asked else ANONYMOUS)
    assert helpers.asked("ours") == asked


def test_a_helper_wins_over_the_file(helpers: Helpers) -> None:
    """But a registrytoken in the file stays."""
    helpers.install("ours")
    document = {"auths": {"r.test": {**login("file"), "registrytoken": "rt"}}, "credsStore": "ours"}
    write(helpers.directory / "config.json", document)
    assert Keychain(helpers.environ).credential_for("r.test", "a") == Credential("ann", "s3cret", "", "rt")


def test_a_helper_may_give_an_identity_token(helpers: Helpers) -> None:
    """Its user name is `<token>` then."""
    helpers.install("ours", username="<token>", secret="refresh")
    write(helpers.directory / "config.json", {"credsStore": "ours"})
    credential = Keychain(helpers.environ).credential_for("r.test", "a")
    assert (credential.identity_token, credential.password) == ("refresh", "")


def test_what_a_helper_said_is_kept_for_a_while(helpers: Helpers) -> None:
    """One run for all who ask at once, and one per five minutes."""
    helpers.install("ours")
    write(helpers.directory / "config.json", {"credsStore": "ours"})
    clock = Clock()
    keychain = Keychain(helpers.environ, clock)
    together(20, lambda: keychain.credential_for("r.test", "a"))
    clock.now += FOUND_FOR_S - 1
    keychain.credential_for("r.test", "b")
    assert len(helpers.asked("ours")) == 1
    clock.now += 2
    keychain.credential_for("r.test", "a")
    assert len(helpers.asked("ours")) == 2


def test_a_failure_is_kept_for_a_shorter_while(helpers: Helpers) -> None:
    """Half a minute."""
    helpers.install("ours", status=3)
    write(helpers.directory / "config.json", {"credsStore": "ours"})
    clock = Clock()
    keychain = Keychain(helpers.environ, clock)
    for _ in range(3):
        with pytest.raises(UpstreamError, match="failed"):
            keychain.credential_for("r.test", "a")
    assert len(helpers.asked("ours")) == 1
    clock.now += NOT_FOUND_FOR_S + 1
    helpers.install("ours")
    assert keychain.credential_for("r.test", "a").username == "ann"


def test_a_changed_file_forgets_what_helpers_said(helpers: Helpers) -> None:
    """A change takes effect without a restart."""
    helpers.install("ours")
    write(helpers.directory / "config.json", {"credsStore": "ours"})
    keychain = Keychain(helpers.environ)
    keychain.credential_for("r.test", "a")
    write(helpers.directory / "config.json", {"credsStore": "ours", "auths": {}})
    keychain.credential_for("r.test", "a")
    assert len(helpers.asked("ours")) == 2


def test_a_rejected_login_is_requested_anew(helpers: Helpers) -> None:
    """Once for all who were refused, and not again at once when nothing newer comes."""
    helpers.install("ours", secret="old")
    write(helpers.directory / "config.json", {"credsStore": "ours"})
    clock = Clock()
    keychain = Keychain(helpers.environ, clock)
    old = keychain.credential_for("r.test", "a")
    assert keychain.renew("r.test", "a", old) == old
    assert keychain.renew("r.test", "a", old) == old
    assert len(helpers.asked("ours")) == 2
    clock.now += NOT_FOUND_FOR_S + 1
    helpers.install("ours", secret="new")
    assert set(together(10, lambda: keychain.renew("r.test", "a", old).password)) == {"new"}
    assert len(helpers.asked("ours")) == 3


def test_who_waits_for_a_slow_helper_waits_no_longer_than_it_may(helpers: Helpers) -> None:
    """The helper continues meanwhile, and the next call gets its result."""
    fifo = helpers.directory / "gate"
    os.mkfifo(fifo)
    helpers.program("slow", f"cat {fifo}")
    write(helpers.directory / "config.json", {"credsStore": "slow"})
    keychain = Keychain(helpers.environ)
    begun = time.monotonic()
    with pytest.raises(UpstreamError, match="too long"):
        keychain.credential_for("r.test", "a", 0.1)
    assert is_within(time.monotonic() - begun, 1)
    fifo.write_text(json.dumps({"Username": "ann", "Secret": "s3cret"}))
    assert keychain.credential_for("r.test", "a", 5.0).username == "ann"


ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"


@pytest.mark.parametrize(
    ("host", "is_error"), [(ECR, True), ("public.ecr.aws", True), ("r.test", False), ("123.dkr.ecr.x.test", False)]
)
def test_the_ecr_helper_says_not_found_whatever_went_wrong(helpers: Helpers, host: str, is_error: bool) -> None:  # noqa: FBT001
    """So for its own hosts that is an error, which says where the reason is."""
    helpers.program("ecr-login", "echo credentials not found in native keychain; exit 1")
    write(helpers.directory / "config.json", {"credHelpers": {host: "ecr-login"}})
    keychain = Keychain(helpers.environ)
    if not is_error:
        assert keychain.credential_for(host, "a") == ANONYMOUS
        return
    with pytest.raises(UpstreamError, match=r"ecr-login\.log"):
        keychain.credential_for(host, "a")


# Running one


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a;b", "a b", "é", ".", "a" * 200])
def test_a_helper_has_a_plain_name(helpers: Helpers, name: str) -> None:
    """Nothing that a path or a shell would understand."""
    with pytest.raises(HelperFailed, match="malformed"):
        run_helper(name, "r.test", helpers.environ)


def test_a_helper_sees_our_environment_and_no_shell(helpers: Helpers) -> None:
    """What was passed in, and the server as one line."""
    helpers.program("env", """read server; echo "{\\"Username\\":\\"$WHO\\",\\"Secret\\":\\"$server\\"}" """)
    environ = {**helpers.environ, "WHO": "ann"}
    assert run_helper("env", "r.test;$(id)", environ) == HelperLogin("ann", "r.test;$(id)")


def test_a_helper_that_hangs_is_killed_with_its_children(helpers: Helpers) -> None:
    """The whole process group, and in time."""
    helpers.program("hangs", f"sleep 60 & echo $! > {helpers.directory}/child; wait")
    begun = time.monotonic()
    with pytest.raises(HelperFailed, match="too long"):
        run_helper("hangs", "r.test", helpers.environ, timeout_s=0.5)
    assert is_within(time.monotonic() - begun, 4)
    child = int((helpers.directory / "child").read_text())
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # until its parent, init, has reaped it


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
