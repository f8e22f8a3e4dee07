"""Passwords of the htpasswd file."""

import os
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from dockyard.access import passwords
from dockyard.access.passwords import Account, PasswordFile, hash_password
from dockyard.config.htpasswd import MIN_COST
from tests.support.htpasswd import htpasswd_line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file with one user."""
    file = tmp_path / "htpasswd"
    file.write_text(htpasswd_line("alice", "right"))
    return file


def is_right(file: PasswordFile, username: str, password: str) -> bool:
    """Whether a user has this password."""
    return file.is_right(username, password, file.read(username))


@pytest.mark.parametrize("password", ["right", "p\u00e4ss w\u00f6rd: \U0001f511", "x" * 72, "a:b", " "])
def test_the_right_password_and_no_other(path: Path, password: str) -> None:
    """Each character counts."""
    path.write_text(htpasswd_line("alice", password) + htpasswd_line("bob", "other"))
    file = PasswordFile(str(path))
    assert is_right(file, "alice", password)
    for wrong in (
        "",
        password[:-1],
        password + "x",
        password.upper() + "?",
        f"{password}\0",
        f"{password}\0{password}",
    ):
        assert not is_right(file, "alice", wrong)
    assert not is_right(file, "bob", password)
    assert not is_right(file, "carol", password)
    assert not is_right(file, "ALICE", password)


@pytest.mark.parametrize("begin", [b"$2a$", b"$2b$", b"$2y$"])
def test_the_forms_of_bcrypt(path: Path, begin: bytes) -> None:
    """The hashes of other programs are the same but for their beginning."""
    found = bcrypt.hashpw(b"right", bcrypt.gensalt(MIN_COST))
    path.write_bytes(b"alice:" + begin + found[4:] + b"\n")
    assert is_right(PasswordFile(str(path)), "alice", "right")


def test_a_password_beyond_what_bcrypt_reads_is_wrong(path: Path) -> None:
    """It is not cut to the 72 bytes that would be right."""
    path.write_text(htpasswd_line("alice", "x" * 72))
    file = PasswordFile(str(path))
    assert not is_right(file, "alice", "x" * 73)
    assert not is_right(file, "alice", "x" * 5000)
    with pytest.raises(ValueError, match="72 bytes"):
        hash_password("\u00e4" * 37)


@pytest.mark.parametrize("password", ["", "a\0b"])
def test_passwords_that_are_not_hashed(password: str) -> None:
    """An empty one, and one that bcrypt takes for another."""
    with pytest.raises(ValueError, match="NUL"):
        hash_password(password)


def test_a_surrogate_is_no_error(path: Path) -> None:
    """Characters that UTF-8 does not have make a wrong password."""
    assert not is_right(PasswordFile(str(path)), "al\udc80ice", "\ud800")


def test_an_unknown_user_costs_as_much_as_a_known_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hash of the same cost is computed in each case: for unknown and unusable users, and for long passwords."""
    path.write_text(htpasswd_line("alice", "right").replace("$04$", "$05$") + "bob:plain\n")
    file = PasswordFile(str(path))
    costs: list[bytes] = []

    def check(password: bytes, found: bytes) -> bool:
        costs.append(found[:7])
        return True

    monkeypatch.setattr(passwords.bcrypt, "checkpw", check)
    assert is_right(file, "alice", "wrong")  # by this checkpw
    for username, password in (("carol", "x"), ("bob", "plain"), ("alice", "x" * 73), ("alice", "x\0"), ("", "")):
        assert not is_right(file, username, password)
    assert costs == [b"$2b$05$"] * 6


def test_no_password_is_that_of_an_unknown_user(path: Path) -> None:
    """The hash that is compared for them is valid, and has no password."""
    file = PasswordFile(str(path))
    dummy = file._file.read().content.dummy_for("carol")
    assert not bcrypt.checkpw(b"x", dummy)
    assert dummy == file._file.read().content.dummy_for("carol")


