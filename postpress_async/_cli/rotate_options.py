"""The options of a rotation, which ``rotate``, ``retry-failed`` and ``rollback`` share."""

import os
import shlex
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal, Self, get_args

import click
from attrs import Attribute, field, fields, frozen

from postpress_async._cli import options
from postpress_async.rotation._column_names import as_tag
from postpress_async.rotation._pool import Assign
from postpress_async.rotation.journal._recovery import OnFailed, OnUnknown
from postpress_async.sandbox import Profile

SETTINGS: Final = {"auto_envvar_prefix": "POSTPRESS"}
"""For commands that read the same environment variables: --rate is POSTPRESS_RATE."""

_DECLARE: Final = "declare"
"""Key of a field's metadata for a function that returns the decorator with the option of the field."""


def _option(*names: str, **settings: Any) -> Any:
    """
    A field that is set by an option with its name, or with *names*. If the field is a bool, it is a flag.

    A command without the option leaves the field at its default.
    """

    def declare(attribute: "Attribute[Any]") -> options.Decorator:
        words = names or [_option_name(attribute.name)]
        return options.option(*words, is_flag=attribute.type is bool, **settings)

    default = () if settings.get("multiple") else settings.get("default")
    return field(default=default, metadata={_DECLARE: declare})


def _option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_input: Final = partial(_option, group="Input")
_assignment: Final = partial(_option, group="Proxy assignment")
_limit: Final = partial(_option, group="Limits")
_stopping: Final = partial(_option, group="Stopping and resuming")
_output: Final = partial(_option, group="Output")
_cluster: Final = partial(_option, group="Cluster")
_sandbox: Final = partial(_option, group="Sandbox")

_FAULTS: Final = options.random_faults(" Requires --sandbox.", group="Sandbox")

_REQUIRE_POOL: Final = ("assign", "accounts_per_proxy", "failovers", "cool_down", "pool_by")

# Options of a single run. The others select accounts, proxies and the API, which the next run needs too.
_ONE_RUN_ONLY: Final = frozenset(
    "journal every keep limit canary halt max_duration dry_run json verbose accept_new_key on profile seed "
    "dead_proxies".split()
)

_PROGRAM: Final = "postpress-async"


