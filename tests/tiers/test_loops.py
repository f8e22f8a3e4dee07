"""Dockyards that lead back to each other: requests are refused at once, and it is said which upstream is wrong."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from tests.support.bodies import digest_of
from tests.support.busy_machine import is_within
from tests.support.deployment import eventually
from tests.support.distribution import DistributionRegistry
from tests.support.images import PushedImage, push_docker
from tests.tiers.tier import HUB, Tier, at, behind, message_of, serving

REPOSITORY = "tiers/loops"
GOOD = "good.example"
ANYTHING = digest_of(b"what no server has")
PATHS = [
    ("GET", "manifests/latest"),
    ("HEAD", "manifests/latest"),
    ("GET", f"manifests/{ANYTHING}"),
    ("GET", f"blobs/{ANYTHING}"),
    ("HEAD", f"blobs/{ANYTHING}"),
    ("GET", "tags/list"),
    ("GET", f"referrers/{ANYTHING}"),
]
LEADS_BACK = "leads back to a server that the request has passed: correct `registry`"


@attrs.frozen
class Ring:
    """Three servers, each the upstream of the one before it for docker.io; `own` is its own upstream.

    At all of them, good.example is the registry, which has the image. The third one decides about access by its
    upstream, the second one has two workers.
    """

    first: Tier
    second: Tier
    third: Tier
    own: Tier
    image: PushedImage

    @property
    def servers(self) -> tuple[Tier, ...]:
        return self.first, self.second, self.third, self.own


@pytest.fixture(scope="module")
def ring(registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    """The ring. What the first one has cached is from before it was closed."""
    directory = tmp_path_factory.mktemp("ring")
    image = push_docker(registry, REPOSITORY, "loops")
    first, second, third, own = (Tier(directory / str(number), workers=1 + number % 2) for number in range(4))
    good = at(registry, GOOD)
    first.use(at(registry), good)
    second.use(behind(third), good)
    third.use(behind(first, access="upstream"), good)
    own.use(behind(own), good)
    with serving(first, second, third, own):
        assert first.send(f"/v2/{HUB}/{REPOSITORY}/manifests/latest").status == 200
        first.stop()
        first.use(behind(second), good)
        first.start()
        yield Ring(first, second, third, own, image)


def lines_of(servers: Sequence[Tier], name: str, count: int) -> list[list[str]]:
    """The lines about requests for a name in the logs of servers, when there are this many of them."""

    def find() -> list[list[str]]:
        lines = [server.requests(name) for server in servers]
        return lines if sum(map(len, lines)) >= count else []

    found: list[list[str]] = eventually(find, f"{count} lines about {name}")
    return found


def errors_of(server: Tier) -> list[str]:
    """The errors in the log of a server."""
    return [line for line in server.read_log().splitlines() if " error " in line]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_each_request_is_refused_at_once(ring: Ring, method: str, path: str) -> None:
    """508 with an error of a registry, wherever it begins; nobody waits for itself."""
    for server in ring.servers:
        response = server.send(f"/v2/{HUB}/tiers/{method.lower()}/{path}", method)
        assert response.status == 508, server.read_log()
        assert is_within(response.took_s, 1.0)
        if method == "GET":
            assert response.error == "UNKNOWN"
            assert LEADS_BACK in message_of(response)
        assert response.header("Retry-After") is None
        assert response.header("Cache-Control") == "no-store"


def test_a_request_visits_each_server_once(ring: Ring) -> None:
    """Until it comes back to the first one: its second line is that of the refusal."""
    assert ring.first.send(f"/v2/{HUB}/tiers/visits/manifests/latest").status == 508
    lines = lines_of(ring.servers, "tiers/visits", 4)
    assert [len(each) for each in lines] == [2, 1, 1, 0]
    assert all("status=508" in line for each in lines for line in each)
    refusal = lines[0][0]
    assert "this request has passed this server before: an upstream leads back to it" in refusal
    assert "cure=" in refusal


def test_replicas_of_one_tier(ring: Ring, tmp_path: Path) -> None:
    """A request that comes back to another replica is refused by the next server that it visits again."""
    one, other, outer = (Tier(tmp_path / name) for name in ("one", "other", "outer"))
    one.use(behind(outer))
    outer.use(behind(other))
    other.use(behind(outer))
    with serving(one, other, outer):
        assert one.send(f"/v2/{HUB}/tiers/replicas/manifests/latest").status == 508
        lines = lines_of((one, other, outer), "tiers/replicas", 4)
    assert [len(each) for each in lines] == [1, 1, 2]


def test_logins_are_not_sent_around(ring: Ring) -> None:
    """A login that an upstream has to verify is refused like the request for which it was sent."""
    response = ring.third.send(f"/v2/{HUB}/tiers/login/manifests/latest", Authorization="Basic YW5uOnNlY3JldA==")
    assert response.status == 508
    assert is_within(response.took_s, 1.0)


def test_it_is_reported_once_and_is_no_outage(ring: Ring) -> None:
    """The log says which upstream it is; other upstreams are asked, no circuit breaker opens, nothing is repeated."""
    for server in ring.servers:
        for number in range(6):
            assert server.send(f"/v2/{HUB}/tiers/report{number}/manifests/latest").status == 508
        errors = eventually(lambda server=server: errors_of(server), "an error in the log")
        assert 1 <= len(errors) <= len(server.worker_pids())
        assert all(f"upstream={HUB}" in line and LEADS_BACK in line for line in errors)
        assert server.breakers() == 0
        assert server.metric("dockyard_upstream_failures_total") > 6
        assert server.send(f"/v2/{GOOD}/{REPOSITORY}/manifests/latest").status == 200


def test_a_cached_copy_is_served(ring: Ring) -> None:
    """Stale, as while the upstream fails."""
    response = ring.first.send(f"/v2/{HUB}/{REPOSITORY}/manifests/latest")
    assert response.status == 200
    assert digest_of(response.body) == ring.image.digest
    assert "stale-if-error" in (response.header("Cache-Status") or "")


@pytest.mark.parametrize(
    "value", ["dockyard-0123456789abcdef", 'x; a="', ",,;;==\xff", "a" * 12_000, ", ".join(["cdn.example; x=1"] * 600)]
)
def test_what_clients_send_breaks_nothing(ring: Ring, value: str) -> None:
    """A foreign, malformed or very long CDN-Loop is no reason to refuse a request, here or at the next server."""
    image = ring.image
    for number, path in enumerate(("manifests/latest", f"blobs/{image.this_platform.layers[0].digest}")):
        name = f"{GOOD}/{REPOSITORY}/{path}"
        assert ring.second.send(f"/v2/{name}", ("GET", "HEAD")[number], CDN_Loop=value).status == 200
    assert ring.own.send(f"/v2/{HUB}/tiers/long/manifests/latest", CDN_Loop=value).status == 508
