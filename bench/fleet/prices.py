"""What a pull costs for the network and the bucket. Prices are those of AWS in us-east-1, in dollars."""

import attrs

from bench.fleet.result import Result

GB = 1e9


@attrs.frozen
class Prices:
    """Per GB and per request. Bytes between availability zones are paid by the sender and by the receiver."""

    nat_gb: float = 0.045
    between_zones_gb: float = 2 * 0.01
    get: float = 0.0004 / 1000
    put: float = 0.005 / 1000


@attrs.frozen
class Bill:
    """Dollars for one image: NAT for what comes from the registry, bytes between zones, and requests to the bucket."""

    nat: float
    between_zones: float
    requests: float

    @property
    def total(self) -> float:
        return self.nat + self.between_zones + self.requests


def price(result: Result, prices: Prices | None = None) -> Bill:
    """The bill of a pull by all nodes."""
    prices = prices or Prices()
    requests = result.requests
    return Bill(
        result.carried("upstream") / GB * prices.nat_gb,
        result.crossing_bytes / GB * prices.between_zones_gb,
        requests["bucket GET"] * prices.get + requests["bucket PUT"] * prices.put,
    )
