"""Where keys come from, when they are read again, and what happens when they cannot be."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from dockyard.access import jwks
from dockyard.access.jwks import (
    MIN_REFRESH_S,
    REFRESH_S,
    RETRY_S,
    FileKeys,
    KeysUnavailable,
    UrlKeys,
    check_keys,
    make_source,
)
from dockyard.access.key_download import DownloadFailed
from dockyard.config.settings import JwtIssuer
from tests.support.token_issuer import TokenIssuer, key_set

ONE, TWO = TokenIssuer(kid="one"), TokenIssuer(kid="two", number=1)
SETTINGS = JwtIssuer("ci", ONE.url, ONE.audience, "https://issuer.test/keys")
WAIT_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeDownload:
    """Returns `body`, or raises DownloadFailed without one."""

    def __init__(self, body: bytes | None) -> None:
        self.body = body
        self.count = 0

    def __call__(self, issuer: JwtIssuer) -> bytes:
        self.count += 1
        if self.body is None:
            raise DownloadFailed("no connection")
        return self.body


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """What is logged: level, message, fields."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for level in ("info", "warning", "error"):
        monkeypatch.setattr(
            jwks.log, level, lambda event, level=level, **fields: found.append((level, event, fields)), raising=False
        )
    return found


def key_ids(source: FileKeys | UrlKeys) -> list[str | None]:
    """The keys that a token is verified with."""
    return [key.key_id for key in source.read().keys]


def test_a_url_or_a_file() -> None:
    """`jwks` tells by itself."""
    assert isinstance(make_source(SETTINGS), UrlKeys)
    assert isinstance(make_source(attrs.evolve(SETTINGS, jwks="/etc/keys.json")), FileKeys)


def test_keys_of_a_url_are_read_once_and_then_every_hour() -> None:
    """Nothing is downloaded before the first token."""
    clock, download = Clock(), FakeDownload(key_set(ONE.jwk()))
    source = UrlKeys(SETTINGS, download, clock)
    assert source.find() is None
    assert download.count == 0
    for _ in range(3):
        assert key_ids(source) == ["one"]
    assert source.find() is source.read()
    assert download.count == 1
    clock.now += REFRESH_S - 1.0
    assert source.find() is not None
    download.body = key_set(TWO.jwk())
    assert key_ids(source) == ["one"]
    clock.now += 1.0
    assert source.find() is None
    assert key_ids(source) == ["two"]
    assert download.count == 2


def test_the_same_keys_stay_the_same_object() -> None:
    """What was verified by them stays verified."""
    clock, download = Clock(), FakeDownload(key_set(ONE.jwk()))
    source = UrlKeys(SETTINGS, download, clock)
    first = source.read()
    clock.now += REFRESH_S
    assert source.read() is first
    assert download.count == 2


def test_an_unknown_key_refreshes_once_a_minute() -> None:
    """Counted from the last download of any kind."""
    clock, download = Clock(), FakeDownload(key_set(ONE.jwk()))
    source = UrlKeys(SETTINGS, download, clock)
    source.read()
    download.body = key_set(ONE.jwk(), TWO.jwk())
    assert not source.may_refresh
    assert [key.key_id for key in source.refresh().keys] == ["one"]
    clock.now += MIN_REFRESH_S - 1.0
    source.refresh()
    assert download.count == 1
    clock.now += 1.0
    assert source.may_refresh
    for _ in range(5):
        assert [key.key_id for key in source.refresh().keys] == ["one", "two"]
    assert download.count == 2


def test_keys_stay_in_use_while_the_url_fails(logged: list[tuple[str, str, dict[str, Any]]]) -> None:
    """However long that is. It is tried again once a minute, and logged once."""
    clock, download = Clock(), FakeDownload(key_set(ONE.jwk()))
    source = UrlKeys(SETTINGS, download, clock)
    source.read()
    for body in (None, b"<html>", b'{"keys": []}'):
        download.body = body
        clock.now += REFRESH_S
        count = download.count
        for _ in range(3):
            assert key_ids(source) == ["one"]
            assert source.find() is not None
        assert download.count == count + 1
        clock.now += MIN_REFRESH_S
        assert key_ids(source) == ["one"]
        assert download.count == count + 2
    assert [(level, fields["reason"]) for level, _, fields in logged] == [
        ("warning", "no connection"),
        ("warning", "the response is not valid JSON"),
        ("warning", "the response has no public key for signatures"),
    ]
    download.body = key_set(TWO.jwk())
    clock.now += MIN_REFRESH_S
    assert key_ids(source) == ["two"]
    assert logged[-1][:2] == ("info", "the keys of an issuer can be read again")


def test_keys_that_were_never_read(logged: list[tuple[str, str, dict[str, Any]]]) -> None:
    """The error says when to try again; the URL is not asked for each token."""
    clock, download = Clock(), FakeDownload(None)
    source = UrlKeys(SETTINGS, download, clock)
    for call in (source.read, source.refresh, source.read):
        with pytest.raises(KeysUnavailable) as caught:
            call()
        assert caught.value.retry_after_s == RETRY_S
    assert download.count == 1
    clock.now += RETRY_S - 0.5
    with pytest.raises(KeysUnavailable) as caught:
        source.read()
    assert caught.value.retry_after_s == 1
    clock.now += 0.5
    with pytest.raises(KeysUnavailable):
        source.read()
    assert download.count == 2
    assert [level for level, *_ in logged] == ["error"]
    download.body = key_set(ONE.jwk())
    clock.now += RETRY_S
    assert key_ids(source) == ["one"]


