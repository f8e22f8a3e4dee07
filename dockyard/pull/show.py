"""The door to rich, and what is printed: bars on a terminal, plain lines elsewhere, JSON lines for programs.

What is wrong goes to stderr, except in JSON, where it is part of the line.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final, Protocol, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dockyard.oci.reference import Digest
from dockyard.pull.client import Watcher
from dockyard.pull.plan import Blob
from dockyard.pull.warm import BlobRead, ImageRead, Show


class Style(StrEnum):
    """How to tell it."""

    PEOPLE = "people"
    JSON = "json"
    QUIET = "quiet"


_HOW: Final = {"hit": "was cached", "joined": "fetched", "miss": "fetched", "": "read"}
_DIGEST_CHARS: Final = 19  # sha256: and what docker shows


class Teller(Show, Protocol):
    """A Show that has a last word."""

    def end(self, reads: Sequence[ImageRead], seconds: float) -> None: ...


class Quiet:
    """Says nothing but what is wrong."""

    def plan(self, blobs: Sequence[Blob]) -> None:
        """Nothing to say."""

    def watch(self, blob: Blob) -> Watcher:
        return _ignore

    def blob(self, read: BlobRead) -> None:
        """Its image says what is wrong."""

    def image(self, read: ImageRead) -> None:
        for error in read.errors:
            print(f"dockyard: {read.image}: {error}", file=sys.stderr, flush=True)  # noqa: T201  a command's voice

    def end(self, reads: Sequence[ImageRead], seconds: float) -> None:
        """The exit status says it."""


class Lines(Quiet):
    """A line for each blob and each image."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def blob(self, read: BlobRead) -> None:
        if read.size is not None:
            self._say(blob_line(read))

    def image(self, read: ImageRead) -> None:
        super().image(read)
        if read.is_warm:
            self._say(image_line(read))

    def end(self, reads: Sequence[ImageRead], seconds: float) -> None:
        warm = sum(read.is_warm for read in reads)
        self._say(f"{warm} of {len(reads)} {'image' if len(reads) == 1 else 'images'} warm in {seconds:.1f} s")


class Bars(Lines):
    """A bar for each blob on its way, one for all, and lines above them for what is done."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(lambda line: progress.console.print(line, markup=False, highlight=False, soft_wrap=True))
        self._progress = progress
        self._bars: dict[Digest, TaskID] = {}
        self._whole = progress.add_task("manifests", total=None)

    def plan(self, blobs: Sequence[Blob]) -> None:
        self._progress.update(self._whole, description="all blobs", total=sum(blob.size or 0 for blob in blobs))

    def watch(self, blob: Blob) -> Watcher:
        bar = self._progress.add_task(str(blob.digest)[:_DIGEST_CHARS], total=blob.size)
        self._bars[blob.digest] = bar
        before = 0

        def moved(reached: int, total: int | None) -> None:
            nonlocal before
            self._progress.update(bar, completed=reached, total=total or blob.size)
            self._progress.advance(self._whole, reached - before)
            before = reached

        return moved

    def blob(self, read: BlobRead) -> None:
        self._progress.remove_task(self._bars.pop(read.digest))
        super().blob(read)


class JsonLines(Quiet):
    """A JSON object on a line for each blob and each image."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def blob(self, read: BlobRead) -> None:
        self._write(
            event="blob",
            digest=str(read.digest),
            bytes=read.size,
            how=read.how or None,
            tries=read.tries,
            error=read.error,
        )

    def image(self, read: ImageRead) -> None:
        self._write(
            event="image",
            image=str(read.image),
            digest=str(read.digest) if read.digest else None,
            platforms=[str(platform) for platform in read.platforms],
            blobs=read.blobs,
            bytes=read.size,
            errors=list(read.errors),
        )

    def end(self, reads: Sequence[ImageRead], seconds: float) -> None:
        failed = sum(not read.is_warm for read in reads)
        self._write(event="end", images=len(reads), failed=failed, seconds=round(seconds, 3))

    def _write(self, **fields: Any) -> None:
        print(json.dumps(fields), file=self._out, flush=True)


@contextmanager
def opened(style: Style, out: TextIO) -> Iterator[Teller]:
    """Give the Show of a style; bars leave the terminal when the block ends, however it ends."""
    match style:
        case Style.QUIET:
            yield Quiet()
        case Style.JSON:
            yield JsonLines(out)
        case Style.PEOPLE if not out.isatty():
            yield Lines(lambda line: print(line, file=out, flush=True))
        case Style.PEOPLE:
            # What goes to a file on stderr shall go there, not above the bars.
            console, is_shared = Console(file=out), sys.stderr.isatty()
            with Progress(*_columns(), console=console, transient=True, redirect_stderr=is_shared) as progress:
                yield Bars(progress)


def blob_line(read: BlobRead) -> str:
    """A blob that was read, in a line."""
    again = f", {read.tries} tries" if read.tries > 1 else ""
    return f"{str(read.digest)[:_DIGEST_CHARS]}  {decimal(read.size or 0)}  {_HOW[read.how]}{again}"


def image_line(read: ImageRead) -> str:
    """An image that is warm, in a line."""
    platforms = ", ".join(map(str, read.platforms))
    size = f"{read.blobs} {'blob' if read.blobs == 1 else 'blobs'}, {decimal(read.size)}"
    return f"{read.image}: warm ({f'{platforms}; ' if platforms else ''}{size})"


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )


def _ignore(reached: int, total: int | None) -> None:
    """Take no notice."""
