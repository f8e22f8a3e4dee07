"""The audit log: one line of JSON for each decision, whatever is in it."""

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from dockyard.access.audit import (
    MAX_LINE_BYTES,
    AuditEntry,
    AuditLog,
    check_audit_output,
    format_line,
    look_at_audit_output,
)
from dockyard.access.principals import Principal
from dockyard.config.settings import AccessSettings

ANN = Principal("ann", frozenset({"team", "dev"}), frozenset({"office"}), "htpasswd")
ENTRY = AuditEntry(
    verdict="denied",
    principal=ANN,
    action="pull",
    kind="manifest",
    method="GET",
    address="10.0.0.7",
    upstream="ghcr.io",
    repository="ghcr.io/org/app",
    reference="v1",
    rule="rules[2]",
    reason="not for this team",
)


def parse(line: bytes) -> dict[str, Any]:
    """The fields of a line."""
    assert line.endswith(b"\n")
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_a_line_has_who_what_and_why() -> None:
    """And when, in UTC."""
    assert parse(format_line(ENTRY, 1_800_000_000.0625)) == {
        "time": "2027-01-15T08:00:00.062Z",
        "verdict": "denied",
        "who": "ann",
        "source": "htpasswd",
        "groups": ["dev", "team"],
        "networks": ["office"],
        "action": "pull",
        "upstream": "ghcr.io",
        "repository": "ghcr.io/org/app",
        "reference": "v1",
        "kind": "manifest",
        "method": "GET",
        "rule": "rules[2]",
        "reason": "not for this team",
        "address": "10.0.0.7",
    }


def test_what_is_empty_is_left_out() -> None:
    """A client without a login is named in words."""
    entry = attrs.evolve(ENTRY, principal=Principal(), upstream="", reference="", reason="")

    fields = parse(format_line(entry, 0))

    assert not {"upstream", "reference", "reason", "groups", "networks"} & set(fields)
    assert (fields["who"], fields["source"]) == ("anonymous", "none")


@pytest.mark.parametrize(
    "text", ["a\nb", 'a"b\\', "\x00\x1b[31m\x7f", "\u2028é\ud800", "x" * 5000, "é" * 5000, "\n" * 5000]
)
@pytest.mark.parametrize("field", ["reason", "repository", "reference", "method", "address", "name", "groups"])
def test_a_line_stays_one_short_line(text: str, field: str) -> None:
    """Whatever a client, a token or the settings contain."""
    match field:
        case "name":
            entry = attrs.evolve(ENTRY, principal=attrs.evolve(ANN, name=text))
        case "groups":
            groups = frozenset(f"{text}{number}" for number in range(100))
            entry = attrs.evolve(ENTRY, principal=attrs.evolve(ANN, groups=groups))
        case _:
            entry = attrs.evolve(ENTRY, **{field: text})

    line = format_line(entry, 0)

    assert parse(line)["verdict"] == "denied"
    assert len(line) <= MAX_LINE_BYTES
    assert line.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])


def test_lines_are_appended_to_a_file_that_is_opened_again(tmp_path: Path) -> None:
    """After logrotate has moved it."""
    path = tmp_path / "audit.log"
    log = AuditLog(AccessSettings(audit=str(path)))
    log.write(ENTRY)
    assert log.flush()
    path.rename(tmp_path / "audit.log.1")
    log.write(attrs.evolve(ENTRY, verdict="allowed"))
    log.close()

    assert parse((tmp_path / "audit.log.1").read_bytes())["verdict"] == "denied"
    assert parse(path.read_bytes())["verdict"] == "allowed"


def test_an_output_that_can_be_opened(tmp_path: Path) -> None:
    """To look at it changes nothing."""
    settings = AccessSettings(audit=str(tmp_path / "audit.log"))
    for output in (AccessSettings(), AccessSettings(audit="stdout"), settings):
        look_at_audit_output(output)
    assert list(tmp_path.iterdir()) == []

    check_audit_output(settings)
    look_at_audit_output(settings)
    assert (tmp_path / "audit.log").read_bytes() == b""


@pytest.mark.parametrize("check", [check_audit_output, look_at_audit_output])
def test_an_output_that_cannot_be_opened(check: Any, tmp_path: Path) -> None:
    """The error has the reason."""
    (tmp_path / "file").touch()
    for path, error in [
        (tmp_path, IsADirectoryError),
        (tmp_path / "missing" / "audit.log", FileNotFoundError),
        (tmp_path / "file" / "audit.log", NotADirectoryError),
    ]:
        with pytest.raises(error):
            check(AccessSettings(audit=str(path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("check", [check_audit_output, look_at_audit_output])
def test_a_directory_without_permission(check: Any, tmp_path: Path) -> None:
    """Nothing can be created there."""
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check(AccessSettings(audit=str(tmp_path / "audit.log")))
