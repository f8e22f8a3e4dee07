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


def test_refusals_do_not_push_out_those_who_are_admitted() -> None:
    """Somebody who tries thousands of logins changes nothing for the others; newer admissions replace older ones."""
    verdicts = Verdicts(buckets=1)
    keys = [verdicts.key("up.test", f"app{number}", ANN) for number in range(9)]
    for number, key in enumerate(keys[:8]):
        verdicts.put(key, Verdict.ADMITTED, float(number))
    for number in range(100):
        verdicts.put(verdicts.key("up.test", "app", Login("eve", str(number))), Verdict.WRONG, 1000.0 + number)
    assert all(verdicts.find(key) for key in keys[:8])
    verdicts.put(keys[8], Verdict.ADMITTED, 2000.0)
    assert [verdicts.find(key) is None for key in keys] == [True] + [False] * 8


@pytest.mark.parametrize("at", range(40))
def test_a_torn_record_is_absent(at: int) -> None:
    """Two processes may write at the same place at the same time."""
    verdicts = Verdicts(buckets=1)
    key = verdicts.key("up.test", "app", ANN)
    verdicts.put(key, Verdict.ADMITTED, 1.0)
    verdicts._table[at] ^= 1
    assert verdicts.find(key) is None
