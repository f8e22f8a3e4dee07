"""The gate where access is restricted, logins are verified, or decisions are logged. In this order:

1. who asks: the address of the client, and its login, which is verified             401
2. the name is routed to an upstream                                                  404
3. a login that is not ours must be for an upstream with `access: upstream`           401
4. `access.rules`                                                                     401, 403, or hidden
5. the reference is parsed                                                            400
6. with `access: upstream`: the upstream admits the client to the repository          401, 403, 404
7. a blob: a manifest of the repository names it                                      404

A hidden repository is replaced by one that does not exist (`concealment`), for which 5 to 7 and the handler continue.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol, TypeVar

import attrs
import falcon.asgi

from dockyard import metrics
from dockyard.access.audit import AuditEntry, Verdict
from dockyard.access.authenticator import Authenticated, Authenticator
from dockyard.access.networks import Address
from dockyard.access.principals import Principal
from dockyard.access.rules import Action, Rules
from dockyard.cache.threads import Threads
from dockyard.config.settings import Settings, Upstream
from dockyard.errors import (
    AccessDenied,
    BlobUnknown,
    Denied,
    LoginRequired,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    Outage,
    RegistryError,
    RequestInvalid,
    TooManyRequests,
)
from dockyard.oci.login import Login, format_authorization, parse_authorization
from dockyard.oci.reference import Digest, Name, Reference, Tag
from dockyard.routing import Target
from dockyard.web.challenges import LOGIN_CHALLENGE, FindTokenUrl, make_token_challenge
from dockyard.web.clients import FindAddress
from dockyard.web.concealment import Concealment
from dockyard.web.gate import Gate, echo_namespace, find_namespace
from dockyard.web.paths import is_registry_path
from dockyard.web.queries import ReferrersQuery
from dockyard.web.request_record import RequestRecord

TOKEN_REQUIRED: Final = "this needs an access token: get one at the URL in WWW-Authenticate"  # noqa: S105  a message
LOGIN_REQUIRED: Final = "this needs a login: log in to the address of this server"
DENIED: Final = "this client may not have what it requests"
ANYBODY: Final = Principal()
NO_LOGIN: Final = [b"basic", b"Og=="]
"""What podman and skopeo send after a challenge if they have no login: an empty name and an empty password."""

_ACTIONS: Final = {"manifest": Action.PULL, "blob": Action.PULL, "referrers": Action.PULL, "tags": Action.LIST}
_VERDICTS: Final[Sequence[tuple[type[RegistryError], Verdict]]] = (
    (LoginRequired, "login required"),
    (AccessDenied, "denied"),
    (Denied, "denied"),
    (NameUnknown, "unknown"),
    (ManifestUnknown, "unknown"),
    (BlobUnknown, "unknown"),
    (Outage, "unavailable"),
    (TooManyRequests, "unavailable"),
)
_Parsed = TypeVar("_Parsed")
_Result = TypeVar("_Result")

RequestKind = Literal["manifest", "blob", "tags", "referrers"]


class RequiresLink(Protocol):
    """Which blobs the manifests of a repository name."""

    async def require(self, target: Target, digest: Digest) -> None:
        """Raises BlobUnknown unless the blob belongs to the repository."""


class RequiresAdmission(Protocol):
    """Whom the upstreams admit to their repositories."""

    async def require(
        self, target: Target, login: Login | None, kind: RequestKind, reference: Reference | None
    ) -> None:
        """Raises LoginRequired, AccessDenied, ManifestUnknown and others unless the upstream admits the login."""

    async def check_login(self, upstream: Upstream, login: Login, passed: tuple[str, ...] = ()) -> bool:
        """Whether a login is right at an upstream. `passed`: the servers that the request has passed.

        Raises Outage and others.
        """

    def is_known(self, upstream: Upstream, login: Login) -> bool:
        """Whether a login was right at an upstream within the last hour, or wrong a moment ago."""


class SealsLogins(Protocol):
    """Access tokens, which stand for logins."""

    @property
    def lifetime_s(self) -> int:
        """For how long a token is valid, in seconds."""

    def issue(self, login: Login | None) -> str:
        """A token for a login, or for none. Raises RequestInvalid if it would be too long."""

    def is_ours(self, text: str) -> bool:
        """Whether a text is an access token."""

    def open(self, token: str) -> str | None:
        """The Authorization header that a token stands for; None for no login. Raises LoginRequired."""


class WritesDecisions(Protocol):
    """Where decisions are logged."""

    def write(self, entry: AuditEntry) -> None:
        """Log a decision. Does not block."""


@attrs.frozen
class AccessControl:
    """What the gate asks. `concealment` is the same in all workers. Without an audit log, `audit` is None.

    `tokens` are the same in all workers; None if clients get no access tokens.
    """

    authenticator: Authenticator
    rules: Rules
    links: RequiresLink
    admissions: RequiresAdmission
    threads: Threads
    concealment: Concealment
    audit: WritesDecisions | None = None
    tokens: SealsLogins | None = None


@attrs.define(eq=False)
class _Visit:
    """A request in the gate, and what is decided about it.

    `kind` is manifest, blob, tags, referrers, api (`/v2/`), token, page, or status. `authorization` is the login that
    the client has sent, or that its access token stands for. `login` is one that is not ours, for an upstream.
    `has_waited`: it was delayed because of wrong ones from its address. `verdict`, `rule` and `reason` are for the
    audit log, and so are `upstream` and `repository`, those of the target.
    """

    req: falcon.asgi.Request
    record: RequestRecord
    action: Action
    kind: str
    address: Address
    reference: str = ""
    principal: Principal = ANYBODY
    authorization: str = attrs.field(default="", repr=False)
    login: Login | None = None
    has_waited: bool = False
    upstream: str = ""
    repository: str = ""
    verdict: Verdict | None = None
    rule: str = "none"
    reason: str = ""


class AccessGate(Gate):
    """Admits requests by the settings of access, or raises RegistryError."""

    def __init__(
        self, settings: Settings, control: AccessControl, find_address: FindAddress, find_token_url: FindTokenUrl
    ) -> None:
        super().__init__(settings)
        self._control = control
        self._tokens = control.tokens
        self._find_address = find_address
        self._find_token_url = find_token_url
        self._is_dry_run = settings.access.dry_run
        self.restricts = settings.restricts_access
        asks_upstreams = any(upstream.access == "upstream" for upstream in settings.upstreams)
        # One upstream that decides itself is enough: its blobs could be requested below the name of another one.
        self._needs_links = asks_upstreams or (bool(settings.access.rules) and not self._is_dry_run)
        self._has_logins = settings.has_logins
        self._verifies_logins = self.restricts or self._has_logins

    async def admit(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        record: RequestRecord,
        path_prefix: str,
        reference: str,
        parse: Callable[[str], _Parsed],
    ) -> tuple[Target, _Parsed]:
        """See Gate."""
        visit = self._start(req, resp, record, _ACTIONS[record.kind], record.kind)
        visit.reference = reference if record.kind != "tags" else ""
        try:
            admitted = await self._admit(visit, resp, path_prefix, reference, parse)
        except RegistryError as exc:
            self._report_error(visit, exc)
            raise
        self._report_admission(visit)
        return admitted

    async def check_api(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord, path_prefix: str
    ) -> None:
        """See Gate."""
        upstreams: Sequence[Upstream] = self._upstreams
        if path_prefix:
            found = self._router.find_upstream(path_prefix)
            upstreams = [found] if found else []
        visit = self._start(req, resp, record, Action.PULL, "api")
        if self._tokens and _find_authorization(req) is None:
            raise LoginRequired(TOKEN_REQUIRED)  # not a decision: the answer to what the server requires
        await self._report(visit, self._check_some(visit, upstreams))
        if self._has_logins and not self._tokens:
            # With 200 too (RFC 9110 section 11.6.1): podman and skopeo send their login only if this asks for it.
            resp.set_header("www-authenticate", LOGIN_CHALLENGE)

    def find_challenge(self, req: falcon.asgi.Request, record: RequestRecord) -> str:
        """See Gate. Browsers and programs other than clients of registries do not know access tokens."""
        url = self._find_token_url(req.scope) if self._tokens and is_registry_path(req.path) else None
        return make_token_challenge(url, record.name, record.challenge_error) if url else LOGIN_CHALLENGE

    async def check_login(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord, given: Login | None
    ) -> Login | None:
        """Return the login that is given or, without it, that in the request, unless it is wrong; None for no login.

        What cannot be verified now is verified when it is used. Raises LoginRequired, and others.
        """
        visit = self._start(req, resp, record, Action.PULL, "token")
        return await self._report(visit, self._check_login(visit, given))

    async def check_status(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord) -> None:
        """See Gate."""
        visit = self._start(req, resp, record, Action.STATUS, "status")
        await self._report(visit, self._check_status(visit))

    async def check_page(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord
    ) -> Sequence[Upstream]:
        """See Gate."""
        visit = self._start(req, resp, record, Action.PULL, "page")
        await self._report(visit, self._check_some(visit, self._upstreams))
        return [upstream for upstream in self._upstreams if self._may_pull_below(visit, upstream)]

    def _start(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord, action: Action, kind: str
    ) -> _Visit:
        if self.restricts:
            resp.append_header("vary", "Authorization")
        return _Visit(req, record, action, kind, self._find_address(req.scope))

    # The steps of a request

    async def _admit(
        self,
        visit: _Visit,
        resp: falcon.asgi.Response,
        path_prefix: str,
        reference: str,
        parse: Callable[[str], _Parsed],
    ) -> tuple[Target, _Parsed]:
        control = self._control
        await self._identify(visit, self._find_login(visit))
        try:
            target = self._route(visit.req, visit.record, path_prefix)
        except NameUnknown:
            self._judge_unknown(visit, path_prefix)
            raise
        visit.upstream, visit.repository = target.upstream.prefix, target.name.value
        if visit.login is not None and target.upstream.access != "upstream":
            self._refuse_login(visit)
        is_hidden = self._apply_rules(visit, target.name)
        echo_namespace(visit.req, resp)
        parsed = parse(reference)
        if is_hidden:
            requested, asked = target, _find_reference(parsed)
            target = control.concealment.replace_target(target)
            parsed = control.concealment.replace_reference(parsed)
            visit.record.is_hidden = True
            visit.record.replaced = (
                (target.repository, requested.repository),
                (str(_find_reference(parsed)), str(asked)),
            )
        if target.upstream.access == "upstream":
            target = attrs.evolve(target, login=visit.login)
            await self._ask_upstream(visit, target, _find_reference(parsed))
        if visit.kind == "blob" and isinstance(parsed, Digest) and self._needs_links:
            await _decided_by("links", visit, control.links.require(target, parsed))
        return target, parsed

    async def _check_some(self, visit: _Visit, upstreams: Sequence[Upstream]) -> None:
        """Admit a client that has a right login, or may pull something of these upstreams without one."""
        await self._identify(visit, self._find_login(visit))
        if visit.login is not None:
            await self._verify_at_upstream(visit, visit.login, upstreams)
        if visit.login is not None or visit.principal.is_authenticated:
            return
        # What an upstream gives to clients without a login is not known before it is asked; and clients that get 200
        # send no login then, unless they have an access token.
        if not any((self._tokens or up.access != "upstream") and self._may_pull_below(visit, up) for up in upstreams):
            visit.rule = "default"
            raise self._denied(visit, "")

    async def _check_status(self, visit: _Visit) -> None:
        await self._identify(visit, self._find_login(visit))
        if visit.login is not None:
            self._refuse_login(visit)
        self._apply_rules(visit, None)

    async def _check_login(self, visit: _Visit, given: Login | None) -> Login | None:
        header = _find_authorization(visit.req) if given is None else format_authorization(given)
        await self._identify(visit, header)
        if visit.login is not None:
            try:
                await self._verify_at_upstream(visit, visit.login, self._upstreams)
            except (Outage, TooManyRequests):
                if visit.rule == "login":  # too many attempts from this address
                    raise
                visit.rule, visit.upstream = "none", ""
        if header is None:
            return None
        try:
            return parse_authorization(header)
        except ValueError:  # in a dry run, in which it is no login
            return None

    def _find_login(self, visit: _Visit) -> str | None:
        """Return the login in a request, or that its access token stands for; None without one.

        Raises LoginRequired for an access token that is not valid, also in a dry run: its client gets another one.
        """
        header = _find_authorization(visit.req) if self._verifies_logins else None
        if header is None or self._tokens is None or (token := _find_bearer(header)) is None:
            return header
        if not self._tokens.is_ours(token):
            return header
        visit.rule, visit.record.challenge_error = "login", "invalid_token"
        authorization = self._tokens.open(token)
        visit.record.challenge_error = "insufficient_scope"  # if the request is denied nevertheless
        return authorization

    async def _identify(self, visit: _Visit, header: str | None) -> None:
        """Find out who asks. Raises LoginRequired for a wrong login, RequestInvalid, TooManyRequests, Unavailable."""
        control = self._control
        visit.authorization = header or ""
        visit.rule = "login"
        try:
            found = control.authenticator.find_remembered(header, visit.address)
            if found is None and header is not None:
                with control.authenticator.attempt(header, visit.address) as wait_s:
                    if wait_s:
                        visit.has_waited = True
                        await asyncio.sleep(wait_s)
                    found = await self._authenticate(header, visit.address)
        except (LoginRequired, Outage, TooManyRequests) as exc:
            if not self._is_dry_run:
                visit.verdict = "wrong login" if isinstance(exc, LoginRequired) else None
                raise
            visit.verdict, visit.reason = "would deny", exc.message
            found = control.authenticator.find_remembered(None, visit.address)
        if found is not None:
            visit.principal, visit.login = found.principal, found.foreign
        if visit.login is not None and self._tokens is not None and self._tokens.is_ours(visit.login.password):
            self._refuse_login(visit)  # it is no login for an upstream, which could use it here
        visit.record.user = visit.principal.name
        if visit.verdict is None:
            visit.rule = "none"

    async def _authenticate(self, header: str, address: Address) -> Authenticated:
        authenticator, threads = self._control.authenticator, self._control.threads
        if not authenticator.is_password(header):
            return await threads.token(authenticator.authenticate, header, address)
        was_right = authenticator.was_right(header)
        return await threads.password(authenticator.authenticate, header, address, was_right=was_right)

    def _refuse_login(self, visit: _Visit) -> None:
        """Raise LoginRequired for a login that is not ours and not for an upstream. In a dry run, forget it."""
        error = self._control.authenticator.refuse(visit.authorization, visit.address)
        visit.rule = "login"
        if not self._is_dry_run:
            visit.verdict = "wrong login"
            raise error
        visit.verdict, visit.reason, visit.login = "would deny", error.message, None

    def _judge_unknown(self, visit: _Visit, path_prefix: str) -> None:
        """Raise what a name of an upstream gets by the rules, so that prefixes cannot be found out."""
        if visit.login is not None:
            self._refuse_login(visit)
        prefix = path_prefix or find_namespace(visit.req)
        try:
            name = Name.parse(f"{prefix}/{visit.record.name}" if prefix else visit.record.name)
        except NameInvalid:  # an `ns` may have a port
            name = Name.parse(visit.record.name)
        self._apply_rules(visit, name)

    def _apply_rules(self, visit: _Visit, name: Name | None) -> bool:
        """Return whether the repository is hidden. Raises LoginRequired or AccessDenied."""
        decision = self._control.rules.decide(visit.principal, visit.action, name)
        if decision.is_allowed:
            if visit.verdict is None:
                visit.rule = decision.rule
            return False
        visit.rule, visit.reason = decision.rule, decision.reason
        if self._is_dry_run:
            visit.verdict = "would deny"
            return False
        if decision.is_hidden:
            visit.verdict = "hidden"
            return True
        raise self._denied(visit, decision.reason)

    def _denied(self, visit: _Visit, reason: str) -> RegistryError:
        if visit.principal.is_authenticated or not self._has_logins:
            return AccessDenied(reason or DENIED)
        return LoginRequired(LOGIN_REQUIRED)

    def _may_pull_below(self, visit: _Visit, upstream: Upstream) -> bool:
        return self._is_dry_run or self._control.rules.may_pull_below(visit.principal, upstream.prefix)

    async def _ask_upstream(self, visit: _Visit, target: Target, reference: Reference | None) -> None:
        """Raises LoginRequired, AccessDenied, ManifestUnknown and others unless the upstream admits the client."""
        kind: RequestKind = visit.kind  # type: ignore[assignment]  # of a request for a target
        admissions, login = self._control.admissions, visit.login
        try:
            await self._try_login(visit, target.upstream, lambda: admissions.require(target, login, kind, reference))
        except LoginRequired as exc:
            if visit.principal.is_authenticated:  # another login is needed, but this one is right
                raise AccessDenied(f"{target.upstream.prefix} admits only clients with a login of its own") from exc
            if visit.login is not None:
                visit.verdict = "wrong login"
                self._control.authenticator.refuse(visit.authorization, visit.address)  # counts it
            raise

    async def _verify_at_upstream(self, visit: _Visit, login: Login, upstreams: Sequence[Upstream]) -> None:
        """Raise LoginRequired for a login that is wrong at the upstream that decides. With several, its use decides."""
        upstreams = [upstream for upstream in upstreams if upstream.access == "upstream"]
        if len(upstreams) > 1:
            return
        visit.upstream = upstreams[0].prefix if upstreams else ""
        admissions = self._control.admissions
        if not upstreams or not await self._try_login(
            visit, upstreams[0], lambda: admissions.check_login(upstreams[0], login, visit.record.passed)
        ):
            self._refuse_login(visit)

    async def _try_login(self, visit: _Visit, upstream: Upstream, decide: Callable[[], Awaitable[_Result]]) -> _Result:
        """The decision of an upstream, which may be asked whether the login is right: not as fast as clients guess."""
        control = self._control
        if visit.login is None or visit.has_waited or control.admissions.is_known(upstream, visit.login):
            return await _decided_by("upstream", visit, decide())
        before, visit.rule = visit.rule, "login"
        with control.authenticator.attempt_elsewhere(visit.authorization, visit.address) as wait_s:
            if wait_s:
                await asyncio.sleep(wait_s)
            visit.rule = before
            return await _decided_by("upstream", visit, decide())

    # Reports

    async def _report(self, visit: _Visit, decision: Awaitable[_Result]) -> _Result:
        """Wait for a decision, count and log it. A request that is malformed has none."""
        try:
            result = await decision
        except RegistryError as exc:
            self._report_error(visit, exc)
            raise
        self._report_admission(visit)
        return result

    def _report_error(self, visit: _Visit, exc: RegistryError) -> None:
        visit.verdict = visit.verdict if visit.verdict in {"wrong login", "hidden"} else _find_verdict(exc)
        visit.reason = visit.reason or exc.message
        self._log(visit)

    def _report_admission(self, visit: _Visit) -> None:
        visit.verdict = visit.verdict or "allowed"
        if visit.action is not Action.STATUS or visit.rule not in {"none", "default"}:  # probes, as they always were
            self._log(visit)

    def _log(self, visit: _Visit) -> None:
        if visit.verdict is None:
            return
        metrics.count_decision(visit.verdict, visit.rule)
        if self._control.audit is not None:
            self._control.audit.write(
                AuditEntry(
                    verdict=visit.verdict,
                    principal=visit.principal,
                    action=visit.action,
                    kind=visit.kind,
                    method=visit.req.method,
                    address=str(visit.address),
                    upstream=visit.upstream,
                    repository=visit.repository or visit.record.name,
                    reference=visit.reference,
                    rule=visit.rule,
                    reason=visit.reason,
                )
            )


async def _decided_by(rule: str, visit: _Visit, decision: Awaitable[_Result]) -> _Result:
    """Wait for a decision. If it raises an error, `rule` is what has decided."""
    before, visit.rule = visit.rule, rule
    result = await decision
    visit.rule = before
    return result


def _find_verdict(error: RegistryError) -> Verdict | None:
    return next((verdict for kind, verdict in _VERDICTS if isinstance(error, kind)), None)


def _find_authorization(req: falcon.asgi.Request) -> str | None:
    """Return the value of the Authorization header; None without a login. Raises RequestInvalid for several."""
    values: list[bytes] = [value for name, value in req.scope["headers"] if name == b"authorization"]
    if len(values) > 1:
        raise RequestInvalid("a request must have at most one Authorization header")
    if not values:
        return None
    scheme, _, credentials = values[0].strip().partition(b" ")
    is_empty = [scheme.lower(), credentials.strip()] == NO_LOGIN
    return None if is_empty else values[0].decode("latin-1")


def _find_bearer(header: str) -> str | None:
    """Return the text after Bearer in an Authorization header; None with another scheme."""
    scheme, _, value = header.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def _find_reference(parsed: object) -> Reference | None:
    """Return the tag or digest that a request is about; None for a list of tags."""
    match parsed:
        case Digest() | Tag():
            return parsed
        case ReferrersQuery():
            return parsed.subject
        case _:
            return None
