"""Work that many want at once is done once, and joined only while it is young."""

import asyncio

from dockyard.cache.singleflight import Singleflight


async def test_work_is_done_once() -> None:
    """Whoever asks while it is under way gets the same answer."""
    together, go_on, begun = Singleflight(), asyncio.Event(), []

    async def work() -> str:
        begun.append(None)
        await go_on.wait()
        return "done"

    asking = [asyncio.create_task(together.once("key", work)) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.gather(*asking) == ["done"] * 5
    assert len(begun) == 1
    assert await together.once("key", work) == "done"
    assert len(begun) == 2


async def test_old_work_is_not_joined() -> None:
    """Work that is held up keeps those who wait for it; who comes later begins anew, and is joined in turn."""
    together, held_up, begun = Singleflight(join_within_s=0.0), asyncio.Event(), []

    async def work() -> int:
        begun.append(None)
        number = len(begun)
        if number == 1:
            await held_up.wait()
        return number

    first = asyncio.create_task(together.once("key", work))
    await asyncio.sleep(0.01)
    assert await together.once("key", work) == 2
    held_up.set()
    assert await first == 1
    assert await together.once("key", work) == 3


async def test_a_client_that_leaves_does_not_stop_the_work() -> None:
    """The work goes on for the others."""
    together, go_on = Singleflight(), asyncio.Event()

    async def work() -> str:
        await go_on.wait()
        return "done"

    leaver = asyncio.create_task(together.once("key", work))
    stayer = asyncio.create_task(together.once("key", work))
    await asyncio.sleep(0)
    leaver.cancel()
    go_on.set()
    assert await stayer == "done"
