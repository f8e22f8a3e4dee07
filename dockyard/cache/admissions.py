"""Whom an upstream admits to its repositories (`upstreams[].access: upstream`).

A request for a repository passes if the upstream shows what is requested to clients without a login, or to the login
of the client, asked by HEAD. A login that is wrong does not pass: that is asked without a repository, as `docker login`
does, because registries refuse a repository with the same status as a wrong password.

| the upstream's answer | remembered for | what the client gets |
|---|---|---|
| 200 | `access_ttl` | what it requests |
| 401, 403 | REFUSED_FOR_S | 401 without a login, or with a wrong one; else 403 |
| 404 | -, but it ends an admission | 404 |
| none, 5xx, 429 | - | what it requests if it is in grace; else 401 without a login, 503 with one |

A login is in grace if the last answer was 200, no more than `access_grace` ago.

The answers are in a table that all workers share (`access.verdicts`), by login and repository: what is admitted for one
repository says nothing about another. Who may have a manifest may have all of its repository. An answer about a blob or
a list is for blobs or lists only, because some registries give those to more clients.

The worker that owns the login (the repository, for clients without one) asks the upstream, once for all workers; an
owner that is not available is skipped. So a wrong password that many clients send reaches the upstream once in
REFUSED_FOR_S.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal, Protocol

import attrs
import structlog
from cachetools import TTLCache

from dockyard.access.verdicts import Verdict, Verdicts
from dockyard.cache.client_logins import find_operator
from dockyard.cache.singleflight import Singleflight
from dockyard.cache.threads import Threads
from dockyard.config.settings import Upstream
from dockyard.errors import (
    AccessDenied,
    BlobUnknown,
    Denied,
    LoginRequired,
    LoopDetected,
    ManifestUnknown,
    NameUnknown,
    Outage,
    RegistryError,
    TooManyRequests,
    Unavailable,
)
from dockyard.log import is_debug
from dockyard.oci.login import Login
from dockyard.oci.reference import Name, Reference, parse_reference
from dockyard.routing import Target
from dockyard.workers.messages import AdmissionReply, AdmissionRequest, error_reply
from dockyard.workers.peers import PeerConnection, Peers

REFUSED_FOR_S: Final = 30.0
RIGHT_FOR_S: Final = 3600.0  # as long as a right login is not slowed by wrong ones of the same address
OUTAGE_FOR_S: Final = 3.0  # while it lasts, the upstream is not asked for each request
MAX_OUTAGES: Final = 10_000
MAX_LOGIN_CHARS: Final = 16 * 1024
RETRY_AFTER_S: Final = 3
LOGIN: Final = "login"  # the kind of a question about the login itself
MANIFEST: Final = "manifest"  # the kind whose admission is for the whole repository
KINDS: Final = (MANIFEST, "blob", "tags", "referrers")
NEVER: Final = float("-inf")
REFUSALS: Final = frozenset({Verdict.REFUSED, Verdict.WRONG})

Kind = Literal["manifest", "blob", "tags", "referrers"]
Answer = Verdict | RegistryError

log = structlog.get_logger()


class AccessChecker(Protocol):
    """The part of an upstream's client that finds out whom the upstream admits. Its methods block."""

    def check_access(
        self, login: Login | None, repository: str, what: Reference | None, *, is_blob: bool, deadline: float | None
    ) -> None:
        """Raises LoginRequired, AccessDenied, or another RegistryError."""

    def check_login(self, login: Login, deadline: float | None) -> None:
        """Raises LoginRequired, or another RegistryError."""


