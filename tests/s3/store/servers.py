"""Real S3 servers as processes: MinIO, and versitygw over a directory."""

import contextlib
import http.client
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from dockyard.config.settings import StorageSettings
from dockyard.config.types import Secret
from dockyard.s3.store import S3Store
from tests.support.processes import Process, free_port

ACCESS_KEY = "dockyard-tests"
SECRET_KEY = "canary-secret-of-the-store"
BUCKET = "dockyard-cache"
MIB = 2**20


class Server:
    """An S3 server with a fixed port and data directory, also when it is stopped and started again.

    `listen` is the address that it listens on; the tests themselves always use that of loopback.
    """

    name = ""

    def __init__(self, program: Path, directory: Path, *, listen: str = "127.0.0.1") -> None:
        self.program = program
        self.listen = listen
        self.data = directory / "data"
        self.data.mkdir(parents=True)
        self.log = directory / f"{self.name}.log"
        self.port = free_port()
        self._home = directory
        self._process: Process | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it responds. The first start creates the bucket."""
        self._process = Process.start(self._command(), log=self.log, environ=self._environ())
        self._process.wait_until(self._responds, "responding")
        make_bucket(self.settings())

    def stop(self) -> None:
        """Kill it: connections are refused from here on."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it accept connections but not respond, until `thaw`."""
        assert self._process is not None, "the server does not run"
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """End `freeze`."""
        assert self._process is not None, "the server does not run"
        self._process.send(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)

    def settings(self, prefix: str = "cache/", endpoint: str = "", bucket: str = BUCKET) -> StorageSettings:
        """Return storage settings for it. `endpoint` is a proxy before it."""
        return StorageSettings(
            endpoint=endpoint or self.host,
            bucket=bucket,
            prefix=prefix,
            access_key=ACCESS_KEY,
            secret_key=Secret(SECRET_KEY),
            force_path_style=True,
            directory=self._home,
        )

    def _command(self) -> list[str | Path]:
        raise NotImplementedError

    def _environ(self) -> Mapping[str, str]:
        raise NotImplementedError

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)

    def _responds(self) -> bool:
        with contextlib.closing(self._connection()) as connection:
            try:
                connection.request("GET", "/")
                return connection.getresponse().status in {200, 403}
            except (OSError, http.client.HTTPException):
                return False


class Minio(Server):
    """MinIO, built from its last commit. With a certificate in the directory `certificates` it uses TLS."""

    name = "minio"
    domain = "store.test"  # for virtual host style

    def _command(self) -> list[str | Path]:
        certificates = self._home / "certificates"
        certificates.mkdir(exist_ok=True)
        return [
            *(self.program, "server", "--quiet", "--address", f"{self.listen}:{self.port}"),
            *("--certs-dir", certificates, self.data),
        ]

    def _environ(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_BROWSER": "off",
            "MINIO_DOMAIN": self.domain,
            "MINIO_UPDATE": "off",
            "HOME": str(self._home),
            "PATH": "/usr/bin:/bin",
        }


class Versitygw(Server):
    """versitygw with its POSIX backend. Metadata is stored in files: not every file system has extended attributes."""

    name = "versitygw"

    def _command(self) -> list[str | Path]:
        sidecar = self._home / "metadata"
        sidecar.mkdir(exist_ok=True)
        return [self.program, "--port", f"{self.listen}:{self.port}", "posix", "--sidecar", sidecar, self.data]

    def _environ(self) -> Mapping[str, str]:
        return {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY, "PATH": "/usr/bin:/bin"}


def make_s3_store(settings: StorageSettings) -> S3Store:
    """Create a store whose PUTs have at most 6 MiB rather than 5 GiB. S3 allows no parts smaller than 5 MiB."""
    return S3Store(settings, {}, max_put_bytes=6 * MIB, part_bytes=5 * MIB, copy_part_bytes=5 * MIB)


def make_bucket(settings: StorageSettings) -> None:
    """Create the bucket unless it exists."""
    s3 = S3Store(settings, {})
    with contextlib.closing(s3):
        if s3.check():
            opened = s3._client.open_response("make bucket", "PUT", headers={"Content-Length": "0"})
            assert opened is not None
            opened.close()
