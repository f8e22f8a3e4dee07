"""The caches under test: how each is configured, started and addressed.

Each has its default settings as far as possible, writes an access log to a file, listens on a loopback port, stores its
data in its own directory, and has the same upstream.
"""

import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import attrs
import trustme
import yaml

from bench.peers.accounting import ControlGroup
from bench.peers.fronts import Front
from bench.peers.load import is_serving
from bench.peers.programs import ProgramResult, Programs
from dockyard import __version__
from tests.s3.store.servers import ACCESS_KEY, BUCKET, SECRET_KEY
from tests.support.dockyard import Dockyard as DockyardProcess
from tests.support.processes import Process, free_port

START_LIMIT_S = 120.0
READY_POLL_S = 0.001
READY_TIMEOUT_S = 5.0


@attrs.frozen
class ObjectStore:
    """The S3 server for the objects of a cache."""

    endpoint: str


@attrs.frozen
class Variant:
    """What differs from the default configuration.

    `tls`: it has a certificate of its own. `front`: HAProxy or nginx is between it and the clients, as ops/ sets them
    up. `check_interval`: that setting of Dockyard; the others are as without it.
    """

    tls: bool = False
    front: str = ""
    check_interval: str = ""


DEFAULT = Variant()


@attrs.define(eq=False)
class CacheServer(ABC):
    """One cache. `name` is used in tables and on the command line; `version` is printed by its program.

    Clients connect to `port`: its `own_port`, or that of its front.
    """

    name: str
    version: str
    directory: Path
    upstream_port: int
    store: ObjectStore | None = None
    variant: Variant = attrs.field(default=DEFAULT, kw_only=True)
    front: Front | None = attrs.field(default=None, kw_only=True)
    own_port: int = attrs.field(factory=free_port, kw_only=True)
    group: ControlGroup = attrs.field(init=False)
    started_in_s: float = attrs.field(default=0.0, init=False)

    prefix = ""  # of repository names
    probe = "/v2/"  # the path of which a front requests whether it serves
    pid = 0

    def __attrs_post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        self.group = ControlGroup.make(self.name)
        if self.variant.tls:
            certificate = trustme.CA().issue_cert("127.0.0.1", "localhost")
            certificate.private_key_pem.write_to_path(self._key)
            certificate.cert_chain_pems[0].write_to_path(self._certificate)

    @property
    def port(self) -> int:
        return self.front.port if self.front else self.own_port

    @property
    def is_tls(self) -> bool:
        return self.variant.tls

    @property
    def _certificate(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def _key(self) -> Path:
        return self.directory / "key.pem"

    @abstractmethod
    def _launch(self) -> int:
        """Start it without waiting; return the pid of its first process."""

    @abstractmethod
    def _stop(self) -> None:
        """Stop it and its child processes."""

    def start(self) -> None:
        """Start it and wait until `/v2/` responds with status 200."""
        began_at = time.monotonic()
        with self.group.entered():
            self.group.root_pid = self._launch()
        deadline = began_at + START_LIMIT_S
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not respond; see {self.directory}")
            time.sleep(READY_POLL_S)
        self.started_in_s = time.monotonic() - began_at
        if self.front is not None:
            self.front.start(self.own_port, self.probe)

    def stop(self) -> None:
        """Stop it; its data is kept."""
        if self.front is not None:
            self.front.stop()
        if self.group.root_pid:
            self._stop()
            self.group.root_pid = 0

    def close(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        self.group.remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, kind: str, repository: str, reference: str) -> str:
        """The path of a blob or a manifest."""
        return f"/v2/{self.prefix}{repository}/{kind}/{reference}"

    def _is_ready(self) -> bool:
        return is_serving(self.own_port, READY_TIMEOUT_S, is_tls=self.is_tls)


@attrs.define(eq=False)
class DockyardCache(CacheServer):
    """Dockyard with default settings, started as in the tests. `tree`: a checkout of another commit."""

    prefix = "up.test/"
    probe = "/readyz"
    tree: Path | None = None
    _dockyard: DockyardProcess = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        registry = f"http://127.0.0.1:{self.upstream_port}"
        storage: dict[str, object] = {}
        if self.store is not None:
            storage = {
                "endpoint": self.store.endpoint,
                "bucket": BUCKET,
                "prefix": "dockyard/",
                "access_key": ACCESS_KEY,
                "secret_key": SECRET_KEY,
                "force_path_style": True,
            }
        settings: dict[str, dict[str, object]] = {"storage": storage, "upstream": {"check_timeout": "5s"}}
        if self.variant.check_interval:
            settings["upstream"]["check_interval"] = self.variant.check_interval
        if self.is_tls:
            tls = {"tls": True, "certfile": str(self._certificate), "keyfile": str(self._key)}
            settings["server"] = dict(tls)
        self._dockyard = DockyardProcess(
            self.directory,
            [{"prefix": "up.test", "registry": registry, "auth": {"type": "anonymous"}}],
            workers=0,
            settings=settings,
            # The safe path keeps the current directory, which is this commit, out of the import path.
            environ={"PYTHONPATH": str(self.tree), "PYTHONSAFEPATH": "1"} if self.tree else None,
        )
        self.own_port = self._dockyard.port

    def _launch(self) -> int:
        self._dockyard.start(wait=False)
        return self._dockyard.pid

    def _stop(self) -> None:
        self._dockyard.kill()


@attrs.define(eq=False)
class Program(CacheServer):
    """A cache that is one program with a configuration file."""

    program: Path = attrs.field(kw_only=True)
    _process: Process | None = attrs.field(default=None, init=False)

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """Write the configuration; return the command."""

    def _environ(self) -> Mapping[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": str(self.directory)}

    def _launch(self) -> int:
        self._process = Process.start(self._command(), log=self.directory / "cache.log", environ=self._environ())
        return self._process.pid

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end_all()


@attrs.define(eq=False)
class Distribution(Program):
    """Distribution's registry as `proxy`: the example configuration that it ships, less its login."""

    def _command(self) -> list[str | Path]:
        storage: dict[str, object] = {"cache": {"blobdescriptor": "inmemory"}}
        if self.store is None:
            storage["filesystem"] = {"rootdirectory": str(self.directory / "storage")}
        else:
            storage["s3"] = {
                "region": "us-east-1",
                "regionendpoint": f"http://{self.store.endpoint}",
                "bucket": BUCKET,
                "accesskey": ACCESS_KEY,
                "secretkey": SECRET_KEY,
                "secure": False,
                "forcepathstyle": True,
                "rootdirectory": f"/{self.name}",
            }
            storage["redirect"] = {"disable": True}  # the bytes come through it, as through Dockyard
        tls = {"tls": {"certificate": str(self._certificate), "key": str(self._key)}} if self.is_tls else {}
        config = {
            "version": "0.1",
            "log": {"fields": {"service": "registry"}},
            "storage": storage,
            "http": {
                "addr": f"127.0.0.1:{self.own_port}",
                "headers": {"X-Content-Type-Options": ["nosniff"]},
                "secret": "bench",
                **tls,
            },
            "health": {"storagedriver": {"enabled": True, "interval": "10s", "threshold": 3}},
            "proxy": {"remoteurl": f"http://127.0.0.1:{self.upstream_port}"},
        }
        file = self.directory / "config.yml"
        file.write_text(yaml.safe_dump(config))
        return [self.program, "serve", file]

    def _environ(self) -> Mapping[str, str]:
        return {**super()._environ(), "OTEL_TRACES_EXPORTER": "none"}


@attrs.define(eq=False)
class Zot(Program):
    """Zot with its sync extension in on-demand mode."""

    def _command(self) -> list[str | Path]:
        file = self.directory / "config.yaml"
        registry = {
            "urls": [f"http://127.0.0.1:{self.upstream_port}"],
            "onDemand": True,
            "tlsVerify": False,
            "content": [{"prefix": "**"}],
        }
        tls = {"tls": {"cert": str(self._certificate), "key": str(self._key)}} if self.is_tls else {}
        config = {
            "distSpecVersion": "1.1.0",
            "storage": {"rootDirectory": str(self.directory / "storage")},
            "http": {"address": "127.0.0.1", "port": str(self.own_port), **tls},
            "log": {"level": "info"},
            "extensions": {"sync": {"enable": True, "registries": [registry]}},
        }
        file.write_text(yaml.safe_dump(config))
        return [self.program, "serve", file]


NGINX = """\
daemon off;
{user}
worker_processes auto;
worker_rlimit_nofile 4096;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    default_type application/octet-stream;
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    sendfile on;
    tcp_nopush on;
    {tls_files}
    {http_block}
}}
"""
NGINX_CACHE = """\
    proxy_cache_path {directory}/cache levels=1:2 max_size=32g inactive=60d keys_zone=cache:10m use_temp_path=off;
    proxy_read_timeout 900;
    proxy_cache cache;
    proxy_cache_key $key;
    proxy_cache_lock on;
    proxy_cache_lock_timeout 880s;
    proxy_cache_valid 200 206 60d;
    proxy_force_ranges on;
    proxy_ignore_client_abort on;
    proxy_cache_revalidate on;
    proxy_ignore_headers X-Accel-Expires Expires Cache-Control Set-Cookie;
    proxy_cache_use_stale error timeout http_500 http_502 http_504 http_429;
    server {{
        listen 127.0.0.1:{port} {tls}backlog=1024;
        set $key $uri;
        location ~ ^/v2/.*/blobs/sha256:(.*) {{ set $key $1; proxy_pass http://127.0.0.1:{upstream_port}; }}
        location ~ ^/v2/.*/manifests/sha256: {{ proxy_pass http://127.0.0.1:{upstream_port}; }}
        location ~ ^/v2/.*/manifests/ {{ proxy_cache_valid {tag_time}; proxy_pass http://127.0.0.1:{upstream_port}; }}
        location / {{ proxy_cache off; proxy_pass http://127.0.0.1:{upstream_port}; }}
    }}"""
NGINX_STATIC = """\
    server {{
        listen 127.0.0.1:{port} {tls}backlog=1024;
        location = /v2/ {{ return 200 "{{}}"; }}
        location ~ ^/v2/.*/blobs/(.*)$ {{ alias {content}/blobs/$1; }}
        location ~ ^/v2/(.*)/manifests/(.*)$ {{ alias {content}/manifests/$1/$2; }}
    }}"""


@attrs.define(eq=False)
class Nginx(Program):
    """nginx with proxy_cache and proxy_cache_lock, as in docker-registry-proxy. Tags are cached for `tag_time`."""

    http_block: str = NGINX_CACHE
    tag_time: str = "1h"
    content: Path = Path("/")

    def _command(self) -> list[str | Path]:
        http_block = self.http_block.format(
            directory=self.directory,
            port=self.own_port,
            tls="ssl " if self.is_tls else "",
            upstream_port=self.upstream_port,
            tag_time=self.tag_time,
            content=self.content,
        )
        file = self.directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        tls_files = f"ssl_certificate {self._certificate};\n    ssl_certificate_key {self._key};" if self.is_tls else ""
        text = NGINX.format(
            directory=self.directory,
            user=user,
            tls_files=f"{tls_files}\n    ssl_protocols TLSv1.2 TLSv1.3;" if self.is_tls else "",
            http_block=http_block,
        )
        file.write_text(text)
        return [self.program, "-c", file, "-e", self.directory / "error.log"]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGTERM)


DOCKYARD = "dockyard"
BASELINE = "dockyard-baseline"  # another commit of Dockyard
CACHE_NAMES = (DOCKYARD, "distribution", "docker-registry", "zot", "nginx-cache", "nginx-static")
PROGRAM_OF = {
    "distribution": "registry",
    "docker-registry": "docker-registry",
    "zot": "zot",
    "nginx-cache": "nginx",
    "nginx-static": "nginx",
}


def make_cache(
    name: str,
    programs: Programs,
    directory: Path,
    upstream_port: int,
    content: Path,
    store: ObjectStore | None = None,
    trees: Mapping[str, Path] | None = None,
    variant: Variant = DEFAULT,
) -> CacheServer | ProgramResult:
    """Return a cache that can be started, or why it is not available. `trees`: checkouts of other commits."""
    own_directory = directory / f"{name}{'-s3' if store else ''}"
    front = None
    if variant.front:
        front = Front(variant.front, programs.need(variant.front), directory / f"{name}-{variant.front}")
    if name in {DOCKYARD, BASELINE}:
        tree = (trees or {}).get(name)
        version = "another commit" if tree else __version__
        return DockyardCache(
            name, version, own_directory, upstream_port, store, variant=variant, front=front, tree=tree
        )
    found = programs.find(PROGRAM_OF[name])
    if found.path is None:
        return found
    arguments = (name, found.version, own_directory, upstream_port)
    match name:
        case "distribution" | "docker-registry":
            return Distribution(*arguments, store, variant=variant, front=front, program=found.path)
        case "zot":
            return Zot(*arguments, variant=variant, front=front, program=found.path)
        case "nginx-cache":
            return Nginx(*arguments, variant=variant, front=front, program=found.path)
        case _:
            return Nginx(
                *arguments,
                variant=variant,
                front=front,
                program=found.path,
                http_block=NGINX_STATIC,
                content=content,
            )
