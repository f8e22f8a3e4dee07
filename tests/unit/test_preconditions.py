"""What prevents the start, and what is logged at the start because it is probably not intended."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockyard.access.jwks import KEY_FILE_PROBLEM
from dockyard.config.loader import load
from dockyard.config.settings import StorageSettings
from dockyard.preconditions import CannotStart, find_listen_address, find_start_warnings, open_run_directory
from tests.support.processes import free_port
from tests.support.token_issuer import TokenIssuer, key_set

NOBODY = 65534
PRIVILEGED_PORT = 81


@pytest.fixture
def ordinary_user() -> Iterator[int]:
    """Root becomes an ordinary user meanwhile."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield os.geteuid()
    os.seteuid(user)


def reason(host: str, port: int) -> str:
    """Why the server does not start."""
    with pytest.raises(CannotStart) as caught:
        find_listen_address(host, port)
    return str(caught.value)


@pytest.mark.parametrize(
    ("host", "registry", "count"),
    [
        ("", "localhost:5000", 1),
        ("", "http://127.0.0.1:5000/docker.io", 1),
        ("", "http://[::1]:5000", 1),
        ("", f"http://{socket.gethostname().upper()}:5000", 1),
        ("", "localhost:5001", 0),
        ("", "http://192.0.2.1:5000", 0),  # of no machine (RFC 5737)
        ("", "http://region:5000/docker.io", 0),
        ("127.0.0.1", "localhost:5000", 1),
        ("192.0.2.1", "http://192.0.2.1:5000", 1),
        ("192.0.2.1", "localhost:5000", 0),  # another server may listen there
        ("Rack.example", "https://rack.example:5000", 1),
    ],
)
def test_an_upstream_that_is_the_server_itself(tmp_path: Path, host: str, registry: str, count: int) -> None:
    """It is a warning, with the prefix and the address; nothing is looked up or connected to."""
    config = tmp_path / "config.yaml"
    upstream = f'{{prefix: up.test, registry: "{registry}", auth: {{type: anonymous}}}}'
    config.write_text(f'server: {{host: "{host}"}}\nupstreams: [{upstream}]')
    found = [each for each in find_start_warnings(load(config, {}), {}) if "this server itself" in each.event]
    assert len(found) == count
    assert all(each.fields["upstream"] == "up.test" for each in found)


