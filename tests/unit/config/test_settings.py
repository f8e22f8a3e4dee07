"""Settings: where a value comes from, how it is written, and the error for an invalid one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from dockyard.cli import main
from dockyard.config import units
from dockyard.config.loader import COMMAND_VARIABLES, SettingsError, load, show
from dockyard.config.settings import Auth, ServerSettings, Settings, StorageSettings, Upstream
from dockyard.config.types import Secret
from dockyard.oci.origin import Origin
from tests.support.paths import ROOT

EXAMPLE = ROOT / "config.yaml"
HOME = {"HOME": "/home/someone"}
CANARY = "canary-7f3a"
NOBODY = 65534

Load = Callable[..., Settings]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Load settings from the text of a file and an environment."""

    def load_text(text: str, **environ: str) -> Settings:
        path = tmp_path / "config.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return load(path, HOME | environ)

    return load_text


@pytest.fixture
def errors_in(load_text: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """Load an invalid file; return its errors, with the path of the file reduced to its name."""

    def errors_in(text: str, **environ: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load_text(text, **environ)
        return [error.replace(f"{tmp_path}/", "") for error in caught.value.errors]

    return errors_in


def value_at(settings: Settings, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def yaml_for(key: str, value: str) -> str:
    """A file that sets one dotted key."""
    *sections, name = key.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    return "\n".join([*lines, f"{'  ' * len(sections)}{name}: {value}", ""])


# Defaults


def test_defaults_are_the_documented_ones() -> None:
    """Without a file and without variables."""
    settings = load(None, HOME)

    assert attrs.asdict(
        settings, recurse=True, filter=attrs.filters.exclude("upstreams", "warnings", "expected_logins")
    ) == {
        "logger": {"level": "info", "encoding": "console", "color": True, "output": "stderr"},
        "server": {
            "host": "",
            "port": 5000,
            "tls": False,
            "certfile": "",
            "keyfile": "",
            "client_ca": "",
            "trusted_proxies": (),
            "proxy_header": "x-forwarded-for",
            "log": {
                "enabled": True,
                "level": "info",
                "request_body": False,
                "response_body": False,
                "ignore_paths": (),
            },
            "workers": 0,
            "zero_copy": True,
            "drain_timeout": 25.0,
        },
        "storage": {
            "endpoint": "",
            "region": "us-east-1",
            "bucket": "",
            "prefix": "cache/",
            "access_key": "",
            "secret_key": {"_value": ""},
            "use_ssl": False,
            "force_path_style": False,
            "touch_threshold": 86400.0,
            "directory": Path("/home/someone/.cache/dockyard"),
            "max_size": 50 * 2**30,
            "verify": "start",
            "scrub_rate": 8 * 2**20,
            "redirect": False,
        },
        "upstream": {
            "check_timeout": 5.0,
            "check_interval": 0.0,
            "connect_timeout": 3.0,
            "stall_timeout": 15.0,
            "connections": 4,
        },
        "access": {
            "dry_run": False,
            "htpasswd": "",
            "audit": "",
            "challenge": "basic",
            "token_url": "",
            "token_key_file": "",
            "closed_nodes": False,
            "jwt": (),
            "networks": (),
            "groups": (),
            "rules": (),
        },
    }


def test_docker_hub_and_ghcr_are_the_default_upstreams() -> None:
    """Without an upstreams block there are Docker Hub, which is the default, and GHCR, both anonymous."""
    assert load(None, HOME).upstreams == (
        Upstream("docker.io", "registry-1.docker.io", Auth("anonymous"), default=True),
        Upstream("ghcr.io", "ghcr.io", Auth("anonymous"), default=False),
    )


def test_the_example_file_sets_the_defaults() -> None:
    """config.yaml sets every key to its default."""
    assert load(EXAMPLE, HOME) == load(None, HOME)


def test_the_example_file_contains_every_key() -> None:
    """No key is missing in config.yaml (the directory is in a comment, because its default depends on the user)."""
    text = EXAMPLE.read_text()
    missing = [line.split(":")[0].strip(" -") for line in show(load(None, HOME)).splitlines() if ":" in line]

    assert [name for name in missing if f"{name}:" not in text] == []


@pytest.mark.parametrize(
    "text", ["", "---\n", "# nothing\n", "server:\n", "upstreams:\n", "storage: {}\n", "server: ~\n"]
)
def test_empty_files_sections_and_lists_mean_the_default(load_text: Load, text: str) -> None:
    """As if they were not there."""
    assert load_text(text) == load(None, HOME)


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"XDG_CACHE_HOME": "/big", "HOME": "/home/x"}, "/big/dockyard"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/x"}, "/home/x/.cache/dockyard"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/x"}, "/home/x/.cache/dockyard"),
        ({}, "/var/cache/dockyard"),
        ({"STORAGE_DIRECTORY": "/data", "XDG_CACHE_HOME": "/big"}, "/data"),
    ],
)
def test_the_local_store_is_in_the_users_cache_directory(environ: Mapping[str, str], directory: str) -> None:
    """By the XDG base directory specification, unless `storage.directory` is set."""
    assert load(None, environ).storage.directory == Path(directory)


# Precedence

SCALARS = [
    ("logger.level", "LOGGER_LEVEL", "debug", "debug"),
    ("logger.encoding", "LOGGER_ENCODING", "json", "json"),
    ("logger.color", "LOGGER_COLOR", "false", False),
    ("logger.output", "LOGGER_OUTPUT", "stdout", "stdout"),
    ("server.host", "SERVER_HOST", "127.0.0.1", "127.0.0.1"),
    ("server.port", "SERVER_PORT", "8080", 8080),
    ("server.log.enabled", "SERVER_LOG_ENABLED", "false", False),
    ("server.log.level", "SERVER_LOG_LEVEL", "warn", "warn"),
    ("server.log.request_body", "SERVER_LOG_REQUEST_BODY", "true", True),
    ("server.log.response_body", "SERVER_LOG_RESPONSE_BODY", "true", True),
    ("server.workers", "SERVER_WORKERS", "3", 3),
    ("server.zero_copy", "SERVER_ZERO_COPY", "false", False),
    ("server.drain_timeout", "SERVER_DRAIN_TIMEOUT", "1m", 60.0),
    ("server.certfile", "SERVER_CERTFILE", "/tls.crt", "/tls.crt"),
    ("server.keyfile", "SERVER_KEYFILE", "/tls.key", "/tls.key"),
    ("server.proxy_header", "SERVER_PROXY_HEADER", "Forwarded", "forwarded"),
    ("storage.endpoint", "STORAGE_ENDPOINT", "minio:9000", "minio:9000"),
    ("storage.region", "STORAGE_REGION", "auto", "auto"),
    ("storage.bucket", "STORAGE_BUCKET", "dockyard-cache", "dockyard-cache"),
    ("storage.prefix", "STORAGE_PREFIX", "a/b/", "a/b/"),
    ("storage.use_ssl", "STORAGE_USE_SSL", "true", True),
    ("storage.force_path_style", "STORAGE_FORCE_PATH_STYLE", "true", True),
    ("storage.touch_threshold", "STORAGE_TOUCH_THRESHOLD", "0", 0.0),
    ("storage.directory", "STORAGE_DIRECTORY", "/data", Path("/data")),
    ("storage.max_size", "STORAGE_MAX_SIZE", "1TiB", 2**40),
    ("storage.verify", "STORAGE_VERIFY", "always", "always"),
    ("storage.scrub_rate", "STORAGE_SCRUB_RATE", "1MiB", 2**20),
    ("storage.redirect", "STORAGE_REDIRECT", "true", True),
    ("upstream.check_timeout", "UPSTREAM_CHECK_TIMEOUT", "0", 0.0),
    ("upstream.check_interval", "UPSTREAM_CHECK_INTERVAL", "10s", 10.0),
    ("upstream.connect_timeout", "UPSTREAM_CONNECT_TIMEOUT", "500ms", 0.5),
    ("upstream.stall_timeout", "UPSTREAM_STALL_TIMEOUT", "1m30s", 90.0),
    ("upstream.connections", "UPSTREAM_CONNECTIONS", "16", 16),
    ("access.dry_run", "ACCESS_DRY_RUN", "true", True),
    ("access.audit", "ACCESS_AUDIT", "stdout", "stdout"),
    ("access.challenge", "ACCESS_CHALLENGE", "bearer", "bearer"),
    ("access.token_url", "ACCESS_TOKEN_URL", "https://dockyard.test/token", "https://dockyard.test/token"),
    ("access.closed_nodes", "ACCESS_CLOSED_NODES", "true", True),
]


