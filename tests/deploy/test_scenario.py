"""`ops/scenario` in its short form: two tiers, a killed zone and an upstream outage cost no pull."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scenario.__main__ import CLIENTS, QUICK, QUICK_ACTS
from tests.support.deployment import eventually
from tests.support.paths import ROOT
from tests.support.processes import descendants
from tests.support.programs import Programs, need_root

LIMIT_S = 250.0


@pytest.fixture
def needed(programs: Programs) -> None:
    """Root, and the programs of the scenario."""
    need_root("making network namespaces")
    for name in ("haproxy", "minio", "registry", *CLIENTS):
        programs.need(name)


def start_scenario(directory: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command with its files in a directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.scenario", "--quick", "--directory", directory, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CI": ""},
    )


def finish(scenario: "subprocess.Popen[str]") -> str:
    """Wait for its end; return its output."""
    try:
        return scenario.communicate(timeout=LIMIT_S)[0]
    finally:
        if scenario.poll() is None:
            scenario.send_signal(signal.SIGINT)
            scenario.wait(LIMIT_S)


def processes_of(directory: Path) -> list[str]:
    """The command lines of the processes that use files in a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if f"{directory}/" in command:
            found.append(command)
    return found


def test_the_command_says_that_it_needs_root(tmp_path: Path) -> None:
    """An ordinary user reads it at once: nothing is installed before."""
    fake_id = tmp_path / "id"
    fake_id.write_text("#!/bin/sh\necho 1000\n")
    fake_id.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / "ops/scenario"], capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ops/scenario: this needs root")


@pytest.mark.usefixtures("needed")
def test_the_scenario_keeps_its_promises(tmp_path: Path) -> None:
    """Every pull is right, of a killed zone after a retry; the registry is asked once for each layer."""
    results = tmp_path / "results.json"
    scenario = start_scenario(tmp_path, "--json", results)
    output = finish(scenario)
    assert scenario.returncode == 0, output
    assert "All promises are kept." in output
    acts = {act["name"]: act for act in json.loads(results.read_text())["acts"]}
    assert {name.partition(",")[0] for name in acts} == set(QUICK_ACTS)
    for name, act in acts.items():
        pulls = {"crane": QUICK.zones, "zone": QUICK.nodes + 1}.get(name, QUICK.nodes)  # and containerd
        assert [pull["problem"] for pull in act["pulls"]] == [""] * pulls
        if name != "outage":  # in which downloads are cut
            assert act["upstream"]["blob_gets"] == dict.fromkeys(act["sizes"], 1)
    of_zone = [pull for pull in acts["zone"]["pulls"] if pull["retries"]]
    assert {pull["node"].partition("-node-")[0] for pull in of_zone} == {"zone-a"}
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == [results]


@pytest.mark.usefixtures("needed")
def test_an_interrupted_scenario_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while Dockyards are started ends all processes, and deletes their files."""
    scenario = start_scenario(tmp_path)
    try:
        eventually(
            lambda: any(b"dockyard" in each.command_line() for each in descendants(scenario.pid)), "a Dockyard runs"
        )
    finally:
        scenario.send_signal(signal.SIGINT)
    output = finish(scenario)
    assert scenario.returncode == 130, output
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
