"""All failures of the page, in its order."""

from collections.abc import Mapping, Sequence

from tests.failures.buckets import BUCKETS
from tests.failures.failure import Failure
from tests.failures.network import NAMES
from tests.failures.pulls import COMMANDS
from tests.failures.serving import SERVING
from tests.failures.settings import SETTINGS
from tests.failures.start import DISKS, PORTS
from tests.failures.upstreams import CLIENTS, LOGINS, PROXIES, TLS, UPSTREAMS

GROUPS: Mapping[str, Sequence[Failure]] = {
    "Settings": SETTINGS,
    "Host and port": PORTS,
    "Directory": (*DISKS, *SERVING),
    "Names": NAMES,
    "Upstreams": UPSTREAMS,
    "TLS of upstreams": TLS,
    "Proxies": PROXIES,
    "Logins": LOGINS,
    "Bucket": BUCKETS,
    "Clients": CLIENTS,
    "Command line": COMMANDS,
}
FAILURES = tuple(failure for group in GROUPS.values() for failure in group)