def test_a_privileged_port_is_explained(ordinary_user: int) -> None:
    """With all ways to use it, and the one that needs no privilege first."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= PRIVILEGED_PORT:
        pytest.skip("every user may listen on every port here")
    assert reason("127.0.0.1", PRIVILEGED_PORT) == (
        f"server.port: 127.0.0.1:81: Permission denied: ports below 1024 are not for uid {ordinary_user}: set "
        "server.port to 1024 or more, or give the process CAP_NET_BIND_SERVICE (systemd: "
        "AmbientCapabilities=CAP_NET_BIND_SERVICE), or set the sysctl net.ipv4.ip_unprivileged_port_start to 81"
    )
    assert reason("", PRIVILEGED_PORT).startswith("server.port: all addresses, port 81: Permission denied")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_process_that_uses_the_port_is_named(family: int, host: str) -> None:
    """With its id and its name."""
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()

        assert reason(host, port) == (
            f"server.port: port {port} of {host} is in use by process {os.getpid()} ({name}): stop it, or set "
            "server.port to another port"
        )
        assert f"server.port: port {port} is in use by process {os.getpid()} " in reason("", port)


def test_an_address_of_another_machine_is_named() -> None:
    """192.0.2.0/24 is for documentation."""
    text = reason("192.0.2.1", free_port())

    assert text.startswith("server.host: 192.0.2.1 is not an address of this machine")
    assert "leave it empty to listen on all addresses" in text


def test_a_name_that_cannot_be_resolved_is_named() -> None:
    """With the reason of the resolver."""
    assert reason("no-such-host.invalid", free_port()).startswith("server.host: cannot resolve no-such-host.invalid: ")


# Logins that are missing

NO_LOGIN = "an upstream has no login: log in with `docker login` as the user of this server, or correct auth"
PRIVATE, EXPLICIT = "private.example", "{type: keychain}"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("registry", "auth", "keychain", "reason"),
    [
        (PRIVATE, EXPLICIT, None, "there is no keychain file ({file}"),
        (PRIVATE, EXPLICIT, {}, "{file} has no login for private.example"),
        (PRIVATE, EXPLICIT, {"auths": {"other.example": {"auth": "dTpw"}}}, "{file} has no login for private.example"),
        (PRIVATE, "{}", {"credHelpers": {PRIVATE: "missing"}}, "docker-credential-missing is not installed"),
        (PRIVATE, "{}", [], "is not a JSON object"),
        (ECR, "{}", None, "there is no keychain file"),
        # a login, or none that is expected
        (PRIVATE, EXPLICIT, {"auths": {PRIVATE: {"auth": "dTpw"}}}, None),
        (PRIVATE, EXPLICIT, {"credHelpers": {PRIVATE: "there"}}, None),
        (PRIVATE, "{}", None, None),
        (PRIVATE, "{}", {}, None),
        (PRIVATE, "{type: anonymous}", [], None),
        (PRIVATE, "{type: bearer, password: x}", None, None),
        ("public.ecr.aws", "{}", None, None),
    ],
)
def test_a_login_that_is_missing_is_reported_where_one_is_expected(
    tmp_path: Path, registry: str, auth: str, keychain: object, reason: str | None
) -> None:
    """Because the settings name the keychain, or because no request to the registry can succeed."""
    file = tmp_path / "config.json"
    if keychain is not None:
        file.write_text(json.dumps(keychain))
    program = tmp_path / "docker-credential-there"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    config = tmp_path / "config.yaml"
    config.write_text(f"upstreams: [{{prefix: a.test, registry: {registry}, auth: {auth}}}]")
    environ = {"DOCKER_CONFIG": str(tmp_path), "PATH": str(tmp_path)}
    warnings = [found for found in find_start_warnings(load(config, environ), environ) if found.event == NO_LOGIN]

    assert len(warnings) == (reason is not None)
    for warning in warnings:
        assert (warning.fields["upstream"], warning.fields["registry"]) == ("a.test", registry)
        assert (reason or "").format(file=file) in str(warning.fields["reason"])


@pytest.mark.parametrize(
    ("auth", "keychain", "warns"),
    [
        ("{type: basic, username: u, password: x}", None, True),
        ("{}", {"auths": {PRIVATE: {"auth": "dTpw"}}}, True),
        ("{}", {"auths": {"other.test": {"auth": "dTpw"}}}, False),
        ("{}", None, False),
        ("{type: anonymous}", {"auths": {PRIVATE: {"auth": "dTpw"}}}, False),
    ],
)
def test_credentials_that_every_client_uses_are_reported_where_there_are_some(
    tmp_path: Path, auth: str, keychain: object, *, warns: bool
) -> None:
    """A keychain without a login for the registry has none."""
    if keychain is not None:
        (tmp_path / "config.json").write_text(json.dumps(keychain))
    config = tmp_path / "config.yaml"
    config.write_text(f"upstreams: [{{prefix: a.test, registry: {PRIVATE}, auth: {auth}}}]")
    environ = {"DOCKER_CONFIG": str(tmp_path)}

    found = [
        warning.fields
        for warning in find_start_warnings(load(config, environ), environ)
        if "upstreams" in warning.fields
    ]

    assert found == ([{"upstreams": ["a.test"]}] if warns else [])


def test_the_directory_above_a_new_storage_directory_is_explained(request: pytest.FixtureRequest) -> None:
    """It is the one that refuses."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory of another user")
    above = Path(tempfile.mkdtemp(prefix="dockyard-"))
    request.addfinalizer(above.rmdir)
    above.chmod(0o755)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(CannotStart, match=f"Permission denied: {above} belongs to uid 0 "):
        open_run_directory(StorageSettings(directory=above / "new"))


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o500])
def test_a_storage_directory_of_another_user_is_explained(request: pytest.FixtureRequest, mode: int) -> None:
    """The directory, its owner, the user of this process and the cure: as for a directory mounted into a container."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory of another user")
    storage = Path(tempfile.mkdtemp(prefix="dockyard-"))  # everybody may enter the directories above
    request.addfinalizer(storage.rmdir)
    storage.chmod(mode)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(CannotStart) as caught:
        open_run_directory(StorageSettings(directory=storage))
    assert str(caught.value) == (
        f"storage.directory: cannot write {storage}: Permission denied: {storage} belongs to uid 0 (root) and gid 0 "
        f"(root), mode {mode:04o}, and this process runs as uid {NOBODY} (nobody): change its owner or mode, or "
        "set storage.directory"
    )


@pytest.mark.parametrize("is_usable", [False, True])
def test_a_file_without_usable_keys_is_reported(tmp_path: Path, *, is_usable: bool) -> None:
    """It is a key set, and admits nobody all the same."""
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(TokenIssuer().jwk(use="sig" if is_usable else "enc")))
    config = tmp_path / "config.yaml"
    config.write_text(f"access: {{jwt: [{{name: ci, issuer: https://a.test, audience: b, jwks: {keys}}}]}}")

    found = [each.fields for each in find_start_warnings(load(config, {}), {}) if each.event == KEY_FILE_PROBLEM]

    problem = {"issuer": "ci", "path": str(keys), "reason": "has no public key for signatures"}
    assert found == ([] if is_usable else [problem])


# Upstreams with credentials that everybody can use

OPEN = "clients are not authenticated: everyone who reaches this server can pull from upstreams with credentials"
PRIVATE_UPSTREAMS = "upstreams: [{prefix: %s, registry: private.example, auth: {type: bearer, password: x}%s}]\n"


@pytest.mark.parametrize(
    ("upstream", "access", "is_open"),
    [
        ("", "", True),
        (", access: upstream", "", False),
        (
            "",
            "access: {rules: [{allow: true, who: [network:office]}], networks: [{name: office, addresses: ['::1']}]}",
            False,
        ),
        ("", "access: {rules: [{allow: false}]}", False),
        ("", "access: {rules: [{allow: true, repositories: ['a.test/public/*']}]}", True),
        ("", "access: {rules: [{allow: false, who: [anonymous]}, {allow: true}]}", False),
        ("", "access: {dry_run: true, rules: [{allow: false}]}", True),
    ],
)
def test_upstreams_with_credentials_that_everybody_can_use_are_reported(
    tmp_path: Path, upstream: str, access: str, *, is_open: bool
) -> None:
    """Rules and the upstream itself may restrict that."""
    config = tmp_path / "config.yaml"
    config.write_text(PRIVATE_UPSTREAMS % ("a.test", upstream) + access)
    found = [warning for warning in find_start_warnings(load(config, {}), {}) if warning.event == OPEN]

    assert [warning.fields for warning in found] == ([{"upstreams": ["a.test"]}] if is_open else [])
