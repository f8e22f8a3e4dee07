"""Authentication at a registry: one class per `auth.type`.

The registry describes in its first 401 response what it requires (a challenge). `challenges.py` remembers it: later
requests carry the right header from the start, and checking a tag costs one request. `RegistrySession.send` in
`session.py` runs the handshake:

    first()          the header for the request, from what is known
    after_refusal()  another header after a 400, 401 or 403: what the challenge requires, or newer credentials
    record_result()  remembers what was accepted or rejected

| `auth.type` | class | credentials |
|---|---|---|
| anonymous | `FixedCredentialAuth` | none; a token if the registry requires one |
| basic | `FixedCredentialAuth` | Basic, or a token that is requested with user and password |
| bearer | `BearerAuth` | the secret as it is; if rejected, as the password for a token (GitHub needs that) |
| keychain | `KeychainAuth` | what Docker's keychain holds for the registry |
| (access: upstream) | `ClientLoginAuth` | what the client of Dockyard has sent |
"""

from abc import ABC, abstractmethod

from dockyard.config.settings import Upstream
from dockyard.oci.login import Login
from dockyard.upstream.challenges import REFUSALS, Authorization, ChallengeResponder, Handshake, is_remembered
from dockyard.upstream.errors import AuthenticationFailed, UpstreamError
from dockyard.upstream.keychain import ANONYMOUS, Credential, Keychain
from dockyard.upstream.tokens import CallLimits
from dockyard.upstream.transport import UpstreamResponse

TOKEN_USER = "token"  # noqa: S105  a user name for services that ignore it
IDENTITY_TOKEN_USER = "<token>"  # noqa: S105  docker/cli, cli/config/credentials
FROM_SETTINGS = "`auth` in the settings"
FROM_CLIENT = "the login of the client"


class AuthenticationMode(ABC):
    """How requests to one registry are authenticated."""

    def __init__(self, responder: ChallengeResponder) -> None:
        self._responder = responder

    @abstractmethod
    def first(self, handshake: Handshake) -> Authorization:
        """The header for a request. Raises UpstreamError, AuthenticationFailed."""

    @abstractmethod
    def after_refusal(
        self, handshake: Handshake, refused: Authorization, response: UpstreamResponse
    ) -> Authorization | None:
        """Another header after the registry refused the request; None when there is none.

        Raises UpstreamError, AuthenticationFailed.
        """

    @abstractmethod
    def credential(self, repository: str, limits: CallLimits) -> Credential:
        """The credential for a repository, for a trusted host that the registry redirects to. Raises UpstreamError."""

    def record_result(self, handshake: Handshake, authorization: Authorization, response: UpstreamResponse) -> None:
        """Remember what the registry made of a header."""
        self._responder.record_result(handshake, authorization, response)


class FixedCredentialAuth(AuthenticationMode):
    """`anonymous` and `basic`: the same credential for every repository."""

    def __init__(self, responder: ChallengeResponder, credential: Credential) -> None:
        super().__init__(responder)
        self._credential = credential

    def first(self, handshake: Handshake) -> Authorization:
        return self._responder.remembered(handshake, self._credential) or Authorization(self._credential)

    def after_refusal(
        self, handshake: Handshake, refused: Authorization, response: UpstreamResponse
    ) -> Authorization | None:
        return self._responder.answer(handshake, refused, response, self._credential)

    def credential(self, repository: str, limits: CallLimits) -> Credential:
        return self._credential


class BearerAuth(AuthenticationMode):
    """`bearer`: a secret that is either sent as it is or is the password for a token; the first refusal decides."""

    def __init__(self, responder: ChallengeResponder, username: str, secret: str) -> None:
        super().__init__(responder)
        self._credential = Credential(username or TOKEN_USER, secret, registry_token=secret, source=FROM_SETTINGS)
        self._needs_token: bool | None = None  # None: not known yet

    def first(self, handshake: Handshake) -> Authorization:
        if not self._needs_token:
            return self._responder.verbatim(self._credential)
        return self._responder.remembered(handshake, self._credential) or Authorization(self._credential)

    def after_refusal(
        self, handshake: Handshake, refused: Authorization, response: UpstreamResponse
    ) -> Authorization | None:
        if not refused.is_verbatim:
            if refused.header is None and not self._needs_token:
                return self._responder.verbatim(self._credential)  # another thread found that it is accepted
            try:
                return self._responder.answer(handshake, refused, response, self._credential)
            except (UpstreamError, AuthenticationFailed) as exc:
                if not is_remembered(exc):
                    self._needs_token = None
                raise
        is_undecided = self._needs_token is None
        if response.status != 401 and not is_undecided:
            return None
        known = self._responder.find_challenge(handshake, response, self._credential, may_ping=True)
        return self._responder.respond(handshake, known, self._credential) if known is not None else None

    def credential(self, repository: str, limits: CallLimits) -> Credential:
        return self._credential

    def record_result(self, handshake: Handshake, authorization: Authorization, response: UpstreamResponse) -> None:
        super().record_result(handshake, authorization, response)
        if authorization.header is not None and response.status not in REFUSALS:
            self._needs_token = not authorization.is_verbatim