@attrs.frozen
class _Question:
    """Is the login of the target admitted to what is requested in its repository? For LOGIN: is it right?

    `key`, `repository_key` and `login_key` are those in the table: for what is requested, for the repository (they are
    the same for manifests), and for the login itself. `owner_key` says which worker asks.
    """

    target: Target
    kind: str
    reference: Reference | None
    key: bytes
    repository_key: bytes
    login_key: bytes | None
    owner_key: str

    @property
    def login(self) -> Login | None:
        return self.target.login

    @property
    def keys(self) -> frozenset[bytes]:
        """Those of all that ends an admission when it is refused or unknown."""
        return frozenset({self.key, self.repository_key, self.login_key or self.key})

    @property
    def what(self) -> tuple[str, Reference | None]:
        """What is requested."""
        return self.kind, self.reference


class Admissions:
    """Whom the upstreams admit. `upstreams` are their clients, by prefix."""

    def __init__(
        self,
        peers: Peers,
        upstreams: Mapping[str, AccessChecker],
        threads: Threads,
        verdicts: Verdicts,
        check_timeout_s: float,
        unknown_timeout_s: float,
    ) -> None:
        self._peers = peers
        self._upstreams = upstreams
        self._threads = threads
        self._verdicts = verdicts
        self._check_timeout_s = check_timeout_s
        self._unknown_timeout_s = unknown_timeout_s
        self._singleflight = Singleflight()
        self._outages: TTLCache[bytes, RegistryError] = TTLCache(MAX_OUTAGES, OUTAGE_FOR_S)

    async def require(self, target: Target, login: Login | None, kind: Kind, reference: Reference | None) -> None:
        """Return if the upstream admits a client, with its login or without one, to what it requests.

        Without a reference, any access to the repository is enough. Raises LoginRequired, AccessDenied, ManifestUnknown
        and its like; Unavailable if the upstream cannot be asked about a login.
        """
        prefix = target.upstream.prefix
        if login is not None:
            about_login = self._about_login(target.upstream, login, target.passed)
            if len(login.username) + len(login.password) > MAX_LOGIN_CHARS or self._find(about_login) is Verdict.WRONG:
                raise _wrong_login(prefix)
            own = self._about(target, login, kind, reference)
            if self._find(own) is Verdict.ADMITTED:
                return
            # Who was admitted is asked about first: an admission is renewed with one request.
            if self._find_admission(own, own.keys) > NEVER and await self._answer(own) is Verdict.ADMITTED:
                return
        anonymous = await self._answer(self._about(target, None, kind, reference))
        if login is None:
            if anonymous is not Verdict.ADMITTED:
                raise _refused_anonymous(prefix, anonymous)
            return
        if await self._answer(about_login) is Verdict.WRONG:
            raise _wrong_login(prefix)
        answer = anonymous if anonymous is Verdict.ADMITTED else await self._answer(own)
        if answer is Verdict.ADMITTED:
            return
        if isinstance(answer, RegistryError):
            raise _for_client(answer)
        raise AccessDenied(f"{prefix} does not admit this login to the repository")

    async def check_login(self, upstream: Upstream, login: Login, passed: tuple[str, ...] = ()) -> bool:
        """Whether a login is right at an upstream. `passed`: the servers that the request has passed.

        Raises Unavailable if the upstream cannot be asked.
        """
        if len(login.username) + len(login.password) > MAX_LOGIN_CHARS:
            return False
        answer = await self._answer(self._about_login(upstream, login, passed))
        if isinstance(answer, RegistryError):
            raise _for_client(answer)
        return answer is Verdict.ADMITTED

    def is_known(self, upstream: Upstream, login: Login) -> bool:
        """Whether a login is no guess: it was right within RIGHT_FOR_S, or is refused without asking the upstream."""
        question = self._about_login(upstream, login)
        is_right = time.monotonic() - self._find_admission(question, question.keys) < RIGHT_FOR_S
        return is_right or self._find(question) is not None

    async def handle(self, target: Target, request: AdmissionRequest, connection: PeerConnection) -> None:
        """Find out for another worker whom the upstream admits."""
        if request.kind == LOGIN and target.login is not None:
            question = self._about_login(target.upstream, target.login, target.passed)
        else:
            reference = parse_reference(request.reference) if request.reference else None
            question = self._about(target, target.login, request.kind, reference)
        answer = self._find(question) or await self._ask_once(question)
        await connection.send(error_reply(answer) if isinstance(answer, RegistryError) else AdmissionReply(answer))

    # Questions and answers

    def _about(self, target: Target, login: Login | None, kind: str, reference: Reference | None) -> _Question:
        prefix = target.upstream.prefix
        login_key = self._verdicts.key(prefix, "", login) if login is not None else None
        owner_key = f"access {target.name}" if login_key is None else _owner_key(prefix, login_key)
        repository_key = self._key(target, login, MANIFEST)
        key = repository_key if kind == MANIFEST else self._key(target, login, kind)
        target = attrs.evolve(target, login=login)
        return _Question(target, kind, reference, key, repository_key, login_key, owner_key)

    def _about_login(self, upstream: Upstream, login: Login, passed: tuple[str, ...] = ()) -> _Question:
        prefix = upstream.prefix
        target = Target(upstream, "", Name.parse(prefix), login, passed)
        key = self._verdicts.key(prefix, "", login)
        return _Question(target, LOGIN, None, key, key, None, _owner_key(prefix, key))

    def _key(self, target: Target, login: Login | None, kind: str) -> bytes:
        repository = target.repository if kind == MANIFEST else f"{target.repository}?{kind}"
        return self._verdicts.key(target.upstream.prefix, repository, login)

    def _find(self, question: _Question) -> Verdict | None:
        """The last verdict, while it is remembered."""
        now = time.monotonic()
        if now - self._find_admission(question, question.keys) < question.target.upstream.access_ttl:
            return Verdict.ADMITTED
        last = self._verdicts.find(question.key)
        if last is None or last.verdict not in REFUSALS or now - last.at >= REFUSED_FOR_S:
            return None
        return last.verdict

    def _is_in_grace(self, question: _Question) -> bool:
        """Whether the last verdict, about whatever in the repository, was an admission in the last `access_grace`."""
        keys = question.keys
        if question.kind != LOGIN:
            keys |= {self._key(question.target, question.login, kind) for kind in KINDS}
        return time.monotonic() - self._find_admission(question, keys) < question.target.upstream.access_grace

    def _find_admission(self, question: _Question, ending_keys: frozenset[bytes]) -> float:
        """When the client was admitted last, however long ago; NEVER if a key has another verdict that followed."""
        admitted_at = max(self._find_time(key, is_admission=True) for key in {question.key, question.repository_key})
        refused_at = max(self._find_time(key, is_admission=False) for key in ending_keys)
        return admitted_at if admitted_at > refused_at else NEVER

    def _find_time(self, key: bytes, *, is_admission: bool) -> float:
        """When the last verdict was given; NEVER if it is of the other kind."""
        last = self._verdicts.find(key)
        return last.at if last is not None and (last.verdict is Verdict.ADMITTED) == is_admission else NEVER

    async def _answer(self, question: _Question) -> Answer:
        """The verdict, remembered or asked for; else the error. Who is in grace is admitted during an outage."""
        if (verdict := self._find(question)) is not None:
            return verdict
        outage = self._outages.get(question.key) if self._is_in_grace(question) else None
        answer = outage or await self._share(question)
        if isinstance(answer, Outage | TooManyRequests):
            self._outages[question.key] = answer
            if self._is_in_grace(question):
                return Verdict.ADMITTED
        return answer

    async def _share(self, question: _Question) -> Answer:
        """The answer to a question that is asked once for all of this worker who have it.

        That something does not exist is no answer for those who request something else in the repository: they then ask
        for that, all at the same time.
        """

        async def run() -> tuple[object, Answer]:
            return question.what, await self._ask_owners(question)

        what, answer = await self._singleflight.run(("owner", question.key), run)
        if what != question.what and isinstance(answer, NameUnknown | ManifestUnknown | BlobUnknown):
            _, answer = await self._singleflight.run(("owner", question.key, question.what), run)
        return answer

    async def _ask_owners(self, question: _Question) -> Answer:
        """From the first owner that is available; in the end this worker asks the upstream."""
        reference = "" if question.reference is None else str(question.reference)
        request = AdmissionRequest(self._peers.repository_of(question.target), question.kind, reference)

        async def ask(shard: int) -> Answer:
            try:
                return Verdict((await self._peers.request(shard, request, AdmissionReply)).verdict)
            except RegistryError as exc:
                return exc

        tried = await self._peers.try_owners(question.owner_key, ask)
        return await self._ask_once(question) if tried.result is None else tried.result

    # As the owner

    async def _ask_once(self, question: _Question) -> Answer:
        return await self._singleflight.run(("upstream", question.key, question.what), lambda: self._ask(question))

    async def _ask(self, question: _Question) -> Answer:
        """Ask the upstream, and record its verdict. An error that is no verdict is returned."""
        target, asked_at = question.target, time.monotonic()
        timeout_s = self._check_timeout_s if self._is_in_grace(question) else self._unknown_timeout_s
        deadline = asked_at + timeout_s if timeout_s else None
        registry = find_operator(self._upstreams, target)
        verdict = Verdict.ADMITTED
        try:
            await self._threads.upstream(target, _check, registry, question, deadline, deadline=deadline)
        except LoginRequired:
            verdict = Verdict.REFUSED if question.login is None else Verdict.WRONG
        except (AccessDenied, Denied):
            verdict = Verdict.REFUSED
        except RegistryError as exc:
            was_admitted = self._find_admission(question, question.keys) > NEVER
            if was_admitted and isinstance(exc, NameUnknown | ManifestUnknown | BlobUnknown):
                self._verdicts.put(question.key, Verdict.UNKNOWN, asked_at)
            return exc
        self._verdicts.put(question.key, verdict, asked_at)
        if is_debug():
            log.debug(
                "the upstream decided about access",
                upstream=target.upstream.prefix,
                repository=target.repository,
                has_login=question.login is not None,
                verdict=verdict.name.lower(),
            )
        return verdict


