"""The tree of settings: every key, its type, its default and its meaning.

`loader.load` fills the tree. All values are parsed then: durations are float seconds, sizes are int bytes, and a secret
is a `Secret` up to the request that sends it.

The docstrings of this module are published: `python -m dockyard.config.reference` makes `ops/SETTINGS.md` of them.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import attrs

from dockyard.config.hosts import DOCKER_HUB, DOCKER_HUB_HOSTS, hide_userinfo, parse_registry
from dockyard.config.reader import DEFAULT_TEXT, MUST_HAVE_VALUE, NEVER_EMPTY, NO_BLANKS, NOT_A_KEY
from dockyard.config.types import (
    Access,
    AuthType,
    Bytes,
    Challenge,
    Encoding,
    LazyBackground,
    Level,
    ProxyHeader,
    ProxyUrl,
    Seconds,
    Secret,
    Verify,
)
from dockyard.oci.origin import Origin
from dockyard.oci.patterns import ANY_COMPONENTS, ANY_TEXT, NamePattern

DAY_S = 24 * 3600.0
TOKEN_PATH = "/token"  # noqa: S105  where clients get access tokens

_STREAMS = {
    name: descriptor
    for descriptor, stream in ((1, "stdout"), (2, "stderr"))
    for name in (stream, f"/dev/{stream}", f"/dev/fd/{descriptor}", f"/proc/self/fd/{descriptor}")
}
MIN_RESPONSE_TIMEOUT_S = 10.0
DEFAULT_REGION = "us-east-1"
AWS_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")


def find_stream(output: str) -> int | None:
    """The descriptor of the standard stream that `output` of a log names; None for a file."""
    return _STREAMS.get(output)


@attrs.frozen
class LoggerSettings:
    """The log of the process."""

    level: Level = "info"
    """Lowest level that is logged."""
    encoding: Encoding = "console"
    """`console` for people, `json` for programs: one JSON object per line."""
    color: bool = True
    """Colors in the `console` encoding on a terminal, unless the environment variable `NO_COLOR` is set or `TERM` is
    `dumb`."""
    output: str = attrs.field(default="stderr", metadata=NEVER_EMPTY)
    """`stderr`, `stdout`, or the path of a file in an existing directory. The log is appended to the file.
    `/dev/stderr` and `/dev/stdout` are the streams, whatever they are connected to."""

    @property
    def stream(self) -> int | None:
        """The descriptor of the standard stream that is the output; None for a file."""
        return find_stream(self.output)


@attrs.frozen
class ServerLogSettings:
    """The line that is logged for each request."""

    enabled: bool = True
    """Log one line for each request."""
    level: Level = "info"
    """Level of these lines."""
    request_body: bool = False
    """Include the beginning of request bodies."""
    response_body: bool = False
    """Include the beginning of response bodies other than blobs."""
    ignore_paths: tuple[str, ...] = ()
    """Paths whose requests are not logged, such as `/v2/` and `/healthz`. Each begins with `/`; prefixes do not
    match."""


@attrs.frozen
class ServerSettings:
    """The HTTP server."""

    host: str = ""
    """Host name or IP address to listen on. Empty: all interfaces."""
    port: int = 5000
    """TCP port to listen on, from 1 to 65535."""
    tls: bool = False
    """Serve HTTPS instead of HTTP. Needs `server.certfile` and `server.keyfile`."""
    certfile: str = ""
    """PEM file with the server's certificate and its chain. It is read again on `SIGHUP` to the supervisor, and
    when a worker is replaced."""
    keyfile: str = ""
    """PEM file with the unencrypted private key of the certificate."""
    client_ca: str = ""
    """PEM file with CA certificates. Only clients with a certificate of one of them can connect. Needs `server.tls`.
    The certificate gives no name: who may pull what is decided by the other sources in `access`."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies in front of this server, such as `10.0.0.0/8`. From them, the address of the
    client is taken from the header `server.proxy_header`."""
    proxy_header: ProxyHeader = "x-forwarded-for"
    """The header in which the trusted proxies send the address of the client: `x-forwarded-for` or `forwarded` (RFC
    7239). The proxies must add to it or replace it. The other header is ignored."""
    log: ServerLogSettings = ServerLogSettings()
    workers: int = 0
    """Number of worker processes, at most 1024. 0: one per CPU core that the process may use: by its affinity mask, and
    by the CPU quota of its container or control group, rounded up. With a memory limit, at most one per 128 MiB."""
    zero_copy: bool = True
    """Send large blobs from the page cache with sendfile(2) where possible, which saves CPU time and ends the
    connection after the response. `false`: send everything through the HTTP server."""
    drain_timeout: Seconds = 25.0
    """How long running responses may continue after `SIGTERM` before they are aborted. At most 24h."""


def user_cache_directory(environ: Mapping[str, str]) -> Path:
    """The default of `storage.directory`, by the XDG base directory specification; `/var/cache` without a home."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    home = Path(environ.get("HOME", ""))
    if not base.is_absolute():
        base = home / ".cache" if home.is_absolute() else Path("/var/cache")
    return base / "dockyard"


