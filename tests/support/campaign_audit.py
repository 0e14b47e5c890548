"""
The audit of a campaign: what three readers of a journal say, against what the counting server knows.

Each check is a function that takes the `Case` so far and yields what it found: facts about an account, or
about the run.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from postpress_async import CustomProxy
from postpress_async.errors import JournalError
from postpress_async.rotation import Halt, Outcome, RotationSummary, State
from tests.support.campaign_plan import Account, End, Sequence, Step
from tests.support.campaign_reading import Reading, Record, read
from tests.support.counting_server import KEY_TYPE, CountingServer, Request, change_of


@frozen
class Finding:
    """Something that must not be: a *kind*, and the account that it is about, if it is about one."""

    kind: str
    account_id: str | None
    text: str


@define
class RunReport:
    """
    What one run said of itself.

    Attributes:
        number: Its number, from 1, as the server counts it.
        step: What it was to do.
        ended: How it ended.
        summary: Its summary; None if it was killed, or could not begin.
        outcomes: The outcomes that it streamed.
        error: What it raised.
        opened: Whether it came to open the journal.
        left_alone: Whether it left a complete run alone, since the next is not due.
        edit: What it says of an edited input.
        stopped_at: Number of outcomes that it had streamed when it was stopped; None if it was not.
    """

    number: int
    step: Step
    opened: bool = True
    left_alone: bool = False
    edit: str | None = None
    stopped_at: int | None = None
    ended: End = End.NATURAL
    summary: RotationSummary | None = None
    outcomes: list[Outcome] = field(factory=list)
    error: BaseException | None = None

    @property
    def died(self) -> bool:
        """Whether it ended without a last word in the journal."""
        return self.ended in {End.KILL, End.DISK_FULL}

    @property
    def was_refused(self) -> bool:
        """Whether it was refused before it sent anything."""
        return not self.opened and isinstance(self.error, JournalError)


@frozen
class Intent:
    """
    What a command is about.

    Attributes:
        accounts: Its input.
        taken: The ids of the accounts that it takes; None for all.
        expected: The number that the journal's latest run must have afterwards.
        back_to: The number of the run that it goes back to; None if it is no rollback.
        left_behind: Accounts that cannot go back.
    """

    accounts: tuple[Account, ...] = ()
    taken: frozenset[str] | None = None
    expected: int = 1
    back_to: int | None = None
    left_behind: frozenset[str] = frozenset()


@define
class Case:
    """
    A sequence so far.

    Attributes:
        sequence: What was drawn.
        server: The truth.
        runs: The runs so far, the audited one last.
        reading: What the readers say after it.
        before: What they said before it.
        accounts: The input of the journal's latest run, in its order.
        taken: The ids of the accounts that this run takes; None for all.
        first: The first of the `runs` that belongs to it: the others resumed it.
        first_of: The same for each of the journal's runs.
        start: What the readers said before it began.
        intent: What the latest command is about.
        patched_by: The run after which an account was first recorded as patched.
        is_last: Whether the run was the last of the sequence.
    """

    sequence: Sequence
    server: CountingServer
    runs: list[RunReport] = field(factory=list)
    reading: Reading = field(factory=Reading)
    before: Reading = field(factory=Reading)
    accounts: tuple[Account, ...] = ()
    taken: frozenset[str] | None = None
    first: int = 1
    first_of: dict[int, int] = field(factory=dict)
    start: Reading = field(factory=Reading)
    intent: Intent = field(factory=Intent)
    patched_by: dict[str, int] = field(factory=dict)
    is_last: bool = False

    @property
    def run(self) -> RunReport:
        return self.runs[-1]

    @property
    def records(self) -> Iterator[tuple[Account, Record | None]]:
        """Each account with its row of the table."""
        for ordinal, account in enumerate(self.accounts):
            if self.taken is None or account.account_id in self.taken:
                yield account, self.reading.table.get(ordinal)

    @property
    def runs_of_latest(self) -> list[RunReport]:
        """The runs that started and resumed the journal's latest run."""
        return self.runs[self.first - 1 :]

    @property
    def refused_for_good(self) -> frozenset[str]:
        """Accounts that no run can patch, since they or their own proxies do not work."""
        traits = self.sequence.traits
        dead = {
            account.account_id
            for account in self.accounts
            if isinstance(account.change, CustomProxy)
            and f"{account.change.host}:{account.change.port}" in traits.dead_proxies
        }
        return traits.refused_for_good | dead

    def adopt(self) -> None:
        """The command has opened the journal: its accounts are those of the journal's latest run."""
        if not self.run.opened or self.run.left_alone:
            return
        if (number := self.reading.latest) not in self.first_of:
            self.first_of[number] = self.first = self.run.number
            self.start = self.before
            self.patched_by.clear()
        if self.intent.accounts:
            self.accounts, self.taken = self.intent.accounts, self.intent.taken

    def sent(self, account_id: str) -> list[Request]:
        """What was sent for the account since the journal's latest run began."""
        return [r for r in self.server.by_account.get(account_id, ()) if r.run >= self.first]


