"""The `passwd` command: lines for the htpasswd file, and changes of one line in it."""

import os
import pty
import stat
import subprocess
import sys
import threading
from pathlib import Path

import bcrypt
import pytest
from click.testing import CliRunner, Result

from dockyard import passwd
from dockyard.access.passwords import DEFAULT_COST
from dockyard.cli import main
from dockyard.config.htpasswd import parse_htpasswd
from dockyard.passwd import FileProblem, delete_line, set_line
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.paths import ROOT

OTHERS = b"# users\n\nbob:$2y$05$" + b"b" * 53 + b":Bob\ncarol:wrong \r\nno colon\n\xff:x\n"
LINE = "alice:$2y$12$" + "a" * 53


def run(*arguments: str, password: bytes | None = None) -> Result:
    """Run the command, with a password on standard input."""
    options = [] if password is None else ["--stdin"]
    return CliRunner().invoke(main, ["passwd", *arguments, *options], input=password)


@pytest.mark.parametrize("password", [b"secret\n", b"secret", b"secret\r\n"])
def test_a_line_with_the_hash_of_the_password_is_printed(password: bytes) -> None:
    """The end of the line is not part of the password. The line is one that a server accepts."""
    result = run("alice", password=password)
    parsed = parse_htpasswd(result.stdout.encode())

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"alice:$2y${DEFAULT_COST}$")
    assert result.stdout.count("\n") == 1
    assert parsed.problems == ()
    assert bcrypt.checkpw(b"secret", parsed.hashes["alice"])


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        (b"", "must have at least one character"),
        (b"\n", "must have at least one character"),
        (b"a\0b", "no NUL"),
        (b"x" * 73, "must have at most 72 bytes"),
        ("\u00e9".encode() * 37, "must have at most 72 bytes"),
        (b"x" * 100_000, "must have at most 72 bytes"),
        (b"\xff", "must be UTF-8"),
        (b"canary\nother\n", "more than one line"),
        (b"canary\n\n", "more than one line"),
    ],
)
def test_a_password_that_cannot_be_used_is_refused(tmp_path: Path, password: bytes, reason: str) -> None:
    """It is not repeated, and the file is not made."""
    result = run("alice", "--file", str(tmp_path / "users"), password=password)

    assert result.exit_code == 2
    assert reason in result.stderr
    assert "canary" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_longest_password_is_used_whole() -> None:
    """All 72 bytes that bcrypt reads."""
    (found,) = parse_htpasswd(run("alice", password=b"x" * 72).stdout.encode()).hashes.values()

    assert bcrypt.checkpw(b"x" * 72, found)
    assert not bcrypt.checkpw(b"x" * 71, found)


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("", "must not be empty"),
        ("a:b", "must not contain a colon"),
        ("a\nb", "must not contain spaces or control characters"),
        ("a\x1b[31m", "must not contain spaces or control characters"),
        ("a b", "must not contain spaces or control characters"),
        ("a\u00a0b", "must not contain spaces or control characters"),
        ("\ufeffa", "must not contain spaces or control characters"),
        ("a*", "must not contain *"),
        ("#a", "must not begin with #"),
        ("a" * 256, "must have at most 255 characters"),
        ("anonymous", "must not be anonymous"),
        ("authenticated", "must not be authenticated"),
        ("group", "must not be group"),
        ("network", "must not be network"),
    ],
)
def test_a_user_name_that_cannot_be_used_is_refused(user: str, reason: str) -> None:
    """With exit status 2, before the password is read."""
    result = run("--", user)

    assert result.exit_code == 2
    assert reason in result.stderr
    assert result.stdout == ""


def test_a_password_is_not_read_from_a_pipe_by_accident() -> None:
    """Without a terminal, `--stdin` says where it comes from."""
    result = CliRunner().invoke(main, ["passwd", "alice"], input="secret\nsecret\n")

    assert result.exit_code == 2
    assert "--stdin reads it from standard input" in result.stderr


