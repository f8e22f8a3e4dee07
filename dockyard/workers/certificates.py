"""Which TLS certificate a worker is started with."""

import structlog

from dockyard.config.certificates import KeyPair, KeyPairError, read_key_pair

log = structlog.get_logger()


class Certificates:
    """The certificates in the files of `server.certfile`, `.keyfile` and `.client_ca`, or the last ones that worked.

    The files are opened by their names each time, because what these refer to changes: a Kubernetes Secret and certbot
    replace symbolic links. A certificate is accepted when a worker has started with it. Until a better one is in the
    files, workers are started with the one that was accepted last, which is kept in memory.
    """

    def __init__(self, certfile: str, keyfile: str, client_ca: str = "") -> None:
        """Read the files. Raises KeyPairError."""
        self._files = certfile, keyfile, client_ca
        self._accepted = read_key_pair(*self._files)
        self._rejected: KeyPair | None = None

    def can_reload(self) -> bool:
        """Whether the files have a usable certificate. If not, log why."""
        self._rejected = None
        return self._read() is not None

    def choose(self) -> KeyPair:
        """The certificate for a worker that starts now."""
        pair = self._read()
        return self._accepted if pair is None or pair == self._rejected else pair

    def accept(self, pair: KeyPair) -> None:
        """A worker has started with this certificate."""
        self._accepted = pair

    def reject(self, pair: KeyPair) -> bool:
        """A worker with this certificate has ended at its start; whether it was another than the accepted one."""
        if pair == self._accepted:
            return False
        self._rejected = pair
        return True

    def _read(self) -> KeyPair | None:
        try:
            return read_key_pair(*self._files)
        except KeyPairError as exc:
            log.error(  # noqa: TRY400  the reason is for the operator, not a traceback
                "cannot use the new TLS certificate: the current one stays in use; correct the file and send SIGHUP",
                setting=exc.key,
                file=exc.path,
                reason=str(exc),
            )
            return None
