"""Hostile servers: whatever they send between and around responses, no reference gets what belongs to another.

The usual run has some thousands of exchanges. `DOCKYARD_FUZZ_TIMES=40 pytest -s tests/fuzz/test_hostile_server.py` has
more than 100,000, and prints how they ended.
"""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest

from dockyard.config.settings import Auth, StorageSettings, Upstream, UpstreamLimits
from dockyard.config.types import Secret
from dockyard.errors import RegistryError
from dockyard.http1 import connections as connections_module
from dockyard.oci.reference import Digest, Name, Reference, Tag, parse_reference
from dockyard.pull import retries
from dockyard.pull.client import DockyardClient
from dockyard.pull.images import parse_image
from dockyard.pull.retries import PullError
from dockyard.s3.errors import S3Error
from dockyard.s3.store import S3Store
from dockyard.storage.keys import manifest_key, tag_key
from dockyard.upstream import client as client_module
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.errors import RangesUnsupported
from dockyard.upstream.keychain import Keychain
from tests.fuzz.budget import runs
from tests.fuzz.hostile_server import BEHAVIOURS, Answer, HostileServer
from tests.support.bodies import digest_of
from tests.support.deployment import open_deployment, upstream
from tests.support.fake_registry import FakeRegistry

pytestmark = pytest.mark.timeout(600 * runs(1))

SEED = 20
THREADS = 8
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@attrs.frozen
class Question:
    """Something to ask a client for, and the only right result."""

    ask: Callable[[], object]
    expected: object


@attrs.define
class Result:
    """How the exchanges of some threads ended."""

    right: int = 0
    errors: Counter[str] = attrs.field(factory=Counter)
    wrong: list[tuple[object, object]] = attrs.field(factory=list)

    @property
    def total(self) -> int:
        return self.right + self.errors.total() + len(self.wrong)


class ForgetsFailures:
    """In place of the circuit breaker and the failing repositories, which would soon reject all requests."""

    is_open = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Site:
    """A hostile server and its client's questions. `is_asking` is held during each exchange."""

    def __init__(self, answers: dict[str, Answer], *, seed: int, is_shared: bool) -> None:
        self.is_asking = None if is_shared else threading.Lock()
        self.server = HostileServer(answers, seed, is_asking=self.is_asking)

    def ask(self, question: Question) -> object:
        while self.server.late_steps:
            time.sleep(0.0002)
        with self.is_asking or contextlib.nullcontext():
            return question.ask()