def audit(case: Case, journal: Path, checks: "tuple[Check, ...] | None" = None) -> list[Finding]:
    """What is wrong after the latest run of *case*, whose journal lies at *journal*."""
    case.before, case.reading = case.reading, read(journal)
    case.adopt()
    found = [finding for check in checks or CHECKS for finding in check(case)]
    for account, record in case.records:
        if record is not None and record.state == State.PATCHED:
            case.patched_by.setdefault(account.account_id, case.run.number)
    return found


# --- The checks ----------------------------------------------------------------------------------


def check_readers(case: Case) -> Iterator[Finding]:
    """Table, export and status say the same, and their accounts add up."""
    reading, accounts = case.reading, case.accounts
    if reading.error is not None:
        if case.server.requests:
            yield Finding("journal cannot be read", None, reading.error)
        return
    table = [record for _, record in sorted(reading.table.items())]
    for mine, other in zip(table, reading.export, strict=False):
        if mine != other:
            yield Finding("readers disagree", mine.account_id, f"the table has {mine}, export {other}")
    if len(table) != len(reading.export):
        yield Finding(
            "readers disagree", None, f"{len(table)} rows in the table, {len(reading.export)} in export"
        )
    # Accounts that were removed from the input have their rows after its end.
    ids = {account.account_id for account in accounts}
    removed = [r.account_id for n, r in reading.table.items() if n >= len(accounts)]
    inside = {n: r for n, r in reading.table.items() if n < len(accounts)}
    wrong = [r.account_id for n, r in inside.items() if r.account_id != accounts[n].account_id]
    wrong += [account_id for account_id in removed if account_id in ids]
    if wrong:
        yield Finding("rows of other accounts", wrong[0], f"{len(wrong)} rows are about other accounts")
    states = Counter(record.state for record in table)
    counts = Counter(reading.status["states"])
    if +counts != states:
        yield Finding("readers disagree", None, f"the table has {dict(states)}, status {dict(+counts)}")
    # The total is committed just after the tables, so a run that dies in between leaves none.
    is_new = reading.status["total"] is None and not table and case.run.died
    total = len(list(case.records)) + len(removed)
    if reading.status["total"] != total and not is_new:
        text = f"status says {reading.status['total']} of {total} accounts"
        yield Finding("wrong total", None, text)


def check_patched(case: Case) -> Iterator[Finding]:
    """`patched` only if that very change was applied, and nothing was sent later that was applied too."""
    for account, record in case.records:
        if record is None or record.state != State.PATCHED:
            continue
        applied = [request for request in case.sent(account.account_id) if request.applied_at is not None]
        same = [request for request in applied if _is_recorded_change(account, record, request)]
        if not same:
            yield Finding("patched, but not applied", account.account_id, str(record))
        elif applied[-1] is not same[-1]:
            yield Finding("patched, but another change is the last", account.account_id, str(record))


def _is_recorded_change(account: Account, record: Record, request: Request) -> bool:
    if account.body is not None:
        return change_of(request.change) == change_of(account.body)
    proxy = request.change.get("proxy", {})
    # The label of a proxy from a list may begin with its line.
    return (record.proxy or "").split(" ")[-1] == f"{proxy.get('host')}:{proxy.get('port')}"


