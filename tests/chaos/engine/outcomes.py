"""The outcome words of the matrix, and whether what clients observed is one of them.

    hit()            200, complete, without a request upstream
    hit1()           200, complete, after exactly one freshness check
    new()            200, complete, fetched now with one body GET, and stored
    stale(t)         200 with the last stored bytes within t seconds, marked by a Warning header
    error(503, t)    that status within t seconds, in the form of an OCI error, and nothing stored
    resumed(n)       every client has the complete body; n more GETs, each for a range
    cut(t)           200, and the body visibly cut short within t seconds; nothing stored
    passed()         200, complete, from the upstream, and not stored

Each of them may be changed with `attrs.evolve`; `either` is one of several.
"""

from collections.abc import Sequence

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.limits import SLACK_S
from tests.support.busy_machine import is_within
from tests.support.http_client import Ended, Member, Response
from tests.support.raw_http import Exchange

MAX_REFETCHED_BYTES = 64 * 1024
OK = frozenset({200})


@attrs.frozen
class ObservedResponse:
    """One response as a client received it, compared with the right bytes."""

    status: int
    headers: tuple[tuple[str, str], ...]
    received: int  # bytes of the body
    is_right: bool  # every byte that was received is the right one
    is_whole: bool  # the body has the length that the response announced
    took_s: float
    ended: str
    response: Response | None = None  # of errors, and of bodies that were kept

    def header(self, name: str) -> str | None:
        """The value of a header."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def is_right_and_whole(self) -> bool:
        """Whether it is a complete 200 with the right bytes."""
        return self.status == 200 and self.is_whole and self.is_right

    @classmethod
    def of(cls, response: Response, truth: bytes) -> "ObservedResponse":
        """Compare the response of a single request with the right bytes."""
        body, is_whole = response.body, response.is_complete
        is_right = truth.startswith(body) and (not is_whole or len(body) == len(truth))
        return cls(
            response.status,
            response.headers,
            len(body),
            is_right,
            is_whole,
            response.took_s,
            response.ended,
            response,
        )

    @classmethod
    def of_member(cls, member: Member, took_s: float) -> "ObservedResponse":
        """Take the response of one client of a crowd."""
        is_whole = member.ended == "length"
        # The body of an error is kept, so that its form can be checked.
        ended: Ended = "length" if is_whole else "fin"
        response = Response(member.status, member.headers, member.error, ended, took_s) if member.error else None
        is_right = member.wrong_at is None
        return cls(member.status, member.headers, member.received, is_right, is_whole, took_s, member.ended, response)

    def describe(self) -> str:
        """Describe the response in a few words."""
        if self.status in (200, 206) and not self.is_whole:
            return f"{self.status} cut ({self.ended})"
        stale = " stale" if self.header("Warning") else ""
        return f"{self.status}{stale}"


@attrs.frozen
class Observation:
    """The responses that the clients of a case got, and the requests that reached the upstream for them."""

    responses: tuple[ObservedResponse, ...]
    requests: tuple[Exchange, ...]
    is_stored: bool

    def requests_of(self, *kinds: str, method: str | None = None) -> list[Exchange]:
        """The requests of these kinds."""
        return [
            each
            for each in self.requests
            if each.request.kind in kinds and (method is None or each.request.method == method)
        ]

    def describe(self) -> str:
        """Describe the responses in one line."""
        counts: dict[str, int] = {}
        for each in self.responses:
            counts[each.describe()] = counts.get(each.describe(), 0) + 1
        clients = ", ".join(f"{count} x {words}" if count > 1 else words for words, count in counts.items())
        slowest_s = max((each.took_s for each in self.responses), default=0.0)
        return f"{clients} within {slowest_s:.2f} s"


@attrs.frozen
class Outcome:
    """What a client must see, and what it may cost. Counts are (least, most); None: not checked."""

    word: str
    says: str  # what a user sees, for the page
    statuses: frozenset[int]
    is_whole: bool = True
    is_stale: bool = False
    within_s: float | None = None
    requests: tuple[int, int] | None = None  # of all kinds
    heads: tuple[int, int] | None = None
    gets: tuple[int, int] | None = None  # of bodies: manifests and blobs, at the registry
    is_stored: bool | None = None
    has_ranges: bool = False  # every body GET but the first has a Range header
    waste_bytes: int | None = None  # that each body GET may fetch again, as the fake registry counts
    others: tuple["Outcome", ...] = ()  # one of which may be seen instead

    def judge(self, observation: Observation) -> list[str]:
        """The differences between this outcome and an observation; none if it is what was observed."""
        found = self._judge(observation)
        for other in self.others:
            found = found and other.judge(observation) and found
        return found

    def judge_bytes(self, observation: Observation, size: int) -> list[str]:
        """Whether the upstream sent more bytes for a layer of this size than it may."""
        if self.waste_bytes is None:
            return []
        bodies = observation.requests_of("blob", "cdn", method="GET")
        sent = sum(each.sent_bytes for each in bodies)
        bound = size + len(bodies) * self.waste_bytes
        return [f"{sent} bytes from the upstream, expected {bound} at most"] if sent > bound else []

    def judge_response(self, response: ObservedResponse) -> list[str]:
        """The differences between this outcome and one response, without its costs."""
        found = []
        if response.status not in self.statuses:
            found.append(f"status {response.status}, expected {self.word}")
        elif response.status in (200, 206) and response.is_whole is not self.is_whole:
            end = f"the body ends by {response.ended} at {response.received}"
            found.append("the body is whole" if response.is_whole else end)
        if bool(response.header("Warning")) is not self.is_stale:
            found.append("not marked stale" if self.is_stale else "marked stale")
        if self.within_s is not None and not is_within(response.took_s, self.within_s, slack_s=SLACK_S):
            found.append(f"took {response.took_s:.2f} s, expected {self.within_s:.2f} s")
        return found

    def _judge(self, observation: Observation) -> list[str]:
        found = [problem for each in observation.responses for problem in self.judge_response(each)]
        # A request whose response is 401 fetches a challenge, not a body.
        bodies = [each for each in observation.requests_of("manifest", "blob", method="GET") if each.status != 401]
        counts = (
            ("requests", self.requests, len(observation.requests)),
            ("HEADs", self.heads, len(observation.requests_of("manifest", method="HEAD"))),
            ("body GETs", self.gets, len(bodies)),
        )
        for what, bounds, count in counts:
            if bounds is not None and not bounds[0] <= count <= bounds[1]:
                found.append(f"{count} {what} upstream, expected {bounds[0]} to {bounds[1]}")
        if self.is_stored is not None and observation.is_stored is not self.is_stored:
            found.append("it is stored" if observation.is_stored else "it is not stored")
        if self.has_ranges and any(each.request.header("Range") is None for each in bodies[1:]):
            found.append("a body was requested twice from its beginning")
        return list(dict.fromkeys(found))


def find_response_problems(response: ObservedResponse) -> list[str]:
    """Check what holds for every response: a complete body is right, and a cut body is visibly shorter."""
    found = []
    if response.status in (200, 206):
        if not response.is_right and response.is_whole:
            found.append("WRONG BYTES SERVED WHOLE")
        if response.header("Content-Length") is None or response.header("Transfer-Encoding") is not None:
            found.append("a body without a Content-Length: its truncation would not be visible")
        if not response.is_whole and response.ended != "fin":
            found.append(f"a body that ends by {response.ended} instead of FIN")
    return found


def hit() -> Outcome:
    """200 without a request upstream."""
    return Outcome("HIT", "the cached copy; no request upstream", OK, requests=(0, 0))


def hit1() -> Outcome:
    """200 after one freshness check."""
    return Outcome("HIT1", "the cached copy after one freshness check", OK, heads=(1, 1), gets=(0, 0))


def new(gets: int = 1) -> Outcome:
    """200, fetched now."""
    return Outcome("NEW", "fetched from the upstream", OK, gets=(1, gets), is_stored=True)


def stale(within_s: float) -> Outcome:
    """200 with what was stored, marked stale."""
    says = f"the last known image within {within_s:g} s, marked stale; later responses at once"
    return Outcome(f"STALE({within_s:g})", says, OK, is_stale=True, within_s=within_s)


def error(status: int, within_s: float, *more: int) -> Outcome:
    """An error of one of these statuses within a time."""
    statuses = frozenset({status, *more})
    spelt = " or ".join(map(str, sorted(statuses)))
    return Outcome(
        f"E{spelt}({within_s:g})", f"{spelt} within {within_s:g} s", statuses, within_s=within_s, is_stored=False
    )


def resumed(gets: int, *, at_most: int | None = None) -> Outcome:
    """Every client has the complete body, after so many more GETs."""
    return Outcome(
        f"RES({gets})",
        "the whole layer; Dockyard resumes the fetch by itself",
        OK,
        gets=(1 + gets, 1 + (at_most or gets)),
        is_stored=True,
        has_ranges=True,
        waste_bytes=MAX_REFETCHED_BYTES,
    )


def cut(within_s: float) -> Outcome:
    """A body that ends short of its length within a time."""
    says = f"the layer ends visibly short within {within_s:g} s; clients retry"
    return Outcome(f"CUT({within_s:g})", says, OK, is_whole=False, within_s=within_s, is_stored=False)


def passed() -> Outcome:
    """200 from the upstream, not stored."""
    return Outcome("PASS", "from the upstream, not stored", OK, gets=(1, 1))


def either(first: Outcome, *others: Outcome) -> Outcome:
    """One of several."""
    word = " or ".join(each.word for each in (first, *others))
    says = "; or ".join(each.says for each in (first, *others))
    return attrs.evolve(first, word=word, says=says, others=tuple(others))


def describe(outcomes: Sequence[Outcome]) -> str:
    """The words of the outcomes of a case."""
    return " / ".join(each.word for each in outcomes)


# The outcomes where the fault must not be noticed: what is cached is a hit, the rest is fetched from the upstream once.
UNAFFECTED: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (hit1(),),
    State.TAG_COLD: (new(),),
    State.MANIFEST: (hit(), new()),
    State.BLOB_CACHED: (hit(),),
    State.BLOB_COLD: (new(),),
    State.BLOB_DOWNLOAD: (new(),),
}
