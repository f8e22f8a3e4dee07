"""Concurrent requests for one key share one execution, which is joined only while it is young."""

import asyncio

import pytest

from dockyard.cache.singleflight import Singleflight
from dockyard.errors import AccessDenied, LoginRequired, ManifestUnknown, RegistryError, TooManyRequests, Unavailable
from dockyard.oci.login import Login


async def test_work_is_executed_once() -> None:
    """All who request it while it is in progress get the same result."""
    singleflight, go_on, begun = Singleflight(), asyncio.Event(), []

    async def work() -> str:
        begun.append(None)
        await go_on.wait()
        return "done"

    asking = [asyncio.create_task(singleflight.run("key", work)) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(*asking) == ["done"] * 5
    assert len(begun) == 1
    assert await singleflight.run("key", work) == "done"
    assert len(begun) == 2


async def test_old_work_is_not_joined() -> None:
    """Later callers start it again, and are joined in turn; those who wait for the old work still get its result."""
    singleflight, held_up, begun = Singleflight(join_within_s=0.0), asyncio.Event(), []

    async def work() -> int:
        begun.append(None)
        number = len(begun)
        if number == 1:
            await held_up.wait()
        return number

    first = asyncio.create_task(singleflight.run("key", work))
    await asyncio.sleep(0.01)
    assert await singleflight.run("key", work) == 2
    held_up.set()
    assert await first == 1
    assert await singleflight.run("key", work) == 3


async def test_a_cancelled_caller_does_not_stop_the_work() -> None:
    """The work goes on for the others."""
    singleflight, go_on = Singleflight(), asyncio.Event()

    async def work() -> str:
        await go_on.wait()
        return "done"

    cancelled = asyncio.create_task(singleflight.run("key", work))
    other = asyncio.create_task(singleflight.run("key", work))
    await asyncio.sleep(0)
    cancelled.cancel()
    go_on.set()
    assert await other == "done"


@pytest.mark.parametrize("error", [AccessDenied, LoginRequired, ManifestUnknown, TooManyRequests])
async def test_the_refusal_of_another_login_is_no_result(error: type[RegistryError]) -> None:
    """Those with the refused login, or with none, get it at once; one with another login does the work again."""
    singleflight, go_on, begun = Singleflight(), asyncio.Event(), list[str]()

    async def work(name: str) -> str:
        begun.append(name)
        await go_on.wait()
        if name != "ann":
            raise error(name)
        return "done"

    def run(name: str) -> asyncio.Task[str]:
        login = Login(name, "") if name else None
        return asyncio.create_task(singleflight.run("key", lambda: work(name), login))

    asking = [run("eve"), run("eve"), run("ann"), run("ann"), run("")]
    await asyncio.sleep(0)
    go_on.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(result) for result in results] == ["eve", "eve", "done", "done", "done"]
    assert begun == ["eve", "ann"]


async def test_an_outage_is_the_result_for_every_login() -> None:
    """It does not depend on the login."""
    singleflight, go_on, begun = Singleflight(), asyncio.Event(), list[None]()

    async def work() -> str:
        begun.append(None)
        await go_on.wait()
        raise Unavailable("down")

    asking = [asyncio.create_task(singleflight.run("key", work, Login(name, ""))) for name in "abc"]
    await asyncio.sleep(0)
    go_on.set()
    assert [type(result) for result in await asyncio.gather(*asking, return_exceptions=True)] == [Unavailable] * 3
    assert len(begun) == 1
