"""What the workers share to know whom the upstreams admit. The supervisor makes it before it forks them."""

import attrs

from dockyard.access.seal import LoginSeal
from dockyard.access.verdicts import Verdicts


@attrs.frozen
class SharedAccess:
    """The seal of the messages between the workers, and the table of their verdicts."""

    seal: LoginSeal = attrs.field(factory=LoginSeal)
    verdicts: Verdicts = attrs.field(factory=Verdicts)
