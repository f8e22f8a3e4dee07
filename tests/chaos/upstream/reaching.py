"""An upstream that cannot be reached: refused, unknown by name, silent, or not to be trusted."""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import attrs
import trustme

from tests.chaos.cells import State
from tests.chaos.lanes import Lane
from tests.chaos.outcomes import WASTE_BYTES, Outcome, Seen, cut, error, hit, resumed, stale
from tests.chaos.patches import patched
from tests.chaos.resolver import NameServer
from tests.chaos.stories import Fault, Story, Trouble, World
from tests.chaos.upstream.proofs import L, expect, sees
from tests.support.fake_auth import require_authorization
from tests.support.fake_registry import basic
from tests.support.http_client import send_request
from tests.support.raw_http import TLS_HANDSHAKE

# U01


CONNECTS_AT_MOST = 3
# Python tells of each connect(2); nobody else could count those that are refused.
_TELL_OF_CONNECTS = """
import os, sys
told = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def tell(event, arguments):
    if event == "socket.connect":
        os.write(told, f"{{arguments[1]}}\\n".encode())
sys.addaudithook(tell)
"""


@contextlib.contextmanager
def _with_told_connects(directory: Path) -> Iterator[World]:
    code = _TELL_OF_CONNECTS.format(path=str(directory / "connects"))
    (directory / "connects").touch()
    yield World(environ=patched(directory / "told", code), directory=directory)


def _count_connects(lane: Lane, world: World) -> None:
    assert world.directory is not None
    lane.connects = world.directory / "connects"


def _refuse(lane: Lane, _: State) -> None:
    assert lane.way is not None
    lane.way.refuse_connections()
    lane.connects_before = lane.count_connects()


def _few_connects(story: Story, _: Seen) -> None:
    made = story.lane.count_connects() - story.lane.connects_before
    story.record.check(1 <= made <= CONNECTS_AT_MOST, f"connected {made} times, expected 1 to {CONNECTS_AT_MOST}")


def _went_on(story: Story) -> None:
    """What had landed was kept for a while: the next client's fetch went on from there."""
    size, sent = story.lane.layers["cold"].size, story.lane.fake_registry.sent_bytes("blob")
    story.record.check(sent <= size + WASTE_BYTES, f"{sent} bytes were fetched of {size}")


REFUSED = Fault(
    "U01",
    "Connection refused",
    (
        Trouble(
            "refused",
            strike=_refuse,
            world=_with_told_connects,
            prepare=_count_connects,
            prove=sees("refused"),
            outcomes={
                State.TAG_CACHED: (stale(L.at_once()),),
                State.TAG_COLD: (error(503, L.no()),),
                State.MANIFEST: (hit(), error(503, L.no())),
                State.BLOB_CACHED: (hit(),),
                State.BLOB_COLD: (error(503, L.no()),),
                State.BLOB_DOWNLOAD: (cut(L.breaks()),),
            },
            more={State.BLOB_COLD: _few_connects},
            after={State.BLOB_DOWNLOAD: _went_on},
            workers=4,
        ),
    ),
)

# U02


def _name(lane: Lane) -> str:
    return f"{lane.prefix.removesuffix('.test')}.registry.test"


@contextlib.contextmanager
def _with_names(directory: Path) -> Iterator[World]:
    with NameServer() as names:
        yield World(wrapper=names.wrapper(directory), names=names)


def _have_a_name(lane: Lane, world: World) -> None:
    lane.upstream["registry"] = f"http://{_name(lane)}:{lane.front.rpartition(':')[2]}"
    lane.names = world.names


def _drop_idle(lane: Lane, state: State) -> None:
    """A connection that is kept would hide the fault; the one of a layer in progress is what the fault is about."""
    if state is not State.BLOB_DOWNLOAD:
        lane.fake_registry.listener.drop_connections()


def _unname(mood: str) -> Trouble:
    def strike(lane: Lane, state: State) -> None:
        assert lane.names is not None
        lane.names.moods[_name(lane)] = mood
        _drop_idle(lane, state)

    def prove(lane: Lane, _: State) -> None:
        assert lane.names is not None
        expect(mood, lane, lane.names.ask(_name(lane)))

    def mend(lane: Lane) -> None:
        assert lane.names is not None
        del lane.names.moods[_name(lane)]

    return Trouble(
        mood,
        world=_with_names,
        prepare=_have_a_name,
        strike=strike,
        prove=prove,
        mend=mend,
        outcomes=_away(stale(L.lookup()), error(503, L.lookup_error())),
    )


def _away(tag: Outcome, no: Outcome) -> dict[State, tuple[Outcome, ...]]:
    """New connections fail; the one that a layer in progress has is not touched."""
    return {
        State.TAG_CACHED: (tag,),
        State.TAG_COLD: (no,),
        State.MANIFEST: (hit(), no),
        State.BLOB_CACHED: (hit(),),
        State.BLOB_COLD: (no,),
        State.BLOB_DOWNLOAD: (resumed(0),),
    }


NO_NAME = Fault("U02", "The name is not found", tuple(_unname(mood) for mood in ("silent", "nxdomain", "servfail")))

# U03