@frozen(kw_only=True)
class _RunOptions:
    """The options of all three commands."""

    in_flight: int = _limit(
        type=options.COUNT,
        default=100,
        help="Maximum number of requests in flight at the same time; with --cluster, per worker. The run "
        "uses fewer while the API is overloaded.",
    )
    rate: float | None = _limit(
        type=click.FloatRange(0, min_open=True),
        metavar="N",
        help="Maximum number of requests per second, with --cluster of all workers together. No maximum by "
        "default, but the run slows down when the API responds with 429 (too many requests).",
    )
    # The sandbox's flaky profile fails 1 request in 20: of 100,000 accounts, about one fails four times in a
    # row, and none six times.
    attempts: int = _limit(
        type=options.COUNT,
        default=6,
        help="Maximum number of requests for an account through the same proxy: the first request and its "
        "retries. Only errors that may be temporary are retried. A proxy from --pool that fails twice for an "
        "account is replaced earlier (see --failovers).",
    )
    limit: int | None = _limit(
        type=options.COUNT,
        help="Maximum number of accounts to send now. Run the same command again to resume with the next "
        "ones. No maximum by default.",
    )
    max_duration: float | None = _limit(
        type=options.duration,
        help="Stop after this time, such as 90s, 15m, 6h or 1h30m: start no more requests, wait for those in "
        "flight, and exit. Run the same command again to continue. No limit by default.",
    )
    halt: str | int | Mapping[str, str | int] = _stopping(
        type=options.halt,
        metavar="5%|100|SCOPE=5%,...|never",
        default="50%",
        help="Stop the run when this many accounts have failed: a percentage of the latest 200 accounts (5% "
        "is always ten failures, even if fewer than 200 were sent), a number in the whole run, or "
        "never. With scopes, such as proxy=5%,service=20%, only failures of these scopes count: request (it "
        "is invalid), account (it must be reconnected, for example), proxy, or service (the API or the "
        "network). A refused API key always stops the run. So does the same error 401, such as "
        "invalid_credentials, for each of the first 20 accounts: the API key may be wrong.",
    )
    canary: int = _stopping(
        type=options.COUNT_OR_ZERO,
        default=0,
        help="Send N accounts first: a random sample of FLEET, or without FLEET the first accounts. The run "
        "stops if as many of them fail as --halt says (a percentage is of N, at least one account), or if "
        "all N fail; with --halt never or with scopes, if half of them fail. 0 disables it.",
    )
    on_unknown: OnUnknown = _stopping(  # noqa: RUF009 - it is a field
        type=click.Choice(get_args(OnUnknown)),
        default="retry",
        help="What to do with accounts whose outcome is unknown: a request of an earlier run got no "
        "response, or a killed run may have sent one, so the API may have applied the change. retry: send "
        "them again. report: do not send them, so that you can check them first.",
    )
    key_lifetime: float = _stopping(
        type=options.duration,
        default="24h",
        help="Time for which the API is assumed to remember an idempotency key. An account whose order of "
        "a managed proxy has an unknown outcome for longer is not sent again, because it could get a second "
        "one: check it in the dashboard. Change this only if PostPress states another time.",
    )
    accept_new_key: bool = _stopping(
        help="Accept an API key other than that of the journal's earlier runs. Use it once if the key was "
        "replaced by a new one of the same workspace. By default, another key is refused.",
    )
    dry_run: bool = _output(
        help="Check all inputs, print the first requests and an estimate of the duration, and send nothing.",
    )
    json: bool = _output(
        help="Write events to standard output for programs, one JSON object per line. Messages go to "
        "standard error.",
    )
    verbose: bool = _output(
        "-v",
        "--verbose",
        help="Print each retry, each pause while the API is down, and each proxy that is no longer used "
        "because it failed, to standard error.",
    )
    api_key_file: str | None = field(default=None, metadata={_DECLARE: lambda _: options.connection})
    base_url: str | None = None
    transport: Literal["session", "lean"] = "session"
    trust_env: bool = False
    no_idempotency: bool = False

    cluster: str | None = _cluster(
        metavar="local:N|tls://HOST:PORT",
        help="Send from several processes. local:N starts N workers on this machine. tls://HOST:PORT uses "
        "the workers of the Dask scheduler at that address. Requires pip install "
        "'postpress-async[distributed]'.",
    )
    certificates: str | None = _cluster(
        type=click.Path(),
        metavar="DIR",
        help="Directory with the TLS certificate and key for --cluster, as the command cluster-certificates "
        "creates them. Needed only for tls://. Default: those in Dask's configuration.",
    )
    sandbox: bool = _sandbox(
        help="Send to the sandbox, a fake of the API on this machine, instead of the real API. No API key is "
        "required. Without FLEET, the sandbox provides 1,000 accounts.",
    )
    profile: Profile = field(default="steady", metadata={_DECLARE: lambda _: _FAULTS})
    seed: int = 0

    dead_proxies: int = _sandbox(
        type=options.COUNT_OR_ZERO,
        default=0,
        help="Number of proxies at the start of --pool that do not work in the sandbox. Requires --sandbox "
        "and --pool.",
    )


