"""The command in two steps: read what was asked for, with all mistakes at once; then do it."""

import platform
import sys
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import attrs

from dockyard.errors import RegistryError
from dockyard.pull.client import Client
from dockyard.pull.images import Image, parse_image
from dockyard.pull.platforms import Platform
from dockyard.pull.show import Style, opened
from dockyard.pull.tries import Failed
from dockyard.pull.warm import Order, warm

EXIT_FAILED: Final = 1


class Mistakes(Exception):
    """What was asked for cannot be understood; one message for each mistake."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


@attrs.frozen
class Errand:
    """An order, and the Dockyard that it is for."""

    url: str
    order: Order


def parse_errand(
    images: Sequence[str], server: str, platforms: Sequence[str], *, all_platforms: bool, jobs: int
) -> Errand:
    """Read the words of the command; raise Mistakes. Images and platforms that are named twice count once."""
    mistakes: list[str] = []
    try:
        url, authority = parse_server(server)
    except ValueError as exc:
        raise Mistakes([f"--server {server[:200]}: {exc}"]) from exc
    wanted: dict[Platform, None] = {}
    for text in platforms:
        try:
            wanted |= {Platform.parse(part): None for part in text.split(",")}
        except ValueError as exc:
            mistakes.append(f"--platform: {exc}")
    found: dict[Image, None] = {}
    for text in images:
        try:
            found[parse_image(text, authority)] = None
        except RegistryError as exc:
            mistakes.append(f"{text[:200]}: {exc.message}")
    if all_platforms and platforms:
        mistakes.append("--all-platforms and --platform exclude each other")
    if not images:
        mistakes.append("no image is named; name some, or a list with --file")
    if mistakes:
        raise Mistakes(mistakes)
    chosen = tuple(wanted) or (this_machine(),)
    return Errand(url, Order(tuple(found), None if all_platforms else chosen, jobs))


def parse_server(text: str) -> tuple[str, str]:
    """Read `[http[s]://]host[:port][/path]`; return the URL without a slash at its end, and `host[:port]`.

    Raise ValueError.
    """
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    is_sound = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    if not is_sound or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("not a URL such as http://127.0.0.1:5000")
    return url.rstrip("/").removesuffix("/v2"), parts.netloc.lower()


def parse_list(text: str) -> list[str]:
    """Read a list of images: one on a line; blank lines and what follows a `#` are passed over."""
    return [image for line in text.splitlines() if (image := line.partition("#")[0].strip())]


def this_machine() -> Platform:
    """Return the platform of the images that run here: containers are Linux, on other systems too."""
    return Platform.of("linux", platform.machine() or "amd64")


def run(errand: Errand, style: Style) -> int:
    """Do it; return the exit status."""
    started = time.monotonic()
    client = Client(errand.url, errand.order.jobs)
    try:
        client.check()
        with opened(style, sys.stdout) as show:
            reads = warm(client, errand.order, show)
            show.end(reads, time.monotonic() - started)
    except Failed as exc:
        print(f"dockyard: {exc.message}", file=sys.stderr)  # noqa: T201  a command's voice
        return EXIT_FAILED
    finally:
        client.close()
    return 0 if all(read.is_warm for read in reads) else EXIT_FAILED
