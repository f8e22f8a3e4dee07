"""The output of `dockyard pull`: progress bars on a terminal, plain lines elsewhere, JSON lines for programs.

Errors are printed to stderr, except with JSON, where they are in the lines.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final, TextIO

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
from dockyard.pull.client import ProgressCallback
from dockyard.pull.plan import ImageBlob
from dockyard.pull.warm import BlobResult, ImageResult, Output


class OutputFormat(StrEnum):
    """The format of the output."""

    TEXT = "text"
    JSON = "json"
    QUIET = "quiet"


_CACHE_STATUS_TEXTS: Final = {
    "hit": "was cached",
    "joined": "fetched",
    "miss": "fetched",
    "asked": "fetched, not kept",
    "": "read",
}
_DIGEST_CHARS: Final = 19  # sha256: and the 12 digits that docker prints


class QuietOutput:
    """Prints only errors."""

    def plan(self, blobs: Sequence[ImageBlob]) -> None:
        """Print nothing."""

    def watch(self, blob: ImageBlob) -> ProgressCallback:
        return _ignore

    def blob(self, result: BlobResult) -> None:
        """Print nothing; errors are printed with the image."""

    def image(self, result: ImageResult) -> None:
        for error in result.errors:
            print(f"dockyard: {result.image}: {error}", file=sys.stderr, flush=True)  # noqa: T201  the output of a command

    def end(self, results: Sequence[ImageResult], seconds: float) -> None:
        """Print nothing."""


class TextOutput(QuietOutput):
    """Prints a line for each blob and each image."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print_line = print_line

    def blob(self, result: BlobResult) -> None:
        if result.size is not None:
            self._print_line(format_blob(result))

    def image(self, result: ImageResult) -> None:
        super().image(result)
        if result.is_warm:
            self._print_line(format_image(result))

    def end(self, results: Sequence[ImageResult], seconds: float) -> None:
        warm = sum(result.is_warm for result in results)
        self._print_line(
            f"{warm} of {len(results)} {'image' if len(results) == 1 else 'images'} warm in {seconds:.1f} s"
        )


class ProgressOutput(TextOutput):
    """Shows a progress bar for each running blob and one for all, below the lines of TextOutput."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(lambda line: progress.console.print(line, markup=False, highlight=False, soft_wrap=True))
        self._progress = progress
        self._bars: dict[Digest, TaskID] = {}
        self._total_bar = progress.add_task("manifests", total=None)

    def plan(self, blobs: Sequence[ImageBlob]) -> None:
        self._progress.update(self._total_bar, description="all blobs", total=sum(blob.size or 0 for blob in blobs))

    def watch(self, blob: ImageBlob) -> ProgressCallback:
        bar = self._progress.add_task(str(blob.digest)[:_DIGEST_CHARS], total=blob.size)
        self._bars[blob.digest] = bar
        received_before = 0

        def on_progress(received: int, total: int | None) -> None:
            nonlocal received_before
            self._progress.update(bar, completed=received, total=total or blob.size)
            self._progress.advance(self._total_bar, received - received_before)
            received_before = received

        return on_progress

    def blob(self, result: BlobResult) -> None:
        self._progress.remove_task(self._bars.pop(result.digest))
        super().blob(result)


class JsonOutput(QuietOutput):
    """Prints a line with a JSON object for each blob and each image, and one at the end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def blob(self, result: BlobResult) -> None:
        self._write(
            event="blob",
            digest=str(result.digest),
            bytes=result.size,
            how=result.cache_status or None,
            tries=result.attempts,
            error=result.error,
        )

    def image(self, result: ImageResult) -> None:
        self._write(
            event="image",
            image=str(result.image),
            digest=str(result.digest) if result.digest else None,
            platforms=[str(platform) for platform in result.platforms],
            blobs=result.blobs,
            bytes=result.size,
            errors=list(result.errors),
        )

    def end(self, results: Sequence[ImageResult], seconds: float) -> None:
        failed = sum(not result.is_warm for result in results)
        self._write(event="end", images=len(results), failed=failed, seconds=round(seconds, 3))

    def _write(self, **fields: Any) -> None:
        print(json.dumps(fields), file=self._out, flush=True)


@contextmanager
def open_output(output_format: OutputFormat, out: TextIO) -> Iterator[Output]:
    """Return the output of a format. Progress bars are removed from the terminal when the context ends."""
    match output_format:
        case OutputFormat.QUIET:
            yield QuietOutput()
        case OutputFormat.JSON:
            yield JsonOutput(out)
        case OutputFormat.TEXT if not out.isatty() or os.environ.get("TERM") == "dumb":
            yield TextOutput(lambda line: print(line, file=out, flush=True))
        case OutputFormat.TEXT:
            # Errors are printed above the bars if stderr is a terminal too, and to stderr otherwise.
            console, is_terminal = Console(file=out), sys.stderr.isatty()
            with Progress(*_columns(), console=console, transient=True, redirect_stderr=is_terminal) as progress:
                yield ProgressOutput(progress)


def format_blob(result: BlobResult) -> str:
    """The line for a blob that was read."""
    attempts = f", {result.attempts} attempts" if result.attempts > 1 else ""
    status = _CACHE_STATUS_TEXTS[result.cache_status]
    return f"{str(result.digest)[:_DIGEST_CHARS]}  {decimal(result.size or 0)}  {status}{attempts}"


def format_image(result: ImageResult) -> str:
    """The line for an image that was read without errors."""
    platforms = ", ".join(map(str, result.platforms))
    size = f"{result.blobs} {'blob' if result.blobs == 1 else 'blobs'}, {decimal(result.size)}"
    return f"{result.image}: warm ({f'{platforms}; ' if platforms else ''}{size})"


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )


def _ignore(received: int, total: int | None) -> None:
    """Do nothing."""
