"""What the scenario calls a broken promise, and how it computes percentiles."""

import pytest

from tests.scenario import report
from tests.scenario.__main__ import main
from tests.scenario.acts import find_broken
from tests.scenario.layout import UpstreamRequests
from tests.scenario.nodes import Pull


def asked(*counts: int) -> UpstreamRequests:
    """A registry that was asked so often for each blob."""
    gets = {f"sha256:{number}": count for number, count in enumerate(counts)}
    return UpstreamRequests(gets, gets, manifest_gets=1, heads=1, sent=sum(counts))


RIGHT, RETRIED, FAILED = Pull("node-1", "app:v1"), Pull("node-2", "app:v1", retries=2), Pull("node-3", "app:v1")
FAILED.problem = "503"


@pytest.mark.parametrize(
    ("pulls", "upstream", "max_gets", "max_retries", "broken"),
    [
        ([RIGHT, RETRIED], asked(1, 1), 1, None, []),
        ([RIGHT, RETRIED], asked(1, 1), 1, 2, []),
        ([], asked(2, 2), 2, None, []),
        ([RIGHT, FAILED], asked(1), 1, None, ["node-3: app:v1: 503"]),
        ([RIGHT], asked(1, 2), 1, None, ["the registry was asked 2 times for sha256:1; promised: at most 1"]),
        ([RIGHT], asked(1), 0, None, ["the registry was asked 1 times for sha256:0; promised: at most 0"]),
        ([RETRIED], asked(), 0, 0, ["2 requests of clients failed; promised: at most 0"]),
    ],
)
def test_broken_promises(
    pulls: list[Pull], upstream: UpstreamRequests, max_gets: int, max_retries: int | None, broken: list[str]
) -> None:
    """A pull that is right after a retry is kept; a failed one, and one request too many, is broken."""
    assert find_broken(pulls, upstream, max_gets, max_retries) == broken


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0.0), ([7.0], 0.95, 7.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0, 2.0], 0.5, 1.0), ([1.0, 2.0], 1.0, 2.0)],
)
def test_percentiles(values: list[float], share: float, expected: float) -> None:
    """The smallest value that this share of the values does not exceed."""
    assert report.percentile(values, share) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--acts", "herd,dance"], "unknown act dance"),
        (["--rate", "node"], "--rate node: must be NAME=MBIT"),
        (["--rate", "moon=3"], "--rate moon=3: must be NAME=MBIT"),
        (["--zones", "5", "--nodes", "3"], "each needs a node"),
        (["--zones", "0", "--acts", "zone"], "the act zone needs zones"),
        (["--replicas", "0"], "must be at least 1"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """They are named, before anything is started."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def test_without_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user is told what is needed."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["--quick"]) == 2
    assert "needs root" in capsys.readouterr().err
