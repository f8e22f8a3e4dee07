"""A bucket that cannot be used: the server starts without it, and the log has a line."""

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import yaml

from tests.chaos.engine.fake_clock import FakeClock
from tests.failures.certificates import issued, make_authority
from tests.failures.failure import Failure, Seen, replace_variables
from tests.failures.programs import run, warnings_and_errors
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.proxy import Respond, S3Proxy, s3_error
from tests.s3.store.servers import SECRET_KEY
from tests.security.canaries import Canary
from tests.support.fake_registry import FakeRegistry
from tests.support.processes import free_port
from tests.support.raw_server import RawServer, response

STORE_SECRET = Canary(SECRET_KEY)
TWO_HOURS_S = 7200


@attrs.define
class Store:
    """What a failure arranges: `settings` is the section `storage`. `view` is the bucket, on a real MinIO."""

    directory: Path
    view: BucketView
    undo: ExitStack
    settings: dict[str, Any]
    environ: dict[str, str] = attrs.field(factory=dict)
    names: dict[str, str] = attrs.field(factory=dict)

    def use(self, endpoint: str, **settings: Any) -> None:
        """Make this `host:port` the endpoint."""
        self.settings |= {"endpoint": endpoint, **settings}
        self.names[endpoint] = "HOST:PORT"

    def answer(self, respond: Callable[[Any], Any]) -> None:
        """Put a proxy before MinIO that answers some requests itself."""
        proxy = self.undo.enter_context(contextlib.closing(S3Proxy(self.view.server.port)))
        proxy.rule = respond
        self.use(proxy.host)


@attrs.frozen
class BucketFailure(Failure):
    """A bucket that cannot be used."""

    arrange: Callable[[Store], object]


def observe(failure: BucketFailure, directory: Path, view: BucketView) -> Seen:
    """Start a server over the bucket; it checks it when it has started."""
    with ExitStack() as undo:
        store = Store(directory, view, undo, view.storage(directory=str(directory / "storage")))
        store.names |= {view.server.host: "HOST:PORT", view.bucket: "BUCKET"}
        failure.arrange(store)
        server = {"host": "127.0.0.1", "port": str(free_port()), "workers": 1}
        (directory / "config.yaml").write_text(yaml.safe_dump({"server": server, "storage": store.settings}))
        output = run(
            directory,
            ["server", "-c", "config.yaml"],
            store.environ,
            is_seen=lambda text: any("bucket" in line for line in warnings_and_errors(text)),
        )
        lines = warnings_and_errors(output)
        assert len(lines) == 1, output
        return Seen(replace_variables(lines[0], store.names), output=output)


def _refuse(store: Store) -> None:
    store.use(f"127.0.0.1:{free_port()}")


def _speak_plain_http(store: Store) -> None:
    store.settings["use_ssl"] = True


def speak_tls(store: Store) -> None:
    """A server of Go answers so, MinIO too."""
    answer = response(b"Client sent an HTTP request to an HTTPS server.\n", status=400)

    def serve(connection: Any) -> None:
        connection.receive_request()
        connection.send(answer)

    store.use(store.undo.enter_context(RawServer(serve)).host)


def _have_unknown_certificate(store: Store) -> None:
    registry = store.undo.enter_context(FakeRegistry())
    store.use(registry.listen("s3", tls=issued(make_authority())).authority, use_ssl=True)


def _be_another_service(store: Store) -> None:
    store.use(store.undo.enter_context(FakeRegistry()).authority)


def _set(**settings: Any) -> Callable[[Store], None]:
    """These settings are wrong."""
    return lambda store: store.settings.update(settings)


def _be_in_another_region(store: Store) -> None:
    body = (
        b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the region "
        b"'us-east-1' is wrong; expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>"
    )
    store.answer(lambda request: Respond(400, body))


def _forbid_writing(store: Store) -> None:
    login = store.view.add_login("s3:GetObject", "s3:ListBucket")
    store.undo.callback(store.view.remove_login, login)
    store.settings |= login


def _forbid_reading(store: Store) -> None:
    store.answer(lambda request: s3_error(403, "AccessDenied"))


def _be_late(store: Store) -> None:
    clock = FakeClock(store.directory, -TWO_HOURS_S)
    store.environ |= clock.environ


def _have_no_keys(store: Store) -> None:
    store.settings |= {"access_key": "", "secret_key": ""}
    store.environ["AWS_EC2_METADATA_DISABLED"] = "true"


BUCKETS = (
    BucketFailure("the store refuses connections", "HOST:PORT", "Connection refused", "storage.endpoint", _refuse),
    BucketFailure(
        "`use_ssl: true` for a store with plain HTTP",
        "HOST:PORT",
        "does not speak TLS",
        "storage.use_ssl",
        _speak_plain_http,
    ),
    BucketFailure("`use_ssl: false` for a store with TLS", "HOST:PORT", "400", "storage.use_ssl", speak_tls),
    BucketFailure(
        "a store whose certificate has an unknown authority",
        "HOST:PORT",
        "not from a known certificate authority",
        "SSL_CERT_FILE",
        _have_unknown_certificate,
    ),
    BucketFailure(
        "`storage.endpoint` is not an S3 service",
        "HOST:PORT",
        "not an S3 service",
        "storage.endpoint",
        _be_another_service,
    ),
    BucketFailure(
        "the bucket does not exist", "no-such-bucket", "does not exist", "storage.bucket", _set(bucket="no-such-bucket")
    ),
    BucketFailure(
        "a wrong access key", "HOST:PORT", "InvalidAccessKeyId", "storage.access_key", _set(access_key="nobody")
    ),
    BucketFailure(
        "a wrong secret key", "HOST:PORT", "signature", "storage.secret_key", _set(secret_key="canary-wrong-secret")
    ),
    BucketFailure("no keys at all", "for S3", "credentials", "storage.access_key", _have_no_keys),
    BucketFailure("another region", "BUCKET", "eu-west-1", "storage.region", _be_in_another_region),
    BucketFailure("no permission to write", "BUCKET", "Access Denied", "s3:PutObject", _forbid_writing),
    BucketFailure("no permission to read", "BUCKET", "denies access", "s3:ListBucket", _forbid_reading),
    BucketFailure("a clock that is two hours late", "HOST:PORT", "differ by", "clock", _be_late),
)
STORE_SECRETS = (STORE_SECRET, Canary("canary-wrong-secret"))
