"""Workers are started with the certificate in the files, or with the last one that worked."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from dockyard.config.certificates import KeyPairError, read_key_pair
from dockyard.workers.certificates import Certificates

Issue = Callable[[], None]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The certificate and its key."""
    return str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")


@pytest.fixture
def issue(files: tuple[str, str]) -> Issue:
    """Write a new certificate and its key."""
    authority = trustme.CA()

    def issue() -> None:
        issued = authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(files[0])
        issued.private_key_pem.write_to_path(files[1])

    return issue


def test_the_first_certificate_must_be_usable(files: tuple[str, str]) -> None:
    """There is none before it."""
    with pytest.raises(KeyPairError):
        Certificates(*files)


def test_the_files_are_read_for_each_worker(files: tuple[str, str], issue: Issue) -> None:
    """A worker that replaces a dead one gets the new certificate."""
    issue()
    certificates = Certificates(*files)
    before = certificates.choose()
    issue()
    after = certificates.choose()
    assert after != before
    assert after == read_key_pair(*files)


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_certificate_that_cannot_be_used_is_not_chosen(files: tuple[str, str], issue: Issue, damaged: int) -> None:
    """The accepted one is; the log names the setting, the file and the reason; a good one is used again."""
    issue()
    certificates = Certificates(*files)
    issue()
    second = certificates.choose()
    certificates.accept(second)
    Path(files[damaged]).write_text("nothing")
    with capture_logs() as lines:
        assert not certificates.can_reload()
    assert [(line["log_level"], line["setting"], line["file"]) for line in lines] == [
        ("error", ["server.certfile", "server.keyfile"][damaged], files[damaged])
    ]
    assert lines[0]["reason"]
    assert certificates.choose() == second
    issue()
    assert certificates.can_reload()
    assert certificates.choose() == read_key_pair(*files) != second


def test_a_certificate_that_ends_workers_is_not_chosen_again(files: tuple[str, str], issue: Issue) -> None:
    """Until the next reload."""
    issue()
    certificates = Certificates(*files)
    first = certificates.choose()
    issue()
    second = certificates.choose()
    assert certificates.reject(second)
    assert certificates.choose() == first
    assert not certificates.reject(first)
    assert certificates.can_reload()
    assert certificates.choose() == second
