"""The outcome words of the matrix, and the judge that says whether what was seen is one of them.

    hit()            200, whole, and the upstream was not asked
    hit1()           200, whole, after exactly one freshness check
    new()            200, whole, fetched now with one body GET, and stored
    stale(t)         200 with the last stored bytes within t seconds, marked by a Warning
    error(503, t)    that status within t seconds, in the form of an OCI error, and nothing stored
    resumed(n)       everybody has the whole body; n more GETs, each for a range
    cut(t)           200 begun, and visibly cut short within t seconds; nothing stored
    passed()         200, whole, from the upstream, and not stored

Each of them may be changed with `attrs.evolve`; `either` is one of several.
"""

from collections.abc import Sequence

import attrs

from tests.chaos.limits import SLACK_S
from tests.support.http_client import Ended, Member, Response
from tests.support.raw_http import Exchange

WASTE_BYTES = 64 * 1024


@attrs.frozen
class Got:
    """One answer as a client had it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    received: int
    is_right: bool  # every byte that came is the right one
    is_whole: bool  # it has the length that it claims
    took_s: float
    ended: str
    reply: Response | None = None

    def header(self, name: str) -> str | None:
        """A header by its name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @classmethod
    def of(cls, reply: Response, truth: bytes) -> "Got":
        """What `ask` brought."""
        body = reply.body
        is_right = truth.startswith(body) and (not reply.is_complete or len(body) == len(truth))
        return cls(
            reply.status, reply.headers, len(body), is_right, reply.is_complete, reply.took_s, reply.ended, reply
        )

    @classmethod
    def of_member(cls, member: Member, took_s: float) -> "Got":
        """What one of a crowd has."""
        is_whole = member.ended == "length"
        # The body of an error is kept, for its form.
        ended: Ended = "length" if is_whole else "fin"
        reply = Response(member.status, member.headers, member.error, ended, took_s) if member.error else None
        is_right = member.wrong_at is None
        return cls(member.status, member.headers, member.received, is_right, is_whole, took_s, member.ended, reply)

    def describe(self) -> str:
        """In a word or two."""
        if self.status in (200, 206) and not self.is_whole:
            return f"{self.status} cut ({self.ended})"
        stale = " stale" if self.header("Warning") else ""
        return f"{self.status}{stale}"


@attrs.frozen
class Seen:
    """What the clients of a cell had, and what reached the upstream for them."""

    got: tuple[Got, ...]
    requests: tuple[Exchange, ...]
    is_stored: bool

    def asked(self, *kinds: str, method: str | None = None) -> list[Exchange]:
        """The requests of these kinds."""
        return [
            each
            for each in self.requests
            if each.request.kind in kinds and (method is None or each.request.method == method)
        ]

    def describe(self) -> str:
        """All of it in a line."""
        ends: dict[str, int] = {}
        for got in self.got:
            ends[got.describe()] = ends.get(got.describe(), 0) + 1
        clients = ", ".join(f"{count} x {end}" if count > 1 else end for end, count in ends.items())
        slowest = max((got.took_s for got in self.got), default=0.0)
        return f"{clients} within {slowest:.2f} s"


