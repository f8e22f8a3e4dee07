"""Section S of the matrix, outages: a store that refuses, is slow, is busy, has no bucket, or does not know us."""

import random
from collections import Counter

import attrs

from tests.chaos.bucket_scenes import TELL, fill_bucket, forward, is_published, is_used_again, within
from tests.chaos.cells import State
from tests.chaos.lanes import look
from tests.chaos.outcomes import Outcome, either, hit, hit1, new, passed
from tests.chaos.scenes import Fault, Plot, Scene
from tests.s3.store.proxy import Forward, Request, Respond, s3_error

SLOW_S = 1.5  # more than Dockyard takes for well, less than it waits
SLOWER_S = 5.0
NARROW_KB_PER_S = 100
FIRST_BYTE_S = 1.0  # what an answer takes beside the store
ATTEMPTS = 2
LAYER_BYTES_WHEN_NARROW = 1_500_000

# A store that is away is a miss: everything comes from the upstream, the tag after a check, and is kept locally.
WITHOUT: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (attrs.evolve(passed(), heads=(1, 1)),),
    State.TAG_COLD: (attrs.evolve(passed(), heads=(1, 1)),),
    State.MANIFEST: (passed(), passed()),
    State.BLOB_CACHED: (passed(),),
    State.BLOB_COLD: (passed(),),
    State.BLOB_DOWNLOAD: (passed(),),
}


def with_or_without(within_s: float) -> dict[State, tuple[Outcome, ...]]:
    """A store that answers at times: from it, or as if it were away."""
    return {
        State.TAG_CACHED: (within(either(hit1(), passed()), within_s),),
        State.TAG_COLD: (within(either(new(), passed()), within_s),),
        State.MANIFEST: (within(either(hit(), passed()), within_s), within(either(new(), passed()), within_s)),
        State.BLOB_CACHED: (within(either(hit(), passed()), within_s),),
        State.BLOB_COLD: (within(either(new(), passed()), within_s),),
        State.BLOB_DOWNLOAD: (either(new(), passed()),),
    }


# How it is done, and shown to have been done


def _refuse(scene: Scene) -> None:
    scene.props["is_gone"] = True
    assert scene.way is not None
    scene.way.refuse_connections()


def _is_refused(scene: Scene) -> None:
    assert scene.way is not None
    seen = look(scene.way.address, "/")
    assert seen == "refused", f"a plain client of the store sees {seen!r}"


def _says(answer: Respond, share: float = 1.0) -> "_Saying":
    return _Saying(answer, share)


@attrs.frozen
class _Saying:
    """The store gives one answer to a share of all requests."""

    answer: Respond
    share: float

    def strike(self, scene: Scene) -> None:
        """From now on."""
        scene.props["is_gone"] = True
        if self.share < 1:
            del scene.props["is_gone"]  # it may well answer
        dice = random.Random(503)
        scene.store.requests.clear()
        scene.props["said"] = 0

        def rule(_: Request) -> Forward | Respond:
            if dice.random() >= self.share:
                return Forward()
            scene.props["said"] += 1
            return self.answer

        scene.store.rule = rule

    def prove(self, scene: Scene) -> None:
        """It was said, and no object was asked for more often than it may be."""
        assert scene.props["said"], "the store was never asked"
        gets = Counter(each.target for each in list(scene.store.requests) if each.method == "GET")
        often = {target: count for target, count in gets.items() if count > ATTEMPTS}
        scene.check(not often, f"asked the store more than {ATTEMPTS} times: {often}")


def _outage(name: str, saying: _Saying, *, reason: str = "", recovery_s: float = 5.0) -> Plot:
    return Plot(
        name,
        tell=TELL,
        outcomes=WITHOUT,
        prepare=fill_bucket,
        strike=saying.strike,
        prove=saying.prove,
        mend=forward,
        recover=is_used_again,
        after=is_published,
        has_bucket=True,
        recovery_s=recovery_s,
        reason=reason,
    )


