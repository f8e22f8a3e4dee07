"""The commands: output, exit status and help."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from dockyard import __version__
from dockyard.cli import main
from dockyard.config.loader import load
from dockyard.config.settings import Settings
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.paths import ROOT
from tests.support.processes import free_port

CANARY = "canary-5d20"


@pytest.fixture
def runner() -> CliRunner:
    """Runs commands with a clean environment."""
    return CliRunner(env={"DOCKYARD_CONFIG": None, "SERVER_PORT": None, "DOCKYARD_SERVER_PORT": None})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that servers were started with; each returns status 7 at once."""
    started: list[Settings] = []

    def run(settings: Settings) -> int:
        started.append(settings)
        return 7

    fake = ModuleType("dockyard.supervisor")
    fake.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dockyard.supervisor", fake)
    return started


def write(path: Path, text: str) -> str:
    """Write a file; return its path as an argument."""
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_server_runs_with_the_settings_of_the_file(
    runner: CliRunner, served: list[Settings], tmp_path: Path
) -> None:
    """The option is `-c`; the exit status is that of the server."""
    result = runner.invoke(main, ["server", "-c", write(tmp_path / "c.yaml", "server: {port: 81}")])

    assert result.exit_code == 7
    assert [settings.server.port for settings in served] == [81]


def test_the_server_runs_without_a_file(runner: CliRunner, served: list[Settings]) -> None:
    """With the defaults and the environment."""
    runner.invoke(main, ["server"], env={"SERVER_PORT": "82"})

    assert [settings.server.port for settings in served] == [82]


def test_the_environment_may_contain_the_path(runner: CliRunner, served: list[Settings], tmp_path: Path) -> None:
    """DOCKYARD_CONFIG is used when there is no `-c`."""
    runner.invoke(main, ["server"], env={"DOCKYARD_CONFIG": write(tmp_path / "c.yaml", "server: {port: 83}")})

    assert [settings.server.port for settings in served] == [83]


def test_options_take_precedence_over_the_environment_and_the_file(
    runner: CliRunner, served: list[Settings], tmp_path: Path
) -> None:
    """The host, the port and the level of the log."""
    path = write(tmp_path / "c.yaml", "server: {host: a.test, port: 81}\nlogger: {level: warn}")
    options = ["--host", "127.0.0.1", "--port", "83", "--log-level", "debug"]

    runner.invoke(main, ["server", "-c", path, *options], env={"SERVER_PORT": "82", "LOGGER_LEVEL": "error"})

    (settings,) = served
    assert (settings.server.host, settings.server.port, settings.logger.level) == ("127.0.0.1", 83, "debug")


def test_errors_name_the_option(runner: CliRunner) -> None:
    """As they name a variable or a line."""
    result = runner.invoke(main, ["config", "--port", "0", "--host", "a b", "--log-level", "loud"])

    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0] == "dockyard: 3 errors in the settings:"
    assert {line.rpartition(" (")[2] for line in lines[1:]} == {
        "option --port)",
        "option --host)",
        "option --log-level)",
    }
    assert any(line.startswith('  server.port = "0": must be from 1 to 65535') for line in lines)


@pytest.mark.parametrize("command", ["config", "server"])
def test_settings_may_come_from_standard_input(runner: CliRunner, served: list[Settings], command: str) -> None:
    """`-c -`; an error names the standard input and the line."""
    good = runner.invoke(main, [command, "-c", "-"], input="server:\n  port: 85\n")
    bad = runner.invoke(main, [command, "-c", "-"], input="server:\n  port: 0\n")

    if command == "server":
        assert [settings.server.port for settings in served] == [85]
    else:
        assert "port: 85" in good.stdout
    assert bad.exit_code == 2
    assert "(standard input:2)" in bad.stderr


