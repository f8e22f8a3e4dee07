"""The commands `server`, `check`, `pull`, `config`, `passwd` and `version`.

Errors in the settings or the arguments exit with status 2, an interruption (Ctrl-C) with 130.
"""

import contextlib
import difflib
import errno
import functools
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, TextIO, TypeVar, get_args

import attrs
import click

from dockyard import __version__, exit_status
from dockyard.config.loader import LoadedSettings, SettingsError, load, load_all, show
from dockyard.config.reader import Option, SettingsFile
from dockyard.config.settings import Settings
from dockyard.config.types import Level
from dockyard.oci.reference import replace_unprintable
from dockyard.workers.metrics_directory import create_metrics_directory

_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})  # of a write to standard output

MAX_PASSWORD_INPUT_BYTES = 4096  # more than a password can have
MAX_TOKEN_INPUT_BYTES = 16 * 1024  # more than a request can have

Result = TypeVar("Result")

_MAIN_HELP = """\
Examples:
  dockyard server                     start the server with the defaults
  docker pull localhost:5000/docker.io/library/alpine
  dockyard COMMAND --help             options, examples and exit statuses of a command

Completion, in the file that the shell reads at its start:
  bash: eval "$(_DOCKYARD_COMPLETE=bash_source dockyard)"
  zsh:  eval "$(_DOCKYARD_COMPLETE=zsh_source dockyard)"
  fish: _DOCKYARD_COMPLETE=fish_source dockyard | source
"""

_SERVER_HELP = """\
Examples:
  dockyard server
  dockyard server -c config.yaml --log-level debug
  dockyard server --host 127.0.0.1 --port 8080
  generate-settings | dockyard server -c -

Environment:
  DOCKYARD_CONFIG     the file of -c
  SERVER_PORT, ...    one variable for each setting: see ops/SETTINGS.md
  NO_COLOR            no colors in the log
  HOME, DOCKER_CONFIG, REGISTRY_AUTH_FILE, XDG_...    where the Docker keychain is

Exit status:
  0  stopped by a signal
  1  the server cannot start, or its workers exit right after their start: see the log
  2  errors in the settings or the arguments
"""

_CHECK_HELP = """\
Examples:
  dockyard check -c config.yaml
  dockyard check -c config.yaml --connect
  dockyard check -c config.yaml && systemctl restart dockyard

Exit status:
  0  the server can start
  1  something other than the settings prevents that; with --connect, also if an upstream or the bucket fails
  2  errors in the settings or the arguments
"""

_PULL_HELP = """\
Examples:
  dockyard pull nginx ghcr.io/org/app:v1
  dockyard pull --server https://cache.example --ca-file ca.pem internal/team/app
  dockyard pull --platform linux/amd64 --platform linux/arm64 --file images.txt

Environment:
  DOCKYARD_URL        the URL of --server
  DOCKYARD_CA_FILE    the file of --ca-file
  NO_COLOR            no colors

Exit status:
  0    all images are cached
  1    at least one image is not, or there is no Dockyard at the URL
  2    the arguments are invalid
  130  interrupted (Ctrl-C)
"""

_CONFIG_HELP = """\
Examples:
  dockyard config
  dockyard config > my-config.yaml
  SERVER_PORT=8080 dockyard config -c config.yaml

Exit status:
  0  the settings are valid
  1  with --check: something other than the settings prevents the start
  2  errors in the settings or the arguments
"""

_USER_HELP = """\
Examples:
  dockyard passwd alice --file /etc/dockyard/htpasswd
  dockyard passwd alice >> htpasswd
  printf %s "$PASSWORD" | dockyard passwd ci --stdin --file htpasswd
  dockyard passwd alice --delete --file htpasswd

Exit status:
  0    the line is printed, or the file is changed
  1    the file cannot be changed, or there is no such user to delete
  2    the arguments or the password are invalid
  130  interrupted (Ctrl-C)
"""
_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def _paragraphs(text: str) -> str:
    """Mark each paragraph of a help text as one whose lines are kept."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.strip().split("\n\n"))


class Commands(click.Group):
    """A group that suggests commands for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            names = self.list_commands(ctx)
            nearest = difflib.get_close_matches(args[0], names, 1)
            hint = f"Did you mean {nearest[0]}?" if nearest else f"The commands are {', '.join(names)}."
            raise click.UsageError(f"{exc.message} {hint}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("dockyard: interrupted", err=True)
            raise SystemExit(exit_status.INTERRUPTED) from None
        except OSError as exc:
            if ctx.invoked_subcommand == "server" or exc.errno not in _OUTPUT_ERRORS or exc.filename is not None:
                raise
            click.echo(
                f"dockyard: cannot write the output: {exc.strerror}: free space there, or write elsewhere", err=True
            )
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python writes the rest again when it exits, and fails
            raise SystemExit(exit_status.FAILED) from None


class StandardInput:
    """The standard input as a file of settings."""

    def open(self, _mode: Literal["rb"], /) -> BinaryIO:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "it is closed")
        return sys.stdin.buffer

    def __str__(self) -> str:
        return "standard input"


