"""Failures of `dockyard pull` and of the command line: what the person at the terminal sees."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

from tests.failures.certificates import issued, make_authority
from tests.failures.failure import Failure, Seen, replace_variables
from tests.failures.programs import run
from tests.support import faults
from tests.support.deployment import Deployment
from tests.support.fake_registry import FakeRegistry
from tests.support.processes import free_port


@attrs.define
class Terminal:
    """Where a failure arranges its servers; `deployment` is a Dockyard that works."""

    directory: Path
    deployment: Deployment
    undo: ExitStack
    names: dict[str, str] = attrs.field(factory=dict)

    def name(self, authority: str) -> str:
        """Let an address appear as a placeholder; return it."""
        self.names[authority] = "HOST:PORT"
        return authority

    @property
    def server(self) -> str:
        """The URL of the Dockyard."""
        return f"http://{self.name(self.deployment.dockyard.host)}"


@attrs.frozen
class CommandFailure(Failure):
    """A command that fails. `make` arranges it and returns the arguments."""

    make: Callable[[Terminal], Sequence[str]]


def observe(failure: CommandFailure, directory: Path, deployment: Deployment) -> Seen:
    """Run the command. What matters is its last line on standard error: of a usage error, the line after the usage."""
    with ExitStack() as undo:
        terminal = Terminal(directory, deployment, undo)
        arguments = failure.make(terminal)
        stdout = directory / "stdout"
        errors = run(directory, arguments, stdout=stdout)
        lines = [line for line in errors.splitlines() if line.strip()]
        assert lines, stdout.read_text()
        return Seen(replace_variables(lines[-1], terminal.names), output=errors + stdout.read_text())


def _pull_from_nothing(terminal: Terminal) -> Sequence[str]:
    return ["pull", "--server", f"http://{terminal.name(f'127.0.0.1:{free_port()}')}", "alpine"]


def _pull_from_https(terminal: Terminal) -> Sequence[str]:
    registry = terminal.undo.enter_context(FakeRegistry())
    listener = registry.listen("other", tls=issued(make_authority()))
    return ["pull", "--server", f"http://{terminal.name(listener.authority)}", "alpine"]


def _pull_by_https(terminal: Terminal) -> Sequence[str]:
    return ["pull", "--server", terminal.server.replace("http:", "https:"), "alpine"]


def _pull_with_unknown_authority(terminal: Terminal) -> Sequence[str]:
    registry = terminal.undo.enter_context(FakeRegistry())
    listener = registry.listen("other", tls=issued(make_authority()))
    return ["pull", "--server", f"https://{terminal.name(listener.authority)}", "alpine"]


def _pull_from_web_server(terminal: Terminal) -> Sequence[str]:
    registry = terminal.undo.enter_context(FakeRegistry())
    registry.on(None, faults.replaced(404, faults.HTML, ("Content-Type", "text/html")))
    return ["pull", "--server", f"http://{terminal.name(registry.authority)}", "alpine"]


def _pull_missing_image(terminal: Terminal) -> Sequence[str]:
    return ["pull", "--server", terminal.server, "no/such/image"]


def _pull_unknown_prefix(terminal: Terminal) -> Sequence[str]:
    return ["pull", "--server", terminal.server, "unknown.example/org/app"]


def _pull_invalid_name(terminal: Terminal) -> Sequence[str]:
    return ["pull", "--server", terminal.server, "Alpine:latest"]


def _pull_nothing(terminal: Terminal) -> Sequence[str]:
    return ["pull", "--server", terminal.server]


def _pull_missing_list(terminal: Terminal) -> Sequence[str]:
    return ["pull", "--server", terminal.server, "--file", "images.txt"]


def _pull_missing_platform(terminal: Terminal) -> Sequence[str]:
    registry = terminal.deployment.fake_registry
    registry.add_index("org/app", "v1", [registry.add_image("org/app", None)])
    return ["pull", "--server", terminal.server, "--platform", "windows/amd64", "up.test/org/app:v1"]


COMMANDS = (
    CommandFailure("no server at the URL", "HOST:PORT", "Connection refused", "--server", _pull_from_nothing),
    CommandFailure("`http:` for a server with TLS", "HOST:PORT", "HTTPS", "https://HOST:PORT", _pull_from_https),
    CommandFailure(
        "`https:` for a server without TLS", "HOST:PORT", "does not speak TLS", "http://HOST:PORT", _pull_by_https
    ),
    CommandFailure(
        "a server whose certificate has an unknown authority",
        "HOST:PORT",
        "not from a known certificate authority",
        "--ca-file",
        _pull_with_unknown_authority,
    ),
    CommandFailure("a URL of something else", "HOST:PORT", "404", "--server", _pull_from_web_server),
    CommandFailure("an image that does not exist", "no/such/image", "404", "correct the name", _pull_missing_image),
    CommandFailure(
        "a registry that is not configured", "unknown.example/org/app", "prefix", "upstreams", _pull_unknown_prefix
    ),
    CommandFailure("a name that is not valid", "Alpine:latest", "lower case", "write alpine", _pull_invalid_name),
    CommandFailure(
        "a platform that the image does not have",
        "up.test/org/app:v1",
        "windows/amd64",
        "--platform: linux/amd64",
        _pull_missing_platform,
    ),
    CommandFailure("no image", "images", "no images are given", "--file", _pull_nothing),
    CommandFailure(
        "a list that does not exist", "images.txt", "No such file or directory", "--file", _pull_missing_list
    ),
    CommandFailure(
        "an option that does not exist",
        "--prot",
        "No such option",
        "--port",
        lambda terminal: ["server", "--prot", "5000"],
    ),
    CommandFailure("a command that does not exist", "serve", "No such command", "server", lambda terminal: ["serve"]),
)
