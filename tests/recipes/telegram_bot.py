"""
A Telegram bot with aiogram: ``/proxy acc_1 DE`` gives an account a new proxy.

The environment has ``TELEGRAM_TOKEN`` and ``TELEGRAM_ADMINS`` (user ids, separated by commas).
"""

import asyncio
import os
from asyncio import Task
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiogram import Bot, Dispatcher, Router
from aiogram.filters import Command, CommandObject, MagicData
from aiogram.types import Message, TelegramObject
from magic_filter import F

from postpress_async import ManagedProxy, PostPressError, PostPressSession, RetryPolicy, errors
from postpress_async.errors import Applied, Scope

# A person is waiting, so the deadline is shorter than the default.
POLICY = RetryPolicy(deadline=45.0, attempt_timeout=15.0)

ADVICE = {
    Scope.ACCOUNT: "Reconnect the account, then try again.",
    Scope.PROXY: "The proxy does not work. Try again to get another one.",
    Scope.KEY: "The API key does not allow this. Tell the operator of this bot.",
    Scope.SERVICE: "The service has a problem. Try again in a few minutes.",
}

Handler = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]

router = Router()


# The dispatcher passes its data, such as the session, to handlers by name.
@router.message(Command("proxy"), MagicData(F.event.from_user.id.in_(F.admins)))
async def new_proxy(message: Message, command: CommandObject, postpress: PostPressSession) -> None:
    match (command.args or "").split():
        case [account_id, country]:
            await message.answer(await update_proxy(postpress, account_id, country))
        case _:
            await message.answer("Usage: /proxy ACCOUNT COUNTRY, such as /proxy acc_1 DE")


async def update_proxy(session: PostPressSession, account_id: str, country: str) -> str:
    """Update the proxy and return the reply."""
    try:
        result = await session.update_proxy(account_id, ManagedProxy(country=country))
    except ValueError as error:  # the id or the country is invalid, and nothing was sent
        return str(error)
    except errors.NotFoundError:
        return f"There is no account {account_id}."
    except PostPressError as error:
        advice = ADVICE.get(error.scope, "The request is invalid.")
        doubt = " The change may have been applied anyway." if error.applied is Applied.UNKNOWN else ""
        return f"{account_id}: {error.code}. {advice}{doubt}"
    return f"{result.account_id} has a new proxy."


def make_dispatcher(
    session: PostPressSession, admins: Collection[int], pending: set[Task[Any]]
) -> Dispatcher:
    dispatcher = Dispatcher(postpress=session, admins=frozenset(admins))
    dispatcher.include_router(router)

    async def track(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Record the update's task, because aiogram does not wait for these tasks when polling ends."""
        if (task := asyncio.current_task()) is not None:
            pending.add(task)
            task.add_done_callback(pending.discard)
        return await handler(event, data)

    dispatcher.update.outer_middleware(track)
    return dispatcher


async def main() -> None:
    admins = [int(user) for user in os.environ["TELEGRAM_ADMINS"].split(",")]
    pending: set[Task[Any]] = set()
    async with Bot(os.environ["TELEGRAM_TOKEN"]) as bot, PostPressSession(retry=POLICY) as session:
        dispatcher = make_dispatcher(session, admins, pending)
        await dispatcher.start_polling(bot, close_bot_session=False)  # until SIGTERM or Ctrl-C
        if pending:  # reply to all users; this takes at most the policy's deadline
            await asyncio.wait(pending)


if __name__ == "__main__":
    asyncio.run(main())
