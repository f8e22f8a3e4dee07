"""Random damage to stored files, over restarts and while the server runs: no response completes with wrong content.

A number of random changes, each followed by requests of all kinds. `DOCKYARD_DAMAGES=1000 pytest -s
tests/processes/test_random_damage.py` makes more of them (minutes) and prints what was done; `DOCKYARD_DAMAGE_SEED`
chooses others.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import attrs
import pytest

from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024
DAMAGES = int(os.environ.get("DOCKYARD_DAMAGES", "60"))
SEED = int(os.environ.get("DOCKYARD_DAMAGE_SEED", "1"))
SIZES = (700, 5_000, 100_000, MIB, MIB + 1, 3 * MIB, 7 * MIB, 24 * MIB)
# Most damage is done while the server runs; a restart takes some seconds.
DAMAGES_PER_RESTART = 15
MAX_ATTEMPTS = 4
WORKERS = 2


@attrs.frozen
class Content:
    """Something that is stored: its path in requests, its bytes, and the digest in the name of its file."""

    path: str
    body: bytes = attrs.field(repr=False)
    digest: str


class Damages:
    """Kinds of damage, chosen at random."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.done: Counter[str] = Counter()

    def apply(self, file: Path, other: Path) -> None:
        """Damage a file, perhaps with the bytes of another one. Half of the time, its times are set back."""
        before = file.stat()
        kinds = [self.flip] * 6 + [self.truncate, self.extend, self.zero, self.copy, self.swap, self.empty]
        kind = self._random.choice(kinds) if before.st_size else self.copy
        self.done[kind.__name__] += 1
        kind(file, other)
        if self._random.random() < 0.5:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def flip(self, file: Path, _: Path) -> None:
        with file.open("r+b") as opened:
            at = self._random.randrange(file.stat().st_size)
            opened.seek(at)
            byte = opened.read(1)[0]
            opened.seek(at)
            opened.write(bytes([byte ^ (1 << self._random.randrange(8))]))

    def truncate(self, file: Path, _: Path) -> None:
        os.truncate(file, self._random.randrange(file.stat().st_size))

    def extend(self, file: Path, _: Path) -> None:
        os.truncate(file, file.stat().st_size + self._random.choice((1, 4096, MIB)))

    def zero(self, file: Path, _: Path) -> None:
        """Zeros where there was a block, as after a crash."""
        with file.open("r+b") as opened:
            start = self._random.randrange(file.stat().st_size) // 512 * 512
            opened.seek(start)
            opened.write(bytes(min(4096, file.stat().st_size - start)))

    def copy(self, file: Path, other: Path) -> None:
        file.write_bytes(other.read_bytes())

    def swap(self, file: Path, other: Path) -> None:
        """The names of two files are exchanged."""
        between = file.with_name("between")
        file.rename(between)
        other.rename(file)
        between.rename(other)

    def empty(self, file: Path, _: Path) -> None:
        os.truncate(file, 0)


