"""Section U of the matrix: what an upstream does to us, from refused connections to pages of hotel networks.

What clients must see is the table of the matrix where the design of Dockyard does not say otherwise; where it does,
the reason stands beside the fault.
"""

from tests.chaos.upstream.answers import ANSWERS
from tests.chaos.upstream.broken_bodies import BROKEN
from tests.chaos.upstream.places import PLACES
from tests.chaos.upstream.reaching import REACHING
from tests.chaos.upstream.slow_bodies import SLOW
from tests.chaos.upstream.wrong_bodies import WRONG_BODIES

FAULTS = tuple(sorted((*REACHING, *SLOW, *BROKEN, *WRONG_BODIES, *ANSWERS, *PLACES), key=lambda fault: fault.id))