@frozen(kw_only=True)
class _InputOptions(_RunOptions):
    """The options of ``rotate`` and ``retry-failed``."""

    query: str | None = _input(
        metavar="SQL",
        help="Read the accounts from a database instead of FLEET, with this SQL query. Its columns are those "
        "of a FLEET file. Requires --from, --from-file or the environment variable POSTPRESS_DATABASE_URL.",
    )
    database: str | None = _input(
        "--from",
        "database",
        metavar="URL",
        allow_from_autoenv=False,
        help="URL of the database for --query, such as postgresql+psycopg://me@host/db. A URL with a "
        "password must come from --from-file or the environment variable POSTPRESS_DATABASE_URL.",
    )
    database_file: str | None = _input(
        "--from-file",
        "database_file",
        type=options.FILE,
        help="File that contains the URL of the database for --query; - is standard input.",
    )
    skip_bad: bool = _input(
        help="Send the valid accounts even if other rows of FLEET or lines of --pool are invalid. By "
        "default, nothing is sent if anything is invalid.",
    )
    pool: tuple[str, ...] = _assignment(
        type=options.FILE,
        metavar="[TAG=]FILE",
        multiple=True,
        help="File with a list of proxies for the accounts whose row names no proxy, country or ip. It has a "
        "proxy per line (HOST:PORT, HOST:PORT:USER:PASSWORD or a URL), or is CSV with a header. - is "
        "standard input. Repeat the option to combine several lists. With a TAG, such as US=us.txt, the list "
        "is only for accounts with that tag in the column pool, or in the column of --pool-by. A user "
        "name in FILE may have placeholders for a gateway that chooses the exit by user name, such "
        "as customer-{account_id}-{try}: {try} is 0, and 1 more at each failover, to get another exit. Other "
        "placeholders are columns of FLEET.",
    )
    pool_by: str | None = _assignment(
        metavar="COLUMN",
        help="Column of FLEET, such as country, whose value is the TAG of the --pool to use. If it is "
        "country, its values order no managed proxies. A --pool without a TAG must be CSV with this column, "
        "from which each proxy gets its tag. A row whose value is no tag is invalid. By default, the "
        "column pool if any --pool has a TAG.",
    )
    assign: Assign = _assignment(  # noqa: RUF009 - it is a field
        type=click.Choice(get_args(Assign)),
        default="round-robin",
        help="How accounts get a proxy from --pool. round-robin: take the proxies in the order of the list, "
        "over and over. sticky: choose by account id, so that an account gets the same proxy in every "
        "run.",
    )
    accounts_per_proxy: int | None = _assignment(
        type=options.COUNT,
        help="Maximum number of accounts that get the same proxy from --pool. Accounts that got it earlier, "
        "according to the journal, count unless they are sent again. If all proxies are full, further "
        "accounts are skipped. No maximum by default.",
    )
    failovers: int = _assignment(
        type=options.COUNT_OR_ZERO,
        default=3,
        help="Maximum number of other proxies from --pool to try for an account whose proxy does not work; "
        "then the account fails. With 0, it gets only its first proxy.",
    )
    cool_down: float = _assignment(
        type=options.duration,
        default="30m",
        help="How long a proxy from --pool is left out (quarantined) after it failed for two accounts that "
        "other proxies then served. After that, one account tries it: a success ends the quarantine, a "
        "failure doubles the time, up to 24h. The journal remembers quarantined proxies for the next run. "
        "If most proxies fail at the same time, all accounts wait until one works again, at most for this "
        "time; then they are skipped.",
    )
    country: str | None = _assignment(
        metavar="CC",
        help="Order a managed proxy (one that PostPress provides) in this country, a two-letter code such as "
        "US, for each account whose row names no proxy, country or ip. Cannot be combined with --pool.",
    )


