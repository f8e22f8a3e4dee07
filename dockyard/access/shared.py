"""What the workers share to know whom the upstreams admit. The supervisor makes it before it forks them."""

import attrs

from dockyard.access.seal import LoginSeal
from dockyard.access.verdicts import Verdicts


@attrs.frozen
class SharedAccess:
    """The seal of the messages between the workers, and the tables of the verdicts of the upstreams.

    `verdicts` are about logins, `confirmed` about the blobs of repositories: two tables, so that neither pushes out the
    other.
    """

    seal: LoginSeal = attrs.field(factory=LoginSeal)
    verdicts: Verdicts = attrs.field(factory=Verdicts)
    confirmed: Verdicts = attrs.field(factory=Verdicts)
