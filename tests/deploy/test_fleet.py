"""Three Dockyards behind a real HAProxy over one MinIO: one upstream GET for many clients, and no pull fails."""

import itertools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random

import pytest

from tests.deploy.fleet import Client, Fleet
from tests.s3.service.bucket_view import blob_key
from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.deployment import eventually, set_at_exit
from tests.support.http_client import Crowd

REPOSITORY = "team/app"
NAME = f"up.test/{REPOSITORY}"
CLIENTS = 300
PULLS_PER_SECOND = 50
PULLS = 500  # ten seconds of pulls
MIB = 2**20


@pytest.fixture
def client(fleet: Fleet) -> Client:
    """A client of the balancer."""
    return Client(fleet.balancer.port)


def test_each_layer_has_one_replica(fleet: Fleet, client: Client) -> None:
    """Layers that are pulled by digest repeatedly are kept by one replica each, and spread over the replicas."""
    digests = [fleet.fake_registry.add_blob(Random(f"one replica {n}").randbytes(10_000)) for n in range(24)]
    for digest in digests * 3:
        client.blob(NAME, digest)
    replicas_with = [fleet.replicas_with(digest) for digest in digests]
    assert [len(each) for each in replicas_with] == [1] * len(digests)
    assert len({each.port for (each,) in replicas_with}) == len(fleet.replicas)
    assert [fleet.fake_registry.count("blob", "GET", reference=digest) for digest in digests] == [1] * len(digests)


def test_three_hundred_clients_on_one_cold_layer(fleet: Fleet) -> None:
    """All are served at once from one GET upstream, and afterwards the bucket has the layer."""
    content = Bytes(Random("many clients").randbytes(3 * MIB))
    digest = fleet.fake_registry.add_blob(content)
    address = ("127.0.0.1", fleet.balancer.port)
    with set_at_exit(threading.Event()) as go_on:
        rule = fleet.fake_registry.on("blob", faults.stalled(0.5, go_on), reference=digest)
        with Crowd(address, f"/v2/{NAME}/blobs/{digest}", content, CLIENTS, ()) as crowd:
            crowd.run(until=lambda: all(member.first_byte_at for member in crowd.members))
            go_on.set()
            crowd.run()
            assert all(member.is_right for member in crowd.members), crowd.summary()
    fleet.fake_registry.remove_rules(rule)
    assert fleet.fake_registry.count("blob", "GET", reference=digest) == 1
    eventually(lambda: blob_key(digest) in fleet.bucket_view.listed(), "the layer is in the bucket")


def test_a_replica_is_killed_during_downloads(fleet: Fleet) -> None:
    """Forty clients are in the middle of a layer when its replica is killed: all get it after a retry."""
    body = Random("killed").randbytes(4 * MIB)
    digest = fleet.fake_registry.add_blob(body)
    clients = [Client(fleet.balancer.port) for _ in range(40)]
    with set_at_exit(threading.Event()) as go_on, ThreadPoolExecutor(len(clients)) as pool:
        rule = fleet.fake_registry.on("blob", faults.stalled(0.5, go_on), reference=digest, times=1)
        pulls = [pool.submit(each.blob, NAME, digest) for each in clients]
        (victim,) = eventually(lambda: fleet.replicas_with(digest, "partial"), "a replica is fetching the layer")
        eventually(lambda: all(each.received for each in clients), "all are in the middle of it")
        victim.kill()
        go_on.set()
        assert [each.result() == body for each in pulls] == [True] * len(clients)
    fleet.fake_registry.remove_rules(rule)
    assert all(each.retries for each in clients)
    assert fleet.fake_registry.count("blob", "GET", reference=digest) == 2, "one by the dead replica, one by the next"
    victim.start()
    fleet.balancer.wait_for({fleet.server_name(victim): "UP"})


def test_a_rolling_restart_under_load(fleet: Fleet) -> None:
    """Every replica is restarted, one after the other, under 50 pulls a second: none fails."""
    tags = [f"rolling-{number}" for number in range(20)]
    for tag in tags:
        layers = [Random(f"{tag} {layer}").randbytes(50_000) for layer in range(2)]
        fleet.fake_registry.add_image(REPOSITORY, tag, layers)
    with set_at_exit(threading.Event()) as restarted, ThreadPoolExecutor(33) as pool:
        load = pool.submit(_pull_on, fleet.balancer.port, tags, restarted, pool)
        for replica in fleet.replicas:
            fleet.restart(replica)
        restarted.set()
        pulls = load.result()
        failed = [repr(each.exception()) for each in pulls if each.exception()]
    assert failed == []
    assert len(pulls) >= PULLS


def _pull_on(port: int, tags: list[str], is_enough: threading.Event, pool: ThreadPoolExecutor) -> list[Future[None]]:
    """Start this many pulls per second, whatever happens to earlier ones, until there are enough."""
    begun = time.monotonic()
    pulls: list[Future[None]] = []
    for number in itertools.count():
        if number >= PULLS and is_enough.is_set():
            return pulls
        pulls.append(pool.submit(Client(port).pull, NAME, tags[number % len(tags)]))
        time.sleep(max(0.0, begun + number / PULLS_PER_SECOND - time.monotonic()))  # the rate is part of the test
    raise AssertionError("unreachable")
