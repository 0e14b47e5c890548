"""
How much CPU time does `update_many` need, compared with `asyncio.gather` over `update_proxy`?

Both update 10,000 accounts with one session and a server in another process, in turns. The ratio is the
median of the rounds::

    python -m benchmarks.update_many [--accounts 10000] [--rounds 7]
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

from postpress_async import ManagedProxy, Pace, PostPressSession
from tests.support.canned_server import canned_server

US = ManagedProxy(country="US")


async def _cpu_seconds(run: Callable[[], Awaitable[object]]) -> float:
    gc.collect()
    started = time.process_time()
    await run()
    return time.process_time() - started


async def _measure(url: str, accounts: int, rounds: int) -> float:
    changes = {f"acc_{number:05}": US for number in range(accounts)}
    # An adaptive concurrency limit would grow from round to round.
    async with PostPressSession("pp_key", base_url=url, pace=Pace(adaptive=False)) as session:

        async def gather() -> None:
            await asyncio.gather(*(session.update_proxy(account, US) for account in changes))

        async def many() -> None:
            assert (await session.update_many(changes)).ok

        await gather()
        ratios = []
        for _ in range(rounds):
            gather_seconds = await _cpu_seconds(gather)
            many_seconds = await _cpu_seconds(many)
            ratios.append(many_seconds / gather_seconds)
            print(
                f"gather {gather_seconds / accounts * 1e6:6.1f} us, "
                f"update_many {many_seconds / accounts * 1e6:6.1f} us"
                f" of CPU time per account: {ratios[-1]:.2f}"
            )
    return median(ratios)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    with canned_server(None) as url:
        ratio = asyncio.run(_measure(url, options.accounts, options.rounds))
    print(f"update_many / gather over update_proxy: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