@attrs.frozen
class Outcome:
    """What a client must see, and what it may cost. Counts are (least, most); None: not looked at."""

    word: str
    says: str  # to a user
    statuses: frozenset[int]
    is_whole: bool = True
    is_stale: bool = False
    within_s: float | None = None
    requests: tuple[int, int] | None = None  # of all kinds
    heads: tuple[int, int] | None = None
    gets: tuple[int, int] | None = None  # of bodies: manifests and blobs, at the registry
    is_stored: bool | None = None
    has_ranges: bool = False  # every body GET but the first asks for a range
    waste_bytes: int | None = None  # what each of them may fetch twice, as the fake registry counts
    others: tuple["Outcome", ...] = ()

    def judge(self, seen: Seen) -> list[str]:
        """What is wrong; nothing when this is what was seen."""
        found = self._judge(seen)
        for other in self.others:
            found = found and other.judge(seen) and found
        return found

    def judge_bytes(self, seen: Seen, size: int) -> list[str]:
        """What is wrong with the bytes that the upstream sent for a layer of this size (I4)."""
        if self.waste_bytes is None:
            return []
        bodies = seen.asked("blob", "cdn", method="GET")
        sent = sum(each.sent_bytes for each in bodies)
        bound = size + len(bodies) * self.waste_bytes
        return [f"{sent} bytes from the upstream, expected {bound} at most"] if sent > bound else []

    def _judge(self, seen: Seen) -> list[str]:
        found = [problem for got in seen.got for problem in self._judge_answer(got)]
        # A request that only learns how to log in is none for a body.
        bodies = [each for each in seen.asked("manifest", "blob", method="GET") if each.status != 401]
        counts = (
            ("requests", self.requests, len(seen.requests)),
            ("HEADs", self.heads, len(seen.asked("manifest", method="HEAD"))),
            ("body GETs", self.gets, len(bodies)),
        )
        for what, bounds, count in counts:
            if bounds is not None and not bounds[0] <= count <= bounds[1]:
                found.append(f"{count} {what} upstream, expected {bounds[0]} to {bounds[1]}")
        if self.is_stored is not None and seen.is_stored is not self.is_stored:
            found.append("it is stored" if seen.is_stored else "it is not stored")
        if self.has_ranges and any(each.request.header("Range") is None for each in bodies[1:]):
            found.append("a body was asked for twice from its beginning")
        return list(dict.fromkeys(found))

    def _judge_answer(self, got: Got) -> list[str]:
        found = []
        if got.status not in self.statuses:
            found.append(f"status {got.status}, expected {self.word}")
        elif got.status in (200, 206) and got.is_whole is not self.is_whole:
            found.append("the body is whole" if got.is_whole else f"the body ends by {got.ended} at {got.received}")
        if bool(got.header("Warning")) is not self.is_stale:
            found.append("not marked stale" if self.is_stale else "marked stale")
        if self.within_s is not None and got.took_s > self.within_s + SLACK_S:
            found.append(f"took {got.took_s:.2f} s, expected {self.within_s:.2f} s")
        return found


def judge_always(got: Got) -> list[str]:
    """What holds for every answer: nothing wrong is served whole, cuts are visible, errors have their form (I2, I3)."""
    found = []
    if got.status in (200, 206):
        if not got.is_right and got.is_whole:
            found.append("WRONG BYTES SERVED WHOLE")
        if got.header("Content-Length") is None or got.header("Transfer-Encoding") is not None:
            found.append("a body without a Content-Length: its truncation would not be seen")
        if not got.is_whole and got.ended != "fin":
            found.append(f"a body that ends by {got.ended} instead of FIN")
    return found


def hit() -> Outcome:
    """200 without a request upstream."""
    return Outcome("HIT", "as ever; the upstream is not asked", frozenset({200}), requests=(0, 0))


def hit1() -> Outcome:
    """200 after one freshness check."""
    return Outcome("HIT1", "as ever, after one freshness check", frozenset({200}), heads=(1, 1), gets=(0, 0))


def new(gets: int = 1) -> Outcome:
    """200, fetched now."""
    return Outcome("NEW", "fetched from the upstream", frozenset({200}), gets=(1, gets), is_stored=True)


def stale(within_s: float) -> Outcome:
    """200 with what was stored, marked."""
    says = f"the last known image within {within_s:g} s, marked stale; later answers at once"
    return Outcome(f"STALE({within_s:g})", says, frozenset({200}), is_stale=True, within_s=within_s)


def error(status: int, within_s: float, *more: int) -> Outcome:
    """An error in time."""
    statuses = frozenset({status, *more})
    spelt = " or ".join(map(str, sorted(statuses)))
    return Outcome(
        f"E{spelt}({within_s:g})", f"{spelt} within {within_s:g} s", statuses, within_s=within_s, is_stored=False
    )


def resumed(gets: int, *, at_most: int | None = None) -> Outcome:
    """Everybody has the whole body, after so many more GETs."""
    return Outcome(
        f"RES({gets})",
        "the whole layer; the break is mended on the way",
        frozenset({200}),
        gets=(1 + gets, 1 + (at_most or gets)),
        is_stored=True,
        has_ranges=True,
        waste_bytes=WASTE_BYTES,
    )


def cut(within_s: float) -> Outcome:
    """A body that ends short, in time."""
    says = f"the layer ends visibly short within {within_s:g} s; clients try again"
    return Outcome(f"CUT({within_s:g})", says, frozenset({200}), is_whole=False, within_s=within_s, is_stored=False)


def passed() -> Outcome:
    """200 from the upstream, not stored."""
    return Outcome("PASS", "from the upstream, not stored", frozenset({200}), gets=(1, 1))


def either(first: Outcome, *others: Outcome) -> Outcome:
    """One of several."""
    word = " or ".join(each.word for each in (first, *others))
    says = "; or ".join(each.says for each in (first, *others))
    return attrs.evolve(first, word=word, says=says, others=tuple(others))


def describe(outcomes: Sequence[Outcome]) -> str:
    """The words of the parts of a cell."""
    return " / ".join(each.word for each in outcomes)
