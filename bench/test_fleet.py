"""The fleet model: rates and times that were computed by hand, and what must hold for every fleet."""

import contextlib
import hashlib
import http.client
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from packaging.version import Version

from bench.fleet import tables
from bench.fleet.command import main
from bench.fleet.flows import Flow, Link, Network, Use
from bench.fleet.measure import Comparison, as_lines, find_name
from bench.fleet.model import (
    CONFIGURATION_BYTES,
    GBIT,
    GIB,
    MIB,
    PUBLISHED,
    Arrival,
    Bucket,
    Client,
    Costs,
    Failure,
    Fleet,
    Image,
    Tier,
    Upstream,
    measured_costs,
)
from bench.fleet.ring import Ring
from bench.fleet.simulation import simulate
from tests.support.paths import ROOT
from tests.support.processes import Process, free_port
from tests.support.programs import Programs

FAST = 1e15  # bits or bytes per second: no limit
LAYERS = [40.0 * MIB, 20.0 * MIB, 10.0 * MIB, 5.0 * MIB]
# One replica with 100 bytes of bodies per second, without latencies and other limits.
SLOW = Fleet(
    nodes=10,
    tiers=[Tier("region", replicas=1, card=8 * 100 * MIB, balancers=0)],
    node_card=FAST,
    client=Client(request_s=0.0),
    upstream=Upstream(FAST, FAST, 0.0),
    bucket=Bucket(FAST, FAST, 0.0),
    goodput=1.0,
    hop_s=0.0,
    costs=Costs(),
    warm=1,
)


def nothing() -> None:
    """Do nothing when a flow ends."""


def rates(links: Sequence[Link], flows: Sequence[Flow]) -> list[float]:
    """The rates of flows that run at the same time."""
    network = Network(links)
    for flow in flows:
        network.start(flow)
    return [network.rate_of(flow) for flow in flows]


def test_flows_share_a_link_equally() -> None:
    """Three downloads of a link with 90 bytes per second have 30 each, also as one flow that stands for three."""
    link = Link("card", 90.0)
    assert rates([link], [Flow(1, [Use(link)], nothing) for _ in range(3)]) == pytest.approx([30, 30, 30])
    assert rates([link], [Flow(1, [Use(link)], nothing, count=3)]) == pytest.approx([30])


def test_what_one_flow_cannot_use_is_left_to_others() -> None:
    """Max-min fairness: a flow that is limited elsewhere to 10 leaves 80 of 90, of which two others have half each."""
    shared, slow = Link("shared", 90.0), Link("slow", 10.0)
    flows = [Flow(1, [Use(shared), Use(slow)], nothing), *(Flow(1, [Use(shared)], nothing) for _ in range(2))]
    assert rates([shared, slow], flows) == pytest.approx([10, 40, 40])


def test_weights_limits_and_needs_count() -> None:
    """A weight of 2 has twice the rate; a limit is kept; a need of 3 per byte takes three times as much of the link."""
    link = Link("card", 90.0)
    flows = [Flow(1, [Use(link)], nothing, weight=2.0), Flow(1, [Use(link)], nothing)]
    assert rates([link], flows) == pytest.approx([60, 30])
    assert rates([link], [Flow(1, [Use(link)], nothing, limit=15.0)]) == pytest.approx([15])
    assert rates([link], [Flow(1, [Use(link, 3.0)], nothing)]) == pytest.approx([30])


def test_equal_links_are_shared_by_their_part_of_the_flows() -> None:
    """Of 20 downloads over 4 equal links, each link has 5."""
    links = Link("cards of zones", 100.0, count=4)
    assert rates([links], [Flow(1, [Use(links)], nothing, count=20)]) == pytest.approx([20])