@pytest.mark.parametrize(("key", "variable", "text", "value"), SCALARS)
def test_every_scalar_is_read_from_the_file(load_text: Load, key: str, variable: str, text: str, value: Any) -> None:
    """A key in the file replaces its default."""
    assert value_at(load_text(yaml_for(key, text)), key) == value


@pytest.mark.parametrize(("key", "variable", "text", "value"), SCALARS)
def test_every_scalar_is_read_from_the_environment(key: str, variable: str, text: str, value: Any) -> None:
    """The key in capitals, with underscores, is its variable."""
    assert value_at(load(None, {variable: text}), key) == value


@pytest.mark.parametrize(("key", "variable", "text", "value"), SCALARS)
def test_a_variable_with_the_dockyard_prefix_takes_precedence(key: str, variable: str, text: str, value: Any) -> None:
    """The variable without the prefix is not even read."""
    assert value_at(load(None, {f"DOCKYARD_{variable}": text, variable: "\0"}), key) == value


def test_the_environment_takes_precedence_over_the_file(load_text: Load) -> None:
    """A variable replaces the value in the file, even an invalid one."""
    assert load_text("server: {port: nonsense}", SERVER_PORT="7000").server.port == 7000


def test_an_empty_variable_empties_a_text(load_text: Load) -> None:
    """A variable that is set and empty removes the default prefix."""
    assert load_text("storage: {prefix: cache/}", STORAGE_PREFIX="").storage.prefix == ""


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("server: {log: {ignore_paths: [/v2/, /version]}}", {}),
        ("server: {log: {ignore_paths: '/v2/, /version'}}", {}),
        ("", {"SERVER_LOG_IGNORE_PATHS": "/v2/,/version"}),
    ],
)
def test_paths_to_ignore_are_a_list_or_separated_by_commas(load_text: Load, text: str, environ: dict[str, str]) -> None:
    """A variable cannot contain a list, so a text is split at its commas."""
    assert load_text(text, **environ).server.log.ignore_paths == ("/v2/", "/version")


def test_upstreams_cannot_be_set_by_variables(load_text: Load) -> None:
    """Keys in a list have no variables, and no variable of another key sets them."""
    upstreams = load_text("upstreams: [{prefix: a, registry: b}]", UPSTREAMS_PREFIX="x", PREFIX="y", AUTH_TYPE="basic")

    assert upstreams.upstreams == (Upstream("a", "b"),)


def test_ranges_ahead_are_fetched_only_for_upstreams_that_are_marked_lazy(load_text: Load) -> None:
    """Ranges ahead are unverified, so it is off by default; with it, the rest is downloaded too by default."""
    settings = load_text(
        """
        upstreams:
          - {prefix: a.example, registry: a.example}
          - {prefix: b.example, registry: b.example, lazy: true}
          - {prefix: c.example, registry: c.example, lazy: true, lazy_background: on_demand}
        """
    )

    lazy = [(upstream.lazy, upstream.lazy_background) for upstream in settings.upstreams]
    assert lazy == [(False, "download"), (True, "download"), (True, "on_demand")]
    assert settings.warnings == ()


def test_an_upstreams_block_replaces_the_defaults(load_text: Load) -> None:
    """Docker Hub and GHCR are not added to a list."""
    assert [upstream.prefix for upstream in load_text("upstreams: [{prefix: a, registry: b}]").upstreams] == ["a"]


# How values are written


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, True) for text in ("true", "True", "yes", "on", "1", '"true"')],
        *[(text, False) for text in ("false", "FALSE", "no", "off", "0", '"false"')],
    ],
)
def test_booleans_have_the_usual_spellings(load_text: Load, text: str, value: object) -> None:
    """Quoted or not: "false" is false."""
    assert load_text(f"logger: {{color: {text}}}").logger.color is value


@pytest.mark.parametrize("text", ["0123", "1e3", "yes", "null_", "12:30", "1_000", "0x1f", "2026-01-01"])
def test_a_text_is_not_converted(load_text: Load, text: str) -> None:
    """A password of digits is not a number, and one that says yes is not true."""
    settings = load_text(f"storage: {{access_key: {text}, secret_key: {text}}}")

    assert (settings.storage.secret_key.reveal(), settings.storage.access_key) == (text, text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86400.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("0", 0.0),
        ("0s", 0.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1h0m0s", 3600.0),
        ("250us", 0.00025),
        ("250\u00b5s", 0.00025),
        ("250\u03bcs", 0.00025),
        ("100ns", 0.0000001),
    ],
)
def test_durations_are_in_go_notation(text: str, seconds: float) -> None:
    """A duration is numbers with units, or a bare zero."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("5", "must have a unit, as in 5s, 5m or 5h"),
        ("1.5", "must have a unit"),
        ("-5s", "must not be negative"),
        ("", "must be a duration"),
        ("5 s", "must be a duration"),
        ("5d", "must be a duration"),
        ("s", "must be a duration"),
        ("1s2", "must be a duration"),
        ("inf", "must be a duration"),
        ("1e3s", "must be a duration"),
        ("9" * 400 + "h", "must be a duration"),
        ("\u0663s", "must be a duration"),
    ],
)
def test_an_invalid_duration_is_rejected(text: str, reason: str) -> None:
    """The error for a number without a unit suggests units."""
    with pytest.raises(ValueError, match=reason):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GiB", 50 * 2**30),
        ("50Gi", 50 * 2**30),
        ("50 gib", 50 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5KiB", 1536),
        ("0", 0),
        ("123", 123),
        ("123B", 123),
        ("2PiB", 2**51),
    ],
)
def test_sizes_have_units_of_1000_or_1024(text: str, size: int) -> None:
    """A size is a number with a unit, or a number of bytes."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "50G", "GiB", "-1", "1e9", "50 gigs", "50GiBs", "\u0663", "9" * 40])
def test_an_invalid_size_is_rejected(text: str) -> None:
    """50G too, which is ambiguous: powers of 1000 or of 1024."""
    with pytest.raises(ValueError, match="must"):
        units.parse_size(text)


@given(st.integers(0, 10**15))
def test_a_formatted_size_is_parsed_back(size: int) -> None:
    """Formatting and parsing a size give the same bytes."""
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(0, 10**12).map(lambda microseconds: microseconds / 10**6))
@example(90.0)
@example(0.0005)
def test_a_formatted_duration_is_parsed_back(seconds: float) -> None:
    """Formatting and parsing a duration give the same seconds."""
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(86400.0, "24h"), (90.0, "1m30s"), (0.5, "500ms"), (0.0, "0s"), (5.0, "5s"), (1.5, "1.5s"), (3601.0, "1h1s")],
)
def test_durations_are_formatted_short(seconds: float, text: str) -> None:
    """In the notation that an operator would write."""
    assert units.format_duration(seconds) == text


# ${VAR}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${A}", "alpha"),
        ("x-${A}-${B}-y", "x-alpha-${A}-y"),  # the value of B contains ${A}
        ("$A", "$A"),
        ("${UNSET}", "${UNSET}"),
        ("${A", "${A"),
        ("${}", "${}"),
        ("${A:-x}", "${A:-x}"),
        ("$${A}", "$alpha"),
        ("${EMPTY}x", "x"),
        ("${a}", "${a}"),
    ],
)
def test_braced_variables_are_replaced_once(load_text: Load, written: str, value: str) -> None:
    """Only ${VAR} is replaced, only if the variable is set, and its value is not expanded again."""
    settings = load_text(f"server: {{certfile: '{written}'}}", A="alpha", B="${A}", EMPTY="")

    assert settings.server.certfile == value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("upstream.check_timeout", "5m", 300.0),
        ("storage.max_size", "1GiB", 2**30),
        ("server.port", "81", 81),
        ("logger.color", "false", False),
        ("logger.level", "error", "error"),
        ("storage.directory", "/data", Path("/data")),
        ("storage.secret_key", "s", Secret("s")),
    ],
)
def test_variables_work_for_every_kind_of_value(load_text: Load, key: str, text: str, value: Any) -> None:
    """Durations, sizes, numbers, booleans and choices may come from variables."""
    access_key = "a" if key == "storage.secret_key" else ""
    assert value_at(load_text(yaml_for(key, "${X}"), X=text, STORAGE_ACCESS_KEY=access_key), key) == value


