"""The `pull` command in two steps: parse the arguments, with all errors at once; then pull and print the results."""

import os
import platform
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import attrs

from dockyard import exit_status
from dockyard.config.certificates import check_authorities
from dockyard.config.hosts import hide_userinfo
from dockyard.errors import NameUnknown, RegistryError
from dockyard.pull.client import DockyardClient
from dockyard.pull.images import Image, parse_image
from dockyard.pull.login import ServerLogin, find_login, given_login, is_private
from dockyard.pull.output import OutputFormat, open_output
from dockyard.pull.platforms import Platform
from dockyard.pull.retries import PullError
from dockyard.pull.warm import ImageResult, warm
from dockyard.upstream.urls import parse_http_url

MAX_QUOTED_CHARS: Final = 200


class ArgumentsError(Exception):
    """The arguments of the command are invalid. `messages` has one sentence for each error."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


@attrs.frozen
class PullArguments:
    """The parsed arguments: the URL of Dockyard and its `host[:port]`, the images, their platforms (None: all).

    `login` is the user name and the password that were given; `may_be_read`: a login may be sent without encryption.
    The names of the images are valid. Which images they are depends on the prefixes of the server.
    """

    url: str
    authority: str
    ca_file: str | None
    images: tuple[str, ...]
    platforms: tuple[Platform, ...] | None
    jobs: int
    login: tuple[str, str] | None = attrs.field(default=None, repr=False)
    may_be_read: bool = False


def parse_arguments(
    images: Sequence[str],
    server: str,
    platforms: Sequence[str],
    *,
    all_platforms: bool,
    jobs: int,
    ca_file: str | None = None,
    login: tuple[str, str] | None = None,
    may_be_read: bool = False,
) -> PullArguments:
    """Parse the arguments of the command. Repeated images and platforms count once. Raises ArgumentsError."""
    try:
        url, authority = parse_server(server)
    except ValueError as exc:
        raise ArgumentsError([f"--server {hide_userinfo(server)[:MAX_QUOTED_CHARS]}: {exc}"]) from exc
    errors: list[str] = []
    parsed_platforms: dict[Platform, None] = {}
    for text in platforms:
        try:
            parsed_platforms |= {Platform.parse(part): None for part in text.split(",")}
        except ValueError as exc:
            errors.append(f"--platform: {exc}")
    errors += [*_find_image_errors(images, authority), *_find_ca_errors(ca_file)]
    if all_platforms and platforms:
        errors.append("--all-platforms and --platform cannot be used together")
    errors += _find_login_errors(url, login, may_be_read=may_be_read)
    if not images:
        errors.append("no images are given; name at least one, or a list of them with --file")
    if errors:
        raise ArgumentsError(errors)
    selected = None if all_platforms else tuple(parsed_platforms) or (local_platform(),)
    return PullArguments(url, authority, ca_file, tuple(images), selected, jobs, login, may_be_read)


def _find_login_errors(url: str, login: tuple[str, str] | None, *, may_be_read: bool) -> Iterator[str]:
    if login is None:
        return
    username, password = login
    if ":" in username:
        yield "--username: must not contain a colon"
    if not password:
        yield "--password-stdin: standard input is empty"
    if not may_be_read and not is_private(parse_http_url(url).origin):
        yield (
            "--username: everybody on the way could read the password: use an https URL in --server, or add "
            "--insecure-login"
        )


def _find_image_errors(images: Sequence[str], authority: str) -> Iterator[str]:
    for text in images:
        try:
            parse_image(text, authority)
        except RegistryError as exc:
            yield f"{text[:MAX_QUOTED_CHARS]}: {exc.message}"


def _find_ca_errors(ca_file: str | None) -> Iterator[str]:
    if ca_file is None:
        return
    try:
        check_authorities(ca_file)
    except ValueError as exc:
        yield f"--ca-file {ca_file}: {exc}"


def parse_server(text: str) -> tuple[str, str]:
    """Parse `[http[s]://]host[:port][/path]` to a URL without trailing slash, and `host[:port]`. Raises ValueError."""
    url = text if "://" in text else f"http://{text}"
    if "@" in url:
        raise ValueError("must not contain a user or a password: use --username and --password-stdin")
    parts = urlsplit(url)
    is_valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    if not is_valid or parts.query or parts.fragment:
        raise ValueError("must be a URL such as http://127.0.0.1:5000")
    parse_http_url(url)
    return url.rstrip("/").removesuffix("/v2"), parts.netloc.lower()


def parse_list(text: str) -> list[str]:
    """Parse a list of images, one per line. Blank lines, and comments that begin with `#`, are ignored."""
    return [image for line in text.splitlines() if (image := line.partition("#")[0].strip())]


def local_platform() -> Platform:
    """Return the platform of the images that run on this machine: Linux containers, on any operating system."""
    return Platform.of("linux", platform.machine() or "amd64")


def resolve_images(arguments: PullArguments, prefixes: Collection[str] | None) -> tuple[list[Image], list[ImageResult]]:
    """Return the images to pull, each once, and a result for each name that the server would take for another image."""
    images: dict[Image, None] = {}
    refused: dict[str, ImageResult] = {}
    for text in arguments.images:
        try:
            images[parse_image(text, arguments.authority, prefixes)] = None
        except NameUnknown as exc:
            refused[text] = ImageResult(text, None, (), 0, 0, (exc.message,))
    return list(images), list(refused.values())


def _find_login(arguments: PullArguments, environ: Mapping[str, str]) -> ServerLogin:
    if arguments.login is not None:
        return given_login(*arguments.login)
    origin = parse_http_url(arguments.url).origin
    return find_login(origin, arguments.authority, environ, may_be_read=arguments.may_be_read)


def run(arguments: PullArguments, output_format: OutputFormat) -> int:
    """Pull the images; return the exit status."""
    started = time.monotonic()
    client = DockyardClient(arguments.url, arguments.jobs, arguments.ca_file, _find_login(arguments, os.environ))
    try:
        images, refused = resolve_images(arguments, client.check())
        with open_output(output_format, sys.stdout) as output:
            for result in refused:
                output.image(result)
            results = [*refused, *warm(client, images, arguments.platforms, arguments.jobs, output)]
            output.end(results, time.monotonic() - started)
    except PullError as exc:
        print(f"dockyard: {exc.message}", file=sys.stderr)  # noqa: T201  the output of a command
        return exit_status.FAILED
    except KeyboardInterrupt:
        print("dockyard: interrupted", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(exit_status.INTERRUPTED)  # without waiting for threads that wait for a response
    except BrokenPipeError:
        os._exit(exit_status.FAILED)  # the program that reads the output has ended
    finally:
        client.close()
    return 0 if all(result.is_warm for result in results) else exit_status.FAILED
