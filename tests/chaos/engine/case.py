"""The cases of the fault matrix: a fault, one of its variants, and the state of what a client requests meanwhile."""

from enum import StrEnum

import attrs


class State(StrEnum):
    """What a client requests while the fault is active, and whether Dockyard has it."""

    TAG_CACHED = "tag cached"
    TAG_COLD = "tag not cached"
    MANIFEST = "digest manifest"  # one that is cached, and one that is not
    BLOB_CACHED = "blob cached"
    BLOB_COLD = "blob cold"
    BLOB_DOWNLOAD = "blob in progress"  # several readers of one download, of which a part has been fetched


@attrs.frozen(order=True)
class Case:
    """One cell of the matrix: the id of a fault (`U01`), the name of a variant, a state."""

    fault: str
    variant: str
    state: State

    def __str__(self) -> str:
        return f"{self.fault} {self.variant}: {self.state}"