REFUSED = Fault(
    "S01",
    "The store refuses connections",
    (
        Plot(
            "refused",
            tell=TELL,
            outcomes=WITHOUT,
            prepare=fill_bucket,
            strike=_refuse,
            prove=_is_refused,
            mend=forward,
            recover=is_used_again,
            after=is_published,
            has_bucket=True,
            reason="ready stays ready: a cache without its store serves; the counters tell",
        ),
    ),
)


def _slow_down(seconds: float, layer_bytes: int = 4 * 1024 * 1024) -> Plot:
    def strike(scene: Scene) -> None:
        assert scene.way is not None
        scene.way.add_latency(seconds)

    return Plot(
        f"{seconds:g} s per call",
        tell=TELL,
        outcomes=with_or_without(2 * seconds + FIRST_BYTE_S),
        prepare=fill_bucket,
        strike=strike,
        mend=forward,
        recover=is_used_again,
        after=is_published,
        has_bucket=True,
        layer_bytes=layer_bytes,
    )


def _narrow(scene: Scene) -> None:
    assert scene.way is not None
    scene.way.limit_bandwidth(NARROW_KB_PER_S)


SLOW = Fault(
    "S02",
    "The store is slow",
    (
        _slow_down(SLOW_S),
        _slow_down(SLOWER_S),
        Plot(
            f"{NARROW_KB_PER_S} KB/s",
            tell=TELL,
            outcomes=with_or_without(FIRST_BYTE_S + 6 * LAYER_BYTES_WHEN_NARROW / 1000 / NARROW_KB_PER_S),
            prepare=fill_bucket,
            strike=_narrow,
            mend=forward,
            recover=is_used_again,
            after=is_published,
            has_bucket=True,
            layer_bytes=LAYER_BYTES_WHEN_NARROW,
        ),
    ),
)

BUSY = Fault(
    "S03",
    "The store answers 503 SlowDown",
    (
        attrs.evolve(
            _outage("half of the requests", _says(s3_error(503, "SlowDown"), 0.5)),
            outcomes=with_or_without(FIRST_BYTE_S),
        ),
        _outage("every request", _says(s3_error(503, "SlowDown"))),
    ),
)

NO_BUCKET = Fault(
    "S06",
    "The bucket is missing",
    (
        _outage(
            "NoSuchBucket",
            _says(s3_error(404, "NoSuchBucket")),
            reason="the start says what is wrong and serves all the same: the upstream is there",
        ),
    ),
)

_ACTIONS = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")


def _give_login(scene: Scene) -> None:
    """A new key, where Dockyard is told to look for it."""
    login = scene.props["login"] = scene.bucket.add_login(*_ACTIONS)
    text = "[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
    (scene.directory / "credentials").write_text(text.format(**login))


def _with_files(scene: Scene) -> None:
    fill_bucket(scene)
    _give_login(scene)
    scene.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(scene.directory / "credentials")
    scene.settings["storage"] |= {"access_key": "", "secret_key": ""}


def _revoke_login(scene: Scene) -> None:
    scene.props["is_gone"] = True
    scene.bucket.remove_login(scene.props["login"])
    scene.store.requests.clear()


def _was_asked(scene: Scene) -> None:
    assert scene.store.requests, "the store was never asked"


REFUSED_LOGIN = Fault(
    "S07",
    "The store refuses our credentials",
    (
        _outage("clock skew", _says(s3_error(403, "RequestTimeTooSkewed")), recovery_s=60.0),
        _outage("expired", _says(s3_error(403, "ExpiredToken")), recovery_s=60.0),
        Plot(
            "key replaced",
            tell=TELL,
            outcomes=WITHOUT,
            prepare=_with_files,
            strike=_revoke_login,
            prove=_was_asked,
            mend=_give_login,
            recover=is_used_again,
            after=is_published,
            has_bucket=True,
            recovery_s=60.0,
        ),
    ),
)

FAULTS = (REFUSED, SLOW, BUSY, NO_BUCKET, REFUSED_LOGIN)