def test_a_reader_is_never_ahead_of_what_it_reads() -> None:
    """A download of 100 bytes with 10 per second; a reader with up to 50 that begins after 4 s catches up after 1 s."""
    slow, fast = Link("slow", 10.0), Link("fast", 50.0)
    network = Network([slow, fast])
    download = Flow(1000, [Use(slow)], nothing)
    reader = Flow(1000, [Use(fast)], nothing, source=download)
    network.start(download)
    network.advance(4.0)
    network.start(reader)
    assert network.rate_of(reader) == pytest.approx(50)
    assert network.find_next() == pytest.approx(1.0)
    network.advance(1.0)
    assert network.rate_of(reader) == pytest.approx(10)
    assert network.find_next() == pytest.approx(95.0)
    assert set(map(id, network.advance(95.0))) == {id(download), id(reader)}


def test_a_reader_ahead_of_a_new_download_waits_for_it() -> None:
    """It was at 300 of a download that has died; the next one begins at 0, with 10 per second."""
    link = Link("card", 10.0)
    network = Network([link])
    download = Flow(1000, [Use(link)], nothing)
    reader = Flow(1000, [], nothing, source=download, position=300.0)
    network.start(download)
    network.start(reader)
    assert network.rate_of(reader) == 0
    assert network.find_next() == pytest.approx(30.0)
    network.advance(30.0)
    assert network.rate_of(reader) == pytest.approx(10)


def test_a_flow_without_any_limit_is_refused() -> None:
    """It would end at once, which is a mistake in the description."""
    with pytest.raises(ValueError, match="neither a limit nor a link"):
        rates([], [Flow(1, [], nothing)])


def test_one_replica() -> None:
    """Ten nodes pull 75 MiB through a card with 100 MiB per second: 7.5 s, and the smaller card of a node counts."""
    result = simulate(SLOW, Image(LAYERS))
    assert result.quantile(0.5) == result.last_s == pytest.approx(10 * 75 / 100, rel=0.001)
    result = simulate(attrs.evolve(SLOW, node_card=8 * 5 * MIB), Image(LAYERS))
    assert result.last_s == pytest.approx(75 / 5, rel=0.001)


def test_a_cold_layer_is_fetched_once_and_streamed() -> None:
    """A registry with 10 MiB per second is slower than all else: everybody has the image when it has sent it once."""
    cold = attrs.evolve(SLOW, warm=0, nodes=2, upstream=Upstream(10 * MIB, FAST, 1.0))
    result = simulate(cold, Image([40 * MIB]))
    assert result.last_s == pytest.approx(3 * 1.0 + 4.0, abs=0.02), "tag, manifest, layer"
    assert result.carried("upstream") == pytest.approx(40 * MIB, rel=0.001)
    assert result.requests["upstream GET"] == 4, "tag, manifest, configuration, layer"


def test_two_tiers() -> None:
    """Two zones of 10 nodes: each gets the layer once over 100 MiB per second, its nodes over 50 of their replica."""
    region = Tier("region", replicas=1, card=8 * 100 * MIB, balancers=0)
    zone = Tier("zone", zones=2, replicas=1, card=8 * 50 * MIB, balancers=0)
    fleet = attrs.evolve(SLOW, nodes=20, tiers=[zone, region])
    result = simulate(fleet, Image([40 * MIB]))
    assert result.last_s == pytest.approx(10 * 40 / 50, rel=0.001)
    assert result.carried("region", "replica out") == pytest.approx(2 * 40 * MIB, rel=0.001)
    assert result.requests["zone GET"] == 2 * 4
    narrow = [attrs.evolve(zone, uplink=8 * 4 * MIB), region]
    assert simulate(attrs.evolve(fleet, tiers=narrow), Image([40 * MIB])).last_s == pytest.approx(40 / 4, rel=0.001)
    warm = attrs.evolve(fleet, tiers=narrow, warm=2)
    assert simulate(warm, Image([40 * MIB])).last_s == pytest.approx(10 * 40 / 50, rel=0.001)


def test_balancers_carry_every_byte() -> None:
    """One with 50 MiB per second halves the rate; two do not."""
    for balancers, seconds in ((1, 15.0), (2, 7.5)):
        tier = attrs.evolve(SLOW.tiers[0], balancers=balancers, balancer_card=8 * 50 * MIB)
        assert simulate(attrs.evolve(SLOW, tiers=[tier]), Image(LAYERS)).last_s == pytest.approx(seconds, rel=0.001)


