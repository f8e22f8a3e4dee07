"""The parts of `dockyard pull` without I/O: arguments, references, platforms, selection, retries, output lines."""

import io
import json
from typing import Any

import pytest

from dockyard.errors import BadUpstream, NameUnknown, RegistryError
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest
from dockyard.pull.command import ArgumentsError, parse_arguments, parse_list, parse_server, resolve_images
from dockyard.pull.images import parse_image
from dockyard.pull.output import OutputFormat, format_blob, format_image, open_output
from dockyard.pull.plan import ImageBlob, IndexEntry, blobs_of, entries_of, is_index, select_entries
from dockyard.pull.platforms import Platform
from dockyard.pull.retries import PullError
from dockyard.pull.warm import BlobResult, ImageResult
from tests.support.fake_registry import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

SERVER = "127.0.0.1:5000"
DIGEST = f"sha256:{'ab' * 32}"


def digest(number: int) -> Digest:
    """A different digest for each number."""
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
        ("registry.hub.docker.com/nginx", "docker.io/library/nginx:latest", None),
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
def test_references_are_parsed_as_by_docker(text: str, shown: str, ns: str | None) -> None:
    """Docker Hub, `library/` and `latest` are defaults, and the address of Dockyard itself is removed."""
    image = parse_image(text, SERVER)

    assert (str(image), image.ns) == (shown, ns)


PREFIXES = frozenset({"docker.io", "internal", "ghcr.io/my-org", "team/mirror", "gh"})


@pytest.mark.parametrize(
    ("text", "shown", "ns"),
    [
        ("internal/team/app", "internal/team/app:latest", None),
        ("internal/app:v1", "internal/app:v1", None),
        (f"internal/team/app@{DIGEST}", f"internal/team/app@{DIGEST}", None),
        ("localhost:5000/internal/team/app", "internal/team/app:latest", None),
        ("internal", "docker.io/library/internal:latest", None),
        ("internals/app", "docker.io/internals/app:latest", None),
        ("team/mirror/app", "team/mirror/app:latest", None),
        ("team/mirror", "docker.io/team/mirror:latest", None),
        ("team/app", "docker.io/team/app:latest", None),
        ("nginx", "docker.io/library/nginx:latest", None),
        ("docker.io/internal/app", "docker.io/internal/app:latest", None),
        ("ghcr.io/my-org/app", "ghcr.io/my-org/app:latest", None),
        ("ghcr.io/other/app", "ghcr.io/other/app:latest", "ghcr.io"),
        ("quay.io/org/app:V1", "quay.io/org/app:V1", "quay.io"),
        ("quay.io/internal/app", "quay.io/internal/app:latest", None),
        ("quay.io/docker.io/app", "quay.io/docker.io/app:latest", None),
        ("reg.example:5001/org/app", "reg.example:5001/org/app:latest", "reg.example:5001"),
        ("localhost:5001/app", "localhost:5001/app:latest", "localhost:5001"),
    ],
)
def test_the_prefixes_of_the_server_come_first(text: str, shown: str, ns: str | None) -> None:
    """And a name without one is never sent in a form that the server may take for another registry."""
    image = parse_image(text, SERVER, PREFIXES)

    assert (str(image), image.ns) == (shown, ns)