def test_a_file_may_be_called_like_the_standard_input(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a directory before its name."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "-", "server: {port: 86}")

    assert "port: 86" in runner.invoke(main, ["config", "-c", "./-"], input="server: {port: 87}").stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["sever"], "Did you mean server?"),
        (["servers", "--port", "1"], "Did you mean server?"),
        (["nginx"], "The commands are"),
        (["server", "--prot", "1"], "--port"),
        (["config", "--conf", "x"], "--config"),
    ],
)
def test_unknown_commands_and_options_get_the_nearest(runner: CliRunner, arguments: list[str], hint: str) -> None:
    """With exit status 2."""
    result = runner.invoke(main, arguments)

    assert result.exit_code == 2
    assert hint in result.stderr


@pytest.mark.parametrize("command", ["server", "config"])
def test_errors_in_settings_exit_with_status_2(
    runner: CliRunner, served: list[Settings], tmp_path: Path, command: str
) -> None:
    """All of them are printed to stderr, one per line, and no server is started."""
    path = write(tmp_path / "c.yaml", "server:\n  port: 0\n  prot: 1\n")

    result = runner.invoke(main, [command, "-c", path])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "dockyard: 2 errors in the settings:\n"
        f"  server.prot: unknown key; did you mean server.port? ({path}:3)\n"
        f'  server.port = "0": must be from 1 to 65535 ({path}:2)\n'
    )
    assert served == []


def test_one_error_is_not_reported_in_the_plural(runner: CliRunner) -> None:
    """Such as a missing file."""
    result = runner.invoke(main, ["config", "-c", "/no/such.yaml"])

    assert result.exit_code == 2
    assert result.stderr == (
        "dockyard: 1 error in the settings:\n"
        "  /no/such.yaml: cannot be read: No such file or directory; name a YAML file that exists with `-c`, "
        "or none for the defaults\n"
    )


def test_config_prints_settings_that_can_be_loaded(runner: CliRunner, tmp_path: Path) -> None:
    """Those of the file and of the environment, as one file."""
    path = write(tmp_path / "c.yaml", "upstream: {check_timeout: 7s}")
    environ = {"SERVER_PORT": "84", "HOME": "/home/someone", "XDG_CACHE_HOME": None}

    result = runner.invoke(main, ["config", "-c", path], env=environ)

    assert result.exit_code == 0
    shown = load(Path(write(tmp_path / "shown.yaml", result.stdout)), {})
    assert (shown.server.port, shown.upstream.check_timeout) == (84, 7.0)
    assert shown.storage.directory == Path("/home/someone/.cache/dockyard")


def test_config_prints_rules_that_can_be_loaded(runner: CliRunner, tmp_path: Path) -> None:
    """Lists of sections in a section too, with the same meaning. Of the file of users, its path."""
    users = write(tmp_path / "users", f"alice:$2y$04${CANARY.replace('-', 'x') + 'a' * 42}\n")
    path = write(
        tmp_path / "c.yaml",
        f"""\
access:
  htpasswd: {users}
  jwt: [{{name: ci, issuer: i, audience: a, jwks: https://a.example/keys, groups_claim: /a/b}}]
  networks: [{{name: office, addresses: [10.0.0.0/8, "::1"]}}]
  groups: [{{name: staff, members: [alice, "ci:*"]}}]
  rules:
    - {{allow: false, repositories: ["**/secret"], who: [anonymous], reason: "no: secret", hide: true}}
    - {{allow: true, who: ["group:ci:a*", "network:office"], actions: [pull, list]}}
""",
    )
    result = runner.invoke(main, ["config", "-c", path])

    assert (result.exit_code, result.stderr) == (0, "")
    assert load(Path(write(tmp_path / "shown.yaml", result.stdout)), {}).access == load(Path(path), {}).access
    assert "$2y$" not in result.output


def test_config_can_check(runner: CliRunner, tmp_path: Path) -> None:
    """As `dockyard check` does: rules that no request reaches, and names of users that are unknown."""
    users = write(tmp_path / "users", f"alice:$2y$04${'a' * 53}\n")
    path = write(
        tmp_path / "c.yaml",
        f"access: {{htpasswd: {users}, rules: [{{allow: true}}, {{allow: false, who: [alic]}}]}}\n"
        f"storage: {{directory: {tmp_path / 'cache'}}}\nserver: {{host: 127.0.0.1, port: {free_port()}}}",
    )
    result = runner.invoke(main, ["config", "--check", "-c", path])

    assert result.exit_code == 0
    assert "(rule=access.rules[1] decided_by=access.rules[0])" in result.stdout
    assert f"access.rules[1].who[0]: {users} has no user alic: did you mean alice?" in result.stdout
    assert runner.invoke(main, ["check", "-c", path]).stdout == result.stdout


