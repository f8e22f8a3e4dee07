"""The bucket refuses, is slow, is busy, is missing, or rejects the credentials: S01, S02, S03, S06, S07."""

import random
from collections import Counter

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.direct_client import describe_response
from tests.chaos.engine.outcomes import Outcome, either, hit, hit1, new, passed
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import DeploymentVariant, Fault
from tests.chaos.faults.s3_steps import fill_bucket, within
from tests.chaos.faults.s3_variants import bucket_variant
from tests.s3.store.proxy import Forward, Request, Respond, s3_error

SLOW_S = 1.5  # more than what Dockyard regards as healthy, less than its timeout
SLOWER_S = 5.0
BANDWIDTH_KB_PER_S = 100
FIRST_BYTE_S = 1.0  # what a response takes besides the bucket
MAX_ATTEMPTS = 2
LAYER_BYTES_AT_LOW_BANDWIDTH = 1_500_000

# A bucket that is down is a miss: everything comes from the upstream, a tag after a check, and is stored locally.
WITHOUT_BUCKET: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (attrs.evolve(passed(), heads=(1, 1)),),
    State.TAG_COLD: (attrs.evolve(passed(), heads=(1, 1)),),
    State.MANIFEST: (passed(), passed()),
    State.BLOB_CACHED: (passed(),),
    State.BLOB_COLD: (passed(),),
    State.BLOB_DOWNLOAD: (passed(),),
}


def with_or_without(within_s: float) -> dict[State, tuple[Outcome, ...]]:
    """Outcomes for a bucket that responds sometimes: from it, or as if it were down."""
    return {
        State.TAG_CACHED: (within(either(hit1(), passed()), within_s),),
        State.TAG_COLD: (within(either(new(), passed()), within_s),),
        State.MANIFEST: (within(either(hit(), passed()), within_s), within(either(new(), passed()), within_s)),
        State.BLOB_CACHED: (within(either(hit(), passed()), within_s),),
        State.BLOB_COLD: (within(either(new(), passed()), within_s),),
        State.BLOB_DOWNLOAD: (either(new(), passed()),),
    }


def _refuse(run: Run) -> None:
    run.data["is_bucket_down"] = True
    run.s3_network.refuse_connections()


def _is_refused(run: Run) -> None:
    seen = describe_response(run.s3_network.address, "/")
    assert seen == "refused", f"a direct client of the bucket gets {seen!r}"


@attrs.frozen
class _Responding:
    """The bucket gives one response to a share of all requests."""

    response: Respond
    share: float = 1.0

    def inject(self, run: Run) -> None:
        """Respond so from now on."""
        run.data["is_bucket_down"] = True
        if self.share < 1:
            del run.data["is_bucket_down"]  # some requests succeed
        rng = random.Random(503)
        run.s3_proxy.requests.clear()
        run.data["responses"] = 0

        def rule(_: Request) -> Forward | Respond:
            if rng.random() >= self.share:
                return Forward()
            run.data["responses"] += 1
            return self.response

        run.s3_proxy.rule = rule

    def verify(self, run: Run) -> None:
        """Check that the response was given, and that no object was requested more often than it may be."""
        assert run.data["responses"], "the bucket got no request"
        gets = Counter(each.target for each in list(run.s3_proxy.requests) if each.method == "GET")
        often = {target: count for target, count in gets.items() if count > MAX_ATTEMPTS}
        run.check(not often, f"requested more than {MAX_ATTEMPTS} times: {often}")


def _outage(name: str, responding: _Responding, *, reason: str = "", recovery_s: float = 5.0) -> DeploymentVariant:
    return bucket_variant(
        name, responding.inject, WITHOUT_BUCKET, verify=responding.verify, recovery_s=recovery_s, reason=reason
    )


REFUSED = Fault(
    "S01",
    "The bucket refuses connections",
    (
        bucket_variant(
            "refused",
            _refuse,
            WITHOUT_BUCKET,
            verify=_is_refused,
            reason="`/readyz` stays 200, because a cache without its bucket still serves; the metrics show the outage",
        ),
    ),
)


def _slow_down(seconds: float) -> DeploymentVariant:
    def inject(run: Run) -> None:
        run.s3_network.add_latency(seconds)

    return bucket_variant(f"{seconds:g} s per call", inject, with_or_without(2 * seconds + FIRST_BYTE_S))


def _limit_bandwidth(run: Run) -> None:
    run.s3_network.limit_bandwidth(BANDWIDTH_KB_PER_S)


SLOW = Fault(
    "S02",
    "The bucket is slow",
    (
        _slow_down(SLOW_S),
        _slow_down(SLOWER_S),
        bucket_variant(
            f"{BANDWIDTH_KB_PER_S} KB/s",
            _limit_bandwidth,
            with_or_without(FIRST_BYTE_S + 6 * LAYER_BYTES_AT_LOW_BANDWIDTH / 1000 / BANDWIDTH_KB_PER_S),
            layer_bytes=LAYER_BYTES_AT_LOW_BANDWIDTH,
        ),
    ),
)

BUSY = Fault(
    "S03",
    "The bucket responds 503 SlowDown",
    (
        attrs.evolve(
            _outage("half of the requests", _Responding(s3_error(503, "SlowDown"), 0.5)),
            outcomes=with_or_without(FIRST_BYTE_S),
        ),
        _outage("every request", _Responding(s3_error(503, "SlowDown"))),
    ),
)

NO_BUCKET = Fault(
    "S06",
    "The bucket is missing",
    (
        _outage(
            "NoSuchBucket",
            _Responding(s3_error(404, "NoSuchBucket")),
            reason="Dockyard logs the problem at start and serves nevertheless, from the upstream",
        ),
    ),
)

_ACTIONS = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")


def _write_new_login(run: Run) -> None:
    """Create a key and write it to the file in which Dockyard looks for it."""
    login = run.data["login"] = run.bucket.add_login(*_ACTIONS)
    text = "[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
    (run.directory / "credentials").write_text(text.format(**login))


def _use_credentials_file(run: Run) -> None:
    fill_bucket(run)
    _write_new_login(run)
    run.environment.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(run.directory / "credentials")
    run.environment.settings["storage"] |= {"access_key": "", "secret_key": ""}


def _revoke_login(run: Run) -> None:
    run.data["is_bucket_down"] = True
    run.bucket.remove_login(run.data["login"])
    run.s3_proxy.requests.clear()


def _got_requests(run: Run) -> None:
    assert run.s3_proxy.requests, "the bucket got no request"


REFUSED_LOGIN = Fault(
    "S07",
    "The bucket rejects the credentials",
    (
        _outage("clock skew", _Responding(s3_error(403, "RequestTimeTooSkewed")), recovery_s=60.0),
        _outage("expired", _Responding(s3_error(403, "ExpiredToken")), recovery_s=60.0),
        bucket_variant(
            "key replaced",
            _revoke_login,
            WITHOUT_BUCKET,
            prepare=_use_credentials_file,
            verify=_got_requests,
            end=_write_new_login,
            recovery_s=60.0,
        ),
    ),
)

FAULTS = (REFUSED, SLOW, BUSY, NO_BUCKET, REFUSED_LOGIN)
