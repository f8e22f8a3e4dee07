"""Whom an upstream admits, over several workers: what it is asked, what is remembered, and what holds in an outage.

Each worker here is an `Admissions` with its own sockets, in one process; the upstream is a fake that records questions.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from dockyard.access.seal import LoginSeal
from dockyard.access.verdicts import Verdict, Verdicts
from dockyard.cache import admissions as admissions_module
from dockyard.cache.admissions import MAX_LOGIN_CHARS, REFUSED_FOR_S, RIGHT_FOR_S, Admissions, Kind
from dockyard.cache.threads import Threads
from dockyard.config.settings import Upstream
from dockyard.errors import (
    AccessDenied,
    BlobUnknown,
    LoginRequired,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    TooManyRequests,
    Unavailable,
)
from dockyard.oci.login import Login
from dockyard.oci.reference import Digest, Name, Reference, Tag
from dockyard.routing import Target
from dockyard.workers import messages
from dockyard.workers.messages import AdmissionRequest, PeerRequest
from dockyard.workers.peers import Handler, PeerConnection, Peers
from tests.support.busy_machine import EVENT_TIMEOUT_S

UPSTREAM = Upstream("up.test", "up.test", access="upstream", access_ttl=300.0, access_grace=3600.0)
PRIVATE, OTHER, PUBLIC = (
    Target(UPSTREAM, name, Name.parse(f"up.test/{name}")) for name in ("team/app", "other/app", "public/app")
)
ANN, BOB, WRONG = Login("ann", "canary-of-ann"), Login("bob", "canary-of-bob"), Login("ann", "wrong")
LATEST = Tag("latest")
DIGEST = Digest.of(b"x")


class FakeUpstream:
    """An upstream that admits by login and repository, and records what it is asked."""

    def __init__(self) -> None:
        self.rights = {None: {"public/app"}, ANN: {"team/app", "public/app"}, BOB: {"other/app", "public/app"}}
        self.unknown = {"unknown", str(Digest.of(b"unknown"))}
        self.hides_manifests = False
        self.error: RegistryError | None = None
        self.asked: list[tuple[Login | None, str, str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def check_access(
        self, login: Login | None, repository: str, what: Reference | None, *, is_blob: bool, deadline: float | None
    ) -> None:
        self._record(login, repository, ("blob " if is_blob else "") + str(what))
        is_hidden = self.hides_manifests and what is not None and not is_blob
        if login not in self.rights or repository not in self.rights[login]:
            raise LoginRequired("login") if login is None else AccessDenied("no")
        if is_hidden and str(what) not in self.unknown:
            raise LoginRequired("login") if login is None else AccessDenied("no")
        if str(what) in self.unknown:
            raise (BlobUnknown if is_blob else ManifestUnknown)(f"up.test has no {repository}:{what}")

    def check_login(self, login: Login, deadline: float | None) -> None:
        self._record(login, "", "")
        if login not in self.rights:
            raise LoginRequired("wrong")

    def _record(self, login: Login | None, repository: str, what: str) -> None:
        self.asked.append((login, repository, what))
        assert self.gate.wait(EVENT_TIMEOUT_S)
        if self.error is not None:
            raise self.error.copy()

    def count(self, login: Login | None, repository: str | None = None) -> int:
        """How often it was asked about a login, and perhaps a repository."""
        return sum(asked[0] == login and repository in (None, asked[1]) for asked in self.asked)


@attrs.define
class Worker:
    peers: Peers
    admissions: Admissions
    threads: Threads
    connections: list[PeerConnection] = attrs.field(factory=list)

    def die(self) -> None:
        """Stop answering, as a killed process does: the listener and all of its connections are gone."""
        self.peers.close()
        for connection in self.connections:
            connection._writer.close()


class Workers:
    """Workers over one directory, one table and one upstream."""

    def __init__(self, directory: Path) -> None:
        self.upstream = FakeUpstream()
        self.verdicts = Verdicts()
        self.seal = LoginSeal()
        self.all: list[Worker] = []
        self.requests: list[bytes] = []
        self._directory = directory

    async def start(self, count: int) -> None:
        self._directory.mkdir(exist_ok=True)
        for shard in range(count):
            peers, threads = Peers(self._directory, count, self.seal.seal), Threads()
            peers.open_directory()
            admissions = Admissions(peers, {"up.test": self.upstream}, threads, self.verdicts, 5.0, 5.0)
            self.all.append(Worker(peers, admissions, threads))
            await peers.listen(shard, self._handler(self.all[-1]))

    def _handler(self, worker: Worker) -> Handler:
        async def handle(request: PeerRequest, connection: PeerConnection) -> None:
            assert isinstance(request, AdmissionRequest)
            self.requests.append(messages.encode(request))
            worker.connections.append(connection)
            repository = request.repository
            login = self.seal.unseal(repository.login) if repository.login else None
            target = Target(UPSTREAM, repository.path, repository.name, login)
            await worker.admissions.handle(target, request, connection)

        return handle

    async def outcomes(
        self, target: Target, login: Login | None, kind: Kind = "manifest", reference: Reference | None = LATEST
    ) -> list[type[RegistryError] | None]:
        """What each worker says, one after the other: the class of its error, or None."""
        return [await outcome(worker, target, login, kind, reference) for worker in self.all]

    def forget_outages(self) -> None:
        """As if the time had passed for which an outage is remembered."""
        for worker in self.all:
            worker.admissions._outages.clear()

    def close(self) -> None:
        self.upstream.gate.set()
        for worker in self.all:
            worker.peers.close()
            worker.threads.close()


async def outcome(
    worker: Worker, target: Target, login: Login | None, kind: Kind = "manifest", reference: Reference | None = LATEST
) -> type[RegistryError] | None:
    """The class of the error; None for who is admitted."""
    try:
        await worker.admissions.require(target, login, kind, reference)
    except RegistryError as exc:
        return type(exc)
    return None


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    """Four workers."""
    workers = Workers(tmp_path / "run")
    await workers.start(4)
    yield workers
    workers.close()


def set_clock(monkeypatch: pytest.MonkeyPatch, later_s: float) -> None:
    """Let the time be so much later for what is remembered."""
    now = time.monotonic

    class Clock:
        monotonic = staticmethod(lambda: now() + later_s)

    monkeypatch.setattr(admissions_module, "time", Clock)


# Verdicts


async def test_a_login_that_was_right_is_known(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """To all workers, for an hour, and until it is wrong; a wrong one, as long as the upstream is not asked again."""

    def known(login: Login) -> set[bool]:
        return {worker.admissions.is_known(UPSTREAM, login) for worker in workers.all}

    assert known(ANN) == known(WRONG) == {False}
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    assert await workers.outcomes(PRIVATE, WRONG) == [LoginRequired] * 4
    assert known(ANN) == known(WRONG) == {True}
    set_clock(monkeypatch, REFUSED_FOR_S)
    assert (known(ANN), known(WRONG)) == ({True}, {False})
    set_clock(monkeypatch, RIGHT_FOR_S)
    assert known(ANN) == {False}
    monkeypatch.undo()
    workers.upstream.rights.pop(ANN)
    set_clock(monkeypatch, UPSTREAM.access_ttl)
    assert await workers.outcomes(PRIVATE, ANN) == [LoginRequired] * 4
    set_clock(monkeypatch, UPSTREAM.access_ttl + REFUSED_FOR_S)
    assert known(ANN) == {False}


@pytest.mark.parametrize(
    ("target", "login", "expected"),
    [
        (PUBLIC, None, None),
        (PUBLIC, ANN, None),
        (PUBLIC, WRONG, LoginRequired),
        (PRIVATE, None, LoginRequired),
        (PRIVATE, ANN, None),
        (PRIVATE, BOB, AccessDenied),
        (PRIVATE, WRONG, LoginRequired),
        (OTHER, ANN, AccessDenied),
        (OTHER, BOB, None),
    ],
)
async def test_each_client_is_admitted_to_what_the_upstream_admits_it_to(
    workers: Workers, target: Target, login: Login | None, expected: type[RegistryError] | None
) -> None:
    """By every worker; for each client and repository the upstream is asked once by all of them."""
    assert await workers.outcomes(target, login) == [expected] * 4
    assert await workers.outcomes(target, login) == [expected] * 4
    assert workers.upstream.asked == list(dict.fromkeys(workers.upstream.asked))


@pytest.mark.parametrize(
    ("kind", "reference", "asked"),
    [
        ("manifest", LATEST, "latest"),
        ("manifest", DIGEST, str(DIGEST)),
        ("blob", DIGEST, f"blob {DIGEST}"),
        ("tags", None, "None"),
        ("referrers", DIGEST, str(DIGEST)),
    ],
)
async def test_what_is_requested_is_what_the_upstream_is_asked_for(
    workers: Workers, kind: Kind, reference: Reference | None, asked: str
) -> None:
    """First without a login."""
    assert await outcome(workers.all[0], PRIVATE, ANN, kind, reference) is None
    assert workers.upstream.asked == [(None, "team/app", asked), (ANN, "", ""), (ANN, "team/app", asked)]


async def test_an_admission_is_for_the_whole_repository(workers: Workers) -> None:
    """And for no other one."""
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    asked = list(workers.upstream.asked)
    for kind, reference in (("blob", DIGEST), ("tags", None), ("referrers", DIGEST), ("manifest", Tag("unknown"))):
        assert await workers.outcomes(PRIVATE, ANN, kind, reference) == [None] * 4  # type: ignore[arg-type]
    assert workers.upstream.asked == asked
    assert await workers.outcomes(OTHER, ANN) == [AccessDenied] * 4


@pytest.mark.parametrize("login", [None, ANN])
async def test_an_admission_to_blobs_or_lists_is_for_these_only(workers: Workers, login: Login | None) -> None:
    """Some registries show them to more clients than the manifests, which are cached here."""
    workers.upstream.hides_manifests = True
    for kind, reference in (("blob", DIGEST), ("tags", None), ("referrers", Digest.of(b"unknown"))):
        assert await workers.outcomes(PUBLIC, login, kind, reference) == [None] * 4  # type: ignore[arg-type]
    asked = list(workers.upstream.asked)
    assert await workers.outcomes(PUBLIC, login, "blob", Digest.of(b"another")) == [None] * 4
    assert workers.upstream.asked == asked, "an admission to blobs is for all of them"
    expected = LoginRequired if login is None else AccessDenied
    assert await workers.outcomes(PUBLIC, login) == [expected] * 4
    assert await workers.outcomes(PUBLIC, login, "blob", DIGEST) == [None] * 4


@pytest.mark.parametrize(("kind", "error"), [("manifest", ManifestUnknown), ("blob", BlobUnknown)])
async def test_what_does_not_exist_is_not_remembered(workers: Workers, kind: Kind, error: type[RegistryError]) -> None:
    """Neither as an admission nor as a refusal; the message is that of the upstream."""
    unknown = Tag("unknown") if kind == "manifest" else Digest.of(b"unknown")
    assert await workers.outcomes(PUBLIC, None, kind, unknown) == [error] * 4
    assert await workers.outcomes(PRIVATE, ANN, kind, unknown) == [error] * 4
    assert workers.upstream.count(None, "public/app") == 4
    with pytest.raises(error, match=f"^up.test has no public/app:{unknown}$"):
        await workers.all[0].admissions.require(PUBLIC, None, kind, unknown)
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4


async def test_referrers_of_a_manifest_that_does_not_exist_need_access_to_the_repository(workers: Workers) -> None:
    """A registry has an empty list of them."""
    unknown = Digest.of(b"unknown")
    assert await outcome(workers.all[0], PRIVATE, ANN, "referrers", unknown) is None
    assert await outcome(workers.all[0], PRIVATE, BOB, "referrers", unknown) is AccessDenied


async def test_concurrent_requests_for_other_things_do_not_get_not_found(workers: Workers) -> None:
    """One asks for a tag that does not exist, another meanwhile for one that does."""
    workers.upstream.gate.clear()
    unknown = asyncio.create_task(outcome(workers.all[0], PUBLIC, None, "manifest", Tag("unknown")))
    while not workers.upstream.asked:  # noqa: ASYNC110  it is asked in a thread
        await asyncio.sleep(0.001)
    known = [asyncio.create_task(outcome(worker, PUBLIC, None)) for worker in workers.all]
    await asyncio.sleep(0.05)
    workers.upstream.gate.set()
    assert await unknown is ManifestUnknown
    assert await asyncio.gather(*known) == [None] * 4
    assert workers.upstream.count(None) == 2


async def test_requests_for_many_things_that_do_not_exist_do_not_wait_for_each_other(workers: Workers) -> None:
    """Whoever invents tags must not delay the others: a request waits for one question of somebody else at most."""
    worker, first_gate = workers.all[0], workers.upstream.gate
    first_gate.clear()
    workers.upstream.unknown |= {f"unknown-{number}" for number in range(10)}
    requests = [asyncio.create_task(outcome(worker, PUBLIC, None, "manifest", Tag("unknown")))]
    while not workers.upstream.asked:  # noqa: ASYNC110  it is asked in a thread
        await asyncio.sleep(0.001)
    others = [Tag(f"unknown-{number}") for number in range(10)]
    requests += [asyncio.create_task(outcome(worker, PUBLIC, None, "manifest", tag)) for tag in others]
    await asyncio.sleep(0.05)
    workers.upstream.gate = threading.Event()
    first_gate.set()
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        while len(workers.upstream.asked) < len(requests):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    workers.upstream.gate.set()
    assert await asyncio.gather(*requests) == [ManifestUnknown] * len(requests)


async def test_the_upstream_is_asked_once_by_all_workers_at_the_same_time(workers: Workers) -> None:
    """Forty first pulls of a client over four workers."""
    outcomes = await asyncio.gather(*(outcome(workers.all[number % 4], PRIVATE, ANN) for number in range(40)))
    assert outcomes == [None] * 40
    assert [workers.upstream.count(None), workers.upstream.count(ANN, ""), workers.upstream.count(ANN)] == [1, 1, 2]


async def test_a_wrong_password_of_a_fleet_reaches_the_upstream_once(workers: Workers) -> None:
    """From a thousand nodes, for two repositories, at once and later."""
    for _ in range(2):
        outcomes = await asyncio.gather(
            *(outcome(workers.all[number % 4], (PRIVATE, OTHER)[number % 2], WRONG) for number in range(1000))
        )
        assert outcomes == [LoginRequired] * 1000
    assert workers.upstream.count(WRONG) == 1


async def test_a_login_that_is_too_long_is_wrong(workers: Workers) -> None:
    """No registry has such; it would not fit into a message."""
    long = Login("ann", "x" * MAX_LOGIN_CHARS)
    assert await workers.outcomes(PUBLIC, long) == [LoginRequired] * 4
    assert not await workers.all[0].admissions.check_login(UPSTREAM, long)
    longest = Login("", "\u20ac" * MAX_LOGIN_CHARS, is_bearer=True)
    assert await workers.outcomes(PUBLIC, longest) == [LoginRequired] * 4
    assert workers.upstream.count(long) == 0


# Time


async def test_verdicts_are_asked_for_again(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals after 30 s, admissions after `access_ttl`."""
    assert await workers.outcomes(PRIVATE, BOB) == [AccessDenied] * 4
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    workers.upstream.rights[BOB].add("team/app")
    workers.upstream.rights[ANN].clear()
    set_clock(monkeypatch, 29)
    assert await workers.outcomes(PRIVATE, BOB) == [AccessDenied] * 4
    set_clock(monkeypatch, 31)
    assert await workers.outcomes(PRIVATE, BOB) == [None] * 4
    set_clock(monkeypatch, 290)
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    set_clock(monkeypatch, 301)
    assert await workers.outcomes(PRIVATE, ANN) == [AccessDenied] * 4