@pytest.mark.parametrize(
    ("answers", "status"), [(["secret", "secret"], 0), (["secret", "other"], 2), (["", ""], 2)], ids=str
)
def test_the_password_is_asked_for_twice_on_a_terminal(answers: list[str], status: int) -> None:
    """Without an echo; only the line is in the standard output."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dockyard", "passwd", "alice"]
    with subprocess.Popen(
        ["setsid", "--ctty", *command], cwd=ROOT, stdin=follower, stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        seen = b""
        for prompt, answer in zip((b"Password: ", b"Again: "), answers, strict=True):
            while prompt not in seen:
                seen += os.read(leader, 1024)
            os.write(leader, answer.encode() + b"\n")
        output, _ = process.communicate(timeout=EVENT_TIMEOUT_S)
    os.close(leader)

    assert process.returncode == status
    assert b"secret" not in seen
    if status == 0:
        assert bcrypt.checkpw(b"secret", parse_htpasswd(output).hashes["alice"])
    else:
        assert output == b""


@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["ctrl-c", "ctrl-d"])
def test_the_question_can_be_interrupted(key: bytes) -> None:
    """With the exit status of an interruption, and without output."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dockyard", "passwd", "alice"]
    with subprocess.Popen(
        ["setsid", "--ctty", *command], cwd=ROOT, stdin=follower, stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        seen = b""
        while b"Password: " not in seen:
            seen += os.read(leader, 1024)
        os.write(leader, key)
        output, _ = process.communicate(timeout=EVENT_TIMEOUT_S)
    seen += os.read(leader, 1024)
    os.close(leader)

    assert (process.returncode, output) == (130, b"")
    assert b"dockyard: interrupted" in seen
    assert b"Traceback" not in seen


# Files


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", f"{LINE}\n".encode()),
        (OTHERS, OTHERS + f"{LINE}\n".encode()),
        (OTHERS + b"alice:old\n", OTHERS + f"{LINE}\n".encode()),
        (b"alice:old\n" + OTHERS, f"{LINE}\n".encode() + OTHERS),
        (b"bob:x", f"bob:x\n{LINE}\n".encode()),
        (b"bob:x\r\n", f"bob:x\r\n{LINE}\r\n".encode()),
        (b"alice:old\r\nbob:x\r\n", f"{LINE}\r\nbob:x\r\n".encode()),
        (b"alice:old", LINE.encode()),
        (b"alice:old:a comment: here\n", f"{LINE}:a comment: here\n".encode()),
        (b"alice:old:\n", f"{LINE}:\n".encode()),
        (b"alice:1\nbob:x\nalice:2\n", f"{LINE}\nbob:x\n".encode()),
        (b"\xef\xbb\xbfalice:old\nbob:x\n", b"\xef\xbb\xbf" + f"{LINE}\nbob:x\n".encode()),
        (b"#alice:x\nalice2:x\nAlice:x\nalice\n", b"#alice:x\nalice2:x\nAlice:x\nalice\n" + f"{LINE}\n".encode()),
        (b"bob:x\rcarol:y\n", b"bob:x\rcarol:y\n" + f"{LINE}\n".encode()),
    ],
)
def test_only_the_line_of_the_user_changes(tmp_path: Path, before: bytes, after: bytes) -> None:
    """All other bytes stay. A repeated user is there once afterwards."""
    path = tmp_path / "users"
    path.write_bytes(before)

    was_there = set_line(path, "alice", LINE)

    assert path.read_bytes() == after
    assert was_there == (b"alice:" in before.replace(b"#alice:", b""))
    assert os.listdir(tmp_path) == ["users"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"alice:x\n" + OTHERS, OTHERS),
        (OTHERS + b"alice:x", OTHERS),
        (b"alice:1\nbob:x\nalice:2\n", b"bob:x\n"),
        (b"alice:1\n", b""),
        (b"\xef\xbb\xbfalice:1\nbob:x\n", b"\xef\xbb\xbfbob:x\n"),
    ],
)
def test_the_lines_of_a_user_are_deleted(tmp_path: Path, before: bytes, after: bytes) -> None:
    """All of them, and nothing else."""
    path = tmp_path / "users"
    path.write_bytes(before)
    result = run("alice", "--delete", "--file", str(path))

    assert (result.exit_code, result.stdout) == (0, f"{path}: deleted alice\n")
    assert path.read_bytes() == after


