"""Is the history of one tag a right one? The four rules of a register that is checked before it is read.

One writer moved the tag through digests that never come twice; readers logged what they were answered. With `delay_s`
for the time that a check may take and that its outcome may be used:

(a) while the upstream could be reached, an answer is what the tag meant at some instant from `delay_s` before the
    question to the answer;
(b) an answer that could not be checked, because the upstream was out of reach all the while, is marked stale, and so
    is one that is older than (a) allows;
(c) no answer goes back behind one that another reader had, completely, more than `delay_s` before the question;
(d) every digest that was answered is one of the tag's, and its bytes came with it.

Pure: times are given, on one clock.
"""

from collections.abc import Iterator, Sequence

import attrs

from tests.chaos.load.constant_rate_client import TimedResponse


@attrs.frozen
class Move:
    """The tag means `digest` from some instant between these two times on."""

    digest: str
    began_at: float
    ended_at: float


@attrs.frozen
class Outage:
    """The upstream is out of reach from `began_at` to `ended_at`, and may be taken for that until `forgotten_at`."""

    began_at: float
    ended_at: float
    forgotten_at: float


def find_violations(
    moves: Sequence[Move], responses: Sequence[TimedResponse], outages: Sequence[Outage], delay_s: float
) -> list[str]:
    """One line for each answer that breaks a rule; `moves` in their order."""
    versions = {move.digest: number for number, move in enumerate(moves)}
    assert len(versions) == len(moves), "a digest came twice"
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
    answer: TimedResponse, version: int, moves: Sequence[Move], outages: Sequence[Outage], delay_s: float
) -> Iterator[str]:
    since, until = answer.began_at - delay_s, answer.ended_at
    replaced_at = moves[version + 1].ended_at if version + 1 < len(moves) else float("inf")
    is_current = moves[version].began_at <= until and replaced_at >= since
    in_doubt = any(outage.began_at <= until and outage.forgotten_at >= since for outage in outages)
    what = f"version {version}, asked for at {answer.began_at:.3f}"
    if not is_current and not in_doubt:
        yield f"(a) {what}: replaced at {replaced_at:.3f}, and the upstream could be asked"
    if not is_current and in_doubt and not answer.is_stale:
        yield f"(b) {what}: replaced at {replaced_at:.3f}, and not marked stale"
    if is_current and not answer.is_stale and _is_covered(since, until, outages):
        yield f"(b) {what}: cannot have been checked, and not marked stale"


def _is_covered(since: float, until: float, outages: Sequence[Outage]) -> bool:
    """Whether there is no instant between the two at which the upstream could be reached."""
    reached = since
    for outage in sorted(outages, key=lambda each: each.began_at):
        if outage.began_at <= reached:
            reached = max(reached, outage.ended_at)
    return reached >= until


def _find_regressions(responses: Sequence[TimedResponse], versions: dict[str, int], delay_s: float) -> Iterator[str]:
    finished = sorted(responses, key=lambda each: each.ended_at)
    newest, at = -1, 0
    for answer in sorted(responses, key=lambda each: each.began_at):
        while finished[at].ended_at < answer.began_at - delay_s:
            newest = max(newest, versions[finished[at].digest])
            at += 1
        if versions[answer.digest] < newest:
            yield f"(c) version {versions[answer.digest]} asked for at {answer.began_at:.3f}, after version {newest}"
