"""Transfers that break upstream: resumed without the client noticing, at most 64 KiB fetched twice each time."""

import threading
import time
from collections.abc import Callable
from random import Random

import pytest

from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.raw_http import Ending

MIB = 1024 * 1024
WASTE = 64 * 1024


def _assert_unseen(deployment: Deployment, content: Bytes, clients: int = 10) -> None:
    """All clients get the layer whole, in one response."""
    with deployment.crowd(f"/v2/up.test/app/blobs/{content.digest}", content, clients) as crowd:
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("at", [0.01, 0.5, 0.99])
def test_an_upstream_that_cuts_the_body(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, at: float, how: Ending
) -> None:
    """The upstream cuts at 1, 50 or 99 %: no client notices, and the rest is fetched from where it stopped."""
    content = Bytes(Random(5).randbytes(20 * MIB))
    fake_registry.add_blob(content)
    fake_registry.on("blob", faults.cut(at, how), times=1)
    deployment = make_deployment(workers=2)
    _assert_unseen(deployment, content)
    first, second = fake_registry.received("blob", "GET")
    assert (first.ended, first.request.header("Range")) == (how, None)
    assert (second.request.header("Range") or "").startswith("bytes=")
    assert fake_registry.sent_bytes("blob") <= content.size + WASTE


def test_an_upstream_that_breaks_again_and_again(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Every upstream response breaks after two mebibytes: each makes progress, so the download ends."""
    content = Bytes(Random(6).randbytes(12 * MIB))
    fake_registry.add_blob(content)
    fake_registry.on("blob", faults.cut(2 * MIB, "rst"))
    deployment = make_deployment()
    _assert_unseen(deployment, content, clients=3)
    gets = fake_registry.count("blob", "GET")
    assert gets >= 6
    assert fake_registry.sent_bytes("blob") <= content.size + (gets - 1) * WASTE


def test_an_upstream_that_stalls(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """After `stall_timeout` without a byte the connection is closed, and the rest is fetched over another."""
    content = Bytes(Random(7).randbytes(8 * MIB))
    fake_registry.add_blob(content)
    with set_at_exit(threading.Event()) as never:
        fake_registry.on("blob", faults.stalled(0.5, never), times=1)
        deployment = make_deployment(upstream={"stall_timeout": "2s"})
        began = time.monotonic()
        _assert_unseen(deployment, content)
        assert time.monotonic() - began > 1.8
        first, _ = fake_registry.received("blob", "GET")
        eventually(lambda: first.ended == "gone", "the stalled connection is closed")
    assert fake_registry.sent_bytes("blob") <= content.size + WASTE


def test_a_slow_upstream_is_not_a_stalled_one(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A body that takes longer than every timeout, but keeps coming, is fetched once."""
    content = Bytes(Random(8).randbytes(3 * MIB))
    fake_registry.add_blob(content)
    fake_registry.on("blob", faults.slow(MIB))
    deployment = make_deployment(upstream={"check_timeout": "1s", "stall_timeout": "1s"})
    _assert_unseen(deployment, content)
    assert fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize("status", [500, 503, 429, 404])
def test_a_resume_that_is_rejected(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, status: int
) -> None:
    """The transfer breaks and the retry is rejected: the body is complete in the end, or ends short by FIN."""
    content = Bytes(Random(status).randbytes(4 * MIB))
    fake_registry.add_blob(content)
    fake_registry.on("blob", faults.cut(0.5), times=1)
    fake_registry.on(
        "blob", faults.error_response(status), times=1, when=lambda request: request.header("Range") is not None
    )
    deployment = make_deployment()
    response = deployment.get(f"/v2/up.test/app/blobs/{content.digest}")
    assert response.status == 200
    assert (response.ended, len(response.body)) == ("length", content.size) or response.ended == "fin"
    assert content.data.startswith(response.body)
    if status in (500, 503):
        assert response.ended == "length"
    assert deployment.get(f"/v2/up.test/app/blobs/{content.digest}").body == content.data


WRONG: dict[str, tuple[Change, ...]] = {
    "wrong bytes early": (faults.flipped(1000),),
    "wrong last byte": (faults.flipped(6 * MIB - 1),),
    "short": (faults.cut_at_offset(5 * MIB),),
    "short, and chunked": (faults.chunked(), faults.short(MIB)),
    "html": (faults.html_page(),),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_bodies_for_many_clients(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, wrong: str
) -> None:
    """Ten clients over two workers: none of them can take a wrong body for complete, and nothing is kept."""
    content = Bytes(Random(9).randbytes(6 * MIB))
    fake_registry.add_blob(content)
    rules = [fake_registry.on("blob", change) for change in WRONG[wrong]]
    deployment = make_deployment(workers=2)
    with deployment.crowd(f"/v2/up.test/app/blobs/{content.digest}", content, 10) as crowd:
        crowd.run()
        for member in crowd.members:
            assert member.status in (200, 502, 503)
            assert member.status != 200 or member.ended == "fin", crowd.summary()
    assert deployment.stored_files(content.digest) == []
    fake_registry.remove_rules(*rules)
    _assert_unseen(deployment, content)
    eventually(lambda: deployment.stored_files(content.digest), "the right bytes are kept")


@pytest.mark.parametrize("first", [0, 5 * MIB])
def test_a_stall_before_the_first_byte_is_an_error_response(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, first: int
) -> None:
    """The upstream stalls before the first byte that a client needs: 504 with an OCI error, no partial response."""
    content = Bytes(Random(8).randbytes(6 * MIB))
    fake_registry.add_blob(content)
    with set_at_exit(threading.Event()) as never:
        fake_registry.on("blob", faults.stalled_at_offset(first // 2, never))
        deployment = make_deployment(upstream={"stall_timeout": "1s"})
        response = deployment.get(f"/v2/up.test/app/blobs/{content.digest}", Range=f"bytes={first}-")
    assert (response.status, response.error) == (504, "UNKNOWN")