def test_a_user_that_is_not_there_is_not_deleted(tmp_path: Path) -> None:
    """With exit status 1; the file is not written."""
    path = tmp_path / "users"
    path.write_bytes(OTHERS)
    before = path.stat().st_ino, path.stat().st_mtime_ns

    result = run("alice", "--delete", "--file", str(path))
    missing = run("alice", "--delete", "--file", str(tmp_path / "none"))

    assert (result.exit_code, result.stderr) == (1, f"dockyard: {path}: there is no user alice\n")
    assert (missing.exit_code, missing.stderr) == (1, f"dockyard: {tmp_path / 'none'}: there is no such file\n")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("arguments", [["--delete"], ["--delete", "--stdin", "--file", "x"]])
def test_a_user_is_deleted_from_a_file(arguments: list[str]) -> None:
    """Of which there must be one, and without a password."""
    assert run("alice", *arguments).exit_code == 2


def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Hashes are not for everybody; the message does not repeat them."""
    path = tmp_path / "users"
    added = run("alice", "--file", str(path), password=b"secret")
    changed = run("alice", "--file", str(path), password=b"other")

    assert (added.exit_code, added.stdout) == (0, f"{path}: added alice\n")
    assert (changed.exit_code, changed.stdout) == (0, f"{path}: changed alice\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bcrypt.checkpw(b"other", parse_htpasswd(path.read_bytes()).hashes["alice"])


def test_mode_and_owner_stay(tmp_path: Path) -> None:
    """As far as this user may set them."""
    path = tmp_path / "users"
    path.write_bytes(OTHERS)
    if os.geteuid() == 0:
        os.chown(path, 1234, 5678)
    path.chmod(0o640)
    before = path.stat()
    set_line(path, "alice", LINE)
    after = path.stat()

    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    """The file that it leads to is replaced, in its directory."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "users").write_bytes(OTHERS)
    link = tmp_path / "users"
    link.symlink_to("real/users")
    set_line(link, "alice", LINE)

    assert link.is_symlink()
    assert LINE.encode() in (tmp_path / "real" / "users").read_bytes()
    assert os.listdir(tmp_path / "real") == ["users"]


def test_a_file_that_cannot_be_replaced_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No temporary file is left, and the message says why."""
    path = tmp_path / "users"
    path.write_bytes(OTHERS)

    def fail(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(passwd.os, "replace", fail)
    with pytest.raises(FileProblem, match="users: cannot be replaced: Device or resource busy"):
        set_line(path, "alice", LINE)

    assert path.read_bytes() == OTHERS
    assert os.listdir(tmp_path) == ["users"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A directory is refused with the arguments, others when they are opened."""
    os.mkfifo(tmp_path / "fifo")

    assert run("alice", "--file", str(tmp_path), password=b"x").exit_code == 2
    with pytest.raises(FileProblem, match="must be a regular file"):
        set_line(tmp_path / "fifo", "alice", LINE)
    with pytest.raises(FileProblem, match="No such file or directory"):
        set_line(tmp_path / "none" / "users", "alice", LINE)
    with pytest.raises(FileProblem, match="No such file or directory"):
        delete_line(tmp_path / "none" / "users", "alice")


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    """One waits for the other."""
    path = tmp_path / "users"
    users = [f"user{number}" for number in range(40)]
    barrier = threading.Barrier(len(users))

    def add(user: str) -> None:
        barrier.wait(EVENT_TIMEOUT_S)
        set_line(path, user, f"{user}:x")

    threads = [threading.Thread(target=add, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(EVENT_TIMEOUT_S)

    assert sorted(path.read_text().split()) == sorted(f"{user}:x" for user in users)