def test_variables_work_in_lists(load_text: Load) -> None:
    """In each text of a list, and in each value of an upstream."""
    settings = load_text(
        """
        server: {log: {ignore_paths: ["/${P}"]}}
        upstreams: [{prefix: a, registry: "${R}", auth: {type: bearer, password: "${T}"}}]
        """,
        P="p",
        R="r.example",
        T=CANARY,
    )

    assert settings.server.log.ignore_paths == ("/p",)
    assert settings.upstreams[0].registry == "r.example"
    assert settings.upstreams[0].auth.password.reveal() == CANARY


def test_values_of_the_environment_are_not_expanded() -> None:
    """A secret that contains ${...} is not changed."""
    environ = {"STORAGE_ACCESS_KEY": "a", "STORAGE_SECRET_KEY": "a${HOME}b", "HOME": "/x"}
    assert load(None, environ).storage.secret_key.reveal() == "a${HOME}b"


def test_a_variable_that_is_not_set_causes_a_warning(load_text: Load) -> None:
    """The warning has the key and the line, and no part of the value."""
    settings = load_text(f"storage:\n  secret_key: {CANARY}$" + "{OOPS}", STORAGE_ACCESS_KEY="a")

    assert len(settings.warnings) == 1
    assert settings.warnings[0].startswith("storage.secret_key: refers to an environment variable, which is not set")
    assert settings.warnings[0].endswith("config.yaml:2)")
    assert CANARY not in settings.warnings[0]
    assert "OOPS" not in settings.warnings[0]


# Errors

ERRORS = [
    # numbers, booleans, choices
    ("server: {port: 0}", 'server.port = "0": must be from 1 to 65535 (config.yaml:1)'),
    ("server: {port: 65536}", 'server.port = "65536": must be from 1 to 65535 (config.yaml:1)'),
    ("server: {port: 80.0}", 'server.port = "80.0": must be a whole number, such as 5000 (config.yaml:1)'),
    ("server: {workers: -1}", 'server.workers = "-1": must be from 0 to 1024; 0 means one for each processor (config'),
    ("server: {workers: 5000}", 'server.workers = "5000": must be from 0 to 1024; 0 means'),
    ("server: {tls: maybe}", 'server.tls = "maybe": must be true or false (config.yaml:1)'),
    ("logger: {level: loud}", 'logger.level = "loud": must be one of debug, info, warn, error (config.yaml:1)'),
    (
        "storage: {verify: sometimes}",
        'storage.verify = "sometimes": must be one of always, start, never (config.yaml:1)',
    ),
    ("logger: {encoding: xml}", 'logger.encoding = "xml": must be one of console, json (config.yaml:1)'),
    ("logger: {output: /no/such/x}", 'logger.output = "/no/such/x": must be stderr, stdout, or a file'),
    ("server: {host: 'localhost:80'}", 'server.host = "localhost:80": must be a host name or an IP address'),
    ("server: {host: 1.2.3}", 'server.host = "1.2.3": must be a host name or an IP address'),
    ("server: {log: {ignore_paths: [healthz]}}", 'server.log.ignore_paths = "healthz": must be paths that begin'),
    # durations and sizes
    (
        "upstream: {check_timeout: 5}",
        'upstream.check_timeout = "5": must have a unit, as in 5s, 5m or 5h (config',
    ),
    ("upstream: {check_timeout: -5s}", 'upstream.check_timeout = "-5s": must not be negative (config.yaml:1)'),
    ("upstream: {check_timeout: 25h}", 'upstream.check_timeout = "25h": must be 24h or less (config.yaml:1)'),
    ("upstream: {stall_timeout: 0}", 'upstream.stall_timeout = "0": must be more than 0'),
    ("upstream: {connect_timeout: 0s}", 'upstream.connect_timeout = "0s": must be more than 0'),
    ("upstream: {connections: 0}", 'upstream.connections = "0": must be from 1 to 16; 1 means one connection for each'),
    ("upstream: {connections: 17}", 'upstream.connections = "17": must be from 1 to 16; 1 means one connection'),
    ("upstream: {connections: -1}", 'upstream.connections = "-1": must be from 1 to 16; 1 means one connection'),
    ("upstream: {connections: many}", 'upstream.connections = "many": must be a whole number, such as'),
    (
        "upstreams: [{prefix: a, registry: b, lazy: sometimes}]",
        'upstreams[0].lazy = "sometimes": must be true or false (config.yaml:1)',
    ),
    (
        "upstreams: [{prefix: a, registry: b, lazy: true, lazy_background: none}]",
        'upstreams[0].lazy_background = "none": must be one of download, on_demand',
    ),
    ("server: {drain_timeout: 9999h}", 'server.drain_timeout = "9999h": must be 24h or less (config.yaml:1)'),
    ("storage: {max_size: 50G}", 'storage.max_size = "50G": must be a size such as 50GiB'),
    # structure
    ("[1, 2]", "the file must be a mapping of keys to values, such as 'server: {port: 5000}'"),
    ("hello", "the file must be a mapping of keys to values, such as 'server: {port: 5000}'"),
    ("server: 5000", "server: must be a mapping of keys to values, such as 'host: ...'"),
    ("server: [port]", "server: must be a mapping of keys to values, such as 'host: ...'"),
    ("server: {port: [80]}", "server.port: must be a single value, such as port: ... (config.yaml:1)"),
    ("server: {port: {a: b}}", "server.port: must be a single value, such as port: ... (config.yaml:1)"),
    ("server: {log: {ignore_paths: [[a]]}}", "server.log.ignore_paths: must be a list of single values"),
    (
        "upstreams: {prefix: a}",
        "upstreams: must be a list: begin each element with '- ', as in '- prefix: ghcr.io' (config.yaml:1)",
    ),
    ("upstreams: []", "upstreams: must have at least one upstream (config.yaml:1)"),
    ("upstreams: [a]", "upstreams[0]: must be a mapping of keys to values, such as 'prefix: ...' (config.yaml:1)"),
    ("upstreams:\n- registry: b", "upstreams[0].prefix: is required (config.yaml:2)"),
    ("upstreams:\n- prefix: a", "upstreams[0].registry: is required (config.yaml:2)"),
    ("server: {port: 1, port: 2}", "server.port: is set twice, first in line 1 (config.yaml:1)"),
    ("storage: {secret_key: !x y}", "storage.secret_key: is read as a YAML tag"),
    # unknown keys
    ("server: {prot: 1}", "server.prot: unknown key; did you mean server.port? (config.yaml:1)"),
    ("sever: {}", "sever: unknown key; did you mean server? (config.yaml:1)"),
    ("bucket: x", "bucket: unknown key; did you mean storage.bucket? (config.yaml:1)"),
    ("storage: {accessKey: x}", "storage.accessKey: unknown key; did you mean storage.access_key? (config.yaml:1)"),
    ("upstreams: [{prefix: a, registry: b, pasword: x}]", "upstreams[0].pasword: unknown key; did you mean"),
    ("warnings: []", "warnings: unknown key; `dockyard config` prints all keys (config.yaml:1)"),
    ("server: {zzzzzz: 1}", "server.zzzzzz: unknown key; `dockyard config` prints all keys (config.yaml:1)"),
    ("server: {<<: {port: 1}}", "server.<<: unknown key; merge keys are not supported"),
    ("? [a]\n: b", "?: unknown key; `dockyard config` prints all keys (config.yaml:1)"),
    # TLS
    ("server: {tls: true, keyfile: x}", "server.certfile: is required when server.tls is true (config.yaml:1)"),
    (
        "server: {tls: true, certfile: /no/such, keyfile: x}",
        'server.certfile = "/no/such": cannot be read: No such file',
    ),
    # storage
    ("storage: {prefix: ../x}", 'storage.prefix = "../x": must be a path such as cache/'),
    ("storage: {prefix: /x/}", 'storage.prefix = "/x/": must be a path such as cache/'),
    ("storage: {endpoint: 'https://s3.example.com'}", 'storage.endpoint = "https://s3.example.com": must be host or '),
    ("storage: {bucket: s3://images}", 'storage.bucket = "s3://images": must be the name of a bucket: 3 to 63 letters'),
    (
        "storage: {bucket: images, region: us-east-1a}",
        'storage.region = "us-east-1a": is an availability zone, not',
    ),
    ("storage: {prefix: a//b}", 'storage.prefix = "a//b": must be a path such as cache/'),
]


