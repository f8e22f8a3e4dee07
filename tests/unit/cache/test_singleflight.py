"""Concurrent requests for one key share one execution, which is joined only while it is young."""

import asyncio

from dockyard.cache.singleflight import Singleflight


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
