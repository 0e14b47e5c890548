"""
Update some accounts concurrently before a deadline, with `asyncio.TaskGroup` and `asyncio.timeout`.

For hundreds of accounts or more, use `session.rotate`, which has a journal.
"""

import asyncio
from collections.abc import Mapping

from attrs import Factory, define

from postpress_async import PostPressError, PostPressSession, ProxyChange, RetryPolicy
from postpress_async.errors import Applied


@define
class Results:
    """The accounts by outcome. Each account is in exactly one of the four."""

    patched: list[str] = Factory(list)
    refused: dict[str, PostPressError] = Factory(dict)
    in_doubt: list[str] = Factory(list)
    """Sent and perhaps applied. Check the account, or send the same change again."""
    not_sent: list[str] = Factory(list)


async def update_all(
    session: PostPressSession, changes: Mapping[str, ProxyChange], seconds: float
) -> Results:
    """
    Update all accounts, and return within *seconds*.

    An error of one account does not affect the others. Cancellation cancels all updates.
    """
    results = Results(not_sent=list(changes))
    # Most calls end at their own deadline, with an error that says whether the change was applied.
    policy = RetryPolicy(deadline=seconds, attempt_timeout=seconds)

    async def update(account_id: str, change: ProxyChange) -> None:
        results.not_sent.remove(account_id)
        results.in_doubt.append(account_id)  # it stays in doubt if this task is cancelled
        try:
            await session.update_proxy(account_id, change, retry=policy)
        except PostPressError as error:
            if error.applied is Applied.UNKNOWN:
                return
            results.refused[account_id] = error
        else:
            results.patched.append(account_id)
        results.in_doubt.remove(account_id)

    try:
        # This timeout ends calls that wait for a permit, because of an outage or a busy event loop.
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for account_id, change in changes.items():
                group.create_task(update(account_id, change))
    except TimeoutError:
        pass
    return results


async def main(changes: Mapping[str, ProxyChange]) -> None:
    async with PostPressSession() as session:
        results = await update_all(session, changes, seconds=20.0)
    print("patched:", *sorted(results.patched))
    for account_id, error in results.refused.items():
        print("refused:", account_id, error.code)
    print("in doubt:", *results.in_doubt)
    print("not sent:", *results.not_sent)
