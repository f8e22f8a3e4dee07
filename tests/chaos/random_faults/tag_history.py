"""Check the history of one tag against four rules.

One writer has moved the tag through digests that never repeat; readers have logged their responses. `delay_s` is how
long a freshness check may take plus how long its result may be used.

(a) While the upstream was reachable, a response has a digest that the tag had at some time between `delay_s` before the
    request and the response.
(b) A response that could not be checked, because the upstream was unreachable all the time, is marked stale; so is one
    that is older than (a) allows.
(c) No response is older than one that another reader had received more than `delay_s` before the request.
(d) Every digest is one that the tag had, and its bytes came with it.

Pure: times are given, on one clock.
"""

from collections.abc import Iterator, Sequence

import attrs

from tests.chaos.load.constant_rate_client import TimedResponse


@attrs.frozen
class Move:
    """The tag points to `digest` from some time between these two on."""

    digest: str
    began_at: float
    ended_at: float


@attrs.frozen
class Outage:
    """The upstream is unreachable from `began_at` to `ended_at`, and may be regarded as that until `forgotten_at`."""

    began_at: float
    ended_at: float
    forgotten_at: float


def find_violations(
    moves: Sequence[Move], responses: Sequence[TimedResponse], outages: Sequence[Outage], delay_s: float
) -> list[str]:
    """Find the responses that break a rule, one line for each; `moves` are in order."""
    versions = {move.digest: number for number, move in enumerate(moves)}
    assert len(versions) == len(moves), "a digest occurs twice"
    known = [each for each in responses if each.is_right and each.digest in versions]
    found = [
        f"(d) {each.digest or 'no digest'} at {each.ended_at:.3f}: not the tag's, or not its bytes"
        for each in responses
        if not each.is_right or each.digest not in versions
    ]
    for each in known:
        found += _judge(each, versions[each.digest], moves, outages, delay_s)
    found += _find_regressions(known, versions, delay_s)
    return found


def _judge(
    response: TimedResponse, version: int, moves: Sequence[Move], outages: Sequence[Outage], delay_s: float
) -> Iterator[str]:
    since, until = response.began_at - delay_s, response.ended_at
    replaced_at = moves[version + 1].ended_at if version + 1 < len(moves) else float("inf")
    is_current = moves[version].began_at <= until and replaced_at >= since
    in_doubt = any(outage.began_at <= until and outage.forgotten_at >= since for outage in outages)
    what = f"version {version}, requested at {response.began_at:.3f}"
    if not is_current and not in_doubt:
        yield f"(a) {what}: replaced at {replaced_at:.3f}, and the upstream was reachable"
    if not is_current and in_doubt and not response.is_stale:
        yield f"(b) {what}: replaced at {replaced_at:.3f}, and not marked stale"
    if is_current and not response.is_stale and _is_covered(since, until, outages):
        yield f"(b) {what}: cannot have been checked, but not marked stale"


def _is_covered(since: float, until: float, outages: Sequence[Outage]) -> bool:
    """Whether the upstream was unreachable at all times between the two."""
    reached = since
    for outage in sorted(outages, key=lambda each: each.began_at):
        if outage.began_at <= reached:
            reached = max(reached, outage.ended_at)
    return reached >= until


def _find_regressions(responses: Sequence[TimedResponse], versions: dict[str, int], delay_s: float) -> Iterator[str]:
    finished = sorted(responses, key=lambda each: each.ended_at)
    newest, at = -1, 0
    for response in sorted(responses, key=lambda each: each.began_at):
        while finished[at].ended_at < response.began_at - delay_s:
            newest = max(newest, versions[finished[at].digest])
            at += 1
        if versions[response.digest] < newest:
            version = versions[response.digest]
            yield f"(c) version {version} requested at {response.began_at:.3f}, after version {newest}"