@pytest.mark.parametrize("name", ["jürgen", "Jürgen", "JÜRGEN", "ju\u0308rgen", " jürgen", "jürgen\t", "\uff4aürgen"])
def test_a_name_that_is_written_in_another_way_is_known(tmp_path: Path, name: str) -> None:
    """Whoever mistypes it does not mean an upstream, which must not get the password. It is no other name in rules."""
    path = tmp_path / "htpasswd"
    path.write_text(htpasswd_line("jürgen", "right") + htpasswd_line("bob", "right"))
    file = PasswordFile(str(path))
    assert file.read(name).is_known
    assert is_right(file, name, "right") == (name == "jürgen")
    assert not file.read("jurgen").is_known


def test_the_file_is_read_again_when_it_has_changed(path: Path) -> None:
    """Written in place, replaced, or behind a symbolic link that was replaced, as Kubernetes does it."""
    file = PasswordFile(str(path))
    assert is_right(file, "alice", "right")
    path.write_text(htpasswd_line("alice", "secnd"))  # of the same size
    assert not is_right(file, "alice", "right")
    assert is_right(file, "alice", "secnd")
    new = path.with_name("new")
    new.write_text(htpasswd_line("bob", "right"))
    new.replace(path)
    assert file.read("alice") == Account(is_known=False)
    assert is_right(file, "bob", "right")


def test_a_mount_of_kubernetes(tmp_path: Path) -> None:
    """`htpasswd -> ..data/htpasswd`, and `..data` is replaced by a rename."""
    for version, password in (("1", "first"), ("2", "second")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "htpasswd").write_text(htpasswd_line("alice", password))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "htpasswd").symlink_to("..data/htpasswd")
    file = PasswordFile(str(tmp_path / "htpasswd"))
    assert is_right(file, "alice", "first")
    (tmp_path / "..tmp").symlink_to("2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    assert not is_right(file, "alice", "first")
    assert is_right(file, "alice", "second")


def test_a_current_version_is_found_without_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the file changes. A version that was read right after a change is not trusted."""
    file = PasswordFile(str(path))
    assert file.find("alice") is None
    account = file.read("alice")
    assert file.find("alice") is None  # it may change again within the resolution of the clock
    found = os.stat(path)
    monkeypatch.setattr("dockyard.access.files.time.time", lambda: found.st_ctime + 1.0)
    assert file.read("alice") == account
    assert file.find("alice") == account
    assert file.find("bob") == Account(is_known=False)
    path.write_text("")
    assert file.find("alice") is None


@pytest.mark.parametrize("break_it", ["remove", "directory", "large", "pipe"])
def test_a_file_that_cannot_be_read_admits_nobody(path: Path, break_it: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged once, its users stay known, and a file that is there again is used."""
    logged: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(passwords.log, "error", lambda event, **fields: logged.append((event, fields)))
    file = PasswordFile(str(path))
    assert is_right(file, "alice", "right")
    path.unlink()
    match break_it:
        case "directory":
            path.mkdir()
        case "large":
            path.write_bytes(b"#" * (passwords.MAX_FILE_BYTES + 1))
        case "pipe":
            os.mkfifo(path)
    for _ in range(3):
        assert file.read("alice") == Account(is_known=True)
        assert file.read("carol") == Account(is_known=True)
        assert not is_right(file, "alice", "right")
    assert [event for event, _ in logged] == ["no user is admitted: the htpasswd file cannot be used"]
    assert logged[0][1]["path"] == str(path)
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_text(htpasswd_line("alice", "right"))
    assert is_right(file, "alice", "right")
    assert len(logged) == 1


def test_wrong_lines_are_logged_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their numbers; the other users stay admitted."""
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(passwords.log, "error", lambda event, **fields: logged.append(fields))
    path.write_text(htpasswd_line("alice", "right") + "bob:canary\nalice2:{SHA}canary\n")
    file = PasswordFile(str(path))
    assert is_right(file, "alice", "right")
    assert not is_right(file, "bob", "canary")
    assert file.read("bob") == Account(is_known=True)
    (fields,) = logged
    assert fields["lines"].startswith("line 2 has ")
    assert "; line 3 has " in fields["lines"]
    assert "canary" not in str(fields)


def test_nothing_secret_is_in_the_representation(path: Path) -> None:
    """Not the hashes either."""
    file = PasswordFile(str(path))
    for value in (file.read("alice"), file._file.read(), file):
        assert "$2b$" not in repr(value)
