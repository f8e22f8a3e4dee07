"""The comparison of two commits."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench import regression
from bench.peers import workload
from bench.peers.caches import BASELINE, DOCKYARD
from bench.peers.report import Report
from bench.test_workloads import TINY
from tests.support.paths import ROOT
from tests.support.programs import need_on_path

SPREAD = (0.98, 1.0, 1.01, 0.99, 1.02, 1.0, 1.0)


def _results(**factors: float) -> Report:
    """Seven rounds in which each number of this commit is the given multiple of that before."""
    results = Report()
    results.begin("w", "A workload")
    for number, noise in enumerate(SPREAD):
        machine = 1 + number  # what else the machine does affects both
        results.add("w", BASELINE, {**dict.fromkeys(factors, 10.0 * machine), "round": number})
        now = {column: 10.0 * machine * noise * factor for column, factor in factors.items()}
        results.add("w", DOCKYARD, {**now, "round": number})
    return results


@pytest.mark.parametrize(
    ("column", "factor", "status"),
    [
        ("CPU s/GiB", 1.2, 1),
        ("CPU s/GiB", 1.02, 0),  # within the tolerance
        ("CPU s/GiB", 1.0, 0),
        ("CPU s/GiB", 0.8, 0),
        ("requests/s", 0.8, 1),
        ("requests/s", 1.3, 0),
        ("connections", 5.0, 0),  # neither better nor worse
    ],
)
def test_what_is_slower_is_reported(monkeypatch: pytest.MonkeyPatch, column: str, factor: float, status: int) -> None:
    """With its factor and interval; the exit status is 1."""
    monkeypatch.setattr(regression, "run", lambda *arguments: _results(**{column: factor}))
    done = CliRunner().invoke(regression.main, ["HEAD"])
    assert done.exit_code == status, done.output
    assert ("WORSE" in done.output) == bool(status)
    assert ("better" in done.output.splitlines()[1]) == (factor in {0.8, 1.3} and not status)


def test_too_few_rounds_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output says so."""
    results = _results(**{"CPU s/GiB": 3.0})
    for rows in results.samples["w"].values():
        del rows[5:]
    monkeypatch.setattr(regression, "run", lambda *arguments: results)
    done = CliRunner().invoke(regression.main, ["HEAD"])
    assert done.exit_code == 0
    assert "no intervals: fewer than 7 rounds" in done.output


def test_a_commit_is_checked_out_for_a_while(tmp_path: Path) -> None:
    """Into a directory that is removed; the repository stays as it is."""
    need_on_path("git")
    repository = tmp_path / "repository"

    def git(*words: str) -> str:
        options = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        command = ["git", "-C", repository, *options, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    repository.mkdir()
    git("init", "--quiet")
    for text in ("old", "new"):
        (repository / "file").write_text(text)
        git("add", "file")
        git("commit", "--quiet", "--message", text)
    with regression.checkout(repository, "HEAD~1") as tree:
        assert (tree / "file").read_text() == "old"
    assert not tree.exists()
    assert (repository / "file").read_text() == "new"
    assert len(git("worktree", "list").splitlines()) == 1
    with pytest.raises(click.UsageError, match="nothing"), regression.checkout(repository, "nothing"):
        pass


def test_two_trees_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same rounds, each number of both."""

    @contextlib.contextmanager
    def checkout(repository: Path, commit: str) -> Iterator[Path]:
        assert (repository, commit) == (ROOT, "some-commit")
        yield ROOT

    monkeypatch.setattr(regression, "checkout", checkout)
    monkeypatch.setattr(regression, "QUICK", TINY)
    monkeypatch.setattr(workload, "IDLE_TIMEOUT_S", 0.0)
    done = CliRunner().invoke(
        regression.main, ["some-commit", "--rounds", "1", "--workloads", "warm-blob-reused-1,warm-head-blob"]
    )
    assert done.exit_code == 0, done.output
    for each in ("warm-blob-reused-1", "warm-head-blob"):
        assert any(line.startswith(each) for line in done.output.splitlines())
    unknown = CliRunner().invoke(regression.main, ["some-commit", "--workloads", "nothing"])
    assert unknown.exit_code == 2
    assert "unknown workloads: nothing" in unknown.output