def aws_region(environ: Mapping[str, str]) -> str:
    """The region when `storage.region` is not set: of the variables that the AWS tools read, else the default."""
    return next(filter(None, map(environ.get, AWS_REGION_VARIABLES)), DEFAULT_REGION)


@attrs.frozen
class StorageSettings:
    """The local store, and the S3 bucket behind it when `storage.bucket` is set."""

    endpoint: str = ""
    """S3 endpoint as `host[:port]`, without a scheme. Empty: AWS."""
    region: str = attrs.field(default=DEFAULT_REGION, metadata=NEVER_EMPTY)
    """Region of the S3 bucket. Not set or empty: `AWS_REGION`, then `AWS_DEFAULT_REGION`, then the default."""
    bucket: str = ""
    """Name of the S3 bucket, which must exist. Empty: no S3, the local store is all there is."""
    prefix: str = "cache/"
    """What the key of every object begins with, in the local store and in the bucket."""
    access_key: str = ""
    """S3 access key. Empty: the AWS credential chain (environment, shared files, IRSA, Pod Identity, ECS, EC2).
    Either both keys are set or none."""
    secret_key: Secret = Secret()
    """S3 secret key. Either both keys are set or none."""
    use_ssl: bool = False
    """Connect to the S3 endpoint by HTTPS. AWS is always reached by HTTPS."""
    force_path_style: bool = False
    """Put the bucket name into the path of S3 URLs, not into the host name. MinIO and most other stores need it."""
    touch_threshold: Seconds = DAY_S
    """Renew the LastModified time of a bucket object that is in use when it is older than this, so that lifecycle rules
    do not expire it. 0: never."""
    directory: Path = attrs.field(
        factory=lambda: user_cache_directory(os.environ), metadata={DEFAULT_TEXT: "`~/.cache/dockyard`"}
    )
    """Directory of the local store, used by one server at a time. The default is `dockyard` in `$XDG_CACHE_HOME` if
    that is set, and `/var/cache/dockyard` for users without a home directory. Its file system must have locks
    (`flock`). `cache` in it may be a link to another file system, for which `max_size` then holds."""
    max_size: Bytes = 50 * 2**30
    """Limit for the disk space of the local store, including partial files. Above it, the least recently used blobs are
    removed; manifests, tags and lists only when they take more than 5 % of it. A layer that takes more than 80 % of it
    is passed through to clients and not kept. 0: no limit."""
    verify: Verify = "start"
    """When the digest of a blob in the local store is verified before it is sent. `start`: at its first use after the
    server has started, and at its first use after its file has changed. `always`: at every use, which hashes all bytes
    that are sent. `never`: not at all, for file systems that verify checksums themselves (ZFS, btrfs). Manifests are
    always verified, and so is a blob at its next use when the disk could not read it."""
    scrub_rate: Bytes = 8 * 2**20
    """How many bytes per second the scrub may read: once a day, it verifies all blobs in the local store and deletes
    damaged ones. 0: no scrub."""
    redirect: bool = False
    """Redirect clients to the bucket (307 with a presigned URL) for blobs that are in the bucket only."""

    @property
    def service(self) -> str:
        """The S3 service as messages name it."""
        return self.endpoint or f"AWS S3 in {self.region}"


