"""Logging: one event is one line, wherever it comes from and whatever is in it."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dockyard.config.settings import LoggerSettings
from dockyard.log import MAX_LINE_BYTES, check_output, flush, set_up
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.paths import ROOT

PLAIN = LoggerSettings(color=False)
JSON = LoggerSettings(encoding="json")
LIBRARIES = ("_granian", "granian.access", "urllib3", "asyncio")

Lines = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Logging belongs to the process: put back what a test has set up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Lines:
    """The lines that went to stderr since the last call."""

    def lines() -> list[str]:
        flush()
        return capfd.readouterr().err.splitlines()

    return lines


def test_a_console_line_is_time_level_event_and_fields(lines: Lines) -> None:
    """Bare where a value is simple, quoted where it is not."""
    set_up(PLAIN)
    structlog.get_logger("dockyard.test").info(
        "request", method="GET", status=200, agent="docker 29", empty="", cached=True, ttl=None, sizes=[1, 2]
    )

    (line,) = lines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info  request "
        r'method=GET status=200 agent="docker 29" empty="" cached=true ttl=null sizes=\[1,2\] logger=dockyard\.test',
        line,
    )


def test_a_json_line_is_an_object(lines: Lines) -> None:
    """With the time in UTC, the level, the logger, the event, and its fields as they are."""
    set_up(JSON)
    structlog.get_logger("dockyard.test").warning("slow", seconds=1.5, name="a\u00e9", path=Path("/x"))

    (line,) = lines()
    said = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("timestamp"))
    assert said == {
        "level": "warn",
        "logger": "dockyard.test",
        "event": "slow",
        "seconds": 1.5,
        "name": "a\u00e9",
        "path": "/x",
    }


def test_a_field_cannot_pose_as_the_level(lines: Lines) -> None:
    """The first four belong to the line."""
    set_up(JSON)
    structlog.get_logger("dockyard.test").info("x", level="error", logger="root", timestamp="never")

    said = json.loads(lines()[0])
    assert (said["level"], said["logger"]) == ("info", "dockyard.test")
    assert said["timestamp"] != "never"


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("debug", ["debug", "info", "warn", "error"]),
        ("info", ["info", "warn", "error"]),
        ("warn", ["warn", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_is_the_least_that_is_said(lines: Lines, level: Any, said: list[str]) -> None:
    """For our own events and for those of libraries."""
    set_up(attrs.evolve(JSON, level=level))
    for logger in (structlog.get_logger("dockyard.test"), logging.getLogger("some.library")):
        logger.debug("d")
        logger.info("i")
        logger.warning("w")
        logger.error("e")

    assert [json.loads(line)["level"] for line in lines()] == [*said, *said]


@pytest.mark.parametrize(
    ("logger_settings", "environ", "is_colored"),
    [
        (LoggerSettings(), {}, True),
        (LoggerSettings(color=False), {}, False),
        (LoggerSettings(), {"NO_COLOR": "1"}, False),
        (LoggerSettings(), {"NO_COLOR": ""}, True),
        (LoggerSettings(), {"TERM": "dumb"}, False),
        (LoggerSettings(encoding="json"), {}, False),
    ],
)
def test_color_is_for_the_console_and_can_be_switched_off(
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    logger_settings: LoggerSettings,
    environ: dict[str, str],
    *,
    is_colored: bool,
) -> None:
    """By the setting, or by NO_COLOR (no-color.org)."""
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    set_up(logger_settings)
    structlog.get_logger("dockyard.test").info("x", a="b")

    assert ("\x1b[" in lines()[0]) is is_colored


def test_what_is_not_a_terminal_has_no_color(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a service or a container is read by programs too."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    set_up(LoggerSettings())
    structlog.get_logger("dockyard.test").info("x", a="b")

    assert "\x1b" not in lines()[0]


def test_a_file_has_no_color(tmp_path: Path) -> None:
    """Escape codes are for people who watch."""
    set_up(LoggerSettings(output=str(tmp_path / "log")))
    structlog.get_logger("dockyard.test").info("x", a="b")

    flush()
    assert "\x1b" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("output", ["stdout", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_stdout_is_an_output(capfd: pytest.CaptureFixture[str], output: str) -> None:
    """And then nothing goes to stderr."""
    set_up(attrs.evolve(PLAIN, output=output))
    structlog.get_logger("dockyard.test").info("x")

    flush()
    captured = capfd.readouterr()
    assert captured.out.count("\n") == 1
    assert captured.err == ""


NASTY = [
    "a\nb",
    "a\r\nlevel=error forged",
    "\x1b[2J\x1b[31mred",
    "nul\0",
    "\u2028\u2029\x85\x0b\x0c",
    "\u202egnp",
    "\udcff",
    '"quoted" = \\',
    "\x7f",
]


@pytest.mark.parametrize("logger_settings", [PLAIN, JSON])
@pytest.mark.parametrize("text", NASTY)
def test_no_value_can_break_a_line(lines: Lines, logger_settings: LoggerSettings, text: str) -> None:
    """In a field, in the event, or in a library's message: it is one line of printable ASCII."""
    set_up(logger_settings)
    structlog.get_logger("dockyard.test").info("event", field=text, several=[text], nested={"a": text})
    structlog.get_logger("dockyard.test").info(text)
    logging.getLogger("some.library").warning("said %s", text)

    said = lines()
    assert len(said) == 3
    assert all(re.fullmatch(r"[ -~]+", line) for line in said)


