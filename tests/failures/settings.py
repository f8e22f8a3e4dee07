"""Mistakes in the settings: each is found before anything starts, or logged as a warning when the server starts."""

from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import trustme

from tests.failures.failure import Failure, Seen, replace_variables
from tests.failures.programs import run, warnings_and_errors
from tests.security.canaries import Canary
from tests.support.processes import free_port

SECRET = Canary("canary-of-the-settings-8d13")
PLAIN = "logger: {level: info}\n"
UPSTREAM = "upstreams:\n  - prefix: a.example\n"
TLS = "server: {tls: true, certfile: tls.crt, keyfile: tls.key}\n"


@attrs.frozen
class SettingsFailure(Failure):
    """A mistake in `config.yaml`, in the environment, or in a file that `prepare` makes."""

    text: str = ""
    environ: Mapping[str, str] = attrs.field(factory=dict)
    prepare: Callable[[Path], object] = lambda directory: None
    starts: bool = False
    """The server starts, with a warning."""


def observe(failure: SettingsFailure, directory: Path) -> Seen:
    """Start a server with these settings, which ends at once or goes on with a warning."""
    file = directory / "config.yaml"
    file.write_text(failure.text)
    failure.prepare(directory)
    environ = {"STORAGE_DIRECTORY": str(directory / "storage")}
    if failure.starts:
        environ["SERVER_PORT"] = str(free_port())
    output = run(
        directory,
        ["server", "-c", "config.yaml"],
        environ | failure.environ,
        is_seen=lambda text: "Dockyard is starting" in text,
    )
    lines = warnings_and_errors(output) if failure.starts else output.splitlines()[1:]
    lines = [line for line in lines if "clients are not authenticated" not in line]
    assert len(lines) == 1, output
    return Seen(replace_variables(lines[0], {str(directory): "/DIRECTORY"}), output=output)


def write_pair(directory: Path) -> None:
    """A certificate, and the key of another one."""
    authority = trustme.CA()
    authority.issue_cert("localhost").cert_chain_pems[0].write_to_path(str(directory / "tls.crt"))
    authority.issue_cert("localhost").private_key_pem.write_to_path(str(directory / "tls.key"))


def _remove_file(directory: Path) -> None:
    (directory / "config.yaml").unlink()


def _make_file_a_directory(directory: Path) -> None:
    _remove_file(directory)
    (directory / "config.yaml").mkdir()


def _row(cause: str, text: str, where: str, why: str, cure: str, **more: object) -> SettingsFailure:
    return SettingsFailure(cause, where, why, cure, text, **more)


