"""What prevents a start is found without a start, and without writing anything."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from dockyard.check import start
from dockyard.cli import main
from dockyard.config.loader import load_all
from dockyard.preconditions import ServerLock
from dockyard.storage.directories import RUN, check_writable
from tests.support.processes import free_port

CANARY = "canary-77ab"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings that a server can start with: nothing exists yet."""
    return {
        "server": {"host": "127.0.0.1", "port": free_port()},
        "storage": {"directory": str(tmp_path / "cache" / "dockyard")},
        "upstreams": [{"prefix": "up.test", "registry": "up.test", "auth": {"type": "anonymous"}}],
    }


def check(tmp_path: Path, settings: Mapping[str, Any], *options: str, **environ: str) -> Result:
    """Run the command; the environment has nothing else."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    clean = dict.fromkeys(os.environ, None) | {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environ}
    return CliRunner(env=clean).invoke(main, ["check", "-c", str(path), *options])


def lines(result: Result, label: str) -> list[str]:
    """The texts of the lines with this label."""
    found = [line.split(None, 1) for line in result.stdout.splitlines()]
    return [words[1] for words in found if words[0] == label]


def everything_in(directory: Path) -> list[tuple[str, int]]:
    """All files and directories with their times."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in [directory, *directory.rglob("*")])


