"""The commands `server`, `pull`, `config` and `version`. Errors in the settings or the arguments exit with status 2."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import click

from dockyard import __version__
from dockyard.config.loader import SettingsError, load, show
from dockyard.config.settings import Settings
from dockyard.workers.metrics_directory import create_metrics_directory

EXIT_USAGE = 2

_config_option = click.option(
    "-c",
    "--config",
    "config_file",
    metavar="FILE",
    envvar="DOCKYARD_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="YAML file with the settings. Default: no file, only the environment and the built-in defaults.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dockyard", message="%(prog)s %(version)s")
def main() -> None:
    """A pull-through cache for OCI images.

    Settings are read from environment variables, else from the YAML file, else the defaults are used. The variable
    of a key is its name in capitals with underscores: SERVER_PORT sets server.port, and DOCKYARD_SERVER_PORT takes
    precedence over it.

    Start the server: dockyard server

    Then pull an image: docker pull localhost:5000/docker.io/library/alpine
    """


@main.command()
@_config_option
def server(config_file: Path | None) -> None:
    """Run the server until it gets SIGTERM or SIGINT (Ctrl-C).

    Exit status: 0 if it was stopped, 1 if it cannot start, 2 if the settings or the arguments are invalid.
    """
    _open_standard_streams()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the supervisor handles it: by default it ends the process
    settings = _load(config_file)
    try:
        metrics_directory = create_metrics_directory()
    except OSError as exc:
        click.echo(f"dockyard: cannot start: no directory for the metrics: {exc}", err=True)
        raise SystemExit(1) from None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_directory)  # prometheus_client reads it when it is imported
    from dockyard.supervisor import run  # noqa: PLC0415  after setting the variable; slow to import

    try:
        status = run(settings)
    except SettingsError as exc:
        _exit(exc)
    finally:
        shutil.rmtree(metrics_directory, ignore_errors=True)
    raise SystemExit(status)


@main.command()
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
    platforms: Sequence[str],
    lists: Sequence[TextIO],
    jobs: int,
    *,
    all_platforms: bool,
    is_json: bool,
    is_quiet: bool,
) -> None:
    """Warm the cache of a running Dockyard by pulling images through it.

    Blobs are read in parallel, each once. Every digest is verified, and nothing is stored on this machine. Images are
    named as for docker: nginx, ghcr.io/org/app:v1, name@sha256:...

    Exit status: 0 if all images are cached, 1 if at least one is not, 2 if the arguments are invalid.
    """
    from dockyard.pull.command import ArgumentsError, parse_arguments, parse_list, run  # noqa: PLC0415  slow to import
    from dockyard.pull.output import OutputFormat  # noqa: PLC0415  slow to import

    if is_json and is_quiet:
        raise click.UsageError("--json and --quiet cannot be used together")
    try:
        names = [*images, *(image for file in lists for image in parse_list(file.read()))]
        arguments = parse_arguments(names, server_url, platforms, all_platforms=all_platforms, jobs=jobs)
    except ArgumentsError as exc:
        raise click.UsageError("\n  ".join(exc.messages)) from exc
    except UnicodeError as exc:
        raise click.UsageError("--file: the file is not UTF-8 text") from exc
    output_format = OutputFormat.JSON if is_json else OutputFormat.QUIET if is_quiet else OutputFormat.TEXT
    raise SystemExit(run(arguments, output_format))


@main.command()
@_config_option
def config(config_file: Path | None) -> None:
    """Print the settings in effect as YAML; secrets are hidden."""
    settings = _load(config_file)
    for warning in settings.warnings:
        click.echo(f"dockyard: warning: {warning}", err=True)
    click.echo(show(settings), nl=False)


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"dockyard {__version__}")


def _load(config_file: Path | None) -> Settings:
    try:
        return load(config_file, os.environ)
    except SettingsError as exc:
        _exit(exc)


def _exit(error: SettingsError) -> NoReturn:
    count = len(error.errors)
    click.echo(f"dockyard: {count} {'error' if count == 1 else 'errors'} in the settings:", err=True)
    for message in error.errors:
        click.echo(f"  {message}", err=True)
    raise SystemExit(EXIT_USAGE) from None


def _open_standard_streams() -> None:
    """Connect closed standard streams with /dev/null: else the next file that is opened would get the log lines."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