def test_processors_are_a_limit() -> None:
    """75 MiB to ten nodes at 0.1 CPU seconds for each MiB are 75 s of one core; 1,000 tags of 2 ms are 2 s more."""
    tier = attrs.evolve(SLOW.tiers[0], cores=1)
    fleet = attrs.evolve(SLOW, tiers=[tier], costs=Costs(hit_s=0.1 / MIB))
    assert simulate(fleet, Image(LAYERS)).last_s == pytest.approx(75, rel=0.001)
    many = attrs.evolve(SLOW, nodes=1000, tiers=[attrs.evolve(tier, card=FAST)], costs=Costs(tag_s=0.002))
    assert simulate(many, Image([MIB])).last_s == pytest.approx(2.0, rel=0.01)


def test_processors_of_balancers_are_a_limit() -> None:
    """750 MiB at 0.1 CPU seconds for each MiB are 37.5 s of two cores."""
    tier = attrs.evolve(SLOW.tiers[0], balancers=1, balancer_card=FAST)
    fleet = attrs.evolve(SLOW, tiers=[tier], balancer_cpu=(2, 0.1 / MIB))
    assert simulate(fleet, Image(LAYERS)).last_s == pytest.approx(37.5, rel=0.001)


def test_layers_are_unpacked_one_after_the_other() -> None:
    """The first layer is the largest, which comes last: at 10 MiB per second all 75 MiB are unpacked 7.5 s later."""
    fleet = attrs.evolve(SLOW, nodes=1, client=Client(request_s=0.0, unpack_rate=10.0 * MIB))
    first = simulate(attrs.evolve(fleet, client=Client(request_s=0.0)), Image(LAYERS))
    assert first.last_s == pytest.approx(0.75, rel=0.001)
    assert simulate(fleet, Image(LAYERS)).last_s == pytest.approx(0.75 + 7.5, rel=0.001)


def test_nodes_that_begin_later_have_the_link_for_themselves() -> None:
    """Waves of 5 nodes need 3.75 s each; 10 s apart they do not meet."""
    result = simulate(attrs.evolve(SLOW, arrival=Arrival(10.0, waves=2)), Image(LAYERS))
    assert [each.began_at for each in result.completions] == [0.0, 10.0]
    assert result.quantile(1.0) == pytest.approx(3.75, rel=0.001)
    assert result.last_s == pytest.approx(13.75, rel=0.001)


def test_a_registry_admits_so_many_pulls() -> None:
    """Nodes that ask the registry themselves wait for its windows; behind a replica it is one pull."""
    limited = Upstream(FAST, FAST, 0.0, pulls=100, window_s=3600.0)
    direct = attrs.evolve(SLOW, nodes=1000, tiers=[], upstream=limited)
    assert simulate(direct, Image(LAYERS)).last_s > 9 * 3600
    behind = attrs.evolve(SLOW, nodes=1000, warm=0, upstream=limited)
    assert simulate(behind, Image(LAYERS)).last_s < 3600


def test_the_bucket_gets_each_blob_once_and_gives_it_back() -> None:
    """What a replica has fetched from the upstream is uploaded; what is in the bucket is fetched from there."""
    tier = attrs.evolve(SLOW.tiers[0], has_bucket=True)
    cold = simulate(attrs.evolve(SLOW, tiers=[tier], warm=0), Image(LAYERS))
    assert cold.requests["bucket PUT"] == len(LAYERS) + 3
    assert cold.carried("bucket in") == pytest.approx(sum(LAYERS), rel=0.01)
    stored = simulate(attrs.evolve(SLOW, tiers=[tier], warm=0, is_in_bucket=True), Image(LAYERS))
    assert stored.requests["upstream GET"] == stored.requests["bucket PUT"] == 0
    assert stored.carried("bucket out") == pytest.approx(sum(LAYERS), rel=0.01)


