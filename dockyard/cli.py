"""The commands: server, pull, config, version. Mistakes in the settings or the words end them with status 2."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click

from dockyard import __version__
from dockyard.config.settings import Settings, SettingsError, load, show
from dockyard.workers.metrics_directory import claim_counts

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
    counts = claim_counts()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(counts)  # read when the counters are imported
    from dockyard.supervisor import run  # noqa: PLC0415  see above, and the other commands do without its weight

    try:
        status = run(settings)
    finally:
        shutil.rmtree(counts, ignore_errors=True)
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
    help="The Dockyard to warm.",
)
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH[/VARIANT]",
    multiple=True,
    help="Of multi-platform images, this one; may be given again. Without it: this machine's.",
)
@click.option("--all-platforms", is_flag=True, help="Of multi-platform images, all.")
@click.option(
    "--file",
    "lists",
    metavar="LIST",
    type=click.File(encoding="utf-8"),
    multiple=True,
    help="A file with an image on each line, '#' for comments; '-' is standard input.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=6, show_default=True, help="How many blobs are read at once."
)
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object on a line for each blob and image.")
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
    """Warm the cache of a running Dockyard.

    Reads the images through it, all blobs in parallel and each once, checks every digest, and keeps nothing. Images
    are named as for docker: nginx, ghcr.io/org/app:v1, name@sha256:...

    Exit status: 0 when all images are warm, 1 when some are not, 2 when the command is not understood.
    """
    from dockyard.pull.command import Mistakes, parse_errand, parse_list, run  # noqa: PLC0415  see below
    from dockyard.pull.show import Style  # noqa: PLC0415  the other commands do without the weight of both

    if is_json and is_quiet:
        raise click.UsageError("--json and --quiet exclude each other")
    try:
        named = [*images, *(image for each in lists for image in parse_list(each.read()))]
        errand = parse_errand(named, server_url, platforms, all_platforms=all_platforms, jobs=jobs)
    except Mistakes as exc:
        raise click.UsageError("\n  ".join(exc.messages)) from exc
    except UnicodeError as exc:
        raise click.UsageError("--file: not a text in UTF-8") from exc
    raise SystemExit(run(errand, Style.JSON if is_json else Style.QUIET if is_quiet else Style.PEOPLE))


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
