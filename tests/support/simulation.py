"""Runs a scenario: the real session and rotation with the real sandbox, in virtual time."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final, Literal

from attrs import define, field

from postpress_async import CustomProxy, Pace, PostPressError, PostPressSession, RetryPolicy, events
from postpress_async.rotation import Outcome, State
from postpress_async.sandbox._faults import NONE, Fault, Faults
from postpress_async.sandbox._server import Server
from tests.support.simulated_service import Request, Result, Scenario
from tests.support.virtual_loop import Connector, run

LATENCY: Final = 0.05
"""Seconds that an update takes."""

CALL: Final = "acc_single"
"""The account of the single call that is measured if `Scenario.single` is set."""


class ScenarioFaults(Faults):
    """
    Chooses the faults of a scenario and counts them.

    Attributes:
        current: The fault of every request during a disruption.
        random_faults: Number of random faults and dead proxies. Each requires one more attempt.
        stored: Number of random faults whose change was executed. The next request gets the stored response.
        by_account: Number of random faults and dead proxies, by account.
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__("steady", seed)
        self.current: Fault = NONE
        self.random_faults = self.stored = 0
        self.by_account: Counter[str] = Counter()
        self._scenario = scenario

    def draw(self, account_id: str, nth: int, *, elapsed: float = 0.0, executing: int = 0) -> Fault:
        """See `Faults.draw`."""
        del elapsed, executing
        if self.current is not NONE or account_id == CALL:
            return self.current
        number = int(account_id.removeprefix("acc_"))
        chance = random.Random(f"{self.seed}/{number}/{nth}").random()
        fault = self._scenario.choose_fault(Request(number, chance))
        if fault is not NONE or self._scenario.dead(number):
            self.random_faults += 1
            self.stored += fault.executes
            self.by_account[account_id] += 1
        return fault


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Disable the logger *name* during the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@define
class _Run:
    """
    One run of a scenario.

    Attributes:
        attempts: Number of attempts; only those of the single call if `Scenario.single` is set.
        throttled: Number of 429s.
        patched: Number of patched accounts.
        failed: The accounts that failed.
    """

    scenario: Scenario
    seed: int
    transport: Literal["session", "lean"]
    attempts: int = 0
    throttled: int = 0
    patched: int = 0
    failed: list[str] = field(factory=list)

    async def run(self) -> Result:
        scenario, loop = self.scenario, asyncio.get_running_loop()
        random.seed(self.seed)  # for the session's jitter
        faults = ScenarioFaults(scenario, self.seed)
        server = Server(
            **{"latency": LATENCY, **scenario.server},
            keep_alive=1e9,
            faults=faults,
            dead_proxies=lambda proxy: str(proxy["host"]).startswith("dead"),
        )
        call_seconds = None
        async with AsyncExitStack() as stack, server:
            stack.enter_context(quiet("aiohttp"))
            sessions = [await self._open(stack, server) for _ in range(scenario.sessions)]
            async with asyncio.TaskGroup() as group:
                disruptions = group.create_task(self._disrupt(server, faults))
                rotations = [
                    group.create_task(self._rotate(session, number))
                    for number, session in enumerate(sessions)
                ]
                if scenario.single:
                    call_seconds = await self._call(sessions[0])
                else:
                    await asyncio.wait(rotations)
                makespan = loop.time()
                for task in (disruptions, *rotations):
                    task.cancel()
            attempts = scenario.policy.get("attempts", RetryPolicy().attempts)
            unlucky = sum(
                faults.by_account[account] >= attempts or scenario.hopeless(int(account.removeprefix("acc_")))
                for account in self.failed
            )
            lost = len(self.failed) - unlucky
            needed = server.record.patched_accounts.total() + faults.random_faults + lost
            ideal = scenario.ideal(needed - faults.stored)
            if call_seconds is not None:  # measure only the call, not the rotation
                makespan, ideal = call_seconds, RetryPolicy(**scenario.policy).deadline
                needed, lost = self.attempts, 0
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
                pace=Pace(in_flight=scenario.in_flight, start=scenario.initial_limit, rate=scenario.max_rate),
                connector=await stack.enter_async_context(Connector()),
                transport=self.transport,
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
        """Return the seconds that a call takes which starts in the middle of the first outage."""
        outage, clock = self.scenario.disruptions[0], asyncio.get_running_loop().time
        await asyncio.sleep((outage.start + outage.end) / 2)
        started = clock()
        try:
            await session.update_proxy(CALL, CustomProxy(host="proxy.example.com", port=8080))
        except PostPressError:
            return clock() - started
        raise RuntimeError("the account was patched during an outage")

    async def _disrupt(self, server: Server, faults: ScenarioFaults) -> None:
        """Start and end the disruptions of the scenario."""
        clock = asyncio.get_running_loop().time
        for disruption in self.scenario.disruptions:
            await asyncio.sleep(disruption.start - clock())
            if isinstance(disruption.kind, Fault):
                faults.current = disruption.kind
            else:
                await server.outage(disruption.kind, factor=disruption.factor)
            await asyncio.sleep(disruption.end - clock())
            faults.current = NONE
            await server.recover()


def measure(
    scenario: Scenario,
    accounts: int | None = None,
    seed: int = 1,
    transport: Literal["session", "lean"] = "session",
) -> Result:
    """Run *scenario*, with another number of *accounts* if it is not None."""
    return run(_Run(scenario if accounts is None else scenario.shortened_to(accounts), seed, transport).run())
