"""Docker's keychain: the login for each registry.

Logins are in `config.json` (or podman's `auth.json`), or come from a credential helper that is named there. The file
is read again when it changes. The output of a helper is cached, because each run starts a process and may send a
request to a cloud service. A keychain that fails is an error: without a login, the registry would respond "not found".

The most specific entry is used: `host/repository`, then its parents, then the host. Docker Hub has several host names.
"""

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import attrs

from dockyard.config.hosts import DOCKER_HUB_HOSTS
from dockyard.errors import FailureDetails
from dockyard.upstream import credential_helper as helpers
from dockyard.upstream import errors
from dockyard.upstream.credential_helper import HelperFailed, run_helper

FOUND_FOR_S = 300.0
NOT_FOUND_FOR_S = 30.0
MAX_FILE_BYTES = 1024 * 1024
MAX_SIMILAR = 3  # keys in a message

HUB_KEY = "https://index.docker.io/v1/"

_ECR_HOST = re.compile(r"\d{12}\.dkr[.-]ecr(-fips)?\.[a-z0-9.-]+|public\.ecr\.aws|ecr-public\.aws\.com", re.ASCII)


@attrs.frozen
class Credential:
    """A login; anonymous if all fields but `source` are empty.

    `identity_token` is exchanged by POST (an OAuth refresh token), `registry_token` is sent to the registry as it is.
    `source` says where the login came from, or why there is none, for the log. `is_of_client`: a client of Dockyard has
    sent it. It may ask for what it is not admitted to, so that only a rejection that is about no repository says that
    the login is wrong. Logins that differ only in these two are equal.
    """

    username: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)
    identity_token: str = attrs.field(default="", repr=False)
    registry_token: str = attrs.field(default="", repr=False)
    source: str = attrs.field(default="", eq=False)
    is_of_client: bool = attrs.field(default=False, eq=False)

    @property
    def is_anonymous(self) -> bool:
        return not (self.username or self.password or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of an Authorization header."""
        login = f"{self.username}:{self.password or self.identity_token}"
        return "Basic " + base64.b64encode(login.encode()).decode()


ANONYMOUS = Credential(source="none")


@attrs.frozen
class _File:
    """A parsed keychain file. `stamp` identifies the file and its version."""

    stamp: tuple[Any, ...]
    auths: Mapping[str, Any] = attrs.field(repr=False)
    helpers: Mapping[str, Any]
    store: str

    @property
    def path(self) -> str:
        return str(self.stamp[0])


@attrs.define(eq=False)
class _Kept:
    """The cached login of a helper, or the run that is in progress."""

    answer: "Future[helpers.HelperLogin | None]"
    good_until: float = float("inf")
    renewed_at: float = float("-inf")


@attrs.frozen
class KeychainProblem:
    """Why there is no login. `is_certain`: no request to this registry can succeed."""

    reason: str
    is_certain: bool = False


def _cure(failed: HelperFailed, host: str) -> str:
    """What the operator may do about a keychain that fails, for the log."""
    if not failed.program:
        return f"correct that file, write it anew with `docker login {host}`, or set another `auth` for this upstream"
    return f"install it, or see what it prints: `echo {host} | {failed.program} get` as the user of the server"


class Keychain:
    """The logins of this machine. The environment variables in `environ` locate its file."""

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._environ = dict(environ)
        self._clock = clock
        self._lock = threading.Lock()
        self._file: _File | None = None
        self._kept: dict[tuple[Any, ...], _Kept] = {}

    def credential_for(self, host: str, repository: str, timeout_s: float | None = None) -> Credential:
        """The login for a registry (`host` or `host:port`); anonymous when there is none. Raises UpstreamError."""
        try:
            file = self._read()
            if file is None:
                return Credential(source=self._explain_no_file())
            entry = _entry(file, host, repository)
            found = self._helper(file, host)
            if found is None:
                return entry
            return self._from_helper(file, *found, host, entry, timeout_s)
        except HelperFailed as exc:
            raise _explain_failure(exc, host) from exc

    def find_source(self, host: str) -> str:
        """Where the login for a registry comes from, without running a helper. Raises UpstreamError."""
        try:
            file = self._read()
            if file is None:
                return self._explain_no_file()
            entry, found = _entry(file, host, ""), self._helper(file, host)
            if found is None:
                return entry.source
            helpers.find_program(found[0], self._environ)
        except HelperFailed as exc:
            raise _explain_failure(exc, host) from exc
        return f"{helpers.program_name(found[0])}, which {file.path} names"

    def find_problem(self, host: str, repository: str) -> "KeychainProblem | None":
        """Why there is no login for a registry; None if there is one, or a helper that may have one. Runs no helper."""
        is_private_ecr = ".dkr" in host and _ECR_HOST.fullmatch(host.partition(":")[0]) is not None
        try:
            file = self._read()
            if file is None:
                return KeychainProblem(self._explain_no_file().removeprefix("none: "), is_certain=is_private_ecr)
            if found := self._helper(file, host):
                helpers.find_program(found[0], self._environ)
                return None
            if not _entry(file, host, repository).is_anonymous:
                return None
        except HelperFailed as exc:
            reason = f"{exc} ({exc.error or exc.path})" if exc.error or exc.path else str(exc)
            return KeychainProblem(reason, is_certain=True)
        return KeychainProblem(f"{file.path} has no login for {host}", is_certain=is_private_ecr)

    def renew(self, host: str, repository: str, refused: Credential, timeout_s: float | None = None) -> Credential:
        """The login, after this one was rejected: run the helper again, at most once per `NOT_FOUND_FOR_S`.

        Raises UpstreamError.
        """
        current = self.credential_for(host, repository, timeout_s)
        if current != refused:
            return current
        with self._lock:
            file = self._file
            found = None if file is None else self._helper(file, host)
            if file is None or found is None:
                return current
            kept = self._kept.get((file.stamp, *found))
            if kept is None or not kept.answer.done() or kept.renewed_at + NOT_FOUND_FOR_S > self._clock():
                return current
            kept.good_until, kept.renewed_at = float("-inf"), self._clock()
        return self.credential_for(host, repository, timeout_s)

    def _from_helper(
        self, file: _File, name: str, server: str, host: str, entry: Credential, timeout_s: float | None
    ) -> Credential:
        login = self._ask(file.stamp, name, server, timeout_s)
        if login is None:
            if name == "ecr-login" and _ECR_HOST.fullmatch(host.partition(":")[0]):
                # This helper prints "not found" after every failure.
                raise HelperFailed(
                    "the credential helper ecr-login found nothing (its log is ~/.ecr/log/ecr-login.log)",
                    program=helpers.program_name(name),
                )
            if entry.registry_token:
                return Credential(registry_token=entry.registry_token, source=entry.source)
            return Credential(
                source=f"none: {helpers.program_name(name)}, which {file.path} names, has none for {server}"
            )
        source = f"{helpers.program_name(name)}, which {file.path} names"
        if login.username == "<token>":
            return attrs.evolve(entry, identity_token=login.secret, source=source)
        return Credential(login.username, login.secret, registry_token=entry.registry_token, source=source)

    def _ask(
        self, stamp: tuple[Any, ...], name: str, server: str, timeout_s: float | None
    ) -> helpers.HelperLogin | None:
        """The login of a helper: cached, or from one run for all waiting threads. Raises HelperFailed."""
        key = (stamp, name, server)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or self._clock() >= kept.good_until:
                renewed_at = kept.renewed_at if kept is not None else float("-inf")
                for old in [one for one in self._kept if one[0] != stamp]:
                    del self._kept[old]
                kept = self._kept[key] = _Kept(Future(), renewed_at=renewed_at)
                # In a thread of its own: the first caller may have less time than the helper needs.
                threading.Thread(target=self._run, args=(kept, name, server), name="helper", daemon=True).start()
        try:
            return kept.answer.result(timeout_s)
        except TimeoutError:
            raise helpers.took_too_long(name, timeout_s or 0.0) from None

    def _run(self, kept: _Kept, name: str, server: str) -> None:
        try:
            login = run_helper(name, server, self._environ)
        except HelperFailed as exc:
            kept.good_until = self._clock() + NOT_FOUND_FOR_S
            kept.answer.set_exception(exc)
            return
        except BaseException:
            kept.good_until = float("-inf")
            kept.answer.set_exception(helpers.failed(name, "failed", "internal error"))
            raise
        kept.good_until = self._clock() + (NOT_FOUND_FOR_S if login is None else FOUND_FOR_S)
        kept.answer.set_result(login)

    def _helper(self, file: _File, host: str) -> tuple[str, str] | None:
        """The helper that is configured for a host, and the server name to pass to it."""
        names = (HUB_KEY, *DOCKER_HUB_HOSTS) if host in DOCKER_HUB_HOSTS else (host,)
        for name in names:
            helper = file.helpers.get(name)
            if isinstance(helper, str) and helper:
                return helper, names[0] if name in (HUB_KEY, "docker.io", "index.docker.io") else name
        return (file.store, names[0]) if file.store else None

    def _read(self) -> _File | None:
        for path in self._paths():
            try:
                status = path.stat()
            except OSError:
                continue
            stamp = (str(path), status.st_ino, status.st_mtime_ns, status.st_size)
            if self._file is None or self._file.stamp != stamp:
                self._file = _load(path, stamp)
            return self._file
        return None

    def _explain_no_file(self) -> str:
        """Why there is no login: which files were looked for, and which cannot be."""
        paths = ", ".join(str(path) for path in self._paths())
        return f"none: there is no keychain file ({paths or 'HOME and DOCKER_CONFIG are not set'})"

    def _paths(self) -> Iterator[Path]:
        """The possible paths of the keychain file (go-containerregistry, pkg/authn/keychain.go)."""
        environ, home = self._environ, self._environ.get("HOME")
        if directory := environ.get("DOCKER_CONFIG"):
            yield Path(directory, "config.json")
        elif home:
            yield Path(home, ".docker", "config.json")
        if file := environ.get("REGISTRY_AUTH_FILE"):
            yield Path(file)
        if directory := environ.get("XDG_RUNTIME_DIR"):
            yield Path(directory, "containers", "auth.json")
        if directory := environ.get("XDG_CONFIG_HOME"):
            yield Path(directory, "containers", "auth.json")
        elif home:
            yield Path(home, ".config", "containers", "auth.json")


def _explain_failure(exc: HelperFailed, host: str) -> errors.UpstreamError:
    details = FailureDetails(exc.program or exc.path, exc.error or str(exc), "credentials", cure=_cure(exc, host))
    return errors.keychain_failed(f"{exc}, so there is no login for this upstream", details)


def _load(path: Path, stamp: tuple[Any, ...]) -> _File:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        document = json.loads(text) if len(text) <= MAX_FILE_BYTES else None
    except OSError as exc:
        raise HelperFailed(f"the keychain file {path.name} cannot be read", path=str(path), error=str(exc)) from exc
    except (ValueError, RecursionError):
        document = None  # without the cause: it contains the text
    if not isinstance(document, dict):
        raise HelperFailed(f"the keychain file {path.name} is not a JSON object", path=str(path))
    auths, named, store = (document.get(key) for key in ("auths", "credHelpers", "credsStore"))
    auths, named, store = {} if auths is None else auths, {} if named is None else named, "" if store is None else store
    if not isinstance(auths, dict) or not isinstance(named, dict) or not isinstance(store, str):
        raise HelperFailed(f"the keychain file {path.name} has other things in it than logins", path=str(path))
    return _File(stamp, auths, named, store)


def _entry(file: _File, host: str, repository: str) -> Credential:
    """The login in the file itself; anonymous when there is none. Raises HelperFailed."""
    for key in _keys(host, repository):
        if key in file.auths:
            return _decode(file, key)
    for key in file.auths:
        if _is_whole_host(key, host):
            return _decode(file, key)
    similar = [key for key in (*file.auths, *file.helpers) if _is_similar(key, host)]
    but = f", but for {', '.join(map(_without_secrets, similar[:MAX_SIMILAR]))}" if similar else ""
    return Credential(source=f"none: {file.path} has no login for {host}{but}")


def _is_similar(key: str, host: str) -> bool:
    """Whether a key is for the same host in a spelling that is not the host's: another port, upper case, a path."""
    return _bare_host(key) == _bare_host(host)


def _without_secrets(key: str) -> str:
    """A key as messages show it: a URL in it has neither userinfo nor query."""
    scheme, separator, rest = key.partition("?")[0].rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _bare_host(key: str) -> str:
    """The host name of a key: without scheme, userinfo, port and path, in lower case."""
    authority = _without_secrets(key).rpartition("://")[2].partition("/")[0]
    name, separator, port = authority.rpartition(":")
    return (name if separator and port.isdigit() else authority).lower()


def _keys(host: str, repository: str) -> Iterator[str]:
    parts = repository.split("/")
    hosts = DOCKER_HUB_HOSTS if host in DOCKER_HUB_HOSTS else (host,)
    for length in range(len(parts), 0, -1):
        for name in hosts:
            yield "/".join([name, *parts[:length]])
    if host in DOCKER_HUB_HOSTS:
        yield HUB_KEY
    yield from hosts


def _is_whole_host(key: str, host: str) -> bool:
    """Whether a key with a scheme or an API version is for this host (docker/cli, credentials.ConvertToHostname)."""
    scheme, separator, rest = key.partition("://")
    name, _, path = (rest if separator else scheme).partition("/")
    is_same = name == host or (name in DOCKER_HUB_HOSTS and host in DOCKER_HUB_HOSTS)
    return is_same and (bool(separator) or path.strip("/") in ("", "v1", "v2"))


def _decode(file: _File, key: str) -> Credential:
    entry = file.auths[key]
    malformed = HelperFailed(
        "a login in the keychain file is malformed", path=file.path, error=f"malformed: auths, {_bare_host(key)}"
    )
    if not isinstance(entry, dict):
        raise malformed
    fields = {key: entry.get(key) or "" for key in ("auth", "username", "password", "identitytoken", "registrytoken")}
    if not all(isinstance(value, str) for value in fields.values()):
        raise malformed
    username, password = fields["username"], fields["password"]
    if fields["auth"]:
        login = _decode_auth(fields["auth"])
        if login is None:
            raise malformed
        username, password = login
    credential = Credential(username, password, fields["identitytoken"], fields["registrytoken"], source=file.path)
    if credential.is_anonymous:
        return Credential(source=f"none: the entry for {_bare_host(key)} in {file.path} is empty")
    return credential


def _decode_auth(auth: str) -> tuple[str, str] | None:
    """User name and password; None if the text is malformed."""
    try:
        text = base64.b64decode(auth.strip() + "=" * (-len(auth.strip()) % 4), validate=True).decode().rstrip("\0")
    except (binascii.Error, ValueError):
        text = ""
    username, separator, password = text.partition(":")
    if not username or not separator:
        return None
    return username, password.strip("\0")