def _drop_syns(lane: Lane, state: State) -> None:
    _drop_idle(lane, state)
    lane.fake_registry.listener.drop_syns()


_NO_CONNECTION = Trouble(
    "SYN dropped",
    strike=_drop_syns,
    prove=sees("no connection"),
    outcomes=_away(stale(L.connect()), error(504, L.connect_twice())),
    is_direct=True,  # toxiproxy would take the connection first
)

NO_CONNECTION = Fault(
    "U03",
    "Connections time out",
    (
        _NO_CONNECTION,
        attrs.evolve(
            _NO_CONNECTION,
            name="SYN dropped, and the connection broken",
            breaks=True,
            outcomes={**_NO_CONNECTION.outcomes, State.BLOB_DOWNLOAD: (cut(L.breaks_silently()),)},
        ),
    ),
)

# U04

OURS = ("127.0.0.1", "localhost")
USER, PASSWORD = "ann", "canary-password-of-the-tls-upstream"


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


def _context(authority: trustme.CA, *names: str, not_after: datetime | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


@contextlib.contextmanager
def with_authority(directory: Path) -> Iterator[World]:
    """A certificate authority that Dockyard can be told to trust."""
    _authority().cert_pem.write_to_path(directory / "ca.pem")
    yield World(directory=directory)


def speak_tls(lane: Lane, world: World) -> None:
    """The lane's registry has a certificate of the world's authority."""
    assert world.directory is not None
    lane.fake_registry.listener.use_tls(_context(_authority(), *OURS))
    lane.upstream.update(registry=f"https://{lane.front}", ca_file=str(world.directory / "ca.pem"))
    lane.tls = ssl.create_default_context()
    _authority().configure_trust(lane.tls)


def _speak_tls_with_a_login(lane: Lane, world: World) -> None:
    speak_tls(lane, world)
    require_authorization(lane.fake_registry, basic(USER, PASSWORD))
    lane.upstream["auth"] = {"type": "basic", "username": USER, "password": PASSWORD}


def _present(certify: Callable[[], ssl.SSLContext | None]) -> Callable[[Lane, State], None]:
    def strike(lane: Lane, state: State) -> None:
        lane.fake_registry.listener.use_tls(certify())
        lane.fake_registry.listener.keep_first_bytes = True
        _drop_idle(lane, state)

    return strike


def _reset_handshakes(lane: Lane, state: State) -> None:
    assert lane.way is not None
    lane.way.reset_connections()
    lane.fake_registry.listener.keep_first_bytes = True
    _drop_idle(lane, state)


def _trust_again(lane: Lane) -> None:
    lane.fake_registry.listener.use_tls(_context(_authority(), *OURS))


def _is_counted(story: Story, _: Seen) -> None:
    """What an operator can be alarmed by."""
    counted = f'dockyard_upstream_untrusted_total{{upstream="{story.lane.prefix}",wrong="tls"}}'
    said = send_request(story.deployment.address, "/metrics").body.decode()
    story.record.check(counted in said, "not counted as untrusted")


def _untrusted(name: str, strike: Callable[[Lane, State], None], seen: str) -> Trouble:
    def prove(lane: Lane, _: State) -> None:
        expect(seen, lane, lane.look())
        sent = lane.fake_registry.listener.first_bytes
        assert all(data[:1] == TLS_HANDSHAKE for data in sent if data), f"spoke without TLS: {sent}"
        assert all(PASSWORD.encode() not in data and b"Authorization" not in data for data in sent), "a secret was sent"

    no = attrs.evolve(error(502, L.untrusted()), requests=(0, 0))
    return Trouble(
        name,
        world=with_authority,
        prepare=_speak_tls_with_a_login,
        strike=strike,
        prove=prove,
        mend=_trust_again,
        more={State.TAG_CACHED: _is_counted, State.BLOB_COLD: _is_counted},
        outcomes=_away(stale(L.untrusted()), no),
    )


def _yesterday() -> ssl.SSLContext:
    return _context(_authority(), *OURS, not_after=datetime.now(UTC) - timedelta(days=1))


def _broken(trouble: Trouble) -> Trouble:
    """Toxiproxy ends the connections that are there: a layer in progress has to connect anew, and cannot."""
    return attrs.evolve(trouble, outcomes={**trouble.outcomes, State.BLOB_DOWNLOAD: (cut(L.breaks()),)})


NO_TRUST = Fault(
    "U04",
    "TLS fails",
    (
        _untrusted("expired", _present(_yesterday), "tls CERTIFICATE_VERIFY_FAILED"),
        _untrusted(
            "wrong name", _present(lambda: _context(_authority(), "other.test")), "tls CERTIFICATE_VERIFY_FAILED"
        ),
        _untrusted(
            "unknown authority",
            _present(lambda: _context(trustme.CA(), *OURS)),
            "tls CERTIFICATE_VERIFY_FAILED",
        ),
        _broken(_untrusted("reset in the handshake", _reset_handshakes, "reset")),
        _untrusted("plain HTTP answer", _present(lambda: None), "tls (WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE)"),
    ),
)

REACHING = (REFUSED, NO_NAME, NO_CONNECTION, NO_TRUST)