@pytest.mark.parametrize("text", ["reg.example:5001/internal/app", "reg.example:5001/docker.io/library/nginx"])
def test_a_registry_with_a_port_is_refused_when_the_rest_begins_with_a_prefix(text: str) -> None:
    """The server would prefer the prefix; the error lists what to choose from."""
    with pytest.raises(NameUnknown, match=r"docker\.io, gh, ghcr\.io/my-org, internal, team/mirror"):
        parse_image(text, SERVER, PREFIXES)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("docker://nginx", "write nginx, without docker://"),
        ("docker://ghcr.io/org/app:v1", "write ghcr.io/org/app:v1, without docker://"),
        ("https://ghcr.io/org/app", "write ghcr.io/org/app, without https://"),
        ("http://localhost:5000/internal/app/", "write localhost:5000/internal/app, without http://"),
        ("https://hub.docker.com/_/nginx", "write nginx"),
        ("https://hub.docker.com/r/grafana/grafana", "write grafana/grafana"),
        ("hub.docker.com/r/grafana/grafana", "write grafana/grafana"),
        ("Nginx", "write nginx"),
        ("Internal/Team/App", "write internal/team/app"),
        ("internal/Team/app", "write internal/team/app"),
        ("ghcr.io/Org/App:V1", "write ghcr.io/org/app"),
        ("localhost:5000/internal/App", "write localhost:5000/internal/app"),
    ],
)
def test_an_error_has_the_right_form(text: str, form: str) -> None:
    """For what is often pasted."""
    with pytest.raises(RegistryError) as caught:
        parse_image(text, SERVER)
    assert caught.value.message.endswith(form)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "@", "Nginx", "nginx:", "nginx@", "nginx@sha256:12", f"nginx@md5:{'0' * 32}", "nginx:a:b"),
        *("https://ghcr.io/org/app", "a//b", "/a", "a/", "nginx:" + "t" * 129, "a" * 256, "nginx: 1", "gh_cr.io:80/a"),
        *("ghcr.io/", "reg.example:x/a", "-a/b", "näme", f"nginx:@{DIGEST}"),
    ],
)
def test_an_invalid_reference_is_rejected(text: str) -> None:
    """With one of the errors of the registry protocol."""
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
def test_a_platform_is_normalized(text: str, shown: str) -> None:
    """Aliases and default variants are the same platform."""
    assert str(Platform.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", "a/" + "b" * 65])
def test_an_invalid_platform_is_rejected(text: str) -> None:
    """It needs an operating system and an architecture."""
    with pytest.raises(ValueError, match="not a platform"):
        Platform.parse(text)


# An index as BuildKit writes it, with arm variants: number of the entry, platform.
USUAL = [(1, "linux/amd64"), (2, "linux/arm/v5"), (3, "linux/arm/v7"), (4, "linux/arm64/v8"), (5, "windows/amd64")]


@pytest.mark.parametrize(
    ("index", "requested", "selected", "missing"),
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
def test_exactly_the_requested_platforms_of_an_index_are_selected(
    index: list[tuple[int, str | None]], requested: list[str] | None, selected: list[int], missing: list[str]
) -> None:
    """For each platform what its clients would pull; platforms without an entry are reported."""
    entries = [IndexEntry(digest(number), Platform.parse(text) if text else None) for number, text in index]

    selection = select_entries(entries, None if requested is None else [Platform.parse(text) for text in requested])

    assert [entry.digest for entry in selection.entries] == [digest(number) for number in selected]
    assert [str(platform) for platform in selection.missing] == missing


def test_attestations_are_not_selected() -> None:
    """BuildKit lists them as unknown/unknown."""
    platforms = [{"os": "linux", "architecture": "amd64"}, {"os": "unknown", "architecture": "unknown"}, None]
    items = [{"digest": str(digest(number)), "platform": platform} for number, platform in enumerate(platforms)]
    index = parsed({"schemaVersion": 2, "manifests": items}, OCI_INDEX)

    assert is_index(index)
    assert entries_of(index) == (IndexEntry(digest(0), Platform("linux", "amd64")), IndexEntry(digest(2), None))


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
def test_each_blob_of_a_manifest_is_listed_once(
    document: dict[str, Any], media_type: str, found: list[tuple[int, int | None]]
) -> None:
    """Config and layers, but not foreign layers."""
    blobs = blobs_of(parsed(document, media_type))

    assert [(blob.digest, blob.size) for blob in blobs] == [(digest(number), size) for number, size in found]


def test_a_digest_that_cannot_be_verified_is_rejected() -> None:
    """An image with such a layer is not reported as warm."""
    document = {"schemaVersion": 2, "config": {"digest": str(digest(1))}, "layers": [{"digest": "md5:1"}]}

    with pytest.raises(BadUpstream, match="cannot be verified"):
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
    """The default scheme is http; a trailing slash and /v2 are removed."""
    assert parse_server(text) == (url, authority)


@pytest.mark.parametrize("text", ["", "http://", "ftp://a", "http://a:x", "http://a:0", "http://u:p@a", "http://a/?b"])
def test_an_invalid_server_is_rejected(text: str) -> None:
    """Before any request is sent."""
    with pytest.raises(ValueError, match=r"."):
        parse_server(text)


@pytest.mark.parametrize("url", ["http://ann:canary-1@a.test", "ann:canary-1@a.test", "http://ann:canary-1/x@a.test:y"])
def test_a_password_in_the_url_of_the_server_is_rejected_and_not_shown(url: str) -> None:
    """Dockyard has no logins, and the message goes to logs of CI."""
    with pytest.raises(ArgumentsError) as caught:
        parse_arguments(["nginx"], url, [], all_platforms=False, jobs=1)

    (message,) = caught.value.messages
    assert "must not contain a user or a password" in message
    assert "a.test" in message
    assert "canary" not in message


def test_all_errors_in_arguments_are_reported_together() -> None:
    """Each with the argument that is invalid."""
    with pytest.raises(ArgumentsError) as caught:
        parse_arguments(["Nginx", "ok", "a@b"], SERVER, ["linux"], all_platforms=True, jobs=1)

    assert [message.partition(":")[0] for message in caught.value.messages] == [
        "--platform",
        "Nginx",
        "a@b",
        "--all-platforms and --platform cannot be used together",
    ]


def test_repeated_images_and_platforms_count_once() -> None:
    """In any notation; platforms may be separated by commas."""
    platforms = ["linux/amd64,linux/arm64", "linux/x86_64"]

    arguments = parse_arguments(["nginx", "docker.io/nginx:latest"], SERVER, platforms, all_platforms=False, jobs=3)

    images, refused = resolve_images(arguments, None)
    assert ([str(image) for image in images], refused) == (["docker.io/library/nginx:latest"], [])
    assert arguments.platforms == (Platform("linux", "amd64"), Platform("linux", "arm64"))


def test_comments_and_blank_lines_in_a_list_are_ignored() -> None:
    """With any line ends."""
    assert parse_list("# ours\nnginx\n\n  ghcr.io/a/b:c  # pinned\r\n") == ["nginx", "ghcr.io/a/b:c"]


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (PullError.error_status("", 404), [None]),
        (PullError.final(""), [None]),
        (PullError.wrong_digest(""), [0.2, None]),
        (PullError.error_status("", 503), [0.2, None]),
        (PullError.error_status("", 503, 3.0), [3.0, None]),
        (PullError.error_status("", 429, 3.0), [3.0, None]),
        (PullError.error_status("", 429, 60.0), [None]),
        (PullError.connection_failed(""), [0.2, 0.4, 0.8, 1.6, None]),
    ],
)
def test_errors_are_retried_where_it_may_help(error: PullError, pauses: list[float | None]) -> None:
    """Temporary statuses and wrong digests once, failed connections a few times, other errors never."""
    assert [error.find_pause(attempts) for attempts in range(1, len(pauses) + 1)] == pauses