@attrs.frozen
class SettingsSource:
    """Where a command gets the settings from, besides the environment."""

    file: SettingsFile | None
    options: Mapping[str, Option]

    def load_all(self) -> LoadedSettings:
        """Return the settings with their errors."""
        return load_all(self.file, os.environ, self.options)

    def load(self) -> Settings:
        """Return the settings. If they have errors, print them and exit with status 2."""
        try:
            return load(self.file, os.environ, self.options)
        except SettingsError as exc:
            _exit(exc)


@contextlib.contextmanager
def _imports_for_server() -> Iterator[None]:
    """Import faster: what is imported stays, so the garbage collector need not look at it, now or later.

    Rich is left out, which structlog would import for a format that the server does not have.
    """
    gc.disable()
    hidden = {} if "rich" in sys.modules else {"rich": None}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # as documented: None stands for a module that is not there
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


def _complete_level(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return [level for level in get_args(Level) if level.startswith(incomplete)]


# Their values are texts, as in the environment: the settings parse them.
_SETTINGS_OPTIONS = {
    "server.host": click.Option(
        ["--host"], metavar="HOST", help="Host name or IP address to listen on, instead of server.host."
    ),
    "server.port": click.Option(["--port"], metavar="PORT", help="TCP port to listen on, instead of server.port."),
    "logger.level": click.Option(
        ["--log-level"],
        metavar="LEVEL",
        shell_complete=_complete_level,
        help=f"Lowest level that is logged, instead of logger.level: {', '.join(get_args(Level))}.",
    ),
}


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that the settings come from. The command gets a SettingsSource as its first argument."""

    @functools.wraps(command)
    def with_source(*, config_file: str | None, **values: Any) -> None:
        options = {}
        for key, option in _SETTINGS_OPTIONS.items():
            text = values.pop(str(option.name))
            if text is not None:
                options[key] = Option(option.opts[0], text)
        file = None if config_file is None else StandardInput() if config_file == "-" else Path(config_file)
        command(SettingsSource(file, options), **values)

    config_option = click.Option(
        ["-c", "--config", "config_file"],
        metavar="FILE",
        envvar="DOCKYARD_CONFIG",
        show_envvar=True,
        type=click.Path(allow_dash=True),
        help="YAML file with the settings; '-' is standard input. Default: no file, only the environment and the "
        "built-in defaults.",
    )
    with_source.__click_params__ = [*reversed(_SETTINGS_OPTIONS.values()), config_option]  # type: ignore[attr-defined]
    return with_source


@click.group(
    cls=Commands,
    epilog=_paragraphs(_MAIN_HELP),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="dockyard", message="%(prog)s %(version)s")
def main() -> None:
    """A pull-through cache for OCI images.

    Settings are read from options, else from environment variables, else from the YAML file, else the defaults are
    used. The variable of a key is its name in capitals with underscores: SERVER_PORT sets server.port, and
    DOCKYARD_SERVER_PORT takes precedence over it.
    """
    os.environ.pop(_METRICS_VARIABLE, None)  # of another program: the server makes its own, other commands need none


@main.command(epilog=_paragraphs(_SERVER_HELP))
@settings_options
def server(source: SettingsSource) -> None:
    """Run the server until it gets SIGTERM or SIGINT (Ctrl-C).

    SIGHUP replaces the workers one by one, which reads the TLS certificate again.
    """
    _open_standard_streams()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the supervisor handles it: by default it ends the process
    settings = source.load()
    try:
        metrics_directory = create_metrics_directory()
    except OSError as exc:
        click.echo(f"dockyard: cannot start: no directory for the metrics: {exc}", err=True)
        raise SystemExit(1) from None
    os.environ[_METRICS_VARIABLE] = str(metrics_directory)  # prometheus_client reads it when it is imported
    with _imports_for_server():
        from dockyard.supervisor import run  # noqa: PLC0415  after setting the variable; slow to import
    try:
        status = run(settings)
    except SettingsError as exc:
        _exit(exc)
    finally:
        shutil.rmtree(metrics_directory, ignore_errors=True)
    raise SystemExit(status)


@main.command(epilog=_paragraphs(_CHECK_HELP))
@click.option("--connect", "connects", is_flag=True, help="Also ask the upstreams, the bucket and issuers of tokens.")
@settings_options
def check(source: SettingsSource, *, connects: bool) -> None:
    """Check settings and files without starting the server.

    Prints everything that would prevent the start, at once: errors in the settings, files that cannot be read, a
    storage directory that cannot be written, a port that is in use. Nothing is written, and without --connect nothing
    is sent. A server that runs with the same settings is no error.
    """
    from dockyard.check.command import run  # noqa: PLC0415  slow to import

    raise SystemExit(run(source.load_all(), os.environ, connects=connects))


@main.command(epilog=_paragraphs(_PULL_HELP))
@click.argument("images", nargs=-1, metavar="IMAGE...")
@click.option(
    "--server",
    "server_url",
    metavar="URL",
    envvar="DOCKYARD_URL",
    show_envvar=True,
    default="http://127.0.0.1:5000",
    show_default=True,
    help="URL of the Dockyard to pull through.",
)
@click.option(
    "--ca-file",
    metavar="FILE",
    envvar="DOCKYARD_CA_FILE",
    show_envvar=True,
    type=click.Path(),
    help="PEM file with certificates that are trusted for an https URL, in addition to those of the system.",
)
@click.option(
    "--username",
    metavar="NAME",
    help="User name of a login at the server; with --password-stdin. Default: the login of `docker login` there.",
)
@click.option("--password-stdin", "reads_password", is_flag=True, help="Read the password from standard input.")
@click.option(
    "--insecure-login",
    "may_be_read",
    is_flag=True,
    help="Send the login without encryption too: to an http URL of another machine.",
)
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH[/VARIANT]",
    multiple=True,
    help="Platform to pull of multi-platform images; may be repeated. Default: that of this machine.",
)
@click.option("--all-platforms", is_flag=True, help="Pull all platforms of multi-platform images.")
@click.option(
    "--file",
    "lists",
    metavar="LIST",
    type=click.File(encoding="utf-8"),
    multiple=True,
    help="File with one image per line; '#' begins a comment; '-' is standard input. May be repeated.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=6, show_default=True, help="Number of blobs to read in parallel."
)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object per line for each blob and each image.")
@click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print errors only.")
def pull(
    images: Sequence[str],
    server_url: str,
    ca_file: str | None,
    username: str | None,
    platforms: Sequence[str],
    lists: Sequence[TextIO],
    jobs: int,
    *,
    reads_password: bool,
    may_be_read: bool,
    all_platforms: bool,
    is_json: bool,
    is_quiet: bool,
) -> None:
    """Fill the cache of a running server in advance.

    Images are read through the server: blobs in parallel, each once. Every digest is verified, and nothing is stored on
    this machine.

    Images are named as for docker: nginx, ghcr.io/org/app:v1, name@sha256:... A name that begins with a prefix of the
    server is an image of that upstream: internal/team/app of an upstream with the prefix internal.
    """
    from dockyard.pull.command import ArgumentsError, parse_arguments, parse_list, run  # noqa: PLC0415  slow to import
    from dockyard.pull.output import OutputFormat  # noqa: PLC0415  slow to import

    if is_json and is_quiet:
        raise click.UsageError("--json and --quiet cannot be used together")
    if (username is None) == reads_password:
        raise click.UsageError("--username and --password-stdin must be used together")
    if reads_password and any(file.name == "<stdin>" for file in lists):
        raise click.UsageError("--password-stdin and --file - both read standard input")
    login = None if username is None else _read_login(username)
    try:
        names = [*images, *(image for file in lists for image in parse_list(file.read()))]
        arguments = parse_arguments(
            names,
            server_url,
            platforms,
            all_platforms=all_platforms,
            jobs=jobs,
            ca_file=ca_file,
            login=login,
            may_be_read=may_be_read,
        )
    except ArgumentsError as exc:
        raise click.UsageError("\n  ".join(exc.messages)) from exc
    except UnicodeError as exc:
        raise click.UsageError("--file: the file is not UTF-8 text") from exc
    output_format = OutputFormat.JSON if is_json else OutputFormat.QUIET if is_quiet else OutputFormat.TEXT
    raise SystemExit(run(arguments, output_format))


@main.command(epilog=_paragraphs(_CONFIG_HELP))
@click.option("--check", "checks", is_flag=True, help="Check the settings instead, as `dockyard check` does.")
@settings_options
def config(source: SettingsSource, *, checks: bool) -> None:
    """Print the settings in effect as YAML; secrets are hidden.

    Warnings are printed to standard error.
    """
    if checks:
        from dockyard.check.command import run  # noqa: PLC0415  slow to import

        raise SystemExit(run(source.load_all(), os.environ, connects=False))
    settings = source.load()
    for warning in settings.warnings:
        click.echo(f"dockyard: warning: {warning}", err=True)
    click.echo(show(settings), nl=False)


@main.command(epilog=_paragraphs(_USER_HELP))
@click.argument("user", metavar="USER")
@click.option(
    "--file",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="htpasswd file to change, the file of access.htpasswd. Default: only print the line.",
)
@click.option("--stdin", "reads_stdin", is_flag=True, help="Read the password from standard input, as one line.")
@click.option("--delete", "deletes", is_flag=True, help="Delete the user from the file.")
def passwd(user: str, file: Path | None, *, reads_stdin: bool, deletes: bool) -> None:
    """Make a line of an htpasswd file: a user and the bcrypt hash of a password.

    Asks for the password twice. With --file, the line of this user in the file is replaced, or added; other lines, mode
    and owner of the file stay as they are. A running server uses the changed file at once.
    """
    from dockyard.passwd import FileProblem, check_user, delete_line, make_line, set_line  # noqa: PLC0415  slow

    if deletes and (file is None or reads_stdin):
        raise click.UsageError("--delete needs --file, and no --stdin")
    try:
        if file is not None and deletes:
            delete_line(file, user)
            click.echo(f"{file}: deleted {user}")
            return
        _check("USER", check_user, user)
        line = _check("the password", lambda text: make_line(user, text), _read_password(reads_stdin=reads_stdin))
        if file is None:
            click.echo(line)
        else:
            click.echo(f"{file}: {'changed' if set_line(file, user, line) else 'added'} {user}")
    except FileProblem as exc:
        click.echo(f"dockyard: {replace_unprintable(str(exc))}", err=True)
        raise SystemExit(exit_status.FAILED) from None


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"dockyard {__version__}")


def _check(what: str, check: Callable[[str], Result], text: str) -> Result:
    try:
        return check(text)
    except ValueError as exc:
        raise click.UsageError(f"{what} {exc}") from None


def _read_password(*, reads_stdin: bool) -> str:
    if not reads_stdin:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask for the password: --stdin reads it from standard input")
        try:
            first, second = (
                str(click.prompt(text, hide_input=True, default="", show_default=False, err=True))
                for text in ("Password", "Again")
            )
        except click.Abort:
            raise KeyboardInterrupt from None
        if first != second:
            raise click.UsageError("the passwords are not the same")
        return first
    return _read_standard_input(MAX_PASSWORD_INPUT_BYTES).decode("utf-8", "surrogateescape")


def _read_standard_input(max_bytes: int) -> bytes:
    """Return the password in the only line of standard input."""
    if sys.stdin is None:
        raise click.UsageError("standard input is closed")
    line = sys.stdin.buffer.read(max_bytes).removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in line:
        raise click.UsageError("standard input has more than one line: write only the password to it")
    return line


def _read_login(username: str) -> tuple[str, str]:
    try:
        return username, _read_standard_input(MAX_TOKEN_INPUT_BYTES).decode()
    except UnicodeError as exc:
        raise click.UsageError("--password-stdin: standard input is not UTF-8 text") from exc


def _exit(error: SettingsError) -> NoReturn:
    count = len(error.errors)
    click.echo(f"dockyard: {count} {'error' if count == 1 else 'errors'} in the settings:", err=True)
    for message in error.errors:
        click.echo(f"  {message}", err=True)
    raise SystemExit(exit_status.USAGE) from None


def _open_standard_streams() -> None:
    """Connect closed standard streams with /dev/null: else the next file that is opened would get the log lines."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
