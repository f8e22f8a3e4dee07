"""The requests that reached S3, as the proxy before it recorded them."""

from collections import Counter

from tests.s3.store.proxy import Request, S3Proxy
from tests.support.deployment import eventually


class S3RequestLog:
    """The requests since it was created, or cleared. Creating it waits until the start-up check has ended."""

    def __init__(self, proxy: S3Proxy) -> None:
        self._proxy = proxy
        eventually(lambda: proxy.counted()["GET uploads"], "the start-up check ends with a list of uploads")
        self.clear()

    def clear(self) -> None:
        """Drop the requests recorded so far."""
        self._proxy.requests.clear()

    def of(self, key: str) -> list[str]:
        """Return the operations on one key, in order."""
        return [each.operation for each in list(self._proxy.requests) if object_key(each) == key]

    def counted(self) -> Counter[str]:
        """Count the requests by operation."""
        return self._proxy.counted()

    def copies(self) -> Counter[str]:
        """Count the touches of each key: copies of an object onto itself."""
        return Counter(object_key(each) for each in list(self._proxy.requests) if each.operation == "PUT copy")


def object_key(request: Request) -> str:
    """Return the key of the object in the path of a request."""
    return request.target.partition("?")[0].split("/", 2)[2]