@pytest.mark.parametrize(("text", "error"), ERRORS)
def test_an_error_has_key_value_and_line(errors_in: Callable[..., list[str]], text: str, error: str) -> None:
    """The value as it is written in the file, and what is wrong with it."""
    assert errors_in(text)[0].startswith(error)


UPSTREAM_ERRORS = [
    ("prefix: Docker.io, registry: x", 'prefix = "Docker.io": must be a lower-case name'),
    ("prefix: 'localhost:5001', registry: x", 'prefix = "localhost:5001": must be a lower-case name'),
    ("prefix: a//b, registry: x", 'prefix = "a//b": must be a lower-case name'),
    ("prefix: a/, registry: x", 'prefix = "a/": must be a lower-case name'),
    ("prefix: a, registry: 'ftp://x'", 'registry = "ftp://x": must be host[:port][/path]'),
    ("prefix: a, registry: 'x:0'", 'registry = "x:0": must have a port from 1 to 65535'),
    ("prefix: a, registry: 'x:99999'", 'registry = "x:99999": must have a port from 1 to 65535'),
    ("prefix: a, registry: 'x:'", 'registry = "x:": must be host or host:port'),
    ("prefix: a, registry: ''", "registry: must be host or host:port"),
    ("prefix: a, registry: '[::1'", 'registry = "[::1": must be host or host:port'),
    ("prefix: a, registry: '[::g]:5'", 'registry = "[::g]:5": must be host or host:port'),
    ("prefix: a, registry: 'a_b..c'", 'registry = "a_b..c": must be a host name or an IP address'),
    ("prefix: a, registry: 'x?a=b'", 'registry = "x?a=b": must not have a query or a fragment'),
    ("prefix: a, registry: 'x/v2/'", 'registry = "x/v2/": must not contain /v2'),
    ("prefix: a, registry: 'x/Org'", 'registry = "x/Org": must have a path that is valid in a repository name'),
    ("prefix: a, registry: x, auth: {type: basic, password: p}", "auth.username: is required by auth.type basic"),
    ("prefix: a, registry: x, auth: {type: basic, username: u}", "auth.password: is required by auth.type basic"),
    ("prefix: a, registry: x, auth: {type: bearer}", "auth.password: is required by auth.type bearer"),
    ("prefix: a, registry: x, auth: {type: basic, username: 'a:b', password: p}", 'auth.username = "a:b": must not'),
    (
        "prefix: a, registry: x, auth: {type: bearer, password: 'a b'}",
        "auth.password: must be printable ASCII",
    ),
    ("prefix: a, registry: x, ca_file: /no/such", 'ca_file = "/no/such": cannot be read: No such file'),
    ("prefix: a, registry: x, proxy: 'proxy:3128'", 'proxy = "proxy:3128": must be a URL such as'),
    ("prefix: a, registry: x, proxy: 'socks5://proxy:1'", 'proxy = "socks5://proxy:1": must be a URL such as'),
    ("prefix: a, registry: x, trusted_hosts: ['https://x']", 'trusted_hosts = "https://x": must be host or host:port'),
    ("prefix: a, registry: x, default: perhaps", 'default = "perhaps": must be true or false'),
]


@pytest.mark.parametrize(("text", "error"), UPSTREAM_ERRORS)
def test_an_error_in_an_upstream_has_its_index(errors_in: Callable[..., list[str]], text: str, error: str) -> None:
    """Upstreams are counted from 0."""
    assert errors_in(f"upstreams: [{{prefix: ok, registry: ok}}, {{{text}}}]")[0].startswith(f"upstreams[1].{error}")


def test_two_upstreams_cannot_have_the_same_prefix(errors_in: Callable[..., list[str]]) -> None:
    """It would be ambiguous."""
    assert errors_in("upstreams:\n- {prefix: a, registry: b}\n- {prefix: a, registry: c}") == [
        'upstreams[1].prefix = "a": is the prefix of upstreams[0] too; each prefix may be used once (config.yaml:3)'
    ]


def test_only_one_upstream_can_be_the_default(errors_in: Callable[..., list[str]]) -> None:
    """The error is that of the second one."""
    text = "upstreams:\n- {prefix: a, registry: b, default: true}\n- {prefix: b, registry: c, default: true}"

    assert errors_in(text) == [
        'upstreams[1].default = "true": upstreams[0] is the default already; only one can be (config.yaml:3)'
    ]


def test_all_errors_are_reported_together(errors_in: Callable[..., list[str]]) -> None:
    """Those of the file and of the environment, of single values and of values that depend on each other."""
    errors = errors_in(
        """
        server:
          tls: true
          prot: 80
        upstream:
          check_timeout: 5
        upstreams:
          - prefix: A
            registry: x
            auth: {type: bearer}
        """,
        LOGGER_LEVEL="loud",
    )

    assert [error.split(":")[0].split(" ")[0] for error in errors] == [
        "logger.level",
        "server.prot",
        "upstream.check_timeout",
        "server.certfile",
        "server.keyfile",
        "upstreams[0].prefix",
        "upstreams[0].auth.password",
    ]


def test_an_error_in_the_environment_has_the_variable(errors_in: Callable[..., list[str]]) -> None:
    """Its location is the variable, with or without prefix as it is set."""
    assert errors_in("", DOCKYARD_SERVER_TLS="?") == [
        'server.tls = "?": must be true or false (env DOCKYARD_SERVER_TLS)'
    ]


def test_the_port_that_kubernetes_sets_is_explained(errors_in: Callable[..., list[str]]) -> None:
    """A service called "server" is the usual reason for a URL in SERVER_PORT."""
    (error,) = errors_in("", SERVER_PORT="tcp://10.0.0.1:5000")

    assert 'a service called "server"' in error
    assert "set DOCKYARD_SERVER_PORT, which takes precedence" in error


def test_a_variable_that_kubernetes_sets_is_not_advised(
    errors_in: Callable[..., list[str]],
) -> None:
    """A service called "dockyard-server" sets the variable with the prefix."""
    (error,) = errors_in("", DOCKYARD_SERVER_PORT="tcp://10.0.0.1:5000")

    assert 'a service called "dockyard-server"' in error
    assert "enableServiceLinks: false" in error
    assert "which takes precedence" not in error


def test_an_error_quotes_a_variable_but_not_its_value(errors_in: Callable[..., list[str]]) -> None:
    """The value of ${VAR} may be a secret that was given to the wrong key."""
    assert errors_in("server: {port: '${TOKEN}'}", TOKEN=CANARY) == [
        'server.port = "${TOKEN}": must be a whole number, such as 5000 (config.yaml:1)'
    ]


def test_an_error_says_that_a_variable_is_not_set(errors_in: Callable[..., list[str]]) -> None:
    """It is the usual reason for an invalid value with braces."""
    assert errors_in("upstream: {check_timeout: '${TTL}'}")[0].endswith(
        "it refers to a variable that is not set (config.yaml:1)"
    )


def test_long_values_are_truncated_and_control_characters_escaped(errors_in: Callable[..., list[str]]) -> None:
    """An error is one line that is safe to print on a terminal."""
    (long,) = errors_in(f"server: {{port: {'9' * 500}}}")
    (unprintable,) = errors_in('server: {port: "\\e[31m"}')

    assert len(long) < 200
    assert (
        unprintable
        == 'server.port = "\\u001b[31m": contains a line break, a control character or broken UTF-8 (config.yaml:1)'
    )


# Errors with their cure

