"""The table of verdicts: by login and repository, shared by processes, of a fixed size."""

import os

import pytest

from dockyard.access.verdicts import Decided, Verdict, Verdicts
from dockyard.oci.login import Login

ANN = Login("ann", "canary-password")


def test_the_last_verdict_is_found() -> None:
    """And nothing before there is one."""
    verdicts = Verdicts()
    key = verdicts.key("up.test", "app", ANN)
    assert verdicts.find(key) is None
    verdicts.put(key, Verdict.ADMITTED, 1.5)
    assert verdicts.find(key) == Decided(Verdict.ADMITTED, 1.5)
    verdicts.put(key, Verdict.REFUSED, 2.5)
    assert verdicts.find(key) == Decided(Verdict.REFUSED, 2.5)


@pytest.mark.parametrize(
    ("prefix", "repository", "login"),
    [
        ("up.test", "app", None),
        ("up.test", "app", Login("ann", "canary-passwor")),
        ("up.test", "app", Login("annc", "anary-password")),
        ("up.test", "app", Login("ann", "canary-password", is_bearer=True)),
        ("up.test", "app2", ANN),
        ("up.test", "", ANN),
        ("up.test2", "app", ANN),
        ("up.testapp", "", ANN),
    ],
)
def test_a_verdict_says_nothing_about_others(prefix: str, repository: str, login: Login | None) -> None:
    """Another upstream, repository, login, or none."""
    verdicts = Verdicts()
    verdicts.put(verdicts.key("up.test", "app", ANN), Verdict.ADMITTED, 1.0)
    assert verdicts.find(verdicts.key(prefix, repository, login)) is None


def test_the_table_has_no_login() -> None:
    """And its keys are those of one server only."""
    verdicts = Verdicts(buckets=1)
    verdicts.put(verdicts.key("up.test", "app", ANN), Verdict.ADMITTED, 1.0)
    content = verdicts._table[:]
    assert b"canary" not in content
    assert b"ann" not in content
    assert verdicts.key("up.test", "app", ANN) != Verdicts().key("up.test", "app", ANN)


def test_another_process_finds_it() -> None:
    """The memory is shared after a fork."""
    verdicts = Verdicts()
    key = verdicts.key("up.test", "app", ANN)
    pid = os.fork()
    if pid == 0:
        verdicts.put(key, Verdict.WRONG, 3.0)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert verdicts.find(key) == Decided(Verdict.WRONG, 3.0)


def put_many(verdicts: Verdicts, verdict: Verdict, count: int, since: float) -> list[bytes]:
    """Record a verdict about many logins, one after the other."""
    keys = [verdicts.key("up.test", "app", Login("eve", f"{verdict} {number}")) for number in range(count)]
    for number, key in enumerate(keys):
        verdicts.put(key, verdict, since + number)
    return keys


def found(verdicts: Verdicts, keys: list[bytes]) -> list[bytes]:
    """Those that are remembered."""
    return [key for key in keys if verdicts.find(key)]


def test_refusals_do_not_push_out_those_who_are_admitted() -> None:
    """Somebody who tries thousands of logins changes nothing for the others; newer admissions replace older ones."""
    verdicts = Verdicts(buckets=1)
    admitted = put_many(verdicts, Verdict.ADMITTED, 6, 0.0)
    refused = put_many(verdicts, Verdict.WRONG, 100, 1000.0)
    assert found(verdicts, admitted) == admitted
    assert found(verdicts, refused) == refused[-2:]
    newer = verdicts.key("up.test", "app", ANN)
    verdicts.put(newer, Verdict.ADMITTED, 2000.0)
    assert found(verdicts, [*admitted, newer]) == [*admitted[1:], newer]


def test_those_who_were_admitted_do_not_keep_out_refusals() -> None:
    """As each job has a login of its own, all of the table is admissions in the end, which hold no more."""
    verdicts = Verdicts(buckets=1)
    admitted = put_many(verdicts, Verdict.ADMITTED, 100, 0.0)
    assert found(verdicts, admitted) == admitted[-8:]
    for number, key in enumerate(refused := put_many(verdicts, Verdict.WRONG, 3, 1000.0)):
        assert (verdicts.find(key) is None) == (number == 0)
    assert found(verdicts, admitted) == admitted[-6:]
    put_many(verdicts, Verdict.ADMITTED, 100, 2000.0)
    assert found(verdicts, refused) == refused[-2:]


@pytest.mark.parametrize("at", range(40))
def test_a_torn_record_is_absent(at: int) -> None:
    """Two processes may write at the same place at the same time."""
    verdicts = Verdicts(buckets=1)
    key = verdicts.key("up.test", "app", ANN)
    verdicts.put(key, Verdict.ADMITTED, 1.0)
    verdicts._table[at] ^= 1
    assert verdicts.find(key) is None
