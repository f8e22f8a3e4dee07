"""One run of the conformance suite of the OCI distribution specification, and its results."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs

RUN_LIMIT_S = 400.0

# A cache serves a deleted manifest by its digest for ever; deleting is not tested here.
WITHOUT_DELETES = {
    f"OCI_API_{what}_{ability}": "false" for what in ("TAGS", "MANIFESTS", "BLOBS") for ability in ("DELETE", "ATOMIC")
}
_DIGEST = re.compile(r"sha(?:256|512):[0-9a-f]+")


@attrs.frozen
class Outcome:
    """The checks of one run by result. Digests, which differ in each run, are cut from their names."""

    passed: Counter[str]
    failed: Counter[str]
    skipped: Counter[str]
    messages: str = attrs.field(repr=False)

    @property
    def count(self) -> int:
        """The number of checks that passed or failed."""
        return self.passed.total() + self.failed.total()


def run_suite(program: Path, registry: str, directory: Path, settings: Mapping[str, str]) -> Outcome:
    """Run the suite against `host:port` over plain HTTP, against the next version of the specification."""
    directory.mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "OCI_REGISTRY": registry,
        "OCI_TLS": "disabled",
        "OCI_VERSION": "dev",
        "OCI_RESULTS_DIR": str(directory),
        **WITHOUT_DELETES,
        **settings,
    }
    done = subprocess.run(
        [program],
        env=environ,
        cwd=directory,  # without any oci-conformance.yaml of the user
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    output = f"{done.stdout}\n{done.stderr}"
    results = directory / "junit.xml"
    assert results.exists(), output[-5000:]
    checks: dict[str, Counter[str]] = {status: Counter() for status in ("passed", "failure", "error", "skipped")}
    messages = []
    for case in ET.parse(results).iter("testcase"):  # noqa: S314  written by the suite itself
        name, status = _DIGEST.sub("<digest>", case.get("name", "")), case.get("status", "")
        checks[status][name] += 1
        if status in ("failure", "error"):
            messages.append(f"{name}: {case.findtext('system-out')}")
    return Outcome(checks["passed"], checks["failure"] + checks["error"], checks["skipped"], "\n".join(messages))