CURES = [
    # the S3 endpoint, region and bucket
    ("storage: {endpoint: 'https://s3.example.com'}", "write s3.example.com, and set storage.use_ssl: true"),
    ("storage: {endpoint: 'HTTP://minio:9000/'}", "write minio:9000, and set storage.use_ssl: false"),
    (
        "storage: {endpoint: 's3.example.com/images'}",
        "the bucket is set by storage.bucket, the path in it by storage",
    ),
    ("storage: {endpoint: 's3.example.com/'}", "write s3.example.com"),
    ("storage: {endpoint: 'key:secret@minio:9000'}", "set storage.access_key and storage.secret_key"),
    ("storage: {endpoint: 'minio:99999'}", "must have a port from 1 to 65535"),
    ("storage: {endpoint: 'minio:http'}", "must be host or host:port, such as s3.example.com or minio:9000"),
    ("storage: {endpoint: 's3 example'}", "must be a host name or an IP address, such as s3.example.com or minio:9000"),
    (
        "storage: {endpoint: images.s3.eu-west-1.amazonaws.com, bucket: images, region: eu-west-1}",
        "must not begin with the name of the bucket",
    ),
    ("storage: {bucket: images, region: Europe (Frankfurt)}", "must be a region of AWS, such as eu-central-1"),
    ("storage: {bucket: images, region: EU-CENTRAL-1}", "write eu-central-1"),
    ("storage: {bucket: images, region: auto}", "must be a region of AWS"),
    ("storage: {bucket: images, region: 'a b', endpoint: minio}", "must be the name of a region, such as eu-central-1"),
    ("storage: {bucket: images/cache}", "the path in it by storage.prefix"),
    ("storage: {bucket: x}", "3 to 63 letters, digits, dots and hyphens, such as dockyard-cache"),
    # the address to listen on
    ("server: {host: 'http://example.com'}", "without a scheme"),
    ("server: {host: '0.0.0.0:5000'}", "without a port: write 0.0.0.0, and set server.port to 5000"),
    ("server: {host: '[::1]:80'}", "without a port: write ::1, and set server.port to 80"),
    ("server: {host: '[::]'}", "write ::"),
    ("server: {host: '*'}", "leave it empty to listen on all addresses"),
    ("server: {host: 'localhost '}", "without spaces"),
    # values
    ("server: {workers: -2}", "must be from 0 to 1024; 0 means one for each processor"),
    ("server: {workers: auto}", "must be a whole number, such as 0"),
    ("server: {drain_timeout: 10}", "must have a unit, as in 10s, 10m or 10h"),
    ("server: {drain_timeout: 10 s}", "write 10s"),
    ("server: {drain_timeout: 1.5 min}", "write 1.5m"),
    ("server: {drain_timeout: 1d}", "write 24h"),
    ("storage: {max_size: 50G}", "write 50GiB (powers of 1024) or 50GB (powers of 1000)"),
    ("storage: {max_size: 2 TBytes}", "write 2TiB (powers of 1024) or 2TB (powers of 1000)"),
    ("logger: {level: warning}", "did you mean warn?"),
    ("logger: {output: /no/such/file}", "there is no directory /no/such"),
    ("upstreams: [{prefix: Docker.IO, registry: x}]", "write docker.io"),
    # YAML
    ("server:\n\tport: 1\n", "indent with spaces, not with tabs"),
    ("server:\n  port: 1\n host: x\n", "keys of one section must have the same indentation"),
    ("server: {port: 1", "a brace { is not closed"),
    ("upstreams: [", "a value is missing, or a bracket is not closed"),
    ("server: {host: 'x", "a quote is not closed"),
    ("server:\n  port:5000\n", "write a space after the colon"),
    ("server:\n  host: a: b\n", "put quotes around a value that contains ': '"),
    ("server:\n  host: @x\n", "put quotes around a value that begins with this character"),
    ("server:\n  host: x\n  port\n", "write 'key: value', with a space after the colon"),
    ("server:\n  - port: 5000\n", "not a list: remove the '- '"),
    ("- server\n", "not a list: remove the '- '"),
    ("upstreams: {ghcr.io: {registry: ghcr.io}}", "begin each element with '- '"),
    ("a: 1\n---\nb: 2\n", "one document"),
    ('storage: {access_key: a, secret_key: "x\\n"}', "it ends with a line break; write it without one"),
]


@pytest.mark.parametrize(("text", "cure"), CURES)
def test_an_error_says_what_to_write(errors_in: Callable[..., list[str]], text: str, cure: str) -> None:
    """Not only that the value is wrong; and where it is."""
    (error,) = errors_in(text)

    assert cure in error
    assert "config.yaml:" in error


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("minio:9000", "us-east-1"),
        ("192.0.2.1:9000", "default"),
        ("[2001:db8::1]:9000", "garage"),
        ("abc.r2.cloudflarestorage.com", "auto"),
        ("s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("s3.example.com:443", "EU_1"),
        ("", "us-gov-west-1"),
        ("", "cn-north-1"),
        ("", "eusc-de-east-1"),
    ],
)
def test_usual_endpoints_and_regions_are_accepted(load_text: Load, endpoint: str, region: str) -> None:
    """Without a warning."""
    settings = load_text(f"storage: {{endpoint: '{endpoint}', region: {region}, bucket: images}}")

    assert settings.storage.endpoint == endpoint
    assert settings.warnings == ()


def test_a_wrong_region_of_the_aws_tools_has_their_variable(errors_in: Callable[..., list[str]]) -> None:
    """Where it comes from is not in the settings."""
    (error,) = errors_in("storage: {bucket: images}", AWS_DEFAULT_REGION="eu-west-1b")

    assert error == (
        'storage.region = "eu-west-1b": is an availability zone, not a region: write eu-west-1 (env AWS_DEFAULT_REGION)'
    )


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("storage: {endpoint: minio:9000}", "storage.endpoint: has no effect without storage.bucket"),
        (
            "storage: {endpoint: s3.eu-west-1.amazonaws.com, bucket: images, region: us-east-1}",
            "storage.region: is us-east-1, but storage.endpoint is in eu-west-1",
        ),
        ("storage: {max_size: 50}", "storage.max_size: a size without a unit is in bytes, so this is 50 bytes"),
        ("storage: {scrub_rate: 8}", "storage.scrub_rate: a size without a unit is in bytes, so this is 8 bytes"),
        (
            "upstreams: [{prefix: a.example, registry: b.example, lazy_background: on_demand}]",
            "upstreams[0].lazy_background: has no effect without lazy: true",
        ),
    ],
)
def test_what_is_probably_not_intended_causes_a_warning(load_text: Load, text: str, warning: str) -> None:
    """It is allowed."""
    (found,) = load_text(text).warnings

    assert found.startswith(warning)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_a_file_without_settings_causes_a_warning(load_text: Load, tmp_path: Path, text: str) -> None:
    """It may be the wrong file, or one that was not filled."""
    (found,) = load_text(text).warnings

    assert found == f"{tmp_path}/config.yaml: has no settings in it; the defaults and the environment are used"


