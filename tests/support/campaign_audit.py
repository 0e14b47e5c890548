"""
The audit of a campaign: compares what the readers of a journal show with what the counting server knows.

Each check is a function that takes the `Case` so far and yields a `Finding` for each broken rule.

A *run* is one execution, which has a `RunReport`. It starts or resumes a *journal run*: one of the runs that
the journal keeps.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from attrs import define, evolve, field, frozen

from postpress_async import CustomProxy
from postpress_async.errors import JournalError
from postpress_async.rotation import Halt, Outcome, RotationSummary, State
from tests.support.campaign_plan import Account, End, Sequence, Step
from tests.support.campaign_reading import Reading, Record, read
from tests.support.counting_server import API_KEY_TYPE, CountingServer, Request, canonical_json


@frozen
class Finding:
    """A broken rule."""

    kind: str
    account_id: str | None  # None if it is about the whole run
    text: str


@define
class RunReport:
    """
    What one run reported.

    Attributes:
        number: Number of the run, from 1, as the server counts it.
        step: What the run should do.
        opened: Whether the run opened the journal.
        left_alone: Whether the run sent nothing, because the next journal run is not due yet.
        edit: How the run describes an edited input; None if it does not.
        stopped_at: Number of outcomes that were streamed before the run was stopped; None if it was not.
        ended: How the run ended.
        summary: The summary; None if the run was killed or could not begin.
        outcomes: The outcomes that were streamed.
        error: The exception that the run raised.
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
        """Whether the run could not record its end in the journal."""
        return self.ended in {End.KILL, End.DISK_FULL}

    @property
    def was_refused(self) -> bool:
        """Whether the run was refused before it sent anything."""
        return not self.opened and isinstance(self.error, JournalError)


@frozen
class Intent:
    """
    What a run must do.

    Attributes:
        accounts: The input.
        selected: The ids of the accounts that the run must send; None for all.
        expected_run: Number of the journal run that the run must start or resume.
        rollback_run: Number of the journal run to which a rollback goes back; None if this is no rollback.
        left_behind: The ids of the accounts that cannot go back.
    """

    accounts: tuple[Account, ...] = ()
    selected: frozenset[str] | None = None
    expected_run: int = 1
    rollback_run: int | None = None
    left_behind: frozenset[str] = frozenset()


@define
class Case:
    """
    A sequence that is being played, after its latest run.

    Attributes:
        sequence: The sequence.
        server: The server, which knows what was sent and applied.
        runs: The runs so far; the last one is audited.
        reading: What the readers show after the latest run.
        previous: What the readers showed before the latest run.
        accounts: The input of the latest journal run, in order.
        selected: The ids of the accounts in the latest journal run; None for all.
        first_run: Number of the run that started the latest journal run. Later runs resumed it.
        first_runs: The same for each journal run, by its number.
        reading_at_start: What the readers showed before the latest journal run started.
        intent: What the latest run must do.
        patched_by: For each account, the run after which it was first recorded as patched.
        is_last: Whether the latest run is the last of the sequence.
    """

    sequence: Sequence
    server: CountingServer
    runs: list[RunReport] = field(factory=list)
    reading: Reading = field(factory=Reading)
    previous: Reading = field(factory=Reading)
    accounts: tuple[Account, ...] = ()
    selected: frozenset[str] | None = None
    first_run: int = 1
    first_runs: dict[int, int] = field(factory=dict)
    reading_at_start: Reading = field(factory=Reading)
    intent: Intent = field(factory=Intent)
    patched_by: dict[str, int] = field(factory=dict)
    is_last: bool = False

    @property
    def run(self) -> RunReport:
        return self.runs[-1]

    @property
    def records(self) -> Iterator[tuple[Account, Record | None]]:
        """Each account of the latest journal run, with its row of the table or None."""
        for ordinal, account in enumerate(self.accounts):
            if self.selected is None or account.account_id in self.selected:
                yield account, self.reading.table.get(ordinal)

    @property
    def runs_of_latest(self) -> list[RunReport]:
        """The runs that started and resumed the latest journal run."""
        return self.runs[self.first_run - 1 :]

    def for_latest_run(self, step: Step, accounts: tuple[Account, ...]) -> Step:
        """Return *step* with these accounts, and with the selection and pool of the latest journal run."""
        first_step = self.runs[self.first_run - 1].step if self.runs else Step()
        return evolve(
            step,
            on=first_step.on,
            rollback_to=first_step.rollback_to,
            accounts=accounts,
            pool=first_step.pool,
        )

    @property
    def refused_for_good(self) -> frozenset[str]:
        """Accounts that no run can patch, because they or their custom proxies do not work."""
        traits = self.sequence.traits
        dead = {
            account.account_id
            for account in self.accounts
            if isinstance(account.change, CustomProxy)
            and f"{account.change.host}:{account.change.port}" in traits.dead_proxies
        }
        return traits.refused_for_good | dead

    def adopt(self) -> None:
        """If the latest run opened the journal, store its input as that of the latest journal run."""
        if not self.run.opened or self.run.left_alone:
            return
        number = self.reading.latest
        if number not in self.first_runs:
            self.first_runs[number] = self.first_run = self.run.number
            self.reading_at_start = self.previous
            self.patched_by.clear()
        if self.intent.accounts:
            self.accounts, self.selected = self.intent.accounts, self.intent.selected

    def sent(self, account_id: str) -> list[Request]:
        """The requests for the account since the latest journal run started."""
        requests = self.server.by_account.get(account_id, ())
        return [request for request in requests if request.run >= self.first_run]