@frozen(kw_only=True)
class RotateOptions(_InputOptions):
    """The arguments and options of a rotation; this class has those that only ``rotate`` has."""

    command: str  # the whole command as it was typed; it contains no secret, see `refuse_secrets`
    arguments: Mapping[str, list[str]]  # typed words by option, without environment variables
    fleet: str | None = None
    to: int | None = None  # the option of ``rollback``
    on_failed: OnFailed = "report"
    journal: str | None = _stopping(
        type=options.FILE,
        show_default="fleet.csv.rotation.sqlite3 for fleet.csv, in the current directory; without FLEET, "
        "query.rotation.sqlite3 or sandbox.rotation.sqlite3",
        help="SQLite file that records the runs and the outcome of each account (the journal). If its latest "
        "run is unfinished, it is resumed: completed accounts are not sent again.",
    )
    every: float | None = _stopping(
        type=options.duration_from_zero,
        metavar="DURATION",
        help="Start a new run of all accounts if the latest run in the journal is complete and started at "
        "least this long ago: 20h for a nightly job (less than 24h, so that a late start does not skip the "
        "next night), 0s for always. An unfinished run is resumed first. Without this option, the accounts "
        "of a complete run are never sent again.",
    )
    keep: int | None = _stopping(
        type=options.COUNT,
        help="Number of runs that the journal keeps, including the new one, when --every starts a new run. "
        "All by default.",
    )
    on: tuple[str, ...] = _input(
        metavar="PROXY",
        multiple=True,
        allow_from_autoenv=False,
        help="Send only the accounts whose latest proxy, according to the journal, is PROXY: HOST, "
        "HOST:PORT, USER@HOST, or a network such as 10.1.1.0/24. This starts a separate run of these "
        "accounts, or resumes it. When that run is complete, the same command starts another one, of the "
        "accounts that still have PROXY. Repeat the option for several proxies. Cannot be combined with "
        "--every.",
    )

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Create from the current command's parameters, or raise `click.UsageError`."""
        context = click.get_current_context()
        command = shlex.join([_PROGRAM, str(context.info_name), *context.meta[options.WORDS]])
        parsed = cls(**values, command=command, arguments=_arguments_by_option(context))
        parsed._check()
        return parsed

    def _check(self) -> None:
        # An environment variable may be set for all runs, and this one may have no pool.
        if not self.pool and (unused := [name for name in _REQUIRE_POOL if name in self.arguments]):
            names = " and ".join(map(_option_name, unused))
            raise click.UsageError(f"{names} require{'s' if len(unused) == 1 else ''} --pool")
        has_faults = self.profile != "steady" or self.seed or self.dead_proxies
        has_database = self.database is not None or self.database_file is not None
        inputs = [self.fleet, *(path for _, path in self.lists)]
        for is_wrong, message in (
            (has_faults and not self.sandbox, "--profile, --seed and --dead-proxies require --sandbox"),
            (self.dead_proxies and not self.pool, "--dead-proxies requires --pool"),
            (self.pool and self.country is not None, "--pool cannot be combined with --country"),
            (self.trust_env and self.transport != "session", "--trust-env requires --transport session"),
            (self.query is not None and self.fleet is not None, "FLEET cannot be combined with --query"),
            (has_database and self.query is None, "--from and --from-file require --query"),
            (self.certificates is not None and self.cluster is None, "--certificates requires --cluster"),
            (
                self.on and "every" in self.arguments,
                "--on cannot be combined with --every: it always starts a new run",
            ),
            (inputs.count("-") > 1, "standard input can be FLEET or one --pool, not both"),
        ):
            if is_wrong:
                raise click.UsageError(message)

    @property
    def lists(self) -> list[tuple[str | None, str]]:
        """The tag, or None, and the path of each list of proxies."""
        lists: list[tuple[str | None, str]] = []
        for word in self.pool:
            tag, equals, path = word.partition("=")
            is_path = not equals or not as_tag(tag) or "/" in tag or os.path.exists(word)
            lists.append((None, word) if is_path else (as_tag(tag), path))
        return lists

    def retry_command(self, journal: str) -> str:
        """The command that retries the failed accounts of *journal* with the same fleet, proxies and API."""
        if self.on or self.to is not None:  # it takes them again, since they did not change
            return self.command
        words = [_PROGRAM, "retry-failed", journal, *([] if self.fleet is None else [self.fleet])]
        for name, typed in self.arguments.items():
            words += [] if name in _ONE_RUN_ONLY else typed
        return shlex.join(words)


def _arguments_by_option(context: click.Context) -> dict[str, list[str]]:
    """The typed words by option. Options from environment variables are left out."""
    params = {param.name: param for param in context.command.params}
    values_by_name, _, _ = context.command.make_parser(context).parse_args(list(context.meta[options.WORDS]))
    arguments: dict[str, list[str]] = {}
    for name, values in values_by_name.items():
        param = params[name]
        if isinstance(param, click.Option):
            typed = max(param.opts, key=len)
            values = values if isinstance(values, list) else [values]
            arguments[name] = (
                [typed] if param.is_flag else [word for value in values for word in (typed, value)]
            )
    return arguments


def _add_options(cls: type) -> options.Decorator:
    """A decorator that adds the options of *cls*, without those of its base classes."""
    own = [each for each in fields(cls) if not each.inherited and _DECLARE in each.metadata]
    return options.combine(*(each.metadata[_DECLARE](each) for each in own))


run_options: Final = _add_options(_RunOptions)
rotation_options: Final = options.combine(_add_options(_InputOptions), run_options)
journal_options: Final = _add_options(RotateOptions)
