"""
A Telegram bot, with aiogram: ``/proxy acc_1 DE`` gives an account a new proxy.

``TELEGRAM_TOKEN`` and ``TELEGRAM_ADMINS`` (user ids, with commas between) are read from the environment.
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

# A person waits: give up sooner than by default.
POLICY = RetryPolicy(deadline=45.0, attempt_timeout=15.0)

ADVICE = {
    Scope.ACCOUNT: "reconnect it, then ask again",
    Scope.PROXY: "that proxy does not work, ask again for another one",
    Scope.KEY: "the API key may not do this, tell whoever runs this bot",
    Scope.SERVICE: "the service is unwell, ask again in some minutes",
}

Handler = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]

router = Router()


# Handlers get the session by the name under which the dispatcher keeps it.
@router.message(Command("proxy"), MagicData(F.event.from_user.id.in_(F.admins)))
async def new_proxy(message: Message, command: CommandObject, postpress: PostPressSession) -> None:
    match (command.args or "").split():
        case [account_id, country]:
            await message.answer(await give(postpress, account_id, country))
        case _:
            await message.answer("write /proxy ACCOUNT COUNTRY, such as /proxy acc_1 DE")


async def give(session: PostPressSession, account_id: str, country: str) -> str:
    """What to say of it. Cancellation goes through: it is no error of the call."""
    try:
        done = await session.update_proxy(account_id, ManagedProxy(country=country))
    except ValueError as error:  # the id or the country is none; nothing was sent
        return str(error)
    except errors.NotFoundError:
        return f"there is no account {account_id}"
    except PostPressError as error:
        doubt = " It may have been applied all the same." if error.applied is Applied.UNKNOWN else ""
        return f"{account_id}: {error.code}: {ADVICE.get(error.scope, 'it cannot be done')}.{doubt}"
    return f"{done.account_id} has a new proxy"


def make_dispatcher(
    session: PostPressSession, admins: Collection[int], under_way: set[Task[Any]]
) -> Dispatcher:
    dispatcher = Dispatcher(postpress=session, admins=frozenset(admins))
    dispatcher.include_router(router)

    async def remember(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """aiogram answers each update in a task of its own, and at its end waits for none of them."""
        if (task := asyncio.current_task()) is not None:
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        return await handler(event, data)

    dispatcher.update.outer_middleware(remember)
    return dispatcher


async def main() -> None:
    admins = [int(user) for user in os.environ["TELEGRAM_ADMINS"].split(",")]
    under_way: set[Task[Any]] = set()
    async with Bot(os.environ["TELEGRAM_TOKEN"]) as bot, PostPressSession(retry=POLICY) as session:
        dispatcher = make_dispatcher(session, admins, under_way)
        await dispatcher.start_polling(bot, close_bot_session=False)  # until SIGTERM or Ctrl-C
        if under_way:  # no longer than the policy's deadline: whoever asked is told what came of it
            await asyncio.wait(under_way)


if __name__ == "__main__":
    asyncio.run(main())