def audit(case: Case, journal: Path, checks: "tuple[Check, ...] | None" = None) -> list[Finding]:
    """Return the findings after the latest run of *case*, for the journal at the path *journal*."""
    case.previous, case.reading = case.reading, read(journal)
    case.adopt()
    findings = [finding for check in checks or CHECKS for finding in check(case)]
    for account, record in case.records:
        if record is not None and record.state == State.PATCHED:
            case.patched_by.setdefault(account.account_id, case.run.number)
    return findings


# --- The checks ----------------------------------------------------------------------------------


def check_readers(case: Case) -> Iterator[Finding]:
    """The table, `export` and `status` agree, and their numbers of accounts add up."""
    reading, accounts = case.reading, case.accounts
    if reading.error is not None:
        if case.server.requests:
            yield Finding("journal cannot be read", None, reading.error)
        return
    table = [record for _, record in sorted(reading.table.items())]
    for record, exported in zip(table, reading.export, strict=False):
        if record != exported:
            text = f"the table has {record}, export {exported}"
            yield Finding("readers disagree", record.account_id, text)
    if len(table) != len(reading.export):
        yield Finding(
            "readers disagree", None, f"{len(table)} rows in the table, {len(reading.export)} in export"
        )
    # Accounts that were removed from the input have ordinals after its last row.
    ids = {account.account_id for account in accounts}
    removed, wrong = [], []
    for ordinal, record in reading.table.items():
        if ordinal >= len(accounts):
            removed.append(record.account_id)
        elif record.account_id != accounts[ordinal].account_id:
            wrong.append(record.account_id)
    wrong += [account_id for account_id in removed if account_id in ids]
    if wrong:
        yield Finding("rows of other accounts", wrong[0], f"{len(wrong)} rows are about other accounts")
    states = Counter(record.state for record in table)
    counts = Counter(reading.status["states"])
    if +counts != states:
        yield Finding("readers disagree", None, f"the table has {dict(states)}, status {dict(+counts)}")
    # The total is committed just after the tables, so a run that dies in between leaves no total.
    is_new = reading.status["total"] is None and not table and case.run.died
    total = len(list(case.records)) + len(removed)
    if reading.status["total"] != total and not is_new:
        text = f"status says {reading.status['total']} of {total} accounts"
        yield Finding("wrong total", None, text)


def check_patched(case: Case) -> Iterator[Finding]:
    """An account is `patched` only if the recorded change was applied, and no other change later."""
    for account, record in case.records:
        if record is None or record.state != State.PATCHED:
            continue
        applied = [request for request in case.sent(account.account_id) if request.applied_at is not None]
        if not any(_is_recorded_change(account, record, request) for request in applied):
            yield Finding("patched, but not applied", account.account_id, str(record))
        elif not _is_recorded_change(account, record, applied[-1]):
            yield Finding("patched, but another change was applied later", account.account_id, str(record))