@contextlib.contextmanager
def listening(port: int = 0) -> Iterator[int]:
    """Another program on a port."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_can_start_passes_and_nothing_is_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The storage directory does not exist, and neither does it afterwards."""
    result = check(tmp_path, settings)

    assert (result.exit_code, lines(result, "error"), lines(result, "warning")) == (0, [], [])
    assert result.stdout.splitlines()[-1].startswith("dockyard: check passed: no errors, no warnings")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_a_directory_that_exists_is_not_changed(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Not even its time."""
    storage = Path(settings["storage"]["directory"])
    (storage / RUN).mkdir(parents=True)
    before = everything_in(tmp_path / "cache")

    assert check(tmp_path, settings).exit_code == 0

    assert everything_in(tmp_path / "cache") == before


def test_an_audit_log_that_cannot_be_opened_is_an_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    """One that can is not created."""
    audit = tmp_path / "audit.log"
    result = check(tmp_path, settings | {"access": {"audit": str(audit)}})
    assert (result.exit_code, audit.exists()) == (0, False)
    assert f"access.audit: {audit} can be written" in lines(result, "ok")

    audit.mkdir()
    result = check(tmp_path, settings | {"access": {"audit": str(audit)}})
    assert result.exit_code != 0
    assert [line for line in lines(result, "error") if line.startswith("access.audit")]


def test_all_problems_are_found_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Errors in the settings, the storage directory and the port; the exit status is that of the settings."""
    (tmp_path / "file").touch()
    settings["storage"] |= {"directory": str(tmp_path / "file"), "max_size": "50G"}
    settings["logger"] = {"level": "loud"}
    settings["upstreams"].append({"prefix": "ca.test", "registry": "ca.test", "ca_file": "/no/such"})
    with listening() as port:
        settings["server"]["port"] = port
        result = check(tmp_path, settings)

    errors = lines(result, "error")
    assert result.exit_code == 2
    assert len(errors) == 5
    for part in ("storage.max_size", "logger.level", "upstreams[1].ca_file", "storage.directory:", f"port {port}"):
        assert [error for error in errors if part in error], part
    assert result.stdout.splitlines()[-1].startswith("dockyard: check failed: 5 errors")


def test_what_is_wrong_in_the_settings_is_not_looked_at(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Its default would be checked instead."""
    settings["server"]["port"] = "http"
    settings["storage"]["directory"] = ""

    result = check(tmp_path, settings)

    assert result.exit_code == 2
    assert [line for line in result.stdout.splitlines() if "listened" in line or "5000 is in use" in line] == []


@pytest.mark.parametrize("text", ["server: [", "a: {b", "[]"])
def test_a_file_that_cannot_be_read_is_the_only_error(tmp_path: Path, text: str) -> None:
    """The defaults are not checked instead of it."""
    path = tmp_path / "config.yaml"
    path.write_text(text)

    result = CliRunner().invoke(main, ["check", "-c", str(path)])

    assert result.exit_code == 2
    assert len(lines(result, "error")) == 1


def test_a_port_of_another_program_is_an_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Status 1, and the message of the server."""
    with listening() as port:
        settings["server"]["port"] = port
        result = check(tmp_path, settings)

    assert result.exit_code == 1
    (error,) = lines(result, "error")
    assert error.startswith(f"server.port: port {port} of 127.0.0.1 is in use by")


def test_the_server_that_runs_is_a_note(tmp_path: Path, settings: dict[str, Any]) -> None:
    """It has the storage directory and the port; its lock stays as it is."""
    storage = Path(settings["storage"]["directory"])
    (storage / RUN).mkdir(parents=True)
    lock = ServerLock(storage)
    with listening() as port:
        settings["server"]["port"] = port
        result = check(tmp_path, settings)
    lock.release()

    assert (result.exit_code, lines(result, "error")) == (0, [])
    notes = lines(result, "note")
    assert (
        f"a Dockyard (process {os.getpid()}) runs with {storage}: a second one cannot start until it is stopped"
        in notes
    )
    assert f"server.port: port {port} is in use by the Dockyard that runs" in notes
    ServerLock(storage).release()


def test_a_port_that_the_server_does_not_have_is_an_error(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although a server runs with this storage directory: it has another port."""
    storage = Path(settings["storage"]["directory"])
    (storage / RUN).mkdir(parents=True)
    lock = ServerLock(storage)
    monkeypatch.setattr(start, "is_listening", lambda _pid, _port: False)
    with listening() as port:
        settings["server"]["port"] = port
        result = check(tmp_path, settings)
    lock.release()

    assert result.exit_code == 1
    assert f"port {port}" in lines(result, "error")[0]


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ('{"credHelpers": {"up.test": "no-such"}}', "docker-credential-no-such is not installed"),
        ('{"auths": ', "config.json is not a JSON object"),
        ('{"auths": {"up.test": {"auth": "%"}}}', "malformed"),
    ],
)
def test_a_keychain_that_does_not_work_is_a_warning(
    tmp_path: Path, settings: dict[str, Any], document: str, part: str
) -> None:
    """The server starts with it, and the upstream fails."""
    (tmp_path / "config.json").write_text(document)
    del settings["upstreams"][0]["auth"]

    result = check(tmp_path, settings, DOCKER_CONFIG=str(tmp_path))

    assert result.exit_code == 0
    (found,) = [text for text in lines(result, "warning") if text.startswith("an upstream has no login")]
    assert part in found
    assert "upstream=up.test" in found


def test_a_login_is_named_by_its_source(tmp_path: Path, settings: dict[str, Any]) -> None:
    """And is not shown; a credential helper is not run."""
    helper = tmp_path / "docker-credential-mark"
    helper.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    helper.chmod(0o755)
    keychain = {"credHelpers": {"up.test": "mark"}, "auths": {"two.test": {"auth": f"{CANARY}"}}}
    (tmp_path / "config.json").write_text(json.dumps(keychain))
    del settings["upstreams"][0]["auth"]

    result = check(tmp_path, settings, DOCKER_CONFIG=str(tmp_path), PATH=str(tmp_path))

    assert (result.exit_code, CANARY in result.output) == (0, False)
    assert [note for note in lines(result, "note") if "docker-credential-mark" in note]
    assert not (tmp_path / "was-run").exists()


def test_warnings_of_the_start_are_shown(tmp_path: Path, settings: dict[str, Any]) -> None:
    """As the server logs them; they do not change the exit status."""
    settings["upstreams"][0]["insecure_skip_verify"] = True

    result = check(tmp_path, settings, HTTPS_PROXY=f"http://u:{CANARY}@proxy.test")

    assert result.exit_code == 0
    assert "the TLS certificate of an upstream is not verified (upstream=up.test)" in lines(result, "warning")
    assert [warning for warning in lines(result, "warning") if "HTTPS_PROXY" in warning]
    assert CANARY not in result.output


def test_few_open_files_are_a_warning(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the number of connections that are left."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 1024))

    (warning,) = lines(check(tmp_path, settings), "warning")

    assert "the hard limit is 1024, which is enough for 190 connections" in warning


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Run as an ordinary user: root may write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_directory_without_permission_is_an_error(settings: dict[str, Any]) -> None:
    """It is the nearest one that exists."""
    with without_root(), TemporaryDirectory() as name:  # that of pytest is for root only
        directory = Path(name)
        (directory / "cache").mkdir(mode=0o500)
        settings["storage"]["directory"] = str(directory / "cache" / "dockyard")

        result = check(directory, settings)

    assert result.exit_code == 1
    assert lines(result, "error")[0].startswith("storage.directory: cannot write")


@pytest.mark.parametrize("name", ["here", "here/not/yet"])
def test_a_directory_without_unnamed_files_is_checked_by_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """NFS and older overlay file systems have no O_TMPFILE."""
    (tmp_path / "here").mkdir()

    def refuse(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "open", refuse)
    check_writable(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(PermissionError):
        check_writable(tmp_path / name)


def test_settings_are_loaded_as_far_as_they_are_valid(tmp_path: Path) -> None:
    """With the errors, by key."""
    path = tmp_path / "c.yaml"
    path.write_text("server: {port: x, workers: 3}\nupstreams: [{prefix: a.test, registry: a.test}, {prefix: B}]")

    loaded = load_all(path, {"HOME": "/nonexistent"})

    assert loaded.settings.server.workers == 3
    assert [loaded.is_wrong(key) for key in ("server.port", "server.workers", "server", "storage")] == [
        *(True, False, True, False)
    ]
    assert [upstream.prefix for upstream in loaded.usable_upstreams] == ["a.test"]