@pytest.mark.parametrize("logger_settings", [PLAIN, JSON, LoggerSettings()])
@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("x", {"name": "n" * 65536}),
        ("x", {"name": "\0" * 65536}),
        ("x" * 65536, {}),
        ("\n" * 65536, {}),
        ("x", {f"field{number}": "v" * 100 for number in range(500)}),
        ("x", {"many": list(range(10_000))}),
    ],
)
def test_no_line_is_longer_than_2_kib(
    lines: Lines, logger_settings: LoggerSettings, event: str, fields: dict[str, Any]
) -> None:
    """Values are cut, then fields are left out; what remains is whole."""
    set_up(logger_settings)
    structlog.get_logger("dockyard.test").info(event, **fields)

    (line,) = lines()
    assert len(line) + 1 <= MAX_LINE_BYTES
    if logger_settings.encoding == "json":
        assert json.loads(line)["logger"] == "dockyard.test"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(event=st.text(), fields=st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(max_size=3000)))
def test_any_event_is_one_short_line(lines: Lines, event: str, fields: dict[str, str]) -> None:
    """Whatever it holds, JSON stays JSON."""
    set_up(JSON)
    fields.pop("event", None)
    structlog.get_logger("dockyard.test").info(event, **fields)

    (line,) = lines()
    assert len(line) + 1 <= MAX_LINE_BYTES
    assert json.loads(line)["level"] == "info"


def test_a_logger_without_a_name_has_that_of_its_module(lines: Lines) -> None:
    """The operator sees which part of the server a line is from."""
    set_up(PLAIN)
    structlog.get_logger().info("x")
    (line,) = lines()
    assert line.endswith(f"logger={__name__}")


@pytest.mark.parametrize("logger_settings", [PLAIN, JSON])
def test_an_exception_is_on_the_line_with_its_cause(lines: Lines, logger_settings: LoggerSettings) -> None:
    """What happened, then where, the innermost place first."""

    def inner() -> None:
        raise KeyError("inner\nmost")

    set_up(logger_settings)
    try:
        try:
            inner()
        except KeyError as exc:
            raise ValueError("outer") from exc
    except ValueError:
        structlog.get_logger("dockyard.test").exception("it broke")
        logging.getLogger("some.library").exception("it broke there")

    for line in lines():
        assert "ValueError: outer [unit/test_log.py:" in line
        assert "; caused by KeyError: " in line
        assert re.search(r"\[unit/test_log\.py:\d+ \S*inner < unit/test_log\.py:\d+ \S*with_its_cause\]", line)


def test_a_deep_exception_is_cut(lines: Lines) -> None:
    """A recursion shows its innermost frames."""

    def deeper(depth: int) -> None:
        if depth == 0:
            raise ValueError("deep")
        deeper(depth - 1)

    set_up(JSON)
    try:
        deeper(100)
    except ValueError:
        structlog.get_logger("dockyard.test").exception("it broke")

    assert json.loads(lines()[0])["exception"].count(" < ") == 7


@pytest.mark.parametrize("name", ["_granian", "_granian.asgi.io", "granian.access", "urllib3", "asyncio", "anything"])
def test_libraries_speak_through_the_same_door(lines: Lines, name: str) -> None:
    """Handlers that they have put in place are gone; each line is said once."""
    logging.getLogger(name).addHandler(logging.StreamHandler(sys.stderr))
    logging.getLogger(name).propagate = False
    set_up(JSON)
    if name in LIBRARIES:
        logging.getLogger(name).error("said %d", 1)

        assert [json.loads(line)["event"] for line in lines()] == ["said 1"]
    logging.getLogger(name).handlers.clear()
    logging.getLogger(name).propagate = True


