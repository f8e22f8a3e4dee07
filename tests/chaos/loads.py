"""Section L of the matrix: what a user sees under load, and how the tests of a load keep the records of its cells.

A load is made by plain tests, in a small size on every change and in the size of the table with `-m long`. Both are the
same cell: what the record says of what was seen begins with the size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import attrs

from tests.chaos.bounds import MemoryBound
from tests.chaos.bystanders import CONTROL_FLOOR_S
from tests.chaos.cells import Cell, Record, State
from tests.chaos.outcomes import Outcome, describe, hit, hit1, new
from tests.support.fake_registry import FakeRegistry

KIB = 1024
MIB = 1024 * KIB
PROBLEM_CHARS = 500
OK = frozenset({200})

# The variants
UNDISTURBED = "undisturbed"
TOKEN = "needs a token"
BUCKET = "only in the bucket"
OWNER = "owner killed"
ANOTHER = "another worker killed"
STEADY = "steady"
MOVED = "moved half-way"
DIES = "upstream dies half-way"
ATTACK = "slow headers, slow readers"
OLD = "older than touch_threshold"
STORM = "upstream down, then back"


@attrs.frozen
class Variant:
    """A load in one of its forms."""

    name: str
    outcomes: Mapping[State, tuple[Outcome, ...]]
    reason: str = ""


@attrs.frozen
class Load:
    """A row of section L."""

    id: str
    title: str
    variants: tuple[Variant, ...]


def _says(outcome: Outcome, says: str) -> Outcome:
    return attrs.evolve(outcome, says=says)


_ONCE = _says(new(), "fetched from the upstream, once for all")
_NEW_AT_ITS_TURN = _says(new(), "fetched from the upstream; some wait for their turn")
_KILLED = Outcome(
    "RES(1) or CUT",
    "the whole layer; for the clients of the killed worker it ends visibly short, and they try again",
    OK,
    is_whole=False,
)
_UNMOVED = _says(hit1(), "as ever, after one freshness check a second for all")
_NEW_IMAGE = _says(hit1(), "the new image after check_interval and check_timeout at the latest")
_LAST_KNOWN = Outcome("FAST", "the last known image at once, marked stale", OK, is_stale=True)
_AS_EVER = Outcome("HIT", f"as ever, within twice the time or {CONTROL_FLOOR_S:g} s", OK)
_COPIED = "as ever; what is old in the bucket becomes young by one copy"
_REFUSED = Outcome("E503", "502 or 503 at once; fetched within 5 s of the return", frozenset({502, 503}))

LOADS = (
    Load(
        "L01",
        "A thousand clients want one object",
        (
            Variant(
                UNDISTURBED,
                {
                    State.TAG_CACHED: (_says(hit1(), "as ever, after one freshness check for all"),),
                    State.TAG_COLD: (_ONCE,),
                    State.MANIFEST: (hit(), _ONCE),
                    State.BLOB_CACHED: (hit(),),
                    State.BLOB_COLD: (_ONCE,),
                    State.BLOB_DOWNLOAD: (_says(new(), "the whole layer, by the download that runs"),),
                },
            ),
            Variant(TOKEN, {State.TAG_COLD: (_says(new(), f"{_ONCE.says}, with one token"),)}),
            Variant(BUCKET, {State.BLOB_CACHED: (_says(hit(), "as ever; a worker reads the bucket once at most"),)}),
            Variant(OWNER, {State.BLOB_DOWNLOAD: (_KILLED,)}),
            Variant(ANOTHER, {State.BLOB_DOWNLOAD: (_KILLED,)}),
        ),
    ),
    Load(
        "L02",
        "A thousand objects are wanted at once",
        (
            Variant(
                UNDISTURBED,
                {
                    State.TAG_CACHED: (hit1(),),
                    State.TAG_COLD: (new(),),
                    State.MANIFEST: (hit(), new()),
                    State.BLOB_CACHED: (hit(),),
                    State.BLOB_COLD: (_NEW_AT_ITS_TURN,),
                    State.BLOB_DOWNLOAD: (_NEW_AT_ITS_TURN,),
                },
                "64 layers and 32 questions are under way at a time in each worker, the others wait for their turn",
            ),
        ),
    ),
    Load(
        "L03",
        "A herd on one tag",
        tuple(
            Variant(name, {State.TAG_CACHED: (of_tag,), State.TAG_COLD: (of_tag,), State.MANIFEST: (hit(),)})
            for name, of_tag in ((STEADY, _UNMOVED), (MOVED, _NEW_IMAGE), (DIES, _LAST_KNOWN))
        ),
    ),
    Load(
        "L04",
        "Attackers among the clients",
        (
            Variant(
                ATTACK,
                dict.fromkeys(State, (_AS_EVER,)),
                "addresses are not counted, as a thousand nodes may share one: idle connections are closed",
            ),
        ),
    ),
    Load(
        "L05",
        "A thousand hits on what is old in the bucket",
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
    Load(
        "L06",
        "A storm of retries",
        (
            Variant(
                STORM,
                {
                    State.TAG_CACHED: (_says(_LAST_KNOWN, f"{_LAST_KNOWN.says}; fresh within 5 s of the return"),),
                    State.TAG_COLD: (_REFUSED,),
                    State.MANIFEST: (hit(), _REFUSED),
                    State.BLOB_CACHED: (hit(),),
                    State.BLOB_COLD: (_REFUSED,),
                },
                "a question that breaks off is asked once more, also by a probe",
            ),
        ),
    ),
)

# The load, the variant, and the states: their records, while the block runs.
KeepLoad = Callable[..., AbstractContextManager[list[Record]]]


@contextmanager
def kept(keep: Callable[[Record], None], load: str, variant: str, *states: State) -> Iterator[list[Record]]:
    """Give the records of these cells, and keep them when the block ends, whatever happens in it.

    What it raises is a problem of all of them and is raised again. Raises AssertionError in the end for what was noted
    by `Record.check`, and for a record that says nothing of what was seen.
    """
    records = [_begin(load, variant, state) for state in states]
    try:
        yield records
        for record in records:
            record.check(record.seen, "nothing is said of what was seen")
    except BaseException as exc:
        for record in records:
            record.problems.append(f"{type(exc).__name__}: {exc}"[:PROBLEM_CHARS])
        raise
    finally:
        for record in records:
            keep(record)
    if problems := [f"{record.cell}: {problem}" for record in records for problem in record.problems]:
        raise AssertionError("\n".join(problems))


def note(record: Record, seen: str, fake_registry: FakeRegistry, memory: MemoryBound, **fields: str) -> None:
    """What was seen, what has reached the upstream until now (with such `fields`), and how large a worker has been."""
    record.seen = f"{seen}, {memory.peak // MIB} MiB in a worker"
    record.requests = fake_registry.count(**fields)
    record.received_bytes = fake_registry.sent_bytes(**fields)
    record.rss_max_bytes = memory.peak


def _begin(load: str, variant: str, state: State) -> Record:
    (row,) = (each for each in LOADS if each.id == load)
    (form,) = (each for each in row.variants if each.name == variant)
    return Record(Cell(load, variant, state), row.title, describe(form.outcomes[state]))
