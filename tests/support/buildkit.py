"""BuildKit: it pulls the base image of a build."""

import shutil
import tarfile
import tempfile
from pathlib import Path

from tests.support.image_clients import ClientError, environment, run
from tests.support.processes import Process


class BuildKit:
    """buildkitd with a worker of its own. `use_config` starts it, or starts it again, without any content."""

    def __init__(self, buildkitd: Path, buildctl: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self._programs = buildkitd, buildctl
        self._address = f"unix://{directory / 'buildkitd.sock'}"
        self._environ = environment(directory, **environ)
        self._config = ""
        self._process: Process | None = None

    def use_config(self, text: str) -> None:
        """Use this buildkitd.toml."""
        self._config = text
        self.wipe()

    def wipe(self) -> None:
        """Remove all content: it starts again."""
        self.stop()
        config = self.directory / "buildkitd.toml"
        config.write_text(self._config)
        options = {
            "config": config,
            "addr": self._address,
            "root": self.directory / "root",
            "containerd-worker": "false",
            "oci-worker-snapshotter": "native",
            "oci-worker-binary": "crun",
        }
        self._process = Process.start(
            [self._programs[0], *(f"--{name}={value}" for name, value in options.items())],
            log=self.directory / "buildkitd.log",
            environ=self._environ,
        )
        self._process.wait_until(self._is_answering, "answering")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end_all()
        shutil.rmtree(self.directory / "root", ignore_errors=True)

    def pull(self, reference: str) -> frozenset[str]:
        """Build an image that is the base image and a label, and return the digests of its parts, layers among them."""
        context = Path(tempfile.mkdtemp(dir=self.directory, prefix="build-"))
        (context / "Dockerfile").write_text(f"FROM {reference}\nLABEL by=tests\n")
        sources = [f"--local={name}={context}" for name in ("context", "dockerfile")]
        output = f"--output=type=oci,dest={context / 'image.tar'}"
        self._run("build", "--frontend=dockerfile.v0", *sources, output)
        with tarfile.open(context / "image.tar") as tar:
            names = {Path(name).name for name in tar.getnames() if name.startswith("blobs/sha256/")}
        return frozenset(f"sha256:{name}" for name in names)

    def _run(self, *words: str) -> str:
        return run([self._programs[1], f"--addr={self._address}", *words], self._environ)

    def _is_answering(self) -> bool:
        try:
            self._run("debug", "workers")
        except ClientError:
            return False
        return True