def test_config_hides_secrets(runner: CliRunner) -> None:
    """The output may be attached to a bug report."""
    result = runner.invoke(main, ["config"], env={"STORAGE_ACCESS_KEY": "key", "STORAGE_SECRET_KEY": CANARY})

    assert CANARY not in result.output
    assert "secret_key: '***'" in result.stdout


def test_config_warns_on_stderr(runner: CliRunner, tmp_path: Path) -> None:
    """So that stdout contains only the settings."""
    path = write(tmp_path / "c.yaml", "server: {certfile: '${OOPS}'}")

    result = runner.invoke(main, ["config", "-c", path], env={"OOPS": None})

    assert result.exit_code == 0
    assert "warning" not in result.stdout
    assert result.stderr == (
        "dockyard: warning: server.certfile: refers to the environment variable OOPS, which is not set: set it for the "
        f"server, or correct its name; until then it is used as written ({path}:1)\n"
    )


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version_is_printed(runner: CliRunner, arguments: list[str]) -> None:
    """By a command and by an option."""
    assert runner.invoke(main, arguments).stdout == f"dockyard {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--help"], ["server", "config", "passwd", "version", "SERVER_PORT", "docker pull", "bash_source"]),
        (["-h"], ["server", "config", "version"]),
        (["server", "--help"], ["-c, --config FILE", "DOCKYARD_CONFIG", "--port PORT", "Examples:", "Exit status:"]),
        (["pull", "--help"], ["IMAGE...", "--platform OS/ARCH", "DOCKYARD_URL", "Exit status"]),
        (["passwd", "--help"], ["USER", "--file FILE", "--stdin", "--delete", "Examples:", "Exit status:"]),
        (["config", "--help"], ["-c, --config FILE", "secrets are hidden", "Examples:"]),
    ],
)
def test_help_describes_commands_and_options(runner: CliRunner, arguments: list[str], parts: list[str]) -> None:
    """With the environment variables and an example."""
    result = runner.invoke(main, arguments)

    assert result.exit_code == 0
    assert [part for part in parts if part not in result.stdout] == []


def test_the_module_is_the_command() -> None:
    """`python -m dockyard` works, exits with status 2 and no traceback for an error, and does not load the server."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dockyard", "config"],
        env={"SERVER_PORT": "x"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 2
    assert 'server.port = "x": must be a whole number, such as 5000 (env SERVER_PORT)' in done.stderr
    assert "Traceback" not in done.stderr
    assert "granian" not in done.stderr


def test_a_closed_pipe_ends_the_output_without_a_traceback() -> None:
    """As of `dockyard config | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "dockyard", "config"],
            env={"HOME": "/nonexistent"},
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=EVENT_TIMEOUT_S,
            check=False,
        )

    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", ["config", "check", "version"])
def test_a_full_disk_ends_the_output_with_one_line(command: str, tmp_path: Path) -> None:
    """As of `dockyard config > my-config.yaml`."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dockyard", command],
            env={"HOME": str(tmp_path)},
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=EVENT_TIMEOUT_S,
            check=False,
        )

    problem = "dockyard: cannot write the output: No space left on device: free space there, or write elsewhere\n"
    assert (done.returncode, done.stderr) == (1, problem)


@pytest.mark.parametrize("command", [["pull", "--server", "http://127.0.0.1:1", "up.test/app"], ["check"]])
def test_metrics_of_another_program_are_not_touched(tmp_path: Path, command: list[str]) -> None:
    """Its directory may be gone, or not be ours to write to."""
    done = subprocess.run(
        [sys.executable, "-m", "dockyard", *command],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "missing")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "dockyard: " in done.stdout + done.stderr
    assert not (tmp_path / "missing").exists()