def _is_recorded_change(account: Account, record: Record, request: Request) -> bool:
    if account.body is not None:
        return canonical_json(request.change) == canonical_json(account.body)
    proxy = request.change.get("proxy", {})
    # The label of a proxy from a list may begin with its line number.
    return (record.proxy or "").split(" ")[-1] == f"{proxy.get('host')}:{proxy.get('port')}"


def check_not_applied(case: Case) -> Iterator[Finding]:
    """`failed` and `skipped` have applied = no only if no request may have been applied."""
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
    """An account without a row was not sent, or is one of those that `status` counts as maybe sent."""
    ordinals = {account.account_id: ordinal for ordinal, account in enumerate(case.accounts)}
    without_row = [(ordinals[a.account_id], a) for a, record in case.records if record is None]
    ended_normally = not case.run.died and case.run.ended is not End.CANCEL and case.run.error is None
    for ordinal, account in without_row:
        if ordinal < case.reading.may_be_sent:
            continue
        if case.sent(account.account_id):
            yield Finding("sent, but without a row", account.account_id, f"the run ended by {case.run.ended}")
        elif ended_normally:
            yield Finding("no row after a run that ended normally", account.account_id, f"{case.run.summary}")
    sent = sum(bool(case.sent(account.account_id)) for _, account in without_row)
    reported = case.reading.status.get("maybe_sent", 0)
    if case.reading.error is None and reported is not None and reported < sent:
        text = f"status says that {reported} accounts without a row may have been sent, and {sent} were"
        yield Finding("status hides accounts that may have been sent", None, text)


def check_doubt_has_a_reason(case: Case) -> Iterator[Finding]:
    """An account is `unknown` only if, as far as the client can know, a request may have been applied."""
    if any(run.died for run in case.runs_of_latest):
        return
    for account, record in case.records:
        if record is None or record.state != State.UNKNOWN:
            continue
        if all(request.is_refused for request in case.sent(account.account_id)):
            yield Finding("unknown, but everything was refused", account.account_id, str(record))


def check_patched_is_left_alone(case: Case) -> Iterator[Finding]:
    """No run sends an account that was recorded as patched before the run began."""
    for request in case.server.sent_in(case.run.number):
        if case.patched_by.get(request.account_id, request.run) < request.run:
            yield Finding("sent again after patched", request.account_id, str(request))


def check_keys(case: Case) -> Iterator[Finding]:
    """An idempotency key is used for one change, and a managed change in doubt keeps its key."""
    for account_id, requests in case.server.by_account.items():
        changes: dict[str, str] = {}
        for request in requests:
            if request.key is None:
                continue
            change = canonical_json(request.change)
            if changes.setdefault(request.key, change) != change:
                yield Finding("one key for two changes", account_id, str(request))
        if case.sequence.idempotency:
            managed = [request for request in case.sent(account_id) if request.is_managed]
            yield from _check_new_keys(account_id, managed)


def _check_new_keys(account_id: str, requests: list[Request]) -> Iterator[Finding]:
    for index, request in enumerate(requests):
        for earlier_index, earlier in enumerate(requests[:index]):
            if earlier.key == request.key or earlier.is_refused:
                continue
            # Only an error response from behind the store of keys, under the same key, can end the doubt.
            between = requests[earlier_index + 1 : index]
            was_refused = any(
                r.key == earlier.key and r.is_after_key_lookup and r.is_refused for r in between
            )
            if earlier.may_be_applied or not was_refused:
                text = f"sent under another key: {request}; while this request is in doubt: {earlier}"
                yield Finding("new key while in doubt", account_id, text)
                return


def check_doubles(case: Case) -> Iterator[Finding]:
    """An account gets at most one managed proxy."""
    if not case.sequence.bounds_doubles:
        return
    for account_id in case.server.by_account:
        requests = case.sent(account_id)
        count = sum(request.is_managed and request.applied_at is not None for request in requests)
        if count > 1:
            yield Finding("managed proxies handed out twice", account_id, f"{count} handed out")


def check_caps(case: Case) -> Iterator[Finding]:
    """A proxy of the pool has at most the allowed number of accounts."""
    cap = case.sequence.accounts_per_proxy
    if cap is None:
        return
    pooled = [r for a, r in case.records if r is not None and a.change is None and r.state == State.PATCHED]
    for label, count in Counter(record.proxy for record in pooled).items():
        if count > cap:
            yield Finding("proxy over its cap", None, f"{label} has {count} accounts, {cap} allowed")


