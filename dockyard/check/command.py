"""The `check` command: prints the findings, the most important ones last, and returns the exit status."""

from collections.abc import Mapping
from itertools import chain

from dockyard import exit_status
from dockyard.check import connect, start
from dockyard.check.findings import Finding, Severity
from dockyard.config.loader import LoadedSettings
from dockyard.oci.reference import replace_unprintable

_LABELS = {Severity.OK: "ok", Severity.NOTE: "note", Severity.WARNING: "warning", Severity.ERROR: "error"}


def run(loaded: LoadedSettings, environ: Mapping[str, str], *, connects: bool) -> int:
    """Check everything, print a line for each finding and a summary. Returns the exit status."""
    found = list(chain(start.find_all(loaded, environ), connect.find_all(loaded, environ) if connects else ()))
    for finding in sorted(found, key=lambda finding: -finding.severity):
        print(f"{_LABELS[finding.severity]:7}  {replace_unprintable(finding.text)}", flush=True)  # noqa: T201  the output of a command
    print(summarize(found, connects=connects))  # noqa: T201
    errors = [finding for finding in found if finding.severity == Severity.ERROR]
    if any(finding.is_setting for finding in errors):
        return exit_status.USAGE
    return exit_status.FAILED if errors else 0


def summarize(found: list[Finding], *, connects: bool) -> str:
    """The last line: how many errors and warnings, and what they mean."""
    errors = [finding for finding in found if finding.severity == Severity.ERROR]
    warnings = sum(finding.severity == Severity.WARNING for finding in found)
    counts = f"{_count(len(errors), 'error')}, {_count(warnings, 'warning')}"
    if errors:
        return f"dockyard: check failed: {counts}"
    asked = "" if connects else " (nothing was sent to upstreams: --connect does that)"
    return f"dockyard: check passed: {counts}{asked}"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
