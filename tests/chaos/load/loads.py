"""Section L of the matrix: what a user sees under load, and how the tests of a load keep the records of its cases.

A load is made by ordinary tests, in a small size by default and in full size with `-m long`. Both are the same case:
the text of what was seen begins with the size.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import attrs

from tests.chaos.engine.case import Case, State
from tests.chaos.engine.control_client import CONTROL_FLOOR_S
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.engine.outcomes import OK, Outcome, describe, hit, hit1, new
from tests.chaos.engine.records import Record
from tests.chaos.engine.variant import Fault, Variant
from tests.support.fake_registry import FakeRegistry

KIB = 1024
MIB = 1024 * KIB
PROBLEM_CHARS = 500

# The variants
UNDISTURBED = "undisturbed"
TOKEN = "needs a token"
BUCKET = "only in the bucket"
OWNER = "owner killed"
ANOTHER = "another worker killed"
STEADY = "steady"
MOVED = "moved half-way"
FAILS = "upstream fails half-way"
SLOW_CLIENTS = "slow headers, slow readers"
OLD = "older than touch_threshold"
STORM = "upstream down, then back"


def _says(outcome: Outcome, says: str) -> Outcome:
    return attrs.evolve(outcome, says=says)


_ONCE = _says(new(), "fetched from the upstream, once for all")
_QUEUED = _says(new(), "fetched from the upstream; some requests are queued")
_KILLED = Outcome(
    "RES(1) or CUT",
    "the whole layer; for clients of the killed worker it ends visibly short, and they retry",
    OK,
    is_whole=False,
)
_UNMOVED = _says(hit1(), "the cached copy; one freshness check per second for all")
_NEW_IMAGE = _says(hit1(), "the new image after `check_interval` plus `check_timeout` at the latest")
_LAST_KNOWN = Outcome("FAST", "the last known image at once, marked stale", OK, is_stale=True)
_UNAFFECTED = Outcome("HIT", f"the same response, within twice the time or {CONTROL_FLOOR_S:g} s", OK)
_COPIED = "the cached copy; old objects in the bucket are touched by one copy each"
_REFUSED = Outcome("E503", "502 or 503 at once; fetched within 5 s after the outage", frozenset({502, 503}))

LOADS = (
    Fault(
        "L01",
        "A thousand clients request one object",
        (
            Variant(
                UNDISTURBED,
                {
                    State.TAG_CACHED: (_says(hit1(), "the cached copy after one freshness check for all"),),
                    State.TAG_COLD: (_ONCE,),
                    State.MANIFEST: (hit(), _ONCE),
                    State.BLOB_CACHED: (hit(),),
                    State.BLOB_COLD: (_ONCE,),
                    State.BLOB_DOWNLOAD: (_says(new(), "the whole layer, from the running download"),),
                },
            ),
            Variant(TOKEN, {State.TAG_COLD: (_says(new(), f"{_ONCE.says}, with one token"),)}),
            Variant(
                BUCKET,
                {State.BLOB_CACHED: (_says(hit(), "the cached copy; each worker reads the bucket at most once"),)},
            ),
            Variant(OWNER, {State.BLOB_DOWNLOAD: (_KILLED,)}),
            Variant(ANOTHER, {State.BLOB_DOWNLOAD: (_KILLED,)}),
        ),
    ),
    Fault(
        "L02",
        "A thousand objects are requested at once",
        (
            Variant(
                UNDISTURBED,
                {
                    State.TAG_CACHED: (hit1(),),
                    State.TAG_COLD: (new(),),
                    State.MANIFEST: (hit(), new()),
                    State.BLOB_CACHED: (hit(),),
                    State.BLOB_COLD: (_QUEUED,),
                    State.BLOB_DOWNLOAD: (_QUEUED,),
                },
                "each worker runs at most 64 downloads and 32 other requests upstream at a time; the others are queued",
            ),
        ),
    ),
    Fault(
        "L03",
        "A thousand requests per second for one tag",
        tuple(
            Variant(name, {State.TAG_CACHED: (of_tag,), State.TAG_COLD: (of_tag,), State.MANIFEST: (hit(),)})
            for name, of_tag in ((STEADY, _UNMOVED), (MOVED, _NEW_IMAGE), (FAILS, _LAST_KNOWN))
        ),
    ),
    Fault(
        "L04",
        "Slow clients among the others",
        (
            Variant(
                SLOW_CLIENTS,
                dict.fromkeys(State, (_UNAFFECTED,)),
                "connections per address are not limited, as many nodes may share an address; idle ones are closed",
            ),
        ),
    ),
    Fault(
        "L05",
        "A thousand hits on old objects in the bucket",
        (
            Variant(
                OLD,
                {
                    State.TAG_CACHED: (_says(hit1(), _COPIED),),
                    State.MANIFEST: (_says(hit(), _COPIED),),
                    State.BLOB_CACHED: (_says(hit(), _COPIED),),
                },
            ),
        ),
    ),
    Fault(
        "L06",
        "Clients retry every second during an outage",
        (
            Variant(
                STORM,
                {
                    State.TAG_CACHED: (_says(_LAST_KNOWN, f"{_LAST_KNOWN.says}; fresh within 5 s after the outage"),),
                    State.TAG_COLD: (_REFUSED,),
                    State.MANIFEST: (hit(), _REFUSED),
                    State.BLOB_CACHED: (hit(),),
                    State.BLOB_COLD: (_REFUSED,),
                },
                "a request upstream whose connection breaks is sent once more, also by a probe",
            ),
        ),
    ),
)

# Called with the id of a load, a variant and states; gives their records while the block runs.
RecordLoad = Callable[..., AbstractContextManager[list[Record]]]


@contextmanager
def record_load_cases(
    keep: Callable[[Record], None], load: str, variant: str, *states: State
) -> Iterator[list[Record]]:
    """Give the records of these cases, and keep them when the block ends, however it ends.

    An exception in the block becomes a problem of all of them and is raised again. Raises AssertionError if a record
    has a problem, or says nothing about what was seen.
    """
    records = [_create_record(load, variant, state) for state in states]
    try:
        yield records
        for record in records:
            record.check(record.seen, "the record does not say what was seen")
    except BaseException as exc:
        for record in records:
            record.problems.append(f"{type(exc).__name__}: {exc}"[:PROBLEM_CHARS])
        raise
    finally:
        for record in records:
            keep(record)
    if problems := [f"{record.case}: {problem}" for record in records for problem in record.problems]:
        raise AssertionError("\n".join(problems))


def note(record: Record, seen: str, fake_registry: FakeRegistry, memory: MemoryLimit, **fields: str) -> None:
    """Add to a record what was seen, the requests that reached the upstream (with such fields), and the memory used."""
    record.seen = f"{seen}, {memory.peak // MIB} MiB in a worker"
    record.requests = fake_registry.count(**fields)
    record.received_bytes = fake_registry.sent_bytes(**fields)
    record.rss_max_bytes = memory.peak


def _create_record(load: str, variant: str, state: State) -> Record:
    (fault,) = (each for each in LOADS if each.id == load)
    (found,) = (each for each in fault.variants if each.name == variant)
    return Record(Case(load, variant, state), fault.title, describe(found.outcomes[state]))