def test_lines_of_text_output() -> None:
    """With short digests, readable sizes and the cache status."""
    image = parse_image("nginx", SERVER)
    result = ImageResult(image, digest(1), (Platform("linux", "amd64"),), 3, 12_345_678, ())

    assert format_image(result) == "docker.io/library/nginx:latest: warm (linux/amd64; 3 blobs, 12.3 MB)"
    assert format_blob(BlobResult(digest(1), 999, "hit", 1)) == "sha256:000000000000  999 bytes  was cached"
    assert format_blob(BlobResult(digest(1), 2_000, "miss", 2)) == "sha256:000000000000  2.0 kB  fetched, 2 attempts"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_bars_are_shown_only_on_terminals(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """Elsewhere there are only lines; both end with the same line."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "xterm")
    image = ImageResult(parse_image("nginx", SERVER), digest(1), (), 1, 50_000, ())

    with open_output(OutputFormat.TEXT, out) as output:
        output.plan([ImageBlob(digest(7), 50_000)])
        output.watch(ImageBlob(digest(7), 50_000))(20_000, 50_000)
        output.blob(BlobResult(digest(7), 50_000, "miss", 1))
        output.image(image)
        output.end([image], 1.5)

    printed = out.getvalue()
    assert ("\x1b[" in printed) == is_terminal
    for line in ("50.0 kB  fetched", "docker.io/library/nginx:latest: warm (1 blob,", "1 of 1 image warm in 1.5 s"):
        assert line in printed