# Outages

OUTAGES = [Unavailable("down"), TooManyRequests("too many", retry_after_s=7)]


@pytest.mark.parametrize("error", OUTAGES)
async def test_nobody_is_admitted_during_an_outage_who_was_not_before(workers: Workers, error: RegistryError) -> None:
    """401 without a login, 503 with one."""
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    workers.upstream.error = error
    assert await workers.outcomes(PRIVATE, BOB) == [Unavailable] * 4
    assert await workers.outcomes(PUBLIC, BOB) == [Unavailable] * 4
    assert await workers.outcomes(PUBLIC, None) == [LoginRequired] * 4
    assert await workers.outcomes(PRIVATE, None) == [LoginRequired] * 4
    assert await workers.outcomes(OTHER, ANN) == [Unavailable] * 4
    with pytest.raises(Unavailable) as raised:
        await workers.all[0].admissions.check_login(UPSTREAM, BOB)
    assert raised.value.retry_after_s == (error.retry_after_s or 3)


@pytest.mark.parametrize("error", OUTAGES)
async def test_who_was_admitted_stays_admitted_during_an_outage(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, error: RegistryError
) -> None:
    """For `access_grace` since the last admission, by every worker; the upstream is not asked for each request."""
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    assert await workers.outcomes(PUBLIC, None) == [None] * 4
    workers.upstream.error = error
    set_clock(monkeypatch, 3500)
    workers.upstream.asked.clear()
    for _ in range(10):
        assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
        assert await workers.outcomes(PUBLIC, None) == [None] * 4
        assert await workers.outcomes(PUBLIC, ANN) == [None] * 4
    assert len(workers.upstream.asked) <= 4 * 4
    set_clock(monkeypatch, 3601)
    assert await workers.outcomes(PRIVATE, ANN) == [Unavailable] * 4
    assert await workers.outcomes(PUBLIC, None) == [LoginRequired] * 4