# Variables that set nothing


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DOCKYARD_SERVER_PROT", "; did you mean DOCKYARD_SERVER_PORT?"),
        ("DOCKYARD_PORT", "; did you mean DOCKYARD_SERVER_PORT?"),
        ("DOCKYARD_BUCKET", "; did you mean DOCKYARD_STORAGE_BUCKET?"),
        ("DOCKYARD_CONFIG_FILE", "; did you mean DOCKYARD_CONFIG?"),
        ("DOCKYARD__SERVER__PORT", "; did you mean DOCKYARD_SERVER_PORT?"),
        ("dockyard_server_port", "; did you mean DOCKYARD_SERVER_PORT?"),
        ("DOCKYARD_UPSTREAMS_0_PREFIX", "; upstreams can be set in the file only, where a value may be ${NAME}"),
        ("DOCKYARD_ACCESS_RULES_0_ALLOW", "; access.rules can be set in the file only, where a value may be ${NAME}"),
        ("DOCKYARD_ACCESS_JWT", "; access.jwt can be set in the file only, where a value may be ${NAME}"),
        ("DOCKYARD_ACCESS_HTPASWD", "; did you mean DOCKYARD_ACCESS_HTPASSWD?"),
        ("DOCKYARD_XYZZY", ""),
    ],
)
def test_an_unknown_variable_causes_a_warning(load_text: Load, name: str, hint: str) -> None:
    """With the nearest name, and without its value."""
    (warning,) = load_text("server: {port: 81}", **{name: CANARY}).warnings

    assert warning == f"the environment variable {name} is unknown and has no effect{hint}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DOCKYARD_CONFIG", "/etc/dockyard/config.yaml"),
        ("DOCKYARD_URL", "http://dockyard:5000"),
        ("DOCKYARD_SERVICE_HOST", "10.0.0.1"),
        ("DOCKYARD_SERVICE_PORT", "5000"),
        ("DOCKYARD_SERVICE_PORT_HTTP", "5000"),
        ("DOCKYARD_PORT", "tcp://10.0.0.1:5000"),
        ("DOCKYARD_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
        ("DOCKYARD_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("DOCKYARD_METRICS_PORT", "tcp://10.0.0.1:5000"),
        ("DOCKYARD_METRICS_SERVICE_HOST", "10.0.0.1"),
        ("SERVER_PROT", "1"),
        ("MY_DOCKYARD_SERVER_PROT", "1"),
    ],
)
def test_variables_for_others_cause_no_warning(load_text: Load, name: str, value: str) -> None:
    """Those of the command line, those that Kubernetes sets for a service, and those without the prefix."""
    assert load_text("server: {port: 81}", **{name: value}).warnings == ()


def test_variables_that_the_file_refers_to_cause_no_warning(load_text: Load) -> None:
    """A value may be ${DOCKYARD_TOKEN}."""
    text = "upstreams: [{prefix: a.test, registry: x, auth: {type: bearer, password: '${DOCKYARD_TOKEN}'}}]"

    assert load_text(text, DOCKYARD_TOKEN=CANARY).warnings == ()


def test_the_variables_of_all_options_are_known() -> None:
    """Of every command."""
    options = [option for command in (main, *main.commands.values()) for option in command.params]
    variables = [option.envvar for option in options if isinstance(option.envvar, str)]

    assert "DOCKYARD_CONFIG" in variables
    assert set(variables) <= set(COMMAND_VARIABLES)


# Secrets

SECRET_FILES = [
    f"storage: {{secret_key: [{CANARY}]}}",
    f"storage: {{secret_key: {{a: {CANARY}}}}}",
    f'storage: {{secret_key: "{CANARY}\\n"}}',
    f"storage: {{secret_key: !{CANARY} x}}",
    f"storage: {{secret_key: *{CANARY}}}",
    f"storage: {{secret_key: &{CANARY} x, bucket: &{CANARY} x, port: 1}}",
    f"storage: {{secret_key: !a!{CANARY} x}}",
    f"storage: {{secret_key: '{CANARY}}}",
    f"storage: {{secret_key: {CANARY}: x}}",
    f"storage:\n  secret_key: {CANARY}\n bucket: x",
    f"storage:\n\tsecret_key: {CANARY}",
    f"storage: {{secret_key: {CANARY}, secret_key: {CANARY}, prot: 1}}",
    f"storage: {{secret_key: @{CANARY}}}",
    f"storage: {{secret_key: %{CANARY}}}",
    f"upstreams: [{{prefix: a, registry: 'https://user:{CANARY}@x'}}]",
    f"upstreams: [{{prefix: a, registry: x, proxy: 'ftp://user:{CANARY}@x'}}]",
    f"upstreams: [{{prefix: a, registry: x, auth: {CANARY}}}]",
    f"upstreams: [{{prefix: a, registry: x, auth: [{CANARY}]}}]",
    f"upstreams: [{{prefix: a, registry: x, auth: {{type: bearer, password: '{CANARY} x'}}}}]",
    f"upstreams: [{{prefix: a, registry: x, auth: {{type: basic, password: {CANARY}}}}}]",
    f"upstreams: [{{prefix: a, registry: x, auth: {{pasword: {CANARY}}}}}]",
]


@pytest.mark.parametrize("text", SECRET_FILES)
def test_no_error_contains_a_secret(errors_in: Callable[..., list[str]], text: str) -> None:
    """Neither an error of the key of a secret, nor one of the YAML around it."""
    assert CANARY not in "\n".join(errors_in(text))


def secret_settings(load_text: Load) -> Settings:
    """Settings with a secret in each key that may contain one."""
    return load_text(
        f"""
        storage: {{access_key: minioadmin, secret_key: {CANARY}}}
        upstreams:
          - prefix: a
            registry: x
            auth: {{type: basic, username: someone, password: {CANARY}}}
            proxy: http://user:{CANARY}@proxy:3128
        """
    )


def test_no_repr_contains_a_secret(load_text: Load) -> None:
    """Settings may be written to a log or a traceback."""
    settings = secret_settings(load_text)

    assert CANARY not in repr(settings)
    assert CANARY not in f"{settings.storage.secret_key} {settings.upstreams[0].auth.password!r}"
    assert settings.upstreams[0].proxy == f"http://user:{CANARY}@proxy:3128"


def test_shown_settings_hide_secrets(load_text: Load) -> None:
    """As three asterisks; an empty secret as an empty text."""
    text = show(secret_settings(load_text))

    assert CANARY not in text
    assert "secret_key: '***'" in text
    assert "proxy: http://***@proxy:3128" in text
    assert "secret_key: ''" in show(load(None, HOME))


def test_shown_settings_can_be_loaded(load_text: Load) -> None:
    """Only the secrets are lost."""
    settings = load_text(
        """
        logger: {level: warn, encoding: json, color: false, output: stdout}
        server: {host: "::1", port: 81, log: {ignore_paths: [/a, /b]}, workers: 2, drain_timeout: 1m30s}
        storage: {bucket: "yes", prefix: "", touch_threshold: 36h, max_size: 1234567, directory: "/a b/\u00e9"}
        upstream: {check_timeout: 0, check_interval: 250ms, connections: 1}
        upstreams:
          - {prefix: a, registry: "http://x:5000/org", default: true, trusted_hosts: ["cdn.example:8443"]}
          - {prefix: b.c, registry: b.c, lazy: true, lazy_background: on_demand, auth: {type: anonymous}}
          - {prefix: docker.io, registry: docker.io, auth: {type: anonymous}}
        """
    )

    assert load_text(show(settings)) == settings


def test_a_secret_is_true_unless_it_is_empty() -> None:
    """`if secret` tests whether it is set."""
    assert Secret("x")
    assert not Secret("")


# Files


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"server:\n  port: [1\n", ":3: is not valid YAML: expected ',' or ']'"),
        (b"server:\n\tport: 1\n", ":2: is not valid YAML: found character '\\t'"),
        (b"a: 1\n---\nb: 2\n", ":2: is not valid YAML: but found another document"),
        (b"server:\n  host: \xff\n", ":2: is not UTF-8 text"),
        (b"server:\n  host: \x01\n", ":2: contains a character that is not allowed in YAML, U+0001"),
        (b"server:\n  host: \xff\n", ":2: is not UTF-8 text; save it as UTF-8"),
        ("server: {}".encode("utf-16"), ":1: is not UTF-8 text; it looks like UTF-16: save it as UTF-8"),
        ("server: {}".encode("utf-16-le"), "it looks like UTF-16: save it as UTF-8"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0", "it is a binary file, not YAML"),
        (b"\x1f\x8b\x08\x00\x01", "it is a binary file, not YAML"),
        (b"[" * 100_000, ": is nested too deeply"),
        (b"#" * (2**20 + 1), ": is larger than 1048576 bytes"),
        (b"a: *b\n", ":1: is not valid YAML: put quotes around a value that begins with *, & or !"),
    ],
)
def test_the_error_of_an_invalid_file_has_its_line(tmp_path: Path, data: bytes, error: str) -> None:
    """And the reason."""
    path = tmp_path / "config.yaml"
    path.write_bytes(data)

    with pytest.raises(SettingsError) as caught:
        load(path, HOME)

    (found,) = caught.value.errors
    assert found.startswith(f"{path}:")
    assert error in found


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """The environment is checked nevertheless."""
    hint = "No such file or directory; name a YAML file that exists with `-c`, or none for the defaults"
    with pytest.raises(SettingsError) as caught:
        load(tmp_path / "none.yaml", {"SERVER_PORT": "x"})

    assert caught.value.errors == [
        f"{tmp_path}/none.yaml: cannot be read: {hint}",
        'server.port = "x": must be a whole number, such as 5000 (env SERVER_PORT)',
    ]