def fleets() -> Iterator[Fleet]:
    """Flat and tiered fleets, cold and warm, with every kind of arrival, and things that fail."""
    region = Tier("region", card=GBIT, balancer_card=2 * GBIT, has_bucket=True, crosses_zones=0.5)
    zone = Tier("zone", zones=4, replicas=2, card=GBIT, balancers=2, balancer_card=GBIT, uplink=GBIT)
    failures = [
        [],
        [Failure(1.0, "replica", number=1)],
        [Failure(1.0, "balancer", number=0, detection_s=2.0)],
        [Failure(0.3, "zone"), Failure(2.0, "replica", detection_s=1.0)],
    ]
    arrivals = itertools.cycle((Arrival(), Arrival(1.0, waves=3), Arrival(1.0, waves=5)))
    for tiers, warm, fails in itertools.product(([region], [zone, region]), (0, 1), failures):
        yield Fleet(40, tiers, arrival=next(arrivals), failures=fails, warm=warm)
    inner = attrs.evolve(region, has_bucket=False)
    yield Fleet(40, [zone, inner], failures=[Failure(0.5, "replica", tier=1, number=number) for number in range(3)])


FLEETS = list(fleets())


@pytest.mark.parametrize("fleet", FLEETS, ids=range(len(FLEETS)))
def test_what_holds_for_every_fleet(fleet: Fleet) -> None:
    """Each node gets each byte once, no link is above its rate, and what leaves replicas arrives at nodes."""
    image = Image(LAYERS)
    result = simulate(fleet, image)
    assert result.carried("node in") == pytest.approx(fleet.nodes * image.size, rel=1e-6)
    assert all(load.peak <= 1 + 1e-6 for load in result.loads)
    assert all(each.ended_at > each.began_at for each in result.completions)
    assert sum(each.count for each in result.completions) == pytest.approx(fleet.nodes)
    sent = result.carried("upstream") + result.carried("bucket out") + result.carried("", "replica out")
    received = result.carried("node in") + result.carried("bucket in") + result.carried("", "replica in")
    assert sent == pytest.approx(received, rel=1e-6)
    assert result.carried("", "balancer out") == pytest.approx(result.carried("", "balancer in"), rel=1e-6)


@pytest.mark.parametrize("layers", [LAYERS, [300.0 * MIB], [5.0 * MIB] * 30], ids=["four", "one", "thirty"])
def test_more_is_never_slower(layers: list[float]) -> None:
    """With cards that are twice as fast, or zones of their own, all is done earlier or at the same time.

    With more replicas the mean over images is: a single image may have luck with fewer.
    """
    tier = Tier("region", card=GBIT)
    images = [Image(layers, seed) for seed in range(5)]

    def mean(tiers: Sequence[Tier]) -> float:
        return sum(simulate(Fleet(100, tiers), image).last_s for image in images) / len(images)

    alone = mean([tier])
    assert mean([attrs.evolve(tier, card=2 * GBIT)]) <= alone * 1.001
    assert mean([attrs.evolve(tier, replicas=12)]) <= alone * 1.001
    assert mean([attrs.evolve(tier, name="zone", zones=5), attrs.evolve(tier, card=25 * GBIT)]) <= alone * 1.01


def test_a_killed_replica_costs_no_byte_twice() -> None:
    """Its clients continue by Range at the next replica, which fetches the layer once more from the registry."""
    tier = attrs.evolve(SLOW.tiers[0], replicas=2, balancers=1, balancer_card=FAST)
    fleet = attrs.evolve(SLOW, tiers=[tier])
    image = Image([40.0 * MIB])
    number = Ring(2).find_server(image.blobs()[1].key)
    assert number is not None
    died = simulate(attrs.evolve(fleet, failures=[Failure(2.0, "replica", number=number)]), image)
    assert simulate(fleet, image).last_s == pytest.approx(4.0, rel=0.001)
    until_there = 20 / 100  # seconds until the next replica has the 20 MiB that the clients have
    assert died.last_s == pytest.approx(4.0 + fleet.client.retry_s + until_there, rel=0.001), "one retry later"
    assert died.carried("node in") == pytest.approx(10 * image.size, rel=1e-6)