async def test_a_refusal_ends_the_grace(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all workers, and also if the upstream is down again when the refusal is not remembered any more."""
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    set_clock(monkeypatch, 301)
    workers.upstream.error = Unavailable("down")
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    workers.upstream.error = None
    workers.upstream.rights[ANN].clear()
    workers.forget_outages()
    assert await outcome(workers.all[2], PRIVATE, ANN) is AccessDenied
    workers.upstream.error = Unavailable("down")
    assert await workers.outcomes(PRIVATE, ANN) == [AccessDenied] * 4
    set_clock(monkeypatch, 340)
    assert await workers.outcomes(PRIVATE, ANN) == [Unavailable] * 4


@pytest.mark.parametrize("login", [None, ANN])
@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_a_404_ends_the_grace(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, kind: Kind, login: Login | None
) -> None:
    """Registries respond so to whom they do not show a repository any more. The next 200 begins a new one."""
    target = PUBLIC if login is None else PRIVATE
    is_down = [Unavailable if login else LoginRequired] * 4
    assert await workers.outcomes(target, login, kind, DIGEST) == [None] * 4
    set_clock(monkeypatch, 301)
    workers.upstream.unknown.add(str(DIGEST))
    assert (
        await workers.outcomes(target, login, kind, DIGEST) == [BlobUnknown if kind == "blob" else ManifestUnknown] * 4
    )
    workers.upstream.error = Unavailable("down")
    assert await workers.outcomes(target, login, kind, DIGEST) == is_down
    assert await workers.outcomes(target, login, "manifest", LATEST) == is_down
    workers.upstream.error = None
    workers.forget_outages()
    set_clock(monkeypatch, 302)
    assert await workers.outcomes(target, login, "manifest", LATEST) == [None] * 4
    set_clock(monkeypatch, 603)
    workers.upstream.error = Unavailable("down")
    assert await workers.outcomes(target, login, "manifest", LATEST) == [None] * 4


async def test_a_404_takes_no_place_of_those_who_were_never_admitted(workers: Workers) -> None:
    """Whoever asks for what does not exist does not push out what is remembered."""
    before = workers.verdicts._table[:]
    for number in range(3):
        unknown = attrs.evolve(PUBLIC, repository=f"x{number}", name=Name.parse(f"up.test/x{number}"))
        workers.upstream.rights[None].add(unknown.repository)
        assert await workers.outcomes(unknown, None, reference=Tag("unknown")) == [ManifestUnknown] * 4
    assert workers.verdicts._table[:] == before


@pytest.mark.parametrize(("first", "second"), [("manifest", "blob"), ("blob", "manifest"), ("tags", "blob")])
async def test_a_refusal_ends_the_grace_of_all_in_the_repository(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, first: Kind, second: Kind
) -> None:
    """Whatever was requested when the upstream admitted the client, and when it refused it."""
    assert await outcome(workers.all[0], PRIVATE, ANN, first, _reference(first)) is None
    workers.upstream.rights[ANN].clear()
    set_clock(monkeypatch, 301)
    assert await outcome(workers.all[1], PRIVATE, ANN, second, _reference(second)) is AccessDenied
    workers.upstream.error = Unavailable("down")
    set_clock(monkeypatch, 340)
    for kind in (first, second):
        assert await workers.outcomes(PRIVATE, ANN, kind, _reference(kind)) == [Unavailable] * 4


async def test_a_login_that_became_wrong_is_admitted_nowhere(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password was changed, which one repository has shown: neither later nor in an outage to another one."""
    workers.upstream.rights[ANN].add("other/app")
    assert await workers.outcomes(PRIVATE, ANN) == [None] * 4
    set_clock(monkeypatch, 250)
    assert await workers.outcomes(OTHER, ANN) == [None] * 4
    del workers.upstream.rights[ANN]
    set_clock(monkeypatch, 301)
    assert await outcome(workers.all[2], PRIVATE, ANN) is LoginRequired
    for after_s in (301, 340):  # the refusal is remembered, and not any more
        set_clock(monkeypatch, after_s)
        assert await workers.outcomes(OTHER, ANN) == [LoginRequired] * 4
    workers.upstream.error = Unavailable("down")
    set_clock(monkeypatch, 400)
    assert await workers.outcomes(OTHER, ANN) == [Unavailable] * 4
    assert await workers.outcomes(PRIVATE, ANN) == [Unavailable] * 4


def _reference(kind: Kind) -> Reference | None:
    return None if kind == "tags" else DIGEST


async def test_a_repository_that_is_not_public_any_more_is_not_in_grace(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for clients without a login."""
    assert await workers.outcomes(PUBLIC, None) == [None] * 4
    workers.upstream.rights[None].clear()
    set_clock(monkeypatch, 301)
    assert await outcome(workers.all[1], PUBLIC, None) is LoginRequired
    workers.upstream.error = Unavailable("down")
    set_clock(monkeypatch, 340)
    assert await workers.outcomes(PUBLIC, None) == [LoginRequired] * 4


async def test_without_grace_an_outage_ends_admissions_after_their_time(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `access_grace: 0`."""
    target = attrs.evolve(PRIVATE, upstream=attrs.evolve(UPSTREAM, access_grace=0.0))
    assert await outcome(workers.all[0], target, ANN) is None
    workers.upstream.error = Unavailable("down")
    assert await outcome(workers.all[0], target, ANN) is None
    set_clock(monkeypatch, 301)
    assert await outcome(workers.all[0], target, ANN) is Unavailable


# Logins


async def test_a_login_is_checked_by_itself(workers: Workers) -> None:
    """As `docker login` does it; once for all workers."""
    for worker in workers.all:
        assert await worker.admissions.check_login(UPSTREAM, ANN)
        assert not await worker.admissions.check_login(UPSTREAM, WRONG)
    assert workers.upstream.asked == [(ANN, "", ""), (WRONG, "", "")]


async def test_no_message_has_a_login(workers: Workers) -> None:
    """Each is sealed in another way."""
    for number in range(20):
        await outcome(workers.all[0], PRIVATE, Login(f"canary-{number}", "canary-password"))
    with_login = [request for request in workers.requests if b'"login": ""' not in request]
    assert with_login
    assert not any(b"canary" in request for request in workers.requests)


# Workers


def owner_of(workers: Workers, login: Login | None, target: Target = PRIVATE) -> Worker:
    """The worker that asks about a login and a repository."""
    any_worker = workers.all[0].admissions
    key = any_worker._about(target, login, "manifest", LATEST).owner_key
    return next(worker for worker in workers.all if worker.peers.is_owner(key))


@pytest.mark.parametrize("login", [None, ANN])
async def test_an_owner_that_dies_is_skipped(workers: Workers, login: Login | None) -> None:
    """While it asks: the next owner asks again."""
    target = PUBLIC if login is None else PRIVATE
    owner = owner_of(workers, login, target)
    others = [worker for worker in workers.all if worker is not owner]
    workers.verdicts.put(workers.verdicts.key("up.test", "team/app", None), Verdict.REFUSED, time.monotonic())
    workers.verdicts.put(workers.verdicts.key("up.test", "", ANN), Verdict.ADMITTED, time.monotonic())
    workers.upstream.gate.clear()
    asking = [asyncio.create_task(outcome(worker, target, login)) for worker in others]
    while not workers.upstream.asked:  # noqa: ASYNC110  it is asked in a thread
        await asyncio.sleep(0.001)
    owner.die()
    workers.upstream.gate.set()
    assert await asyncio.gather(*asking) == [None] * 3
    assert workers.upstream.asked == [(login, target.repository, "latest")] * 2


async def test_an_older_verdict_does_not_replace_a_newer_one(workers: Workers) -> None:
    """An owner that was frozen in between wakes up with its admission."""
    key = workers.verdicts.key("up.test", "team/app", ANN)
    workers.verdicts.put(key, Verdict.REFUSED, 10.0)
    workers.verdicts.put(key, Verdict.ADMITTED, 9.0)
    decided = workers.verdicts.find(key)
    assert decided is not None
    assert decided.verdict is Verdict.REFUSED


async def test_a_list_of_an_unknown_repository_is_unknown(workers: Workers) -> None:
    """404 is 404, with and without a login."""
    workers.upstream.error = NameUnknown("up.test has no team/app")
    assert await workers.outcomes(PRIVATE, None, "tags", None) == [NameUnknown] * 4
    assert await outcome(workers.all[0], PRIVATE, ANN, "tags", None) is NameUnknown
