"""
Update some accounts before a deadline: ``python deadline.py acc_1 acc_2``.

For input that does not fit in memory, or to resume after a crash, use `session.rotate`, which has a journal.
"""

import asyncio
import sys
from collections.abc import Mapping

from postpress_async import ManagedProxy, PostPressSession, ProxyChange, Results


async def main(changes: Mapping[str, ProxyChange], seconds: float = 20.0) -> None:
    async with PostPressSession() as session:
        results = await session.update_many(changes, deadline=seconds)
    report(results)


def report(results: Results) -> None:
    """Print the accounts by outcome. Each account has exactly one."""
    print("patched:", *(outcome.account_id for outcome in results.patched))
    for outcome in results.failed:
        print("failed:", outcome.account_id, outcome.error_type)
    for outcome in results.unknown:  # may have been applied: check the account, or send the change again
        print("unknown:", outcome.account_id, outcome.error_type)
    print("skipped:", *(outcome.account_id for outcome in results.skipped))  # certainly not applied


if __name__ == "__main__":
    asyncio.run(main({account_id: ManagedProxy(country="US") for account_id in sys.argv[1:]}))
