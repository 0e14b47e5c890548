"""A rotation of the real session against the real sandbox, in virtual time."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Final

from attrs import define, field

from benchmarks.virtual import Connector, run
from benchmarks.world import Request, Result, Scenario
from postpress_async import CustomProxy, Pace, PostPressError, PostPressSession, RetryPolicy, events
from postpress_async.rotation import Outcome, State
from postpress_async.sandbox.faults import NONE, Fault, Faults
from postpress_async.sandbox.server import Server

LATENCY: Final = 0.05
"""Seconds that an execution takes."""

CALL: Final = "acc_single"


class Weather(Faults):
    """
    Deals out a scenario's faults, and keeps count of them.

    Attributes:
        storm: What every request gets now.
        dealt: Faults that came by chance, and dead proxies: each cost an attempt that had to be made.
        stored: Of these, changes that were carried out all the same: the next request costs no work.
        own: How many of them each account had.
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__("steady", seed)
        self.storm: Fault = NONE
        self.dealt = self.stored = 0
        self.own: Counter[str] = Counter()
        self._scenario = scenario

    def draw(self, account_id: str, nth: int, *, elapsed: float = 0.0, executing: int = 0) -> Fault:
        """See `Faults.draw`."""
        del elapsed, executing
        if self.storm is not NONE or account_id == CALL:
            return self.storm
        number = int(account_id.removeprefix("acc_"))
        chance = random.Random(f"{self.seed}/{number}/{nth}").random()
        fault = self._scenario.deal(Request(number, chance))
        if fault is not NONE or self._scenario.dead(number):
            self.dealt += 1
            self.stored += fault.executes
            self.own[account_id] += 1
        return fault


@define
class _Play:
    """One scenario under way."""

    scenario: Scenario
    seed: int
    attempts: int = 0
    throttled: int = 0
    patched: int = 0
    failed: list[str] = field(factory=list)

    async def run(self) -> Result:
        scenario, loop = self.scenario, asyncio.get_running_loop()
        random.seed(self.seed)  # of the session's own jitter, too
        logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
        weather = Weather(scenario, self.seed)
        server = Server(
            **{"latency": LATENCY, **scenario.server},
            keep_alive=1e9,
            faults=weather,
            dead_proxies=lambda proxy: str(proxy["host"]).startswith("dead"),
        )
        took = None
        async with AsyncExitStack() as stack, server:
            sessions = [await self._open(stack, server) for _ in range(scenario.sessions)]
            async with asyncio.TaskGroup() as group:
                director = group.create_task(self._direct(server, weather))
                rotations = [
                    group.create_task(self._rotate(session, number))
                    for number, session in enumerate(sessions)
                ]
                if scenario.single:
                    took = await self._call(sessions[0])
                else:
                    await asyncio.wait(rotations)
                makespan = loop.time()
                for task in (director, *rotations):
                    task.cancel()
            attempts = scenario.policy.get("attempts", RetryPolicy().attempts)
            unlucky = sum(
                weather.own[account] >= attempts or scenario.hopeless(int(account.removeprefix("acc_")))
                for account in self.failed
            )
            lost = len(self.failed) - unlucky
            needed = server.record.patched_accounts.total() + weather.dealt + lost
            ideal = scenario.ideal(needed - weather.stored)
            if took is not None:  # its background is not what is measured
                makespan, ideal, needed, lost = (
                    took,
                    RetryPolicy(**scenario.policy).deadline,
                    self.attempts,
                    0,
                )
            return Result(
                scenario.name,
                1 if scenario.single else scenario.accounts,
                makespan,
                ideal,
                self.attempts,
                needed,
                self.patched,
                unlucky,
                lost,
                self.throttled,
                server.record.most_in_flight,
                getattr(loop, "timers", 0),
            )

    async def _open(self, stack: AsyncExitStack, server: Server) -> PostPressSession:
        scenario = self.scenario
        return await stack.enter_async_context(
            PostPressSession(
                server.api_key,
                base_url=server.url,
                retry=RetryPolicy(**scenario.policy),
                pace=Pace(in_flight=scenario.in_flight, start=scenario.start, rate=scenario.ceiling),
                connector=await stack.enter_async_context(Connector()),
                on_event=self._watch,
            )
        )

    def _watch(self, event: events.Event) -> None:
        if isinstance(event, events.AttemptStarted):
            self.attempts += not self.scenario.single or event.account_id == CALL
        elif isinstance(event, events.AttemptEnded) and event.status == 429:
            self.throttled += 1

    async def _rotate(self, session: PostPressSession, number: int) -> None:
        async with session.rotate(self._changes(number)) as rotation:
            async for outcome in rotation:
                self._count(outcome)

    def _changes(self, number: int) -> Iterator[tuple[str, CustomProxy]]:
        for account in range(number, self.scenario.accounts, self.scenario.sessions):
            host = "dead.example.com" if self.scenario.dead(account) else "proxy.example.com"
            yield f"acc_{account}", CustomProxy(host=host, port=8080)

    def _count(self, outcome: Outcome) -> None:
        if outcome.state is State.PATCHED:
            self.patched += 1
        else:
            self.failed.append(outcome.account_id)

    async def _call(self, session: PostPressSession) -> float:
        """Seconds that one call takes, in the middle of the first outage."""
        spell, clock = self.scenario.plot[0], asyncio.get_running_loop().time
        await asyncio.sleep((spell.start + spell.end) / 2)
        began = clock()
        try:
            await session.update_proxy(CALL, CustomProxy(host="proxy.example.com", port=8080))
        except PostPressError:
            return clock() - began
        raise RuntimeError("patched by a service that was out")

    async def _direct(self, server: Server, weather: Weather) -> None:
        """Let happen what the plot says, in time."""
        clock = asyncio.get_running_loop().time
        for spell in self.scenario.plot:
            await asyncio.sleep(spell.start - clock())
            if isinstance(spell.kind, Fault):
                weather.storm = spell.kind
            else:
                await server.outage(spell.kind, factor=spell.factor)
            await asyncio.sleep(spell.end - clock())
            weather.storm = NONE
            await server.recover()


def measure(scenario: Scenario, accounts: int | None = None, seed: int = 1) -> Result:
    """Play *scenario*, with another number of *accounts* if given."""
    return run(_Play(scenario if accounts is None else scenario.of(accounts), seed).run())
