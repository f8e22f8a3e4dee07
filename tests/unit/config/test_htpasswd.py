"""The lines of an htpasswd file."""

from pathlib import Path

import pytest

from dockyard.config.htpasswd import MAX_FILE_BYTES, MAX_PROBLEMS, cost_of, parse_htpasswd, read_htpasswd

HASH = b"$2y$05$" + b"a" * 53


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", set()),
        (b"alice:" + HASH + b"\n", {"alice"}),
        (b"alice:" + HASH, {"alice"}),
        (b"alice:" + HASH + b"\r\nbob:" + HASH + b"\r\n", {"alice", "bob"}),
        (b"\xef\xbb\xbfalice:" + HASH + b"\n", {"alice"}),
        (b"# users\n\n  \nalice:" + HASH + b"  \n", {"alice"}),
        (b"alice:" + HASH + b":a comment\n", {"alice"}),
        ("j\u00fcrgen:".encode() + HASH, {"j\u00fcrgen"}),
        (b"a b:" + HASH, {"a b"}),
        (b"alice:$2a$04$" + b"a" * 53, {"alice"}),
        (b"alice:$2b$16$" + b"a" * 53, {"alice"}),
    ],
)
def test_users(data: bytes, names: set[str]) -> None:
    """Each line is a user with a hash."""
    users = parse_htpasswd(data)
    assert set(users.hashes) == names
    assert users.problems == ()
    assert not users.unusable


@pytest.mark.parametrize(
    ("line", "problem", "unusable"),
    [
        (b"bob:$apr1$x$canarycanary", "an MD5 hash", {"bob"}),
        (b"bob:$1$x$canarycanary", "an MD5 hash", {"bob"}),
        (b"bob:{SHA}canarycanary=", "a SHA-1 hash", {"bob"}),
        (b"bob:$5$x$canarycanary", "a SHA-256 hash", {"bob"}),
        (b"bob:$6$x$canarycanary", "a SHA-512 hash", {"bob"}),
        (b"bob:$argon2id$canary", "something else than a hash", {"bob"}),
        (b"bob:canary", "something else than a hash", {"bob"}),
        (b"bob:", "something else than a hash", {"bob"}),
        (b"bob:realm:canary", "something else than a hash", {"bob"}),
        (b"bob:$2x$05$" + b"a" * 53, "a bcrypt hash that is malformed", {"bob"}),
        (b"bob:" + HASH[:-1], "a bcrypt hash that is malformed", {"bob"}),
        (b"bob:" + HASH + b"a", "a bcrypt hash that is malformed", {"bob"}),
        (b"bob: " + HASH, "something else than a hash", {"bob"}),
        (b"bob:$2b$03$" + b"a" * 53, "cost 03", {"bob"}),
        (b"bob:$2b$17$" + b"a" * 53, "cost 17", {"bob"}),
        (b"bob:$2b$99$" + b"a" * 53, "cost 99", {"bob"}),
        (b"canary", "no colon", set()),
        (b":" + HASH, "no user name", set()),
        (b"b\xffb:" + HASH, "not UTF-8", set()),
        (b"b\x00b:" + HASH, "control characters", {"b\0b"}),
        (b"b*:" + HASH, "control characters", {"b*"}),
        (b" bob:" + HASH, "control characters", {" bob"}),
        (b"b" * 256 + b":" + HASH, "too many characters", {"b" * 256}),
        (b"anonymous:" + HASH, "anonymous", {"anonymous"}),
        (b"Authenticated:" + HASH, "Authenticated", {"Authenticated"}),
        (b"group:" + HASH, "group", {"group"}),
        (b"alice:" + HASH, "the user of line 1 again", {"alice"}),
    ],
)
def test_a_wrong_line_is_named_by_its_number(line: bytes, problem: str, unusable: set[str], tmp_path: Path) -> None:
    """It admits nobody, its user is known, the other lines stay right, and the message quotes nothing secret."""
    data = b"alice:" + HASH + b"\n\n" + line + b"\ncarol:" + HASH + b"\n"
    users = parse_htpasswd(data)
    assert set(users.hashes) == {"alice", "carol"} - unusable
    assert users.unusable == unusable
    assert len(users.problems) == 1
    assert users.problems[0].startswith("line 3 ")
    assert problem in users.problems[0]
    file = tmp_path / "htpasswd"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"^line 3 ") as caught:
        read_htpasswd(str(file))
    for text in (str(caught.value), repr(users)):
        assert "canary" not in text
        assert "aaaaa" not in text


def test_a_long_list_of_wrong_lines_is_cut(tmp_path: Path) -> None:
    """The message names the first lines and the number of the others."""
    file = tmp_path / "htpasswd"
    file.write_bytes(b"x\n" * (MAX_PROBLEMS + 5))
    with pytest.raises(ValueError, match=f"line {MAX_PROBLEMS} has no colon .*; and 5 more$"):
        read_htpasswd(str(file))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The reason is in the message."""
    with pytest.raises(ValueError, match="cannot be read: No such file or directory"):
        read_htpasswd(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="Is a directory"):
        read_htpasswd(str(tmp_path))
    large = tmp_path / "large"
    large.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        read_htpasswd(str(large))


def test_the_cost_of_a_hash() -> None:
    """It is the second field."""
    assert cost_of(HASH) == 5