def test_a_zone_that_dies_is_replaced_by_the_next_tier() -> None:
    """Its nodes ask the region; the other zone does not notice."""
    region = Tier("region", replicas=1, card=8 * 100 * MIB, balancers=0)
    zone = Tier("zone", zones=2, replicas=1, card=8 * 50 * MIB, balancers=0)
    fleet = attrs.evolve(SLOW, nodes=20, tiers=[zone, region], warm=2, failures=[Failure(4.0, "zone")])
    result = simulate(fleet, Image([40 * MIB]))
    times = sorted(each.ended_at for each in result.completions)
    assert times == pytest.approx([4 + 1 + 2, 8], rel=0.001), "200 MiB are left, over 100 MiB per second"


@pytest.mark.parametrize(
    ("tiers", "failures", "problem"),
    [
        ([Tier("region", balancers=0)], [], "need a balancer"),
        ([Tier("rack", zones=3), Tier("zone", zones=2)], [], "divided evenly"),
        ([Tier("rack", zones=4), Tier("zone", zones=2)], [Failure(1.0, "zone")], "needs one zone"),
    ],
)
def test_fleets_that_cannot_be_laid_out(tiers: list[Tier], failures: list[Failure], problem: str) -> None:
    """The message says why."""
    with pytest.raises(ValueError, match=problem):
        simulate(Fleet(10, tiers, failures=failures), Image(LAYERS))


def test_the_costs_are_those_that_were_published() -> None:
    """A hit costs less than half a CPU second per GiB, and a download several."""
    costs = measured_costs()
    assert 0.05 < costs.hit_s * GIB < 0.5 < costs.fetch_s * GIB < 10
    assert 0 < costs.manifest_s < costs.tag_s < 0.01


@pytest.mark.parametrize(("servers", "weight"), [(3, 1), (8, 1), (3, 4)])
def test_the_ring_is_that_of_haproxy(tmp_path: Path, servers: int, weight: int) -> None:
    """HAProxy sends 200 digests where the model does, also after the first server is gone."""
    port, ports = free_port(), [free_port() for _ in range(servers)]
    backend = [f"server s{number} 127.0.0.1:{each} weight {weight}" for number, each in enumerate(ports)]
    lines = [
        "global\n maxconn 100\ndefaults\n mode http\n timeout client 9s\n timeout server 9s\n timeout connect 9s",
        f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\n http-request set-var(txn.key) path,field(-1,/)",
        "backend b\n balance hash var(txn.key)\n hash-type consistent sdbm avalanche",
        *(f" {line}" for line in backend),
        "backend rest\n balance hash var(txn.key)\n hash-type consistent sdbm avalanche",
        *(f" {line}{' disabled' if number == 0 else ''}" for number, line in enumerate(backend)),
    ]
    lines[1] += "\n use_backend rest if { path_beg /rest/ }"
    for number, each in enumerate(ports):
        answer = f"http-request return status 200 content-type text/plain string {number}"
        lines.append(f"frontend s{number}\n bind 127.0.0.1:{each}\n {answer}")
    config = tmp_path / "haproxy.cfg"
    config.write_text("\n".join(lines) + "\n")
    programs = Programs()
    haproxy = Process.start([programs.need("haproxy"), "-db", "-f", config], log=tmp_path / "log")
    version = Version(programs.version("haproxy").partition("-")[0])
    ring = Ring(servers, weight, is_of_3_0=Version("3.0") <= version < Version("3.2.7"))

    def ask(path: str) -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("GET", path)
            return int(connection.getresponse().read())

    def is_answering() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return ask("/") >= 0
        return False

    try:
        haproxy.wait_until(is_answering, "answering")
        digests = [f"sha256:{hashlib.sha256(f'{number}'.encode()).hexdigest()}" for number in range(200)]
        assert [ask(f"/v2/{each}") for each in digests] == [ring.find_server(each) for each in digests]
        assert [ask(f"/rest/{each}") for each in digests] == [ring.find_server(each, {0}) for each in digests]
    finally:
        haproxy.end()
    assert ring.find_server("a digest", range(servers)) is None