@pytest.mark.parametrize("has_keys", [False, True])
def test_one_thread_downloads(has_keys: bool) -> None:  # noqa: FBT001
    """The others wait for it if there are no keys, and go on with those that there are."""
    clock = Clock()
    began, may_end = threading.Event(), threading.Event()
    bodies = [key_set(ONE.jwk())]
    count = 0

    def download(issuer: JwtIssuer) -> bytes:
        nonlocal count
        count += 1
        if count == (2 if has_keys else 1):
            began.set()
            assert may_end.wait(WAIT_S)
        return bodies[-1]

    source = UrlKeys(SETTINGS, download, clock)
    if has_keys:
        source.read()
        clock.now += REFRESH_S
        bodies.append(key_set(TWO.jwk()))
    found: list[list[str | None]] = []
    threads = [threading.Thread(target=lambda: found.append(key_ids(source)), daemon=True) for _ in range(4)]
    threads[0].start()
    assert began.wait(WAIT_S)
    for thread in threads[1:]:
        thread.start()
    if has_keys:
        for thread in threads[1:]:
            thread.join(WAIT_S)
        assert found == [["one"]] * 3
        assert source.find() is not None
        assert source.may_refresh
    may_end.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(found) == 4
    assert found[-1] == ["two" if has_keys else "one"]
    assert count == (2 if has_keys else 1)


def test_a_token_of_a_new_key_waits_for_the_download_in_progress() -> None:
    """It is not refused because another thread has begun to read the keys that it needs."""
    clock = Clock()
    began, may_end = threading.Event(), threading.Event()
    bodies = [key_set(ONE.jwk())]

    def download(issuer: JwtIssuer) -> bytes:
        if len(bodies) > 1:
            began.set()
            assert may_end.wait(WAIT_S)
        return bodies[-1]

    source = UrlKeys(SETTINGS, download, clock)
    source.read()
    bodies.append(key_set(ONE.jwk(), TWO.jwk()))
    clock.now += MIN_REFRESH_S
    found: list[bool] = []

    def refresh() -> None:
        found.append(source.refresh().has_key_id("two"))

    threads = [threading.Thread(target=refresh, daemon=True) for _ in range(2)]
    threads[0].start()
    assert began.wait(WAIT_S)
    threads[1].start()
    may_end.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert found == [True, True]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, FileKeys]:
    """A key file that has not changed for some time."""
    monkeypatch.setattr("dockyard.access.files.UNSETTLED_S", -1e9)
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(ONE.jwk()))
    return path, FileKeys(attrs.evolve(SETTINGS, jwks=str(path)))


def test_a_key_file_is_read_again_when_it_has_changed(file: tuple[Path, FileKeys]) -> None:
    """At once, and not before."""
    path, source = file
    assert source.find() is None
    assert source.may_refresh
    first = source.read()
    assert source.read() is source.find() is source.refresh() is first
    assert not source.may_refresh
    path.write_bytes(key_set(TWO.jwk()))
    assert source.find() is None
    assert source.may_refresh
    assert key_ids(source) == ["two"]
    path.with_name("new").write_bytes(key_set(ONE.jwk(), TWO.jwk()))
    path.with_name("new").replace(path)
    assert key_ids(source) == ["one", "two"]


@pytest.mark.parametrize(
    "break_it",
    [Path.unlink, lambda path: path.write_bytes(b"{"), lambda path: path.write_bytes(b"x" * 2**20)],
    ids=["missing", "malformed", "large"],
)
def test_a_key_file_that_cannot_be_used_admits_nobody(
    file: tuple[Path, FileKeys],
    break_it: Callable[[Path], object],
    logged: list[tuple[str, str, dict[str, Any]]],
) -> None:
    """The former keys are not used, it is logged once, and a file that is right again is used."""
    path, source = file
    source.read()
    break_it(path)
    for _ in range(3):
        assert source.find() is None
        with pytest.raises(KeysUnavailable):
            source.read()
    assert [(level, event) for level, event, _ in logged] == [
        ("error", "no token of an issuer is admitted: its key file cannot be used")
    ]
    path.write_bytes(key_set(ONE.jwk()))
    assert key_ids(source) == ["one"]


def test_the_check_of_keys(tmp_path: Path) -> None:
    """How many there are, or why there are none."""
    path = tmp_path / "keys.json"
    issuer = attrs.evolve(SETTINGS, jwks=str(path))
    with pytest.raises(ValueError, match="No such file"):
        check_keys(issuer)
    path.write_bytes(key_set(ONE.jwk(), TWO.jwk(), ONE.jwk(use="enc")))
    assert check_keys(issuer) == 2
    path.write_bytes(key_set(ONE.jwk(use="enc")))
    with pytest.raises(ValueError, match="no public key for signatures"):
        check_keys(issuer)
    with pytest.raises(ValueError, match="refused"):
        check_keys(attrs.evolve(SETTINGS, jwks="http://127.0.0.1:1/keys"))