def test_a_directory_instead_of_a_file_is_an_error(tmp_path: Path) -> None:
    """As when a ConfigMap is mounted wrongly."""
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, HOME)

    assert caught.value.errors == [
        f"{tmp_path}: cannot be read: Is a directory; name a file in it with `-c`, such as config.yaml"
    ]


@pytest.fixture
def directory_of_a_user() -> Iterator[Path]:
    """A directory; root becomes an ordinary user meanwhile, who may not read what has the mode 0000."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield directory
    finally:
        os.seteuid(user)
        shutil.rmtree(directory)


@pytest.mark.parametrize("refusing", ["etc", "etc/config.yaml"])
def test_the_owner_of_a_file_that_may_not_be_read_is_named(directory_of_a_user: Path, refusing: str) -> None:
    """Or of the directory that it is in, and the user of this process."""
    uid, user = os.getuid(), os.geteuid()
    os.seteuid(uid)
    path = directory_of_a_user / "etc" / "config.yaml"
    path.parent.mkdir()
    path.write_text("server: {port: 81}")
    (directory_of_a_user / refusing).chmod(0)
    os.seteuid(user)
    with pytest.raises(SettingsError) as caught:
        load(path, HOME)
    os.seteuid(uid)
    path.parent.chmod(0o700)

    (error,) = caught.value.errors
    place = directory_of_a_user / refusing
    assert error.startswith(f"{path}: cannot be read: Permission denied: {place} belongs to uid {uid} (")
    assert f"mode 0000, and this process runs as uid {user} (" in error


def test_a_key_with_control_characters_is_escaped(errors_in: Callable[..., list[str]]) -> None:
    """A file of another kind may contain anything."""
    (error,) = errors_in('"\\e[31m": 1')

    assert error == '"\\u001b[31m": unknown key; `dockyard config` prints all keys (config.yaml:1)'


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    """Some editors write one."""
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfserver:\n  port: 81\n")

    assert load(path, HOME).server.port == 81


def test_an_anchor_can_be_used_again(load_text: Load) -> None:
    """Two upstreams may share one auth block."""
    settings = load_text(
        """
        upstreams:
          - {prefix: a, registry: x, auth: &login {type: basic, username: u, password: p}}
          - {prefix: b, registry: x, auth: *login}
        """
    )

    assert settings.upstreams[0].auth == settings.upstreams[1].auth == Auth("basic", "u", Secret("p"))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "upstreams: &a [*a, *a]",
        "upstreams: [&a {prefix: *a, registry: x}]",
        "server: &a {log: *a}",
        "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: &d [*c,*c]\ne: [*d,*d]",
    ],
)
def test_recursive_aliases_are_errors(errors_in: Callable[..., list[str]], text: str) -> None:
    """They do not cause endless recursion, and nested aliases do not multiply."""
    assert errors_in(text)


@given(st.text(alphabet=st.sampled_from("abserv:port \n-[]{}\"'#&*!|>%@`$0,?\t<\\"), max_size=60))
@example("upstreams: [{? {a: b} : c}]")
def test_any_file_gives_settings_or_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Loading raises nothing but SettingsError."""
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")

    with contextlib.suppress(SettingsError):
        assert isinstance(load(path, HOME), Settings)


# Upstreams


@pytest.mark.parametrize(
    ("registry", "origin", "path"),
    [
        ("ghcr.io", "https://ghcr.io", ""),
        ("GHCR.io/my-org/team/", "https://ghcr.io", "my-org/team"),
        ("docker.io", "https://registry-1.docker.io", ""),
        ("registry-1.docker.io", "https://registry-1.docker.io", ""),
        ("r.example:8443", "https://r.example:8443", ""),
        ("https://r.example:443", "https://r.example", ""),
        ("HTTP://r.example:80/org", "http://r.example", "org"),
        ("http://r.example:443", "http://r.example:443", ""),
        ("localhost:5001", "http://localhost:5001", ""),
        ("registry.localhost", "http://registry.localhost", ""),
        ("https://localhost:5001", "https://localhost:5001", ""),
        ("127.0.0.2:5001/org", "http://127.0.0.2:5001", "org"),
        ("[::1]:5001", "http://[::1]:5001", ""),
        ("[2001:DB8:0::1]", "https://[2001:db8::1]", ""),
        ("10.0.0.1:5000", "https://10.0.0.1:5000", ""),
        ("my_registry:5000", "https://my_registry:5000", ""),
    ],
)
def test_a_registry_has_an_origin_and_a_path(load_text: Load, registry: str, origin: str, path: str) -> None:
    """The default scheme is http for loopback hosts, https for all others."""
    (upstream,) = load_text(f"upstreams: [{{prefix: a, registry: '{registry}'}}]").upstreams

    assert (str(upstream.origin), upstream.path) == (origin, path)


def test_an_origin_has_a_port_and_a_host_without_brackets() -> None:
    """The port is the default of the scheme when none is given."""
    assert Upstream("a", "[::1]").origin == Origin("http", "::1", 80)


@pytest.mark.parametrize(
    ("lines", "defaults"),
    [
        (["prefix: docker.io"], [True]),
        (["prefix: a", "prefix: docker.io"], [False, True]),
        (["prefix: docker.io, default: false"], [False]),
        (["prefix: a, default: true", "prefix: docker.io"], [True, False]),
        (["prefix: a"], [False]),
        (["prefix: docker.io/library"], [False]),
    ],
)
def test_docker_hub_is_the_default_unless_the_file_sets_another(
    load_text: Load, lines: list[str], defaults: list[bool]
) -> None:
    """By `default: false` for Docker Hub, or `default: true` for another upstream."""
    text = "upstreams:\n" + "\n".join(f"- {{{line}, registry: x}}" for line in lines)

    assert [upstream.default for upstream in load_text(text).upstreams] == defaults


@pytest.mark.parametrize(
    ("auth", "kind"),
    [
        ("", "keychain"),
        (", auth: {}", "keychain"),
        (", auth: {type: ''}", "keychain"),
        (", auth: {type: keychain}", "keychain"),
        (", auth: {type: ecr}", "keychain"),
        (", auth: {type: Anonymous}", "anonymous"),
        (", auth: {type: bearer, password: x}", "bearer"),
    ],
)
def test_every_unknown_type_of_auth_is_the_keychain(load_text: Load, auth: str, kind: str) -> None:
    """An empty type, or any that is not one of the three others, means the Docker keychain."""
    assert load_text(f"upstreams: [{{prefix: a, registry: x{auth}}}]").upstreams[0].auth.type == kind


@pytest.mark.parametrize(
    ("auth", "warning"),
    [
        ("{type: anonymus}", "upstreams[0].auth.type: is none of anonymous, basic, bearer, keychain"),
        ("{username: u, password: p}", "upstreams[0].auth: username and password are ignored by the Docker keychain"),
    ],
)
def test_an_unintended_keychain_causes_a_warning(load_text: Load, auth: str, warning: str) -> None:
    """A misspelt type is allowed, with a warning."""
    (found,) = load_text(f"upstreams: [{{prefix: a.test, registry: x, auth: {auth}}}]").warnings

    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("prefix", "first"),
    [
        ("internal", "internal"),
        ("internal/team.a", "internal"),
        ("internal.test", None),
        ("internal.test/team", None),
        ("localhost", None),
        ("docker.io", None),
    ],
)
def test_a_prefix_without_a_dot_causes_a_warning(load_text: Load, prefix: str, first: str | None) -> None:
    """It could be the beginning of a name at another registry, whose images would be those of this upstream."""
    other = f"{{prefix: {prefix}, registry: b.test}}"
    warnings = load_text(f"upstreams: [{{prefix: a.test, registry: a.test}}, {other}]").warnings
    assert len(warnings) == (first is not None)
    assert all(warning.startswith(f"upstreams[1].prefix: {first} has no dot") for warning in warnings)