@attrs.frozen
class UpstreamLimits:
    """Limits for requests to all upstreams."""

    check_timeout: Seconds = 5.0
    """How long to wait for the upstream when a tag is checked, before the cached copy is served. At most 24h.
    0: no limit."""
    check_interval: Seconds = 0.0
    """How long a tag that was checked is served without another check. 0: check for every request."""
    connect_timeout: Seconds = 3.0
    """How long to wait for a connection. More than 0, at most 24h."""
    stall_timeout: Seconds = 15.0
    """How long a download may receive no byte before it is resumed on a new connection. More than 0, at most 24h."""
    connections: int = 4
    """Over how many connections at the same time a blob of more than 1 GiB is downloaded, each with a range of it, from
    1 to 16. Readers get it from its first byte on, as with one connection. 1: one connection for each blob. An upstream
    that does not support ranges gets one request for the whole blob."""

    @property
    def response_timeout_s(self) -> float:
        """How long to wait for the upstream when nothing is cached: longer than for a check. 0: no limit."""
        return max(MIN_RESPONSE_TIMEOUT_S, self.check_timeout) if self.check_timeout else 0.0


@attrs.frozen
class Auth:
    """The credentials for one upstream."""

    type: AuthType = "keychain"
    """`anonymous` sends no credentials, and requests an anonymous token where the registry wants one. `basic` sends
    `username` and `password` to the registry or its token service. `bearer` sends `password` as a bearer token, and, if
    that is rejected, exchanges it at the token service. Any other value, or none, is the Docker keychain: the
    credentials in Docker's `config.json` and its credential helpers."""
    username: str = ""
    """User name, required by `basic`. Must not contain a colon."""
    password: Secret = Secret()
    """Password for `basic`, token for `bearer`."""


@attrs.frozen
class Upstream:
    """A list of registries to pull from. It replaces the built-in list of Docker Hub and GHCR.

    The first path components of an image name select the upstream; the longest matching prefix wins.
    """

    prefix: str
    """What the names of this upstream's images begin with: a lower-case name such as `ghcr.io`, `ghcr.io/my-org` or
    `internal`, without a port."""
    registry: str
    """The registry as `[scheme://]host[:port][/path]`. The default scheme is `https`, for loopback hosts
    `http`. The path is put before the repository."""
    auth: Auth = Auth()
    default: bool = False
    """Use this upstream for names without a known prefix. At most one upstream is the default; when none is marked, it
    is the one with the prefix `docker.io`."""
    ca_file: str = ""
    """PEM file with CA certificates that are trusted for this registry, in addition to those of the system."""
    insecure_skip_verify: bool = False
    """Accept any certificate."""
    proxy: ProxyUrl = attrs.field(default="", repr=hide_userinfo)
    """Proxy to this registry, as `http[s]://[user:password@]host[:port]`. Empty: connect directly."""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts (`host` or `host:port`) that redirects and the token service of this registry may be on although they have
    a private address or belong to another site. They get the login of the registry if they ask for it."""
    access: Access = attrs.field(default="rules", metadata=MUST_HAVE_VALUE)
    """Who may pull images of this upstream. `rules`: who may by `access.rules`. `upstream`: who may by those rules, and
    is admitted by the registry too: anonymous clients where the registry admits them, others with their own login at
    this registry, which they send to Dockyard."""
    access_ttl: Seconds = 300.0
    """With `access: upstream`: how long it is remembered that the registry admits a login to a repository. More than 0,
    at most 24h."""
    access_grace: Seconds = 3600.0
    """With `access: upstream`: how long a login that was admitted stays admitted while the registry is unavailable,
    counted from its last admission. At most 30 days. 0: no longer than `access_ttl`."""
    lazy: bool = False
    """How ranges of a blob are served that is not cached. `false`: a range is sent when the download, which begins at
    byte 0, has reached it. `true`: a range that begins more than 8 MiB ahead of the download is requested from the
    registry at once and sent before the digest of the blob can be verified (`Cache-Status: ...;
    detail=unverified-range`). The blob is kept only if its digest is right in the end. Switch it on for clients that
    pull lazily and verify each chunk that they read: stargz-snapshotter and the SOCI snapshotter unless their
    verification is disabled, nydus with `digest_validate`, and zstd:chunked (Podman, CRI-O). Leave it off if other
    clients request ranges of this registry's blobs."""
    lazy_background: LazyBackground = "download"
    """With `lazy`, what is fetched of a blob of which clients have requested ranges ahead. `download`: all of it, so
    that it is verified and kept, and served to everybody from then on. `on_demand`: only what clients request, which
    saves traffic where most of an image is never read; the blob is verified and kept once all of it was requested."""

    @cached_property
    def origin(self) -> Origin:
        """The scheme, host and port of the registry."""
        return parse_registry(self.registry)[0]

    @cached_property
    def path(self) -> str:
        """The path in `registry`, which is put before the repository: empty, `org`, or `org/team`."""
        return parse_registry(self.registry)[1]

    @property
    def is_anonymous(self) -> bool:
        return self.auth.type == "anonymous"

    @property
    def kept_prefix(self) -> str:
        """The part of the prefix that belongs to the repository: `my-org` of `ghcr.io/my-org` at `ghcr.io`.

        It is empty if `registry` has a path, which replaces it.
        """
        first, _, rest = self.prefix.partition("/")
        host = self.origin.host
        is_same_registry = first == host or (first in DOCKER_HUB_HOSTS and host in DOCKER_HUB_HOSTS)
        return rest if is_same_registry and not self.path else ""

    @property
    def is_hub(self) -> bool:
        """Whether names of one component are in `library/`: at Docker Hub, and at a mirror called docker.io."""
        return self.prefix == DOCKER_HUB or (self.origin.host in DOCKER_HUB_HOSTS and not self.path)

    @cached_property
    def names(self) -> NamePattern:
        """The normalized full names of its images: at Docker Hub, `docker.io/x` is `docker.io/library/x`."""
        kept = self.kept_prefix.count("/") + 1 if self.kept_prefix else 0
        required = max(0, (2 if self.is_hub else 1) - kept)
        return NamePattern((*self.prefix.split("/"), *[ANY_TEXT] * required, ANY_COMPONENTS))