def _owner_key(prefix: str, login_key: bytes) -> str:
    """One worker asks everything about a login, so that it notices at once if the login is wrong."""
    return f"access {prefix} {login_key.hex()}"


def _check(registry: AccessChecker, question: _Question, deadline: float | None) -> None:
    """Ask the upstream. Blocks. Raises RegistryError."""
    target, login = question.target, question.login
    if question.kind == LOGIN and login is not None:
        registry.check_login(login, deadline)
        return
    check = partial(registry.check_access, login, target.repository, deadline=deadline)
    try:
        check(question.reference, is_blob=question.kind == "blob")
    except ManifestUnknown:
        if question.kind != "referrers":
            raise
        check(None, is_blob=False)  # there are referrers of manifests that do not exist (yet)


def _refused_anonymous(prefix: str, answer: Answer) -> RegistryError:
    """The error for a client without a login."""
    if isinstance(answer, NameUnknown | ManifestUnknown | BlobUnknown | LoopDetected):
        return answer.copy()
    details = answer.details if isinstance(answer, RegistryError) else None
    return LoginRequired(f"{prefix} requires a login", details=details)


def _wrong_login(prefix: str) -> LoginRequired:
    return LoginRequired(f"{prefix} rejects this login")


def _for_client(error: RegistryError) -> RegistryError:
    """The error for a client whose login the upstream has not decided about."""
    if isinstance(error, Outage | TooManyRequests) and not isinstance(error, LoopDetected):
        wait_s = error.retry_after_s or RETRY_AFTER_S
        return Unavailable(error.message, retry_after_s=wait_s, remembered=error.remembered, details=error.details)
    return error.copy()
