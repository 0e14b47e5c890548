"""The bot's replies to commands. A fake of Telegram delivers the commands and records the replies."""

import asyncio
import os
import signal
from asyncio import Task
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

pytest.importorskip("aiogram", reason="aiogram is not installed: `nox -s recipes` installs it")

from aiogram import Bot, Dispatcher
from aiogram.client.session.base import BaseSession
from aiogram.methods import GetMe, GetUpdates, SendMessage
from aiogram.types import Chat, Message, Update, User

from postpress_async import PostPressSession
from postpress_async.sandbox import SandboxThread
from tests.recipes import telegram_bot

ADMIN = 7


def update(text: str, sender: int = ADMIN) -> Update:
    message = Message(
        message_id=1,
        date=datetime(2026, 1, 1, tzinfo=UTC),
        chat=Chat(id=1, type="private"),
        from_user=User(id=sender, is_bot=False, first_name="Ada"),
        text=text,
    )
    return Update(update_id=1, message=message)


class Telegram(BaseSession):
    """A fake of Telegram's API: returns *updates* once, and records the bot's replies."""

    def __init__(self, *updates: Update) -> None:
        super().__init__()
        self.replies: list[str] = []
        self.is_closed = False
        self._updates = list(updates)

    async def make_request(self, bot: Bot, method: Any, timeout: int | None = None) -> Any:
        assert not self.is_closed
        match method:
            case GetMe():
                return User(id=42, is_bot=True, first_name="bot", username="bot")
            case GetUpdates():
                if not self._updates:
                    await asyncio.sleep(3600)
                updates, self._updates = self._updates, []
                return updates
            case SendMessage(text=text):
                self.replies.append(text)
        return None

    async def stream_content(self, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        raise AssertionError("the bot downloads no files")
        yield b""

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def telegram() -> Telegram:
    return Telegram()


@pytest.fixture
def bot(telegram: Telegram) -> Bot:
    return Bot("42:TEST", session=telegram)


@pytest.fixture
async def dispatcher(postpress_sandbox: SandboxThread) -> AsyncIterator[Dispatcher]:
    telegram_bot.router._parent_router = None  # detach the module's router from an earlier dispatcher
    async with PostPressSession(retry=telegram_bot.POLICY) as session:
        yield telegram_bot.make_dispatcher(session, [ADMIN], set())


async def test_reply_to_each_kind_of_error_says_what_to_do(
    postpress_sandbox: SandboxThread, dispatcher: Dispatcher, bot: Bot, telegram: Telegram, assert_output
) -> None:
    postpress_sandbox.script("acc_2", "errors/disconnected_account")
    postpress_sandbox.script("acc_3", "errors/resource_not_found")
    postpress_sandbox.script("acc_4", "errors/invalid_proxy_credentials")
    postpress_sandbox.script("acc_5", "errors/unexpected_error")
    lines = []
    commands = [f"/proxy acc_{number} DE" for number in range(1, 6)]
    for text in [*commands, "/proxy acc_6 Narnia", "/proxy"]:
        await dispatcher.feed_update(bot, update(text))
        lines += [f"> {text}", telegram.replies.pop()]

    assert_output("telegram_bot", lines)
    assert postpress_sandbox.proxy_of("acc_1") == {"country": "DE"}


async def test_user_who_is_not_an_admin_gets_no_reply(
    postpress_sandbox: SandboxThread, dispatcher: Dispatcher, bot: Bot, telegram: Telegram
) -> None:
    """Anyone can write to a bot."""
    await dispatcher.feed_update(bot, update("/proxy acc_1 DE", sender=8))

    assert telegram.replies == []
    assert postpress_sandbox.record.requests == 0


@pytest.mark.postpress(latency=0.3)
async def test_bot_stopped_by_sigterm_during_a_call_still_replies(
    postpress_sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    telegram_bot.router._parent_router = None
    telegram = Telegram(update("/proxy acc_1 DE"))
    monkeypatch.setenv("TELEGRAM_TOKEN", "42:TEST")
    monkeypatch.setenv("TELEGRAM_ADMINS", f"{ADMIN},8")
    monkeypatch.setattr(telegram_bot, "Bot", lambda token: Bot(token, session=telegram))

    running: Task[Any] = asyncio.create_task(telegram_bot.main())
    while not postpress_sandbox.record.in_flight:
        await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)
    await running

    assert telegram.replies == ["acc_1 has a new proxy."]
    assert telegram.is_closed