def check_not_applied(case: Case) -> Iterator[Finding]:
    """`failed` and `skipped` with applied = no only if nothing that was ever sent may have been applied."""
    for account, record in case.records:
        if record is None or record.state not in {State.FAILED, State.SKIPPED}:
            continue
        if not any(request.may_be_applied for request in case.sent(account.account_id)):
            continue
        if record.applied != "unknown":
            kind = f"{record.state} with applied = no, but applied"
            yield Finding(kind, account.account_id, str(record))
        elif account.is_managed:
            yield Finding(f"{record.state}, but a managed proxy is in doubt", account.account_id, str(record))


def check_no_row(case: Case) -> Iterator[Finding]:
    """No row only if nothing was sent, or if a run that died may have sent it; `status` counts those."""
    ordinals = {account.account_id: n for n, account in enumerate(case.accounts)}
    without = [(ordinals[a.account_id], a) for a, record in case.records if record is None]
    has_last_word = not case.run.died and case.run.ended is not End.CANCEL and case.run.error is None
    for ordinal, account in without:
        if ordinal < case.reading.may_be_sent:
            continue
        if case.sent(account.account_id):
            yield Finding("sent, but without a row", account.account_id, f"the run ended by {case.run.ended}")
        elif has_last_word:
            yield Finding("no row after a run that ended well", account.account_id, f"{case.run.summary}")
    sent = sum(bool(case.sent(account.account_id)) for _, account in without)
    reported = case.reading.status.get("maybe_sent", 0)
    if case.reading.error is None and reported is not None and reported < sent:
        text = f"status says that {reported} accounts without a row may have been sent, and {sent} were"
        yield Finding("status hides what may have been sent", None, text)


def check_doubt_has_a_reason(case: Case) -> Iterator[Finding]:
    """`unknown` only if something that was sent may have been applied, as far as the client can know."""
    if any(run.died for run in case.runs_of_latest):
        return
    for account, record in case.records:
        if record is None or record.state != State.UNKNOWN:
            continue
        if all(request.is_refused for request in case.sent(account.account_id)):
            yield Finding("unknown, but everything was refused", account.account_id, str(record))


def check_patched_is_left_alone(case: Case) -> Iterator[Finding]:
    """No run sends an account that was recorded as patched before it began."""
    for request in case.server.sent_in(case.run.number):
        if case.patched_by.get(request.account_id, request.run) < request.run:
            yield Finding("sent again after patched", request.account_id, str(request))


def check_keys(case: Case) -> Iterator[Finding]:
    """A key stands for one change; and a managed change in doubt is not sent under another key."""
    for account_id, requests in case.server.by_account.items():
        changes: dict[str, str] = {}
        for request in requests:
            if request.key is None:
                continue
            change = change_of(request.change)
            if changes.setdefault(request.key, change) != change:
                yield Finding("one key for two changes", account_id, str(request))
        if case.sequence.idempotency and (managed := [r for r in case.sent(account_id) if r.is_managed]):
            yield from _fresh_keys_in_doubt(account_id, managed)


def _fresh_keys_in_doubt(account_id: str, requests: list[Request]) -> Iterator[Finding]:
    for index, request in enumerate(requests):
        for before, earlier in enumerate(requests[:index]):
            if earlier.key == request.key or earlier.is_refused:
                continue
            # Only an answer from behind the store of keys, under the same key, can end the doubt.
            between = requests[before + 1 : index]
            was_refused = any(
                r.key == earlier.key and r.is_after_key_lookup and r.is_refused for r in between
            )
            if earlier.may_be_applied or not was_refused:
                text = f"while this one is in doubt: {earlier}; sent under another key: {request}"
                yield Finding("fresh key while in doubt", account_id, text)
                return


def check_doubles(case: Case) -> Iterator[Finding]:
    """At most one managed proxy for each account."""
    if not case.sequence.bounds_doubles:
        return
    for account_id in case.server.by_account:
        sent = case.sent(account_id)
        if (count := sum(r.is_managed and r.applied_at is not None for r in sent)) > 1:
            yield Finding("managed proxies handed out twice", account_id, f"{count} handed out")


def check_caps(case: Case) -> Iterator[Finding]:
    """No more accounts on a proxy of the pool than allowed."""
    cap = case.sequence.accounts_per_proxy
    if cap is None:
        return
    pooled = [r for a, r in case.records if r is not None and a.change is None and r.state == State.PATCHED]
    for label, count in Counter(record.proxy for record in pooled).items():
        if count > cap:
            yield Finding("proxy over its cap", None, f"{label} has {count} accounts, {cap} allowed")