def ask_all(sites: list[tuple[Site, list[Question]]], count: int, error: type[Exception]) -> Result:
    """Ask `count` questions, in one thread for each pair of a site and questions."""
    whole = Result()
    results = [Result() for _ in sites]

    def ask_some(number: int) -> None:
        rng, result, (site, questions) = Random(f"{SEED} {number}"), results[number], sites[number]
        for _ in range(-(-count // len(sites))):
            question = rng.choice(questions)
            try:
                found = site.ask(question)
            except error as exc:
                result.errors[type(exc).__name__] += 1
                continue
            if found == question.expected:
                result.right += 1
            else:
                result.wrong.append((question.expected, found))

    with ThreadPoolExecutor(len(sites)) as pool:
        list(pool.map(ask_some, range(len(sites))))
    for each in results:
        whole.right += each.right
        whole.errors += each.errors
        whole.wrong += each.wrong
    return whole


def ask_and_check(
    sites: list[Site],
    clients: Sequence[RegistryClient | DockyardClient | S3Store],
    threads: list[tuple[Site, list[Question]]],
    count: int,
    error: type[Exception],
) -> None:
    """Ask the questions, close the clients and the servers of the sites, and check the result."""
    result = ask_all(threads, count, error)
    for client, site in zip(clients, sites, strict=True):
        client.close()
        site.server.raw.__exit__()
    check([site.server for site in sites], result, count)


def check(servers: list[HostileServer], result: Result, count: int) -> None:
    """No result is wrong, most are right, and connections were used again."""
    requests = sum(len(server.raw.heads) for server in servers)
    connections = sum(server.raw.connections for server in servers)
    reused = sum(server.reused for server in servers)
    late = sum(server.late for server in servers)
    print(  # noqa: T201 - the numbers of a long run
        f"\n{result.total} exchanges: {result.right} right, {len(result.wrong)} wrong, {result.errors.total()} errors "
        f"{dict(result.errors)}; {requests} requests on {connections} connections, {reused} of them not the first one "
        f"of its connection; {late} times bytes came on an idle connection"
    )
    assert result.wrong == []
    assert result.total >= count
    assert result.right > 0.7 * result.total
    assert reused > 0.1 * requests
    assert set().union(*(server.counts for server in servers)) == {behaviour.__name__ for behaviour in BEHAVIOURS}


@pytest.fixture(autouse=True)
def _no_suspensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections go on to be used again after unwanted bytes: otherwise the first ones would end the test."""
    monkeypatch.setattr(connections_module, "SUSPENSION_S", 0.0)


def make_manifest(name: str) -> bytes:
    """A manifest that no other name has."""
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(name.encode()), "size": 7}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}).encode()


def manifest_answer(body: bytes) -> Answer:
    """The response of a registry to a request for a manifest."""
    return Answer(body, (f"Content-Type: {OCI_MANIFEST}", f"Docker-Content-Digest: {digest_of(body)}"))


REPOSITORIES = [f"org/app{number}" for number in range(THREADS)]
TAGS = [f"v{number}" for number in range(10)]


def registry_answers() -> dict[str, Answer]:
    """Manifests by tag and by digest, and blobs."""
    answers = {}
    for repository in REPOSITORIES:
        for tag in TAGS:
            body = make_manifest(f"{repository}:{tag}")
            answers[f"/v2/{repository}/manifests/{tag}"] = manifest_answer(body)
            answers[f"/v2/{repository}/manifests/{digest_of(body)}"] = manifest_answer(body)
            # Half of the size, and nine bytes more, are no sizes of other blobs: the server announces these too.
            blob = (f"blob of {repository}:{tag} ".encode() * 2000)[: 1000 * (1 + len(answers) // 3) + 1]
            answers[f"/v2/{repository}/blobs/{digest_of(blob)}"] = Answer(
                blob, ("Content-Type: application/octet-stream",)
            )
    return answers


def read_blob(client: RegistryClient, repository: str, digest: Digest, expected: bytes) -> bytes:
    """A blob. A download would verify its digest: a part of it, or garbage, is an error and no fault."""
    source = client.open_blob(repository, digest)
    try:
        body = b"".join(iter(lambda: source.read(65536), b""))
    finally:
        source.close()
    if body != expected and (expected.startswith(body[:30]) or not body.startswith(b"blob of")):
        raise RegistryError("wrong digest")
    return body


def read_range(client: RegistryClient, repository: str, digest: Digest, start: int, stop: int) -> bytes:
    """A range of a blob, whose digest nobody verifies: it must be right."""
    try:
        source = client.open_blob(repository, digest, start, stop)
    except RangesUnsupported as exc:
        raise RegistryError("no range") from exc
    try:
        return b"".join(iter(lambda: source.read(500), b""))
    finally:
        source.close()


def head_blob(client: RegistryClient, repository: str, digest: Digest, expected: int) -> int:
    """The size of a blob. Another one that the server announces for this blob is an error and no fault."""
    size = client.head_blob(repository, digest)
    if size in {expected // 2, expected + 9}:
        raise RegistryError("wrong size")
    return size


def make_client(server: HostileServer) -> RegistryClient:
    """The client of an upstream."""
    limits = UpstreamLimits(check_timeout=5.0, connect_timeout=5.0, stall_timeout=5.0)
    breaker: Any = ForgetsFailures()
    client = RegistryClient(Upstream("up.test", server.raw.url, Auth("anonymous")), limits, Keychain({}), breaker)
    client._failures = breaker
    return client


def registry_questions(client: RegistryClient, answers: dict[str, Answer], repositories: list[str]) -> list[Question]:
    """Checks of tags, manifests by tag and by digest, sizes of blobs, blobs, ranges of blobs."""
    found = []
    for target, answer in answers.items():
        repository, _, reference = target.removeprefix("/v2/").rsplit("/", 2)
        if repository not in repositories:
            continue
        it, body, size = parse_reference(reference), answer.body, len(answer.body)
        if "/blobs/" in target:
            found += [
                Question(partial(read_blob, client, repository, it, body), body),
                Question(partial(head_blob, client, repository, it, size), size),
                Question(partial(read_range, client, repository, it, 10, 60), body[10:60]),
                Question(partial(read_range, client, repository, it, size - 50, size), body[-50:]),
            ]
        else:
            found += [
                Question(partial(head_digest, client, repository, it), digest_of(body)),
                Question(partial(get_body, client, repository, it), body),
            ]
    return found


def head_digest(client: RegistryClient, repository: str, reference: Reference) -> str:
    """The digest that a HEAD tells."""
    return str(client.head_manifest(repository, reference).digest)


def get_body(client: RegistryClient, repository: str, reference: Reference) -> bytes:
    """A manifest."""
    return client.get_manifest(repository, reference).body


@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_upstreams(is_shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """Each thread with its own client, or all threads with one and its many connections."""
    monkeypatch.setattr(client_module, "SKIP_HEAD_FOR_S", 0.0)
    answers = registry_answers()
    sites = [Site(answers, seed=number, is_shared=is_shared) for number in range(1 if is_shared else THREADS)]
    clients = [make_client(site.server) for site in sites]
    if is_shared:
        threads = [(sites[0], registry_questions(clients[0], answers, [repository])) for repository in REPOSITORIES]
    else:
        threads = [
            (site, registry_questions(client, answers, REPOSITORIES))
            for site, client in zip(sites, clients, strict=True)
        ]
    ask_and_check(sites, clients, threads, runs(1500), RegistryError)


def test_dockyard_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests by tag and by digest."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)
    answers = {target.replace("/v2/", "/v2/up.test/"): answer for target, answer in registry_answers().items()}
    answers = {target: answer for target, answer in answers.items() if "/manifests/" in target}
    sites = [Site(answers, seed=number, is_shared=False) for number in range(4)]
    clients = [DockyardClient(site.server.raw.url, 1) for site in sites]

    def read(client: DockyardClient, target: str) -> bytes:
        name, _, reference = target.removeprefix("/v2/").rsplit("/", 2)
        return client.read_manifest(parse_image(name, "127.0.0.1"), parse_reference(reference)).body

    threads = [
        (site, [Question(partial(read, client, target), answer.body) for target, answer in answers.items()])
        for site, client in zip(sites, clients, strict=True)
    ]
    ask_and_check(sites, clients, threads, runs(500), PullError)


def test_buckets() -> None:
    """Pointers of tags, and manifests."""
    names = [Name.parse(f"up.test/app{number}") for number in range(THREADS)]
    tags = {tag: Digest.of(tag.encode()) for tag in TAGS}
    pointers = {(name, tag): Digest.of(f"{name}:{tag}".encode()) for name in names for tag in tags}
    manifests = {key: f"manifest {key[0]}:{key[1]}".encode() for key in pointers}
    answers = {}
    for (name, tag), digest in pointers.items():
        answers[f"/bucket/{tag_key('', name, Tag(tag))}"] = Answer(str(digest).encode(), ("ETag: x",))
        answers[f"/bucket/{manifest_key('', name, tags[tag])}"] = Answer(manifests[name, tag], ("ETag: x",))
    sites = [Site(answers, seed=number, is_shared=False) for number in range(4)]
    stores = [make_store(site.server) for site in sites]
    threads = [
        (
            site,
            [
                question
                for name, tag in pointers
                for question in (
                    Question(partial(read_pointer, store, name, Tag(tag)), str(pointers[name, tag])),
                    Question(partial(read_manifest, store, name, tags[tag]), manifests[name, tag]),
                )
            ],
        )
        for site, store in zip(sites, stores, strict=True)
    ]
    ask_and_check(sites, stores, threads, runs(500), S3Error)


def make_store(server: HostileServer) -> S3Store:
    """The client of a bucket."""
    settings = StorageSettings(
        endpoint=server.raw.host, bucket="bucket", prefix="", access_key="a", secret_key=Secret("b"), use_ssl=False
    )
    return S3Store(settings, {})


def read_pointer(store: S3Store, name: Name, tag: Tag) -> str:
    """A pointer. What is no digest is not used."""
    found = store.read_pointer(name, tag)
    if found is None:
        raise S3Error("no pointer", "garbage")
    return str(found.digest)


def read_manifest(store: S3Store, name: Name, digest: Digest) -> bytes:
    """The bytes of a manifest, which the cache verifies: only those of another object would be a fault."""
    found = store.read_manifest(name, digest)
    if found is None or not re.fullmatch(rb"manifest [^:]+:v[0-9]", found.body):
        raise S3Error("no manifest", "garbage")
    return found.body


PULLS = 800
# These are losses of a connection, after which the circuit breaker opens and the cache answers alone.
LOSSES = {"_end_within_the_head", "_long_length", "_chunks_without_end", "_unknown_coding"}
HINTS = {"_plain", "_interim_before", "_interim_in_one_packet", "_in_pieces"}


def test_a_running_server(tmp_path: Path) -> None:
    """Two workers, and tags that move: each response is of its tag, and each pointer was at some time its digest.

    One upstream sends interim responses only, the other one everything that does not open the circuit breaker.
    """
    versions = {
        (repository, tag): [make_manifest(f"{repository}:{tag} {version}") for version in range(5)]
        for repository in ("org/app", "org/other")
        for tag in (f"v{number}" for number in range(20))
    }
    answers = {}
    for (repository, tag), bodies in versions.items():
        answers[f"/v2/{repository}/manifests/{tag}"] = manifest_answer(bodies[0])
        answers |= {f"/v2/{repository}/manifests/{digest_of(body)}": manifest_answer(body) for body in bodies}
    weights = {behaviour.__name__: (behaviour, weight) for behaviour, weight in BEHAVIOURS.items()}
    kinds = {"hints.test": HINTS, "all.test": weights.keys() - LOSSES}
    statuses: Counter[int] = Counter()
    with contextlib.ExitStack() as stack:
        servers = {
            prefix: HostileServer(answers, SEED, behaviours=dict(weights[name] for name in sorted(names)))
            for prefix, names in kinds.items()
        }
        for server in servers.values():
            stack.enter_context(server.raw)
        fake_registry = stack.enter_context(FakeRegistry())
        upstreams = [upstream(prefix, server.raw.url) for prefix, server in servers.items()]
        limits = {"check_interval": "0s"}
        deployment = stack.enter_context(
            open_deployment(fake_registry, tmp_path, workers=2, upstreams=upstreams, upstream=limits)
        )

        def pull(number: int) -> None:
            rng = Random(f"{SEED} {number}")
            for _ in range(PULLS // THREADS):
                prefix, (repository, tag) = rng.choice(list(servers)), rng.choice(list(versions))
                bodies = versions[repository, tag]
                if rng.random() < 0.2:
                    answers[f"/v2/{repository}/manifests/{tag}"] = manifest_answer(rng.choice(bodies))
                response = deployment.get(f"/v2/{prefix}/{repository}/manifests/{tag}")
                statuses[response.status] += 1
                assert response.status != 200 or response.body in bodies

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(pull, range(THREADS)))
        pointers = 0
        for prefix in servers:
            for (repository, tag), bodies in versions.items():
                with contextlib.suppress(FileNotFoundError):
                    path = deployment.dockyard.storage / tag_key(
                        StorageSettings().prefix, Name.parse(f"{prefix}/{repository}"), Tag(tag)
                    )
                    assert path.read_text().split()[0] in {digest_of(body) for body in bodies}
                    pointers += 1
    requests = {prefix: len(server.raw.heads) for prefix, server in servers.items()}
    print(f"\n{statuses.total()} pulls: {dict(statuses)}; {pointers} pointers; requests: {requests}")  # noqa: T201
    assert statuses[200] > 0.7 * PULLS
    assert pointers > 60
    assert servers["hints.test"].reused > 100
