"""
Some accounts, in parallel, by a fixed moment: an `asyncio.TaskGroup` under an `asyncio.timeout`.

For hundreds of accounts and more, `session.rotate` does this with a journal.
"""

import asyncio
from collections.abc import Mapping

from attrs import Factory, define

from postpress_async import PostPressError, PostPressSession, ProxyChange, RetryPolicy
from postpress_async.errors import Applied


@define
class Results:
    """Where each account stands when the time is up; each is in one of the four."""

    patched: list[str] = Factory(list)
    refused: dict[str, PostPressError] = Factory(dict)
    in_doubt: list[str] = Factory(list)
    """Sent, and perhaps applied: look, or send the same again."""
    not_sent: list[str] = Factory(list)


async def give_all(session: PostPressSession, changes: Mapping[str, ProxyChange], seconds: float) -> Results:
    """
    Give each account its change, and be back within *seconds*, whatever comes.

    An error of one account leaves the others alone. Cancelling this cancels all of it.
    """
    results = Results(not_sent=list(changes))
    # Nearly always a call ends by its own deadline, with an error that tells what was applied ...
    within = RetryPolicy(deadline=seconds, attempt_timeout=seconds)

    async def give(account_id: str, change: ProxyChange) -> None:
        results.not_sent.remove(account_id)
        results.in_doubt.append(account_id)  # until we know better; it stays there if we are cancelled
        try:
            await session.update_proxy(account_id, change, retry=within)
        except PostPressError as error:
            if error.applied is Applied.UNKNOWN:
                return
            results.refused[account_id] = error
        else:
            results.patched.append(account_id)
        results.in_doubt.remove(account_id)

    try:
        # ... and what waits for its turn behind a busy loop, or an outage, ends by this.
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for account_id, change in changes.items():
                group.create_task(give(account_id, change))
    except TimeoutError:
        pass
    return results


async def main(changes: Mapping[str, ProxyChange]) -> None:
    async with PostPressSession() as session:
        results = await give_all(session, changes, seconds=20.0)
    print("patched:", *sorted(results.patched))
    for account_id, error in results.refused.items():
        print("refused:", account_id, error.code)
    print("in doubt:", *results.in_doubt)
    print("not sent:", *results.not_sent)