def check_ends(case: Case) -> Iterator[Finding]:
    """A run says why it ended: that the key was refused, that it halted, and with which numbers."""
    run, reading = case.run, case.reading
    if run.error is not None and run.ended is not End.DISK_FULL:
        yield Finding(f"raised {type(run.error).__name__}", None, str(run.error))
    summary = run.summary
    if summary is None or not run.opened or run.error is not None or run.died:
        return  # the last words of a run that died are not in the journal
    refused = [r for r in case.server.sent_in(run.number) if r.by_key_check and r.is_received]
    tried = [outcome for outcome in run.outcomes if outcome.attempts]
    only_401 = bool(tried) and all(outcome.status == 401 for outcome in tried)
    is_certain = any(r.type == KEY_TYPE for r in refused)
    # A type that accounts get too is about the key if all accounts get it, and the key never worked.
    is_alike = only_401 and len({o.error_type for o in tried}) == 1 and not case.patched_by
    must_tell = run.ended is not End.CANCEL and (is_certain or is_alike)
    if refused and must_tell and not summary.key_refused:
        yield Finding("refused key not reported", None, f"{len(refused)} requests were refused; {summary}")
    gateway = run.step.conditions.gateway  # a page with a 401 for every account looks like the key's refusal
    if summary.key_refused and not refused and not only_401 and (gateway is None or gateway.status != 401):
        yield Finding("key blamed without cause", None, str(summary.halted))
    hit = {request.account_id for request in refused}
    if summary.key_refused:
        for account, record in case.records:
            if record is not None and account.account_id in hit and record.state == State.FAILED:
                yield Finding("failed for the API key", account.account_id, str(record))
    # What fails after a stop only shows what the operator waits for.
    before_stop = [outcome for outcome in run.outcomes[: run.stopped_at] if outcome.attempts]
    if _must_halt(run.step.halt, before_stop) and not summary.halted:
        yield Finding("halt not reported", None, f"{run.step.halt}; {summary}")
    must_show = reading.error is None and run.ended is not End.CANCEL
    if must_show and summary.halted and reading.status["run"] != "halted":
        yield Finding(
            "halt not in status", None, f"status says {reading.status['run']}, summary {summary.halted}"
        )
    patched = sum(record is not None and record.state == State.PATCHED for _, record in case.records)
    if summary.patched != patched:
        yield Finding("summary is wrong", None, f"it says {summary.patched} patched, the table {patched}")


def _must_halt(halt: Halt, tried: list[Outcome]) -> bool:
    failed = sum(outcome.state is State.FAILED for outcome in tried)
    return isinstance(halt.failures, int) and failed >= halt.failures


def check_nothing_is_lost(case: Case) -> Iterator[Finding]:
    """At the end each account is patched, or refused for good, or in a doubt that nothing can end."""
    if not case.is_last:
        return
    for account, record in case.records:
        state = None if record is None else record.state
        good = state == State.PATCHED
        good |= state == State.FAILED and account.account_id in case.refused_for_good
        good |= state in {None, State.UNKNOWN} and _is_lasting_doubt(case, account)
        if not good:
            yield Finding(f"lost: {state or 'no row'}", account.account_id, str(record))


def _is_lasting_doubt(case: Case, account: Account) -> bool:
    sent = case.sent(account.account_id)
    had_doubt = any(run.died for run in case.runs_of_latest) or not all(
        request.is_refused for request in sent
    )
    if account.account_id in case.refused_for_good:
        return had_doubt
    if not case.sequence.idempotency:
        # A second request may hand out a second proxy; and the operator may ask for no second one at all.
        return had_doubt and (account.is_managed or case.sequence.on_unknown == "report")
    if not account.is_managed:
        return False
    # Only a success ends the doubt, and the service replays an error under the only key that may be used.
    return had_doubt and bool(sent) and sent[-1].is_after_key_lookup and case.sequence.traits.stores_errors


Check = Callable[[Case], Iterator[Finding]]
CHECKS: Final[tuple[Check, ...]] = (
    check_readers,
    check_patched,
    check_not_applied,
    check_no_row,
    check_doubt_has_a_reason,
    check_patched_is_left_alone,
    check_keys,
    check_doubles,
    check_caps,
    check_ends,
    check_nothing_is_lost,
)