def check_ends(case: Case) -> Iterator[Finding]:
    """The summary and `status` report a refused key, a halt, and the right number of patched accounts."""
    run, reading = case.run, case.reading
    if run.error is not None and run.ended is not End.DISK_FULL:
        yield Finding(f"raised {type(run.error).__name__}", None, str(run.error))
    summary = run.summary
    if summary is None or not run.opened or run.error is not None or run.died:
        return  # a run that died has not recorded its end
    refused = [r for r in case.server.sent_in(run.number) if r.by_api_key_check and r.is_received]
    tried = [outcome for outcome in run.outcomes if outcome.attempts]
    only_401 = bool(tried) and all(outcome.status == 401 for outcome in tried)
    is_certain = any(r.type == API_KEY_TYPE for r in refused)
    # An error type that also exists for accounts is about the key if all accounts get it and the key never
    # worked.
    is_alike = only_401 and len({o.error_type for o in tried}) == 1 and not case.patched_by
    must_report = run.ended is not End.CANCEL and (is_certain or is_alike)
    if refused and must_report and not summary.key_refused:
        yield Finding("refused key not reported", None, f"{len(refused)} requests were refused; {summary}")
    gateway = run.step.conditions.gateway  # a 401 for every account looks like a refused key
    if summary.key_refused and not refused and not only_401 and (gateway is None or gateway.status != 401):
        yield Finding("key blamed without cause", None, str(summary.halted))
    refused_accounts = {request.account_id for request in refused}
    if summary.key_refused:
        for account, record in case.records:
            if record is not None and account.account_id in refused_accounts and record.state == State.FAILED:
                yield Finding("failed because of the API key", account.account_id, str(record))
    # Failures after a stop need not halt the run, because it ends anyway.
    before_stop = [outcome for outcome in run.outcomes[: run.stopped_at] if outcome.attempts]
    if _must_halt(run.step.halt, before_stop) and not summary.halted:
        yield Finding("halt not reported", None, f"{run.step.halt}; {summary}")
    must_be_in_status = reading.error is None and run.ended is not End.CANCEL
    if must_be_in_status and summary.halted and reading.status["run"] != "halted":
        yield Finding(
            "halt not in status", None, f"status says {reading.status['run']}, summary {summary.halted}"
        )
    patched = sum(record is not None and record.state == State.PATCHED for _, record in case.records)
    if summary.patched != patched:
        yield Finding("wrong summary", None, f"it says {summary.patched} patched, the table {patched}")


def _must_halt(halt: Halt, tried: list[Outcome]) -> bool:
    failed = sum(outcome.state is State.FAILED for outcome in tried)
    return isinstance(halt.failures, int) and failed >= halt.failures


def check_nothing_is_lost(case: Case) -> Iterator[Finding]:
    """At the end, each account is patched, refused for good, or in a doubt that nothing can end."""
    if not case.is_last:
        return
    for account, record in case.records:
        state = None if record is None else record.state
        is_settled = state == State.PATCHED
        is_settled |= state == State.FAILED and account.account_id in case.refused_for_good
        is_settled |= state in {None, State.UNKNOWN} and _is_lasting_doubt(case, account)
        if not is_settled:
            yield Finding(f"lost: {state or 'no row'}", account.account_id, str(record))


def _is_lasting_doubt(case: Case, account: Account) -> bool:
    requests = case.sent(account.account_id)
    had_doubt = any(run.died for run in case.runs_of_latest) or not all(
        request.is_refused for request in requests
    )
    if account.account_id in case.refused_for_good:
        return had_doubt
    if not case.sequence.idempotency:
        # A second request may hand out a second managed proxy, and "report" sends no second request at all.
        return had_doubt and (account.is_managed or case.sequence.on_unknown == "report")
    if not account.is_managed:
        return False
    # Only a success ends the doubt, but the service replays the stored error for the only key that may be
    # used.
    return (
        had_doubt
        and bool(requests)
        and requests[-1].is_after_key_lookup
        and case.sequence.traits.stores_errors
    )


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