class ClientLoginAuth(FixedCredentialAuth):
    """The login of a client of Dockyard, or none: for the registry and its token service, and for no other host."""

    def first(self, handshake: Handshake) -> Authorization:
        if self._credential.registry_token:
            return self._responder.verbatim(self._credential)
        return super().first(handshake)

    def after_refusal(
        self, handshake: Handshake, refused: Authorization, response: UpstreamResponse
    ) -> Authorization | None:
        return None if refused.is_verbatim else super().after_refusal(handshake, refused, response)

    def credential(self, repository: str, limits: CallLimits) -> Credential:
        return ANONYMOUS


class KeychainAuth(AuthenticationMode):
    """`keychain`: the login of Docker's keychain, which may be renewed when it is rejected."""

    def __init__(self, responder: ChallengeResponder, keychain: Keychain, host: str) -> None:
        super().__init__(responder)
        self._keychain = keychain
        self._host = host

    def first(self, handshake: Handshake) -> Authorization:
        credential = self.credential(handshake.resource.repository, handshake.limits)
        if credential.registry_token:
            return self._responder.verbatim(credential)
        return self._responder.remembered(handshake, credential) or Authorization(credential)

    def after_refusal(
        self, handshake: Handshake, refused: Authorization, response: UpstreamResponse
    ) -> Authorization | None:
        rejected = None
        if not refused.is_verbatim:
            try:
                other = self._responder.answer(handshake, refused, response, refused.credential)
            except AuthenticationFailed as exc:
                if exc.remembered or exc.is_anonymous:
                    raise
                rejected = exc  # by the token service
            else:
                if other is not None or refused.header is None or refused.token:
                    return other
        # ECR responds with 403 to a password that has expired.
        repository, limits = handshake.resource.repository, handshake.limits
        renewed = self._keychain.renew(self._host, repository, refused.credential, limits.remaining_s)
        if renewed != refused.credential:
            if renewed.registry_token:
                return self._responder.verbatim(renewed)
            known = self._responder.find_challenge(handshake, response, renewed, may_ping=response.status == 401)
            return self._responder.respond(handshake, known, renewed) if known is not None else None
        if rejected is not None:
            raise rejected
        return None

    def credential(self, repository: str, limits: CallLimits) -> Credential:
        return self._keychain.credential_for(self._host, repository, limits.remaining_s)


def credential_of(login: Login | None) -> Credential:
    """The login of a client as a credential. `<token>` is the user name that Docker has for identity tokens."""
    if login is None:
        return ANONYMOUS
    if login.is_bearer:
        return Credential(registry_token=login.password, source=FROM_CLIENT, is_of_client=True)
    if login.username == IDENTITY_TOKEN_USER:
        return Credential(identity_token=login.password, source=FROM_CLIENT, is_of_client=True)
    return Credential(login.username, login.password, source=FROM_CLIENT, is_of_client=True)


def make_mode(upstream: Upstream, keychain: Keychain, responder: ChallengeResponder) -> AuthenticationMode:
    """The mode that `auth` of an upstream selects."""
    auth = upstream.auth
    match auth.type:
        case "anonymous":
            return FixedCredentialAuth(responder, ANONYMOUS)
        case "basic":
            credential = Credential(auth.username, auth.password.reveal(), source=FROM_SETTINGS)
            return FixedCredentialAuth(responder, credential)
        case "bearer":
            return BearerAuth(responder, auth.username, auth.password.reveal())
        case "keychain":
            return KeychainAuth(responder, keychain, upstream.origin.authority)
