"""The server's certificate and its key are used only when both are whole and belong together."""

import os
from pathlib import Path

import attrs
import pytest
import trustme

from dockyard.config.certificates import KeyPairError, read_key_pair


@attrs.frozen
class Files:
    """A certificate with an intermediate one, and its key: the files and their contents."""

    certfile: Path
    keyfile: Path
    certificate: bytes
    key: bytes

    def error(self) -> tuple[str, str] | None:
        """The setting and the path that are reported; None when the pair can be used."""
        try:
            pair = read_key_pair(str(self.certfile), str(self.keyfile))
        except KeyPairError as exc:
            return exc.key, exc.path
        assert (pair.certificate, pair.private_key) == (self.certfile.read_bytes(), self.keyfile.read_bytes())
        return None


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Files that can be used."""
    issued = trustme.CA().create_child_ca().issue_cert("localhost")
    files = Files(
        tmp_path / "tls.crt",
        tmp_path / "tls.key",
        b"".join(pem.bytes() for pem in issued.cert_chain_pems),
        issued.private_key_pem.bytes(),
    )
    files.certfile.write_bytes(files.certificate)
    files.keyfile.write_bytes(files.key)
    return files


def test_a_pair_can_be_used(files: Files) -> None:
    """Also with comments, other line ends, or both in one file."""
    assert files.error() is None
    files.certfile.write_bytes("Bag Attributes: \u00e9\n".encode() + files.certificate.replace(b"\n", b"\r\n"))
    assert files.error() is None
    files.certfile.write_bytes(files.certificate + files.key)
    assert attrs.evolve(files, keyfile=files.certfile).error() is None


def test_a_certificate_that_was_written_in_part_is_rejected(files: Files) -> None:
    """At whatever byte it ends; a chain that ends between two certificates is whole."""
    certificate = files.certificate.rstrip()
    end_of_first = certificate.index(b"-----END") + len(b"-----END CERTIFICATE-----")
    for size in range(len(certificate)):
        if size - end_of_first in (0, 1):
            continue
        files.certfile.write_bytes(certificate[:size])
        assert files.error() == ("server.certfile", str(files.certfile)), size


def test_a_key_that_was_written_in_part_is_rejected(files: Files) -> None:
    """At whatever byte it ends."""
    for size in range(len(files.key.rstrip())):
        files.keyfile.write_bytes(files.key[:size])
        assert files.error() == ("server.keyfile", str(files.keyfile)), size


def test_a_key_of_another_certificate_is_rejected(files: Files) -> None:
    """As between the two renames of a rotation."""
    files.keyfile.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    assert files.error() == ("server.keyfile", str(files.keyfile))


@pytest.mark.parametrize("name", ["certfile", "keyfile"])
def test_what_is_not_a_file_is_rejected(files: Files, name: str) -> None:
    """Without waiting for a writer of a named pipe."""
    path: Path = getattr(files, name)
    path.unlink()
    assert files.error() == (f"server.{name}", str(path))
    os.mkfifo(path)
    assert files.error() == (f"server.{name}", str(path))
    path.unlink()
    path.mkdir()
    assert files.error() == (f"server.{name}", str(path))
    path.rmdir()
    path.write_bytes(b"\0" * (2**20 + 1))
    assert files.error() == (f"server.{name}", str(path))


def test_the_key_is_not_shown(files: Files) -> None:
    """Neither by the pair nor by an error."""
    pair = read_key_pair(str(files.certfile), str(files.keyfile))
    assert "PRIVATE" not in repr(pair)
    with pair.as_files() as paths:
        assert [Path(path).read_bytes() for path in paths] == [files.certificate, files.key]
    files.keyfile.write_bytes(files.key[:100])
    with pytest.raises(KeyPairError) as caught:
        read_key_pair(str(files.certfile), str(files.keyfile))
    assert files.key.splitlines()[1].decode() not in str(caught.value)
