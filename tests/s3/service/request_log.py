"""What reached S3, as the proxy before it saw it."""

from collections import Counter

from tests.s3.store.proxy import Request, S3Proxy
from tests.support.deployment import eventually


class S3RequestLog:
    """Counts the requests to S3 from where it is made on: the start-up check is over then."""

    def __init__(self, proxy: S3Proxy) -> None:
        self._proxy = proxy
        eventually(lambda: proxy.counted()["GET uploads"], "the start-up check ends with a look at uploads")
        self.forget()

    def forget(self) -> None:
        """Count from here."""
        self._proxy.requests.clear()

    def of(self, key: str) -> list[str]:
        """The operations on one key, in order."""
        return [each.operation for each in list(self._proxy.requests) if object_key(each) == key]

    def counted(self) -> Counter[str]:
        """All operations."""
        return self._proxy.counted()

    def copies(self) -> Counter[str]:
        """How often each key was copied onto itself."""
        return Counter(object_key(each) for each in list(self._proxy.requests) if each.operation == "PUT copy")


def object_key(request: Request) -> str:
    """What stands behind the bucket in a path."""
    return request.target.partition("?")[0].split("/", 2)[2]