def test_urllib3_does_not_tell_of_every_connection(lines: Lines) -> None:
    """Not even when we debug ourselves."""
    set_up(attrs.evolve(JSON, level="debug"))
    logging.getLogger("urllib3.connectionpool").debug("Starting new HTTPS connection (1): %s", "x")
    logging.getLogger("asyncio").debug("Using selector")

    assert lines() == []


def test_only_errors_of_granian_are_logged(lines: Lines) -> None:
    """Its start and stop are reported by the supervisor, and it has a line for each chunk that it cannot send."""
    set_up(attrs.evolve(JSON, level="debug"))
    granian = logging.getLogger("_granian.asgi.io")
    granian.info("ASGI transport error: SendError { .. }")
    granian.info("Granian shutdown completed, see ya!")
    granian.warning("Consider using 2 workers")
    granian.error("ASGI transport error: worse")

    assert [json.loads(line)["event"] for line in lines()] == ["ASGI transport error: worse"]


def test_a_library_that_formats_wrongly_does_no_harm(lines: Lines) -> None:
    """Its message is said as it is."""
    set_up(JSON)
    logging.getLogger("some.library").warning(*["%d of %d", "one"])

    assert [json.loads(line)["event"] for line in lines()] == ["%d of %d"]


def test_setting_up_again_says_everything_once(lines: Lines) -> None:
    """As each worker does after the fork."""
    set_up(PLAIN)
    logger = structlog.get_logger("dockyard.test")
    logger.info("before")
    set_up(JSON)
    logger.info("after")

    before, after = lines()
    assert before.endswith("before logger=dockyard.test")
    assert json.loads(after)["event"] == "after"


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """A restart does not empty the log."""
    path = tmp_path / "log"
    path.write_text("old\n")
    set_up(attrs.evolve(PLAIN, output=str(path)))
    structlog.get_logger("dockyard.test").info("new")

    flush()
    old, new = path.read_text().splitlines()
    assert old == "old"
    assert new.endswith("new logger=dockyard.test")


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As logrotate does it, without a signal."""
    path = tmp_path / "log"
    set_up(attrs.evolve(PLAIN, output=str(path)))
    logger = structlog.get_logger("dockyard.test")
    logger.info("first")
    flush()
    path.rename(tmp_path / "log.1")
    logger.info("second")

    flush()
    assert "first" in (tmp_path / "log.1").read_text()
    assert "second" in path.read_text()
    assert "second" not in (tmp_path / "log.1").read_text()


def test_a_log_that_cannot_be_written_fails_nothing(tmp_path: Path, lines: Lines) -> None:
    """And it goes on when its directory is back."""
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "log"
    set_up(attrs.evolve(PLAIN, output=str(path)))
    logger = structlog.get_logger("dockyard.test")
    directory.rename(tmp_path / "gone")
    logger.info("lost")
    flush()
    directory.mkdir()
    logger.info("found")

    flush()
    found, dropped = path.read_text().splitlines()
    assert "found" in found
    assert "warn  log lines were dropped: the output did not take them count=1" in dropped
    assert lines() == []


def test_a_full_disk_fails_nothing(lines: Lines) -> None:
    """Every write to /dev/full fails."""
    set_up(attrs.evolve(PLAIN, output="/dev/full"))
    structlog.get_logger("dockyard.test").info("lost")
    set_up(PLAIN)

    assert lines() == []


@pytest.mark.parametrize("output", ["/no/such/directory/log", "/", "/proc/no-such-file"])
def test_an_output_that_cannot_be_opened_is_found_before_the_start(output: str) -> None:
    """The streams can always be used."""
    with pytest.raises(OSError, match=output):
        check_output(attrs.evolve(PLAIN, output=output))
    check_output(attrs.evolve(PLAIN, output="/dev/stdout"))


def test_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    """Several workers append to one file, each line with one write."""
    path = tmp_path / "log"
    program = (
        "import sys, structlog\n"
        "from dockyard.config.settings import LoggerSettings\n"
        "from dockyard.log import flush, set_up\n"
        "set_up(LoggerSettings(encoding='json', output=sys.argv[1]))\n"
        "logger = structlog.get_logger('dockyard.test')\n"
        "for number in range(500):\n"
        "    logger.info('line', worker=sys.argv[2], filling=sys.argv[2] * 1500)\n"
        "    flush()\n"
    )
    root = ROOT
    workers = [subprocess.Popen([sys.executable, "-c", program, str(path), name], cwd=root) for name in "abc"]

    assert [worker.wait(timeout=EVENT_TIMEOUT_S) for worker in workers] == [0, 0, 0]
    said = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(said) == 1500
    assert all(line["filling"] == line["worker"] * 1500 for line in said)
