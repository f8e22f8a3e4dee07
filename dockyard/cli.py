"""The commands: server, config, version. Mistakes in the settings end them with status 2."""

import contextlib
import os
from pathlib import Path

import click

from dockyard import __version__
from dockyard.config import Settings, SettingsError, load, show

EXIT_MISTAKES = 2

_config_option = click.option(
    "-c",
    "--config",
    "config_file",
    metavar="FILE",
    envvar="DOCKYARD_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="YAML file with the settings. Without it: the built-in defaults.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dockyard", message="%(prog)s %(version)s")
def main() -> None:
    """A pull-through cache for OCI images.

    Settings come from the environment, then from the YAML file, then from the defaults. The variable of a key is its
    name in capitals with underscores, as SERVER_PORT is for server.port; DOCKYARD_SERVER_PORT wins over it.

    Begin with: dockyard server

    Then pull: docker pull localhost:5000/docker.io/library/alpine
    """


@main.command()
@_config_option
def server(config_file: Path | None) -> None:
    """Serve until told to stop."""
    settings = _load(config_file)
    counts = Path(settings.storage.directory, "run", "metrics")
    with contextlib.suppress(OSError):  # the server says what is wrong with the directory
        counts.mkdir(parents=True, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(counts)  # read when the counters are imported
    from dockyard.server import run  # noqa: PLC0415  see above, and the other commands do without its weight

    raise SystemExit(run(settings))


@main.command()
@_config_option
def config(config_file: Path | None) -> None:
    """Show the settings in effect, as YAML; secrets are hidden."""
    settings = _load(config_file)
    for warning in settings.warnings:
        click.echo(f"dockyard: warning: {warning}", err=True)
    click.echo(show(settings), nl=False)


@main.command()
def version() -> None:
    """Show the version."""
    click.echo(f"dockyard {__version__}")


def _load(config_file: Path | None) -> Settings:
    try:
        return load(config_file, os.environ)
    except SettingsError as exc:
        count = len(exc.mistakes)
        click.echo(f"dockyard: {count} {'mistake' if count == 1 else 'mistakes'} in the settings:", err=True)
        for mistake in exc.mistakes:
            click.echo(f"  {mistake}", err=True)
        raise SystemExit(EXIT_MISTAKES) from None