class Checker:
    """Requests content in different ways. No complete response may have other bytes."""

    def __init__(self, deployment: Deployment, random: Random) -> None:
        self._deployment = deployment
        self._random = random
        self.outcomes: Counter[str] = Counter()

    def request(self, content: Content) -> bool:
        """Request it once, as a whole or a range of it; whether the response was right and complete."""
        start, stop = 0, len(content.body)
        headers = {}
        if self._random.random() < 0.4:
            start, stop = sorted(self._random.sample(range(len(content.body) + 1), 2))
            headers["Range"] = f"bytes={start}-{stop - 1}"
        response = self._deployment.get(content.path, **headers)
        is_right = response.status in (200, 206) and response.is_complete
        if is_right:
            assert response.status == (206 if headers else 200)
            assert response.body == content.body[start:stop], f"wrong bytes of {content} {headers}"
        else:
            assert response.status >= 500 or not response.is_complete, response
        self.outcomes[f"{response.status}{'' if response.is_complete else ' cut'}"] += 1
        return is_right

    def until_right(self, content: Content) -> None:
        """Request it until a response is right: damage is repaired by the requests that meet it."""
        assert any(self.request(content) for _ in range(MAX_ATTEMPTS)), f"never right: {content}"

    def at_once(self, content: Content) -> None:
        """Several clients, on all workers."""
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(self.request, [content] * 6))

    def while_read(self, content: Content, damage: Callable[[], None]) -> None:
        """Damage the file while a client reads it."""
        with self._deployment.stream(content.path, receive_buffer=4096) as download:
            begin = download.head().read(min(100_000, len(content.body) // 4))
            damage()
            rest, ended = download.rest()
        assert (begin + rest == content.body) or ended != "length", f"wrong bytes of {content} in a running response"
        self.outcomes[f"running {ended}"] += 1


def stored(deployment: Deployment, content: Content) -> Path:
    """The file of a content, as soon as it is stored."""
    found: list[Path] = eventually(lambda: deployment.stored_files(content.digest), "stored")
    return found[0]


class Run:
    """One run: a deployment with content of all sizes, and what is done to it."""

    def __init__(self, deployment: Deployment, fake_registry: FakeRegistry, random: Random) -> None:
        self.deployment = deployment
        self.contents = list(make_contents(fake_registry, random))
        self.damages = Damages(random)
        self.checker = Checker(deployment, random)
        self._fake_registry = fake_registry
        self._random = random
        self._blobs = [content for content in self.contents if "/blobs/" in content.path]
        self._largest = max(self._blobs, key=lambda content: len(content.body))
        self._smallest = min(self._blobs, key=lambda content: len(content.body))

    def step(self, number: int) -> None:
        """Damage something, and request it and others until they are right."""
        content, other = self._random.sample(self.contents, 2)
        while other.digest == content.digest:
            other = self._random.choice(self.contents)
        if number % DAMAGES_PER_RESTART == 0:
            self.damage_between(self.deployment.dockyard.kill if number % 2 else self.deployment.dockyard.stop)
        elif number % 5 == 1:
            self.checker.until_right(self._largest)
            self.checker.while_read(self._largest, lambda: self.damage(self._largest, self._smallest))
        elif number % 40 == 7:
            self.damage_in_outage(content, other)
        else:
            self.damage(content, other)
        if self._random.random() < 0.5:
            self.checker.at_once(content)
        for each in (content, other, self._largest):
            self.checker.until_right(each)

    def damage(self, content: Content, other: Content) -> None:
        self.damages.apply(stored(self.deployment, content), stored(self.deployment, other))

    def damage_between(self, stop: Callable[[], None]) -> None:
        """Damage several files while the server does not run."""
        chosen = self._random.sample(self.contents, 5)
        for content in (*chosen, self._smallest, self._largest):
            stored(self.deployment, content)  # a download that was just answered may still be on its way there
        stop()
        for content in chosen:
            self.damage(content, self._smallest if content is self._largest else self._largest)
        self.deployment.dockyard.start()
        self.deployment.wait_for_workers(WORKERS)

    def damage_in_outage(self, content: Content, other: Content) -> None:
        """The upstream is away, so that there are no right bytes for a while."""
        rule = self._fake_registry.on(None, faults.error_response(503))
        self.damage(content, other)
        self.checker.request(content)
        self.checker.at_once(content)
        self._fake_registry.remove_rules(rule)
        eventually(lambda: self.checker.request(content), "right again")

    def finish(self) -> None:
        """Everything is right, and the blobs are right in the store."""
        for content in self.contents:
            self.checker.until_right(content)
        for content in self._blobs:
            assert digest_of(stored(self.deployment, content).read_bytes()) == content.digest


def make_contents(fake_registry: FakeRegistry, random: Random) -> Iterator[Content]:
    """Blobs of all sizes; manifests by tag and by digest."""
    for size in SIZES:
        body = random.randbytes(size)
        digest = fake_registry.add_blob(body)
        yield Content(f"/v2/up.test/app/blobs/{digest}", body, digest)
    for number in range(3):
        image = fake_registry.add_image("app", f"v{number}", [random.randbytes(500)])
        manifest = fake_registry.manifest_body("app", image.digest)
        for reference in (f"v{number}", image.digest):
            yield Content(f"/v2/up.test/app/manifests/{reference}", manifest, image.digest)


@pytest.mark.timeout(3600)
def test_random_damage_never_reaches_a_client(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Small and large blobs and manifests: flipped bits, truncated, extended, swapped, emptied, zeroed."""
    deployment = make_deployment(workers=WORKERS)
    deployment.wait_for_workers(WORKERS)
    run = Run(deployment, fake_registry, Random(SEED))
    for content in run.contents:
        run.checker.until_right(content)
    for number in range(DAMAGES):
        run.step(number)
    run.finish()
    print(f"seed {SEED}, damages: {dict(run.damages.done)}, responses: {dict(run.checker.outcomes)}")  # noqa: T201
    assert "internal error" not in deployment.read_log()
