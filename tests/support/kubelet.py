"""The logins that the kubelet tries for an image, found by its own code: see `kubelet_keyring/main.go`."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.image_clients import ClientError

Login = tuple[str, str]


@attrs.frozen
class KubeletKeyring:
    """Pull secrets and credential providers, as the kubelet uses them for the pods of a service account."""

    program: Path

    def find(
        self,
        image: str,
        *,
        secrets: Sequence[str] = (),
        config: Path | None = None,
        programs: Path | None = None,
        account: tuple[str, str] = ("default", "default"),
        token: str = "",
        requests: Path | None = None,
    ) -> list[Login]:
        """User names and passwords in the order in which they are tried.

        `secrets` are the values of `.dockerconfigjson`. `config` and `programs` are the file and the directory of the
        kubelet's two options for credential providers; `token` is what the API server would issue for the account
        (namespace and name), and `requests` the file to which each request for one is appended. Raises ClientError.
        """
        query = {
            "Image": image,
            "Secrets": secrets,
            "Config": str(config or ""),
            "Programs": str(programs or ""),
            "Namespace": account[0],
            "Account": account[1],
            "Token": token,
            "TokensFile": str(requests or "/dev/null"),
        }
        done = subprocess.run(
            [self.program],
            input=json.dumps(query),
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=EVENT_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise ClientError(done.stderr)
        return [(login["Username"], login["Password"]) for login in json.loads(done.stdout)]