def test_the_image_of_the_model_has_its_size() -> None:
    """Layers and the configuration; digests differ with the seed."""
    image = Image(LAYERS)
    assert image.size == sum(LAYERS) + CONFIGURATION_BYTES
    assert len({blob.key for seed in range(3) for blob in Image(LAYERS, seed).blobs()}) == 3 * (len(LAYERS) + 1)
    assert math.isclose(sum(blob.size for blob in image.blobs()), image.size)


def test_the_tables_of_the_page_are_those_of_the_model() -> None:
    """Made again, they are the same: `python -m bench.fleet --write ops/FLEETS.md` after a change."""
    page = (ROOT / "ops" / "FLEETS.md").read_text()
    assert sorted(tables.names_of(page)) == sorted(tables.TABLES)
    assert tables.update(page) == page


def test_the_page_has_the_last_measurement() -> None:
    """The summary of the recorded comparison with real fleets, in which no number is marked as too different."""
    recorded = (PUBLISHED / "fleet.md").read_text()
    assert recorded.split("\n\n", 1)[0] in (ROOT / "ops" / "FLEETS.md").read_text()
    assert "**" not in recorded


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "10", "--layers", "10,20"], "last node: "),
        (
            ["--nodes", "20", "--tier", "zone:zones=2,replicas=2,card=10", "--tier", "region:has_bucket=true"],
            "bucket PUT",
        ),
        (["--nodes", "10", "--waves", "2", "--arrival", "5", "--fail", "replica:at_s=0.1,number=1"], "upstream HEAD"),
    ],
)
def test_the_command_tells_what_happens(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Times, links, requests and costs; and a figure."""
    figure = tmp_path / "fleet.png"
    done = CliRunner().invoke(main, [*arguments, "--draw", str(figure)])
    assert (done.exit_code, said in done.output) == (0, True), done.output
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tier", "region:replica=3"], "no field 'replica'; there are balancer_card,"),
        (["--fail", "node:at_s=3"], "neither replica, balancer nor zone"),
        (["--tier", "region:balancers=0"], "several replicas need a balancer"),
    ],
)
def test_mistakes_in_arguments(arguments: list[str], said: str) -> None:
    """The message says which argument is wrong."""
    done = CliRunner().invoke(main, ["--nodes", "10", *arguments])
    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("link", "direction", "name"),
    [
        ("region-replica-2", "out", "region 1 replica out"),
        ("zone-b-replica-1", "in", "zone 0 replica in"),
        ("zone-a-balancer-1", "in", "zone balancer in"),
        ("zone-a-node-12", "in", "node in"),
        ("zone-a", "in", "zone uplink"),
        ("zone-a", "out", None),
        ("registry", "out", "upstream"),
        ("registry", "in", None),
        ("bucket", "in", "bucket in"),
    ],
)
def test_links_of_real_fleets_have_names_in_the_model(link: str, direction: str, name: str | None) -> None:
    """By which their bytes are compared."""
    assert find_name(link, direction) == name


def test_differences_of_more_than_fifteen_percent_are_wrong() -> None:
    """Except where little is carried."""
    assert Comparison("a fleet", "last", "s", 11.4, 10.0).is_right
    assert not Comparison("a fleet", "last", "s", 11.6, 10.0).is_right
    assert not Comparison("a fleet", "last", "s", 8.4, 10.0).is_right
    assert Comparison("a fleet", "link", "MiB", 1.0, 3.0, slack=5.0).is_right
    assert "**+16%**" in as_lines([Comparison("a fleet", "last", "s", 11.6, 10.0)])[-1]
