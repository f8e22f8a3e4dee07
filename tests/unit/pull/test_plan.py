"""What `dockyard pull` understands and decides: references, platforms, choices, words. Pure."""

import io
import json
from typing import Any

import pytest

from dockyard.errors import BadUpstream, RegistryError
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest
from dockyard.pull.command import Mistakes, parse_errand, parse_list, parse_server
from dockyard.pull.images import parse_image
from dockyard.pull.plan import Blob, Entry, blobs_of, choose, entries_of, is_index
from dockyard.pull.platforms import Platform
from dockyard.pull.show import Style, blob_line, image_line, opened
from dockyard.pull.tries import Failed
from dockyard.pull.warm import BlobRead, ImageRead
from tests.support.fake_registry import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

SERVER = "127.0.0.1:5000"
DIGEST = f"sha256:{'ab' * 32}"


def digest(number: int) -> Digest:
    """A digest for each number."""
    return Digest("sha256", f"{number:064x}")


def parsed(document: dict[str, Any], media_type: str) -> Manifest:
    """A manifest with this content."""
    return Manifest.parse(json.dumps(document).encode(), media_type, None)


@pytest.mark.parametrize(
    ("text", "shown", "ns"),
    [
        ("nginx", "docker.io/library/nginx:latest", None),
        ("nginx:1.27", "docker.io/library/nginx:1.27", None),
        ("bitnami/redis", "docker.io/bitnami/redis:latest", None),
        ("docker.io/nginx", "docker.io/library/nginx:latest", None),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest", None),
        ("registry-1.docker.io/a/b:c", "docker.io/a/b:c", None),
        ("ghcr.io/org/app:v1", "ghcr.io/org/app:v1", None),
        ("GHCR.io/org/app", "ghcr.io/org/app:latest", None),
        ("ghcr.io/app", "ghcr.io/app:latest", None),
        ("a/b/c/d", "docker.io/a/b/c/d:latest", None),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}", None),
        (f"nginx:1.27@{DIGEST}", f"docker.io/library/nginx@{DIGEST}", None),
        (f"ghcr.io/o/a@{DIGEST}", f"ghcr.io/o/a@{DIGEST}", None),
        ("localhost/app", "localhost/app:latest", None),
        ("localhost:8080/app:v1", "localhost:8080/app:v1", "localhost:8080"),
        ("reg.example:5000/team/app", "reg.example:5000/team/app:latest", "reg.example:5000"),
        ("[::1]:8080/app", "[::1]:8080/app:latest", "[::1]:8080"),
        ("127.0.0.1:5000/internal/app:v1", "internal/app:v1", None),
        ("localhost:5000/docker.io/library/alpine", "docker.io/library/alpine:latest", None),
    ],
)
def test_references_mean_what_they_mean_to_docker(text: str, shown: str, ns: str | None) -> None:
    """The Hub is left out, `library/` too, `latest` is understood, and our own address names nothing."""
    image = parse_image(text, SERVER)

    assert (str(image), image.ns) == (shown, ns)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "@", "Nginx", "nginx:", "nginx@", "nginx@sha256:12", f"nginx@md5:{'0' * 32}", "nginx:a:b"),
        *("https://ghcr.io/org/app", "a//b", "/a", "a/", "nginx:" + "t" * 129, "a" * 256, "nginx: 1", "gh_cr.io:80/a"),
        *("ghcr.io/", "reg.example:x/a", "-a/b", "näme", f"nginx:@{DIGEST}"),
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(RegistryError):
        parse_image(text, SERVER)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/armhf", "linux/arm"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("windows/amd64", "windows/amd64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_a_platform_has_one_spelling(text: str, shown: str) -> None:
    """Whatever it is called, it is the same one."""
    assert str(Platform.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", "a/" + "b" * 65])
def test_what_is_no_platform_is_refused(text: str) -> None:
    """An operating system and an architecture are named."""
    with pytest.raises(ValueError, match="not a platform"):
        Platform.parse(text)


# An index as BuildKit writes it, with arm variants: number of the entry, platform.
USUAL = [(1, "linux/amd64"), (2, "linux/arm/v5"), (3, "linux/arm/v7"), (4, "linux/arm64/v8"), (5, "windows/amd64")]


@pytest.mark.parametrize(
    ("index", "asked", "chosen", "missing"),
    [
        (USUAL, ["linux/amd64"], [1], []),
        (USUAL, ["linux/arm64", "linux/amd64"], [1, 4], []),
        (USUAL, ["linux/arm"], [3], []),
        (USUAL, ["linux/arm/v6"], [2], []),
        (USUAL, ["linux/amd64/v3"], [1], []),
        (USUAL, ["linux/amd64", "linux/s390x"], [1], ["linux/s390x"]),
        (USUAL, ["linux/386"], [], ["linux/386"]),
        (USUAL, None, [1, 2, 3, 4, 5], []),
        ([(1, "linux/amd64/v2"), (2, "linux/amd64/v3")], ["linux/amd64"], [], ["linux/amd64"]),
        ([(1, "linux/amd64/v2"), (2, "linux/amd64/v3")], ["linux/amd64/v4"], [2], []),
        ([(1, "windows/amd64"), (2, "windows/amd64")], ["windows/amd64"], [1, 2], []),
        ([(1, "linux/amd64"), (1, "linux/amd64")], ["linux/amd64"], [1], []),
        ([(1, None), (2, "linux/amd64")], ["linux/amd64"], [2], []),
        ([(1, None), (2, "linux/amd64")], ["linux/arm64"], [1], []),
        ([], ["linux/amd64"], [], ["linux/amd64"]),
        ([], None, [], []),
    ],
)
def test_an_index_gives_exactly_the_platforms_asked_for(
    index: list[tuple[int, str | None]], asked: list[str] | None, chosen: list[int], missing: list[str]
) -> None:
    """Each takes what its clients would take, and what is not there is named."""
    entries = [Entry(digest(number), Platform.parse(text) if text else None) for number, text in index]

    choice = choose(entries, None if asked is None else [Platform.parse(text) for text in asked])

    assert [entry.digest for entry in choice.entries] == [digest(number) for number in chosen]
    assert [str(platform) for platform in choice.missing] == missing


def test_attestations_are_no_images() -> None:
    """What BuildKit lists as unknown/unknown is passed over, whatever was asked for."""
    platforms = [{"os": "linux", "architecture": "amd64"}, {"os": "unknown", "architecture": "unknown"}, None]
    items = [{"digest": str(digest(number)), "platform": platform} for number, platform in enumerate(platforms)]
    index = parsed({"schemaVersion": 2, "manifests": items}, OCI_INDEX)

    assert is_index(index)
    assert entries_of(index) == (Entry(digest(0), Platform("linux", "amd64")), Entry(digest(2), None))


@pytest.mark.parametrize(
    ("document", "media_type", "found"),
    [
        (
            {
                "schemaVersion": 2,
                "config": {"mediaType": OCI_CONFIG, "digest": str(digest(1)), "size": 7},
                "layers": [
                    {"mediaType": OCI_LAYER, "digest": str(digest(2)), "size": 8},
                    {"mediaType": OCI_LAYER, "digest": str(digest(2)), "size": 8},
                ],
            },
            OCI_MANIFEST,
            [(1, 7), (2, 8)],
        ),
        (
            {
                "schemaVersion": 2,
                "mediaType": DOCKER_MANIFEST,
                "config": {"digest": str(digest(1)), "size": "7"},
                "layers": [
                    {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": "x"},
                    {"mediaType": OCI_LAYER, "digest": str(digest(3)), "size": 9},
                ],
            },
            DOCKER_MANIFEST,
            [(1, None), (3, 9)],
        ),
        ({"schemaVersion": 1, "fsLayers": [{"blobSum": str(digest(4))}]}, "", [(4, None)]),
        ({"schemaVersion": 2, "config": {"digest": str(digest(1)), "size": 2}, "layers": None}, "", [(1, 2)]),
    ],
)
def test_a_manifest_gives_each_of_its_blobs_once(
    document: dict[str, Any], media_type: str, found: list[tuple[int, int | None]]
) -> None:
    """Config and layers, but not the layers that no registry keeps."""
    blobs = blobs_of(parsed(document, media_type))

    assert [(blob.digest, blob.size) for blob in blobs] == [(digest(number), size) for number, size in found]


def test_a_digest_that_cannot_be_checked_is_refused() -> None:
    """An image with a layer that nobody can check is not called warm."""
    document = {"schemaVersion": 2, "config": {"digest": str(digest(1))}, "layers": [{"digest": "md5:1"}]}

    with pytest.raises(BadUpstream, match="cannot be checked"):
        blobs_of(parsed(document, OCI_MANIFEST))


@pytest.mark.parametrize(
    ("text", "url", "authority"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("https://Cache.example/", "https://Cache.example", "cache.example"),
        ("dockyard:5000", "http://dockyard:5000", "dockyard:5000"),
        ("http://lb/cache/v2/", "http://lb/cache", "lb"),
        ("http://[::1]:5000", "http://[::1]:5000", "[::1]:5000"),
    ],
)
def test_a_server_is_a_url(text: str, url: str, authority: str) -> None:
    """Plain HTTP is understood, and what users add to it."""
    assert parse_server(text) == (url, authority)


@pytest.mark.parametrize("text", ["", "http://", "ftp://a", "http://a:x", "http://a:0", "http://u:p@a", "http://a/?b"])
def test_what_is_no_server_is_refused(text: str) -> None:
    """Before anything is asked."""
    with pytest.raises(ValueError, match=r"."):
        parse_server(text)


def test_all_mistakes_are_told_at_once() -> None:
    """Each with the words that are wrong."""
    with pytest.raises(Mistakes) as caught:
        parse_errand(["Nginx", "ok", "a@b"], SERVER, ["linux"], all_platforms=True, jobs=1)

    assert [message.partition(":")[0] for message in caught.value.messages] == [
        "--platform",
        "Nginx",
        "a@b",
        "--all-platforms and --platform exclude each other",
    ]


def test_what_is_named_twice_is_read_once() -> None:
    """In any spelling; platforms may stand in a list."""
    platforms = ["linux/amd64,linux/arm64", "linux/x86_64"]

    order = parse_errand(["nginx", "docker.io/nginx:latest"], SERVER, platforms, all_platforms=False, jobs=3).order

    assert [str(image) for image in order.images] == ["docker.io/library/nginx:latest"]
    assert order.platforms == (Platform("linux", "amd64"), Platform("linux", "arm64"))


def test_a_list_has_comments() -> None:
    """Blank lines too."""
    assert parse_list("# ours\nnginx\n\n  ghcr.io/a/b:c  # pinned\r\n") == ["nginx", "ghcr.io/a/b:c"]


@pytest.mark.parametrize(
    ("failed", "pauses"),
    [
        (Failed.refused("", 404), [None]),
        (Failed.final(""), [None]),
        (Failed.wrong(""), [0.2, None]),
        (Failed.refused("", 503), [0.2, None]),
        (Failed.refused("", 503, 3.0), [3.0, None]),
        (Failed.refused("", 429, 3.0), [3.0, None]),
        (Failed.refused("", 429, 60.0), [None]),
        (Failed.broken(""), [0.2, 0.4, 0.8, 1.6, None]),
    ],
)
def test_another_try_is_made_where_it_may_help(failed: Failed, pauses: list[float | None]) -> None:
    """Refusals are final, "later" is asked once more, broken connections a few times."""
    assert [failed.pause_after(tries) for tries in range(1, len(pauses) + 1)] == pauses


def test_a_line_for_people() -> None:
    """Short digests, sizes that can be read, and what the cache had."""
    image = parse_image("nginx", SERVER)
    read = ImageRead(image, digest(1), (Platform("linux", "amd64"),), 3, 12_345_678, ())

    assert image_line(read) == "docker.io/library/nginx:latest: warm (linux/amd64; 3 blobs, 12.3 MB)"
    assert blob_line(BlobRead(digest(1), 999, "hit", 1)) == "sha256:000000000000  999 bytes  was cached"
    assert blob_line(BlobRead(digest(1), 2_000, "miss", 2)) == "sha256:000000000000  2.0 kB  fetched, 2 tries"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_for_terminals(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """Elsewhere there are lines only; both end with the same words."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "xterm")
    image = ImageRead(parse_image("nginx", SERVER), digest(1), (), 1, 50_000, ())

    with opened(Style.PEOPLE, out) as show:
        show.plan([Blob(digest(7), 50_000)])
        show.watch(Blob(digest(7), 50_000))(20_000, 50_000)
        show.blob(BlobRead(digest(7), 50_000, "miss", 1))
        show.image(image)
        show.end([image], 1.5)

    said = out.getvalue()
    assert ("\x1b[" in said) == is_terminal
    for line in ("50.0 kB  fetched", "docker.io/library/nginx:latest: warm (1 blob,", "1 of 1 image warm in 1.5 s"):
        assert line in said