SETTINGS = (
    _row("a key with a typing mistake", "server:\n  prot: 5000\n", "server.prot", "unknown key", "server.port"),
    _row(
        "a key that does not exist",
        "server:\n  frobnicate: 5000\n",
        "server.frobnicate",
        "unknown key",
        "dockyard config",
    ),
    _row("a key twice", "server:\n  port: 5000\n  port: 5001\n", "server.port", "twice", "config.yaml:3"),
    _row(
        "a duration with an unknown unit",
        "upstream:\n  check_timeout: 2 parsecs\n",
        "upstream.check_timeout",
        "2 parsecs",
        "24h",
    ),
    _row(
        "a size with an unknown unit", "storage:\n  max_size: 50 barrels\n", "storage.max_size", "50 barrels", "50GiB"
    ),
    _row("a negative number of workers", "server:\n  workers: -2\n", "server.workers", "-2", "from 0 to"),
    _row("a port that does not exist", "server:\n  port: 70000\n", "server.port", "70000", "from 1 to 65535"),
    _row("a word for a number", "server:\n  workers: many\n", "server.workers", "many", "number"),
    _row("a word for true or false", "server:\n  tls: maybe\n", "server.tls", "maybe", "true or false"),
    _row("a log level that does not exist", "logger:\n  level: verbose\n", "logger.level", "verbose", "debug"),
    _row(
        "a log file in a directory that does not exist",
        "logger:\n  output: logs/dockyard.log\n",
        "logger.output",
        "logs/dockyard.log",
        "directory",
    ),
    _row(
        "a URL as the host to listen on",
        "server:\n  host: http://0.0.0.0\n",
        "server.host",
        "http://0.0.0.0",
        "host name or an IP address",
    ),
    _row(
        "a URL as `storage.endpoint`",
        "storage:\n  endpoint: https://s3.example\n  bucket: images\n",
        "storage.endpoint",
        "https://s3.example",
        "storage.use_ssl",
    ),
    _row(
        "an access key without its secret key",
        "storage:\n  bucket: images\n  access_key: A1\n",
        "storage.secret_key",
        "required",
        "set both keys",
    ),
    _row(
        "a pattern in a rule that no image matches",
        "access:\n  rules:\n    - {allow: true, repositories: [docker.io/alpine]}\n",
        "access.rules[0].repositories[0]",
        "matches no repository name",
        "docker.io/library/alpine",
    ),
    _row(
        "a group in a rule that does not exist",
        "access:\n  groups: [{name: developers, members: [ann]}]\n"
        "  rules:\n    - {allow: true, who: ['group:developer']}\n",
        "access.rules[0].who[0]",
        "there is no such name",
        "group:developers",
    ),
    _row(
        "an action of a rule that does not exist",
        "access:\n  rules:\n    - {allow: true, actions: [push]}\n",
        "access.rules[0].actions[0]",
        "read-only",
        "pull, list, status",
    ),
    _row(
        "a network with the address of a host",
        "server:\n  trusted_proxies: [10.0.0.1/8]\n",
        "server.trusted_proxies[0]",
        "10.0.0.1/8",
        "10.0.0.0/8",
    ),
    _row(
        "an unsafe algorithm of tokens",
        "access:\n  jwt:\n    - {name: ci, issuer: i, audience: a, jwks: 'https://a.example/k', algorithms: [HS256]}\n",
        "access.jwt[0].algorithms[0]",
        "HS algorithms verify with the secret that signs",
        "RS256",
    ),
    _row(
        "an htpasswd file that does not exist",
        "access:\n  htpasswd: users\n",
        "access.htpasswd",
        "No such file",
        "dockyard passwd",
    ),
    _row(
        "a key for access tokens that does not exist",
        "access:\n  challenge: bearer\n  token_key_file: key\n",
        "access.token_key_file",
        "No such file",
        "openssl rand -hex 32",
    ),
    _row(
        "a rule that no request reaches",
        PLAIN + "access:\n  closed_nodes: true\n  rules:\n    - {allow: true}\n    - {allow: false}\n",
        "access.rules[1]",
        "has no effect",
        "move it",
        starts=True,
    ),
    _row(
        "a variable that is not set",
        UPSTREAM + "    registry: a.example\n    auth: {type: basic, username: ann, password: '${NO_SUCH}'}\n",
        "upstreams[N].auth.password",
        "NO_SUCH",
        "set",
        starts=True,
    ),
    _row(
        "a variable of no setting",
        PLAIN,
        "DOCKYARD_SERVER_PROT",
        "unknown",
        "DOCKYARD_SERVER_PORT",
        starts=True,
        environ={"DOCKYARD_SERVER_PROT": "5000"},
    ),
    _row(
        "a variable that Kubernetes sets for a service",
        "",
        "env SERVER_PORT",
        "tcp://10.0.0.1:80",
        "enableServiceLinks",
        environ={"SERVER_PORT": "tcp://10.0.0.1:80"},
    ),
    _row(
        "variables for a proxy",
        PLAIN,
        "HTTPS_PROXY",
        "ignored",
        "`proxy`",
        starts=True,
        environ={"HTTPS_PROXY": f"http://ann:{SECRET.text}@proxy.example:3128"},
    ),
    _row(
        "a configuration file that does not exist",
        "",
        "config.yaml",
        "No such file or directory",
        "name a YAML file",
        prepare=_remove_file,
    ),
    _row(
        "a directory as configuration file", "", "config.yaml", "Is a directory", "file", prepare=_make_file_a_directory
    ),
    _row("a tab in YAML", "server:\n\tport: 5000\n", "config.yaml:2", "'\\t'", "spaces"),
    _row("a list for the whole file", "- server\n", "config.yaml:1", "mapping", "keys"),
    _row("no upstream", "upstreams: []\n", "upstreams", "at least one", "upstream"),
    _row(
        "the same prefix twice",
        "upstreams:\n  - {prefix: a.example, registry: a.example}\n  - {prefix: a.example, registry: b.example}\n",
        "upstreams[N].prefix",
        "upstreams[N] too",
        "may be used once",
    ),
    _row(
        "a prefix with a port",
        "upstreams:\n  - {prefix: 'a.example:5000', registry: a.example}\n",
        "upstreams[N].prefix",
        "a.example:5000",
        "without a port",
    ),
    _row("an upstream without a registry", UPSTREAM, "upstreams[N].registry", "required", "registry"),
    _row(
        "a password in the address of a registry",
        UPSTREAM + f"    registry: https://ann:{SECRET.text}@a.example\n",
        "upstreams[N].registry",
        "password",
        "auth",
    ),
    _row(
        "basic login without a user",
        UPSTREAM + f"    registry: a.example\n    auth: {{type: basic, password: {SECRET.text}}}\n",
        "upstreams[N].auth.username",
        "required",
        "auth.type basic",
    ),
    _row(
        "a proxy without a scheme",
        UPSTREAM + f"    registry: a.example\n    proxy: ann:{SECRET.text}@proxy.example:3128\n",
        "upstreams[N].proxy",
        "URL",
        "http://proxy.example:3128",
    ),
    _row(
        "a CA file that does not exist",
        UPSTREAM + "    registry: a.example\n    ca_file: ca.pem\n",
        "upstreams[N].ca_file",
        "No such file or directory",
        "ca.pem",
    ),
    _row(
        "a CA file without a certificate",
        UPSTREAM + "    registry: a.example\n    ca_file: config.yaml\n",
        "upstreams[N].ca_file",
        "certificate",
        "PEM",
    ),
    _row(
        "TLS without a certificate",
        "server:\n  tls: true\n  keyfile: config.yaml\n",
        "server.certfile",
        "required",
        "server.tls",
    ),
    _row("the key of another certificate", TLS, "server.keyfile", "certificate", "server.certfile", prepare=write_pair),
)