# Files that settings refer to


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two key pairs and their CA."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for name in ("one", "two"):
        certificate = authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(directory / f"{name}.crt")
        certificate.private_key_pem.write_to_path(directory / f"{name}.key")
    return directory


def test_a_certificate_and_its_key_are_accepted(load_text: Load, certificates: Path) -> None:
    """When TLS is on and they belong together."""
    settings = load_text(f"server: {{tls: true, certfile: {certificates}/one.crt, keyfile: {certificates}/one.key}}")

    assert settings.server == ServerSettings(
        tls=True, certfile=f"{certificates}/one.crt", keyfile=f"{certificates}/one.key"
    )


@pytest.mark.parametrize(
    ("certfile", "keyfile", "error"),
    [
        ("one.crt", "two.key", "cannot be used with server.certfile"),
        ("one.key", "one.key", "must be a PEM file with certificates"),
        ("ca.pem", "ca.pem", "cannot be used with server.certfile"),
    ],
)
def test_a_certificate_with_another_key_is_rejected(
    errors_in: Callable[..., list[str]], certificates: Path, certfile: str, keyfile: str, error: str
) -> None:
    """When the settings are loaded, before a worker starts."""
    text = f"server: {{tls: true, certfile: {certificates}/{certfile}, keyfile: {certificates}/{keyfile}}}"

    assert error in errors_in(text)[0]


def test_certificates_are_not_checked_without_tls(load_text: Load) -> None:
    """They may be missing when TLS is off."""
    assert load_text("server: {tls: false, certfile: /no/such}").server.certfile == "/no/such"


def test_a_ca_file_must_contain_certificates(
    errors_in: Callable[..., list[str]], load_text: Load, certificates: Path
) -> None:
    """A key, or any other file, is rejected."""
    text = f"upstreams: [{{prefix: a, registry: x, ca_file: {certificates}/%s}}]"

    assert load_text(text % "ca.pem").upstreams[0].ca_file == f"{certificates}/ca.pem"
    assert "must be a PEM file with CA certificates" in errors_in(text % "one.key")[0]


def test_the_s3_keys_are_read(load_text: Load) -> None:
    """Each into its field."""
    text = "storage: {endpoint: minio:9000, region: auto, bucket: images, access_key: a, secret_key: s}"

    assert load_text(text).storage == StorageSettings(
        endpoint="minio:9000",
        region="auto",
        bucket="images",
        access_key="a",
        secret_key=Secret("s"),
        directory=Path("/home/someone/.cache/dockyard"),
    )


# The keys and the region of S3

KEYS = {"storage.access_key": "0123", "storage.secret_key": Secret("0456")}


@pytest.mark.parametrize("prefix", ["", "DOCKYARD_"])
def test_the_keys_are_read_from_the_environment(prefix: str) -> None:
    """As every scalar is; they are not in the table above because one needs the other."""
    settings = load(None, {f"{prefix}STORAGE_ACCESS_KEY": "0123", f"{prefix}STORAGE_SECRET_KEY": "0456"})
    assert {key: value_at(settings, key) for key in KEYS} == KEYS


KEY_PAIRS = [
    ("storage: {access_key: a}", {}, "storage.secret_key"),
    ("storage: {secret_key: b}", {}, "storage.access_key"),
    ("storage: {access_key: a, secret_key: ''}", {}, "storage.secret_key"),
    ("storage: {access_key: '', secret_key: b}", {}, "storage.access_key"),
    ("storage: {access_key: a, secret_key: b}", {"STORAGE_SECRET_KEY": ""}, "storage.secret_key"),
    ("storage: {access_key: a, secret_key: b}", {"DOCKYARD_STORAGE_ACCESS_KEY": ""}, "storage.access_key"),
    ("", {"STORAGE_ACCESS_KEY": "a"}, "storage.secret_key"),
    ("storage: {access_key: a, secret_key: '${KEY}'}", {"KEY": ""}, "storage.secret_key"),
    ("storage: {access_key: a}", {"AWS_ACCESS_KEY_ID": "c", "AWS_SECRET_ACCESS_KEY": "d"}, "storage.secret_key"),
]


@pytest.mark.parametrize(("text", "environ", "key"), KEY_PAIRS)
def test_half_a_pair_of_keys_is_an_error(
    errors_in: Callable[..., list[str]], text: str, environ: dict[str, str], key: str
) -> None:
    """Else the credentials of somebody else would be used."""
    [error] = errors_in(text, **environ)
    assert error.startswith(f"{key}: is required when storage.")


@pytest.mark.parametrize(
    ("text", "environ", "keys"),
    [
        ("storage: {access_key: a}", {"STORAGE_SECRET_KEY": "b"}, ("a", "b")),
        ("storage: {secret_key: b}", {"DOCKYARD_STORAGE_ACCESS_KEY": "a"}, ("a", "b")),
        ("storage: {access_key: a, secret_key: b}", {"STORAGE_ACCESS_KEY": "", "STORAGE_SECRET_KEY": ""}, ("", "")),
        ("storage: {access_key: '', secret_key: ''}", {}, ("", "")),
    ],
)
def test_a_pair_of_keys_may_come_from_the_file_and_the_environment(
    load_text: Load, text: str, environ: dict[str, str], keys: tuple[str, str]
) -> None:
    """What counts is the result."""
    storage = load_text(text, **environ).storage
    assert (storage.access_key, storage.secret_key.reveal()) == keys


@pytest.mark.parametrize(
    ("text", "environ", "region"),
    [
        ("", {}, "us-east-1"),
        ("", {"AWS_REGION": "eu-central-1"}, "eu-central-1"),
        ("", {"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ("", {"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-central-1"),
        ("", {"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
        ("", {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "us-east-1"),
        ("storage: {region: us-east-1}", {"AWS_REGION": "eu-central-1"}, "us-east-1"),
        ("storage: {region: ''}", {"AWS_REGION": "eu-central-1"}, "eu-central-1"),
        ("storage: {region: ''}", {}, "us-east-1"),
        ("", {"AWS_REGION": "eu-central-1", "STORAGE_REGION": "auto"}, "auto"),
        ("", {"AWS_REGION": "eu-central-1", "STORAGE_REGION": ""}, "eu-central-1"),
    ],
)
def test_the_region_is_the_setting_or_that_of_the_aws_tools(
    load_text: Load, text: str, environ: dict[str, str], region: str
) -> None:
    """EKS and Lambda set AWS_REGION in all containers."""
    assert load_text(text, **environ).storage.region == region


@pytest.mark.parametrize("key", ["server.port", "server.tls", "server.drain_timeout", "storage.max_size"])
@pytest.mark.parametrize("key_of_text", ["logger.output", "logger.level", "storage.directory", "storage.region"])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_value_is_no_value_where_it_can_mean_nothing(
    load_text: Callable[..., Settings], key: str, key_of_text: str, empty: str
) -> None:
    """The next source has the word: the variable without prefix, the file, the default."""
    default = load_text("")
    for name in (key, key_of_text):
        section, _, field = name.partition(".")
        variable = name.upper().replace(".", "_")
        assert load_text(f"{section}: {{{field}: '{empty}'}}") == default
        assert load_text(f"{section}: {{{field}: '${{X}}'}}", X=empty) == default
        assert load_text("", **{variable: empty}) == default
        assert load_text("", **{f"DOCKYARD_{variable}": empty, variable: empty}) == default
    assert load_text("server: {port: 81}", SERVER_PORT=empty).server.port == 81
    assert load_text("server: {port: 81}", SERVER_PORT="82", DOCKYARD_SERVER_PORT=empty).server.port == 82


def test_an_empty_value_counts_where_it_means_something(load_text: Callable[..., Settings]) -> None:
    """All interfaces, no bucket, no prefix, no ignored paths."""
    text = "{server: {host: h, log: {ignore_paths: [/x]}}, storage: {bucket: b, prefix: p/}}"
    settings = load_text(text, SERVER_HOST="", SERVER_LOG_IGNORE_PATHS="", STORAGE_BUCKET="", STORAGE_PREFIX="")
    assert (settings.server.host, settings.server.log.ignore_paths) == ("", ())
    assert (settings.storage.bucket, settings.storage.prefix) == ("", "")