DEFAULT_UPSTREAMS = (
    Upstream("docker.io", "registry-1.docker.io", Auth("anonymous"), default=True),
    Upstream("ghcr.io", "ghcr.io", Auth("anonymous")),
)


@attrs.frozen
class Network:
    """A name for the addresses of clients, for `network:NAME` in `who` of rules."""

    name: str
    """The name: lower-case letters, digits, dots and hyphens."""
    addresses: tuple[str, ...] = ()
    """Addresses and networks, such as `10.1.0.0/16` and `fd00::/8`. See `server.trusted_proxies`."""


@attrs.frozen
class Group:
    """A group of clients, for `group:NAME` in `who` of rules."""

    name: str
    """The name: lower-case letters, digits, dots and hyphens."""
    members: tuple[str, ...] = ()
    """Names of clients, as in `who` of rules: a user of the htpasswd file, or `JWT:NAME` (`*` stands for any text)."""


@attrs.frozen
class JwtIssuer:
    """An issuer of JSON Web Tokens (RFC 7519) that identify clients.

    A client sends its token as a bearer token, or as the password of a login with any user name. Its name is
    `NAME:CLAIM`, and its groups are `NAME:CLAIM`, with the `name` given here and the values of the claims.
    """

    name: str
    """The name of this issuer: lower-case letters, digits, dots and hyphens."""
    issuer: str
    """The value of the claim `iss`, exactly."""
    audience: str
    """A value that the claim `aud` must contain."""
    jwks: str
    """The public keys (JSON Web Key Set, RFC 7517): an `https` URL (`http` only on loopback), or the path of a file. A
    file is read again when it has changed, a URL every hour, and at most once a minute for an unknown key."""
    ca_file: str = ""
    """PEM file with CA certificates that are trusted for the URL in `jwks`, in addition to those of the system."""
    token_file: str = ""
    """File with a bearer token for the URL in `jwks`, which Kubernetes requires. It is read for each request."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    """Accepted signature algorithms: RS, PS and ES with 256, 384 or 512, and EdDSA."""
    name_claim: str = "sub"
    """The claim with the name of the client: its key, or a JSON Pointer (RFC 6901) such as
    `/kubernetes.io/serviceaccount/name`."""
    groups_claim: str = ""
    """The claim with the groups of the client, a text or a list of texts; written as `name_claim`. Empty: no groups."""


@attrs.frozen
class AccessRule:
    """A rule of who may pull what. The first rule that matches a request decides; without a match, it is denied."""

    allow: bool
    """Whether the request is allowed."""
    repositories: tuple[str, ...] = attrs.field(default=(), metadata=NO_BLANKS)
    """Patterns for full names, which begin with the prefix of the upstream, such as `docker.io/library/*` and
    `ghcr.io/my-org/**`. `*` stands for any text within a path component, `**` for any number of components. Empty: all
    repositories."""
    who: tuple[str, ...] = attrs.field(default=(), metadata=NO_BLANKS)
    """Clients: the name of a user in `access.htpasswd`, `JWT:NAME` of a token, `group:NAME`, `group:JWT:NAME` of a
    token (in both names in tokens, `*` stands for any text), `network:NAME`, `authenticated` (with a login) or
    `anonymous` (without). What a rule allows to `anonymous`, it allows to all. Empty: all clients."""
    actions: tuple[str, ...] = attrs.field(default=(), metadata=NO_BLANKS)
    """`pull` (manifests, blobs and referrers), `list` (tags) or `status` (`/metrics`, `/healthz`, `/readyz` and
    `/version`; allowed unless a rule denies it). Empty: `pull` and `list`."""
    reason: str = ""
    """What clients are told when this rule denies their request."""
    hide: bool = False
    """Respond as if the repository did not exist, to clients with a login whose request this rule denies."""


@attrs.frozen
class AccessSettings:
    """Who may pull what. Without rules, everybody may pull everything (see also `upstreams[].access`).

    [ACCESS.md](ACCESS.md) explains it with examples.
    """

    dry_run: bool = False
    """Log what `access.rules` would deny, and deny nothing by them."""
    htpasswd: str = ""
    """File with the users and their passwords, as `dockyard passwd` and `htpasswd -B` write it (bcrypt only). It is
    read again when it has changed."""
    audit: str = ""
    """Where each decision is logged as a line of JSON: `stderr`, `stdout` or the path of a file, to which it is
    appended. Empty: nowhere."""
    challenge: Challenge = "basic"
    """How clients are asked for a login. `basic`: to send it with each request. `bearer`: to exchange it at `/token`
    for an access token first, as most registries do, so that clients without a login get one too:
    [ACCESS.md](ACCESS.md#basic-or-bearer)."""
    token_url: str = ""
    """With `challenge: bearer`, the URL of `/token` as clients see it, such as `https://dockyard.example/token`.
    Empty: it is made of what each request says, see [ACCESS.md](ACCESS.md#basic-or-bearer)."""
    token_key_file: str = ""
    """With `challenge: bearer`, a file with at least 32 random characters, the same for all Dockyards behind one load
    balancer, so that each accepts the access tokens of the others. Empty: each start makes a new key."""
    closed_nodes: bool = False
    """The clients cannot reach the registries without Dockyard, so that a denial is final:
    [ACCESS.md](ACCESS.md#closed-nodes). `true` only silences the warning at the start."""
    jwt: tuple[JwtIssuer, ...] = ()
    """Issuers of tokens that identify clients."""
    networks: tuple[Network, ...] = ()
    """Names for addresses of clients."""
    groups: tuple[Group, ...] = ()
    """Groups of clients, in addition to those in tokens."""
    rules: tuple[AccessRule, ...] = attrs.field(default=(), metadata=MUST_HAVE_VALUE)
    """The first rule that matches a request decides. Without rules, everything is allowed; with rules, a request that
    none matches is denied."""


@attrs.frozen
class Settings:
    """All settings. `warnings` are for the log and contain no secrets.

    `expected_logins` are the prefixes of the upstreams whose `auth.type` is written as `keychain`.
    """

    logger: LoggerSettings = LoggerSettings()
    server: ServerSettings = ServerSettings()
    storage: StorageSettings = attrs.field(factory=StorageSettings)
    upstream: UpstreamLimits = UpstreamLimits()
    upstreams: tuple[Upstream, ...] = DEFAULT_UPSTREAMS
    access: AccessSettings = AccessSettings()
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False, metadata=NOT_A_KEY)
    expected_logins: tuple[str, ...] = attrs.field(default=(), eq=False, metadata=NOT_A_KEY)

    @property
    def restricts_access(self) -> bool:
        """Whether something is not for everybody. Otherwise nothing is checked."""
        return bool(self.access.rules) or any(upstream.access == "upstream" for upstream in self.upstreams)

    @property
    def issues_tokens(self) -> bool:
        """Whether clients exchange their logins for access tokens: there must be logins."""
        return self.access.challenge == "bearer" and self.has_logins

    @property
    def has_logins(self) -> bool:
        """Whether there is a way to log in."""
        access = self.access
        return bool(access.htpasswd or access.jwt) or any(up.access == "upstream" for up in self.upstreams)

    @property
    def uses_access(self) -> bool:
        """Whether something is not for everybody, logins are verified, or decisions are logged."""
        access = self.access
        return self.restricts_access or bool(access.htpasswd or access.jwt or access.audit)
