"""Real clients for artifacts: oras, helm and cosign, each with a directory of its own.

They do not see the user's configuration, keys or credentials, and cannot reach servers outside this machine.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.image_clients import environment, forget_logins, run

OCI_NAME = "org.opencontainers.image.ref.name"
TRUSTED_ROOT = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
MODEL = "application/vnd.cncf.model"  # the media types of ModelPack begin so


class Oras:
    """oras: files as artifacts, and the referrers of an artifact."""

    def __init__(self, program: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self._program = program
        self._environ = environment(directory, **environ)

    def push(self, reference: str, name: str, content: bytes, artifact_type: str) -> None:
        """Push one file as an artifact."""
        self._run("push", "--artifact-type", artifact_type, reference, self._file(name, content))

    def push_model(self, reference: str, config: bytes, files: Mapping[str, tuple[bytes, str]]) -> None:
        """Push files, each with its media type, and a configuration as ModelPack specifies them."""
        for name, (content, _) in {"config.json": (config, ""), **files}.items():
            (self.directory / name).write_bytes(content)
        typed = [f"{name}:{media_type}" for name, (_, media_type) in files.items()]
        words = ["--artifact-type", f"{MODEL}.manifest.v1+json", "--config", f"config.json:{MODEL}.config.v1+json"]
        self._run("push", *words, reference, *typed)

    def attach(self, reference: str, name: str, content: bytes, artifact_type: str) -> None:
        """Push one file as an artifact that refers to another."""
        self._run("attach", "--artifact-type", artifact_type, reference, self._file(name, content))

    def digest(self, reference: str) -> str:
        """Return the digest that a tag points to."""
        return self._run("resolve", reference).strip()

    def discover(self, reference: str, *options: str) -> list[dict[str, Any]]:
        """Return the descriptors of the referrers of an artifact."""
        return list(json.loads(self._run("discover", "--format=json", *options, reference))["referrers"] or [])

    def pull(self, reference: str) -> dict[str, bytes]:
        """Return the files of an artifact."""
        target = self.directory / "pulled"
        shutil.rmtree(target, ignore_errors=True)
        self._run("pull", "--output", str(target), reference)
        return {path.name: path.read_bytes() for path in target.iterdir()}

    def log_in(self, host: str, user: str, password: str) -> None:
        """Log in, until `forget_logins`."""
        self._run("login", "--username", user, "--password", password, host)

    def forget_logins(self) -> None:
        forget_logins(self.directory)

    def copy(self, reference: str, *, is_plain_http: bool = True) -> str:
        """Copy an image with all that belongs to it into an OCI layout, and return its digest."""
        self.wipe()
        target = self.directory / "copied"
        plain_http = ["--from-plain-http"] if is_plain_http else []
        words = ["copy", *plain_http, "--to-oci-layout", reference, "copied:latest"]
        run([self._program, *words], self._environ, directory=self.directory)
        manifests = json.loads((target / "index.json").read_text())["manifests"]
        (top,) = (each for each in manifests if each.get("annotations", {}).get(OCI_NAME) == "latest")
        return str(top["digest"])

    def wipe(self) -> None:
        """Remove the last copy."""
        shutil.rmtree(self.directory / "copied", ignore_errors=True)

    def _file(self, name: str, content: bytes) -> str:
        (self.directory / name).write_bytes(content)
        return f"{name}:text/plain"

    def _run(self, command: str, *words: str) -> str:
        return run([self._program, command, "--plain-http", *words], self._environ, directory=self.directory)


class Helm:
    """helm: charts."""

    def __init__(self, program: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self._program = program
        self._environ = environment(directory, **environ)

    def push(self, registry: str, name: str, version: str) -> bytes:
        """Make a chart and push it below `oci://registry`; return the packed chart."""
        chart = self.directory / name
        (chart / "templates").mkdir(parents=True)
        (chart / "Chart.yaml").write_text(f"apiVersion: v2\nname: {name}\nversion: {version}\n")
        self._run("package", str(chart))
        packed = self.directory / f"{name}-{version}.tgz"
        self._run("push", packed.name, f"oci://{registry}", "--plain-http")
        return packed.read_bytes()

    def log_in(self, host: str, user: str, password: str) -> None:
        """Log in, until `forget_logins`."""
        self._run("registry", "login", "--plain-http", "--username", user, "--password", password, host)

    def forget_logins(self) -> None:
        forget_logins(self.directory)
        shutil.rmtree(self.directory / ".config", ignore_errors=True)

    def pull(self, registry: str, name: str, version: str, *, is_plain_http: bool = True) -> bytes:
        """Return a packed chart."""
        self.wipe()
        target = self.directory / "pulled"
        target.mkdir()
        words = ["--version", version, "--destination", str(target), *(["--plain-http"] if is_plain_http else [])]
        self._run("pull", f"oci://{registry}/{name}", *words)
        return (target / f"{name}-{version}.tgz").read_bytes()

    def wipe(self) -> None:
        """Remove the last chart that was pulled, and what Helm keeps of charts."""
        shutil.rmtree(self.directory / "pulled", ignore_errors=True)
        shutil.rmtree(self.directory / ".cache", ignore_errors=True)

    def _run(self, *words: str) -> str:
        return run([self._program, *words], self._environ, directory=self.directory)


class Cosign:
    """cosign with a key pair of its own and no transparency log."""

    def __init__(self, program: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self._program = program
        self._environ = environment(directory, COSIGN_PASSWORD="test", **environ)
        # Version 2 wants one for bundles, and fetches it from the internet if there is none; it says nothing of keys.
        (directory / "root.json").write_text(json.dumps({"mediaType": TRUSTED_ROOT}))
        self._run("generate-key-pair")

    def sign(self, reference: str, *, is_bundle: bool) -> None:
        """Sign an image: with a bundle as a referrer, or with the older signature tag."""
        bundle = f"--new-bundle-format={str(is_bundle).lower()}"
        offline = ("--use-signing-config=false", "--tlog-upload=false", "--yes")
        self._run("sign", "--key", "cosign.key", bundle, *offline, "--allow-http-registry", reference)

    def verify(self, reference: str) -> list[dict[str, Any]]:
        """Return the signed claims; raise ClientError when there are none signed with our key."""
        offline = ("--insecure-ignore-tlog", "--allow-http-registry", "--trusted-root", "root.json")
        return list(json.loads(self._run("verify", "--key", "cosign.pub", *offline, reference)))

    def _run(self, *words: str) -> str:
        return run([self._program, *words], self._environ, directory=self.directory)
