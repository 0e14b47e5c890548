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
"""Settings of commands that share environment variables: in each of them, --rate is POSTPRESS_RATE."""

_DECORATOR_OF: Final = "decorator_of"
"""Key of a field's metadata. The value is a function from the field to the decorator that adds the option."""


def _option(*names: str, **settings: Any) -> Any:
    """
    Define a field that an option sets. The option is named like the field, or by *names*.

    The option of a bool field is a flag. A command without the option leaves the field at its default.
    """

    def decorator_of(attribute: "Attribute[Any]") -> options.Decorator:
        option_names = names or [_option_name(attribute.name)]
        return options.option(*option_names, is_flag=attribute.type is bool, **settings)

    default = () if settings.get("multiple") else settings.get("default")
    return field(default=default, metadata={_DECORATOR_OF: decorator_of})


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

_FILE_OPTIONS: Final = "FLEET, --pool, --api-key-file and --from-file"
_REQUIRE_POOL: Final = ("assign", "accounts_per_proxy", "failovers", "cool_down", "pool_by")

# `retry_command` does not repeat these options, because they concern one run. The other options select
# accounts, proxies and the API, so a retry needs them too.
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
        help="Maximum number of requests in flight at the same time; with --cluster, per worker. While the "
        "API is overloaded, the run has fewer requests in flight.",
    )
    rate: float | None = _limit(
        type=click.FloatRange(0, min_open=True),
        metavar="N",
        help="Maximum number of requests per second; with --cluster, of all workers together. No maximum by "
        "default, but the run slows down if the API responds with 429 (too many requests).",
    )
    # If 1 request in 20 fails, as in the sandbox's flaky profile, about one of 100,000 accounts fails four
    # times in a row, and none six times.
    attempts: int = _limit(
        type=options.COUNT,
        default=6,
        help="Maximum number of requests that assign the same proxy to an account: the first request and its "
        "retries. Only errors that may be temporary are retried. A proxy from --pool that fails twice for an "
        "account is given up earlier: the account gets another proxy, or fails.",
    )
    limit: int | None = _limit(
        type=options.COUNT,
        help="Send at most N accounts, then exit. Run the same command again to continue with the next "
        "accounts. No maximum by default.",
    )
    max_duration: float | None = _limit(
        type=options.duration,
        help="Stop after this time, such as 90s, 15m, 6h or 1h30m: start no more requests, wait for the "
        "requests in flight, and exit. Run the same command again to continue. No limit by default.",
    )
    halt: str | int | Mapping[str, str | int] = _stopping(
        type=options.halt,
        metavar="5%|100|SCOPE=5%,...|never",
        default="50%",
        help="Stop the run when this many accounts have failed. 5%: a percentage of the latest 200 accounts "
        "(5% is always ten failures, even before 200 accounts were sent). 100: a number of accounts since "
        "this start of the command. never: do not stop. With scopes, such as proxy=5%,service=20%, only "
        "these causes of failures count: request (the request is invalid), account (for example, the "
        "account must be reconnected), proxy (the proxy does not work), service (the API or the network "
        "fails). A refused API key always stops the run. So does the same error 401, such as "
        "invalid_credentials, for each of the first 20 accounts, because the API key may be wrong.",
    )
    canary: int = _stopping(
        type=options.COUNT_OR_ZERO,
        default=0,
        help="Send N accounts first (the canary), and the other accounts only if the canary passes. The "
        "canary is a random sample of FLEET, or without FLEET the first accounts. It fails, and the run "
        "stops, if as many of the N accounts fail as --halt says (a percentage is of N, and at least one "
        "account), or if all N fail; with --halt never or with scopes, if half of the N fail. Each "
        "start of the command has its own canary. 0: no canary.",
    )
    on_unknown: OnUnknown = _stopping(  # noqa: RUF009 - it is a field
        type=click.Choice(get_args(OnUnknown)),
        default="retry",
        help="What to do with accounts whose outcome in an earlier run is unknown: a request got no "
        "response, or a killed run may have sent a request, so the API may have applied the change. retry: "
        "send these accounts again. report: do not send them, so that you can check them first. A new run "
        "(--every) sends them in any case.",
    )
    key_lifetime: float = _stopping(
        type=options.duration,
        default="24h",
        help="How long the API is assumed to remember an idempotency key, by which it recognizes a repeated "
        "request. If a request for a managed proxy with an unknown outcome is older than this, the account "
        "is not sent again, even with --on-unknown retry, because it could get a second proxy: check the "
        "account in the PostPress dashboard. Change this only if PostPress states another time.",
    )
    accept_new_key: bool = _stopping(
        help="Accept an API key that differs from the key of the journal's earlier runs, of which the "
        "journal stores only a hash. Use this option once after the key was replaced by a new key of the "
        "same workspace. By default, a different key is refused.",
    )
    dry_run: bool = _output(
        help="Send nothing. Check all inputs, and print the first requests that a run would send and, with "
        "--rate, an estimate of the duration.",
    )
    json: bool = _output(
        help="Write the outcome of each account and other events to standard output, one JSON object per "
        "line, for other programs to read. Messages go to standard error.",
    )
    verbose: bool = _output(
        "-v",
        "--verbose",
        help="Print to standard error: each retry, each change of the rate limit, each pause while the API "
        "is down or most proxies fail, and each proxy that is no longer used because it failed.",
    )
    api_key_file: str | None = field(default=None, metadata={_DECORATOR_OF: lambda _: options.connection})
    base_url: str | None = None
    transport: Literal["session", "lean"] = "session"
    trust_env: bool = False
    no_idempotency: bool = False

    cluster: str | None = _cluster(
        metavar="local:N|tls://HOST:PORT",
        help="Send from several processes. local:N starts N worker processes on this machine. "
        "tls://HOST:PORT uses the workers of the Dask scheduler at that address. Requires the extra "
        "postpress-async[distributed].",
    )
    certificates: str | None = _cluster(
        type=click.Path(),
        metavar="DIR",
        help="Directory with the TLS certificate and key for --cluster tls://HOST:PORT, created by the "
        "command cluster-certificates. By default, the certificate and key in Dask's configuration.",
    )
    sandbox: bool = _sandbox(
        help="Send to the sandbox, a fake of the API on this machine, instead of the real API. No API key is "
        "required. Without FLEET or --query, the sandbox provides 1,000 accounts.",
    )
    profile: Profile = field(default="steady", metadata={_DECORATOR_OF: lambda _: _FAULTS})
    seed: int = 0

    dead_proxies: int = _sandbox(
        type=options.COUNT_OR_ZERO,
        default=0,
        help="Let the first N proxies of --pool fail in the sandbox. Requires --sandbox and --pool.",
    )


@frozen(kw_only=True)
class _InputOptions(_RunOptions):
    """The options of ``rotate`` and ``retry-failed``."""

    query: str | None = _input(
        metavar="SQL",
        help="Read the accounts from a database instead of FLEET, with this SQL query. The query must return "
        "the columns of a FLEET file. Requires --from, --from-file or the environment variable "
        "POSTPRESS_DATABASE_URL.",
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
        envvar="POSTPRESS_FROM_FILE",
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
        help="File with a list of proxies for the accounts whose row has no proxy, country or ip. The file "
        "has a proxy per line (HOST:PORT, HOST:PORT:USER:PASSWORD or a URL), or is CSV with a header. - is "
        "standard input. Repeat the option to combine several lists. With a TAG, such as US=us.txt, the list "
        "is only for accounts with that tag in the column pool, or in the column of --pool-by. If a gateway "
        "chooses the exit address by user name, the user name in FILE may contain placeholders, such as "
        "customer-{account_id}-{try}: {try} is 0 at first, and increases by 1 at each failover. Other "
        "placeholders are columns of FLEET.",
    )
    pool_by: str | None = _assignment(
        metavar="COLUMN",
        help="Column of FLEET, such as country, whose value is the TAG of the --pool to use. If the column "
        "is country, it does not order managed proxies. A --pool without a TAG must be CSV with this column, "
        "which contains the tag of each proxy. A row without a matching TAG is invalid. By default, the "
        "column is pool if any --pool has a TAG.",
    )
    assign: Assign = _assignment(  # noqa: RUF009 - it is a field
        type=click.Choice(get_args(Assign)),
        default="round-robin",
        help="How accounts get a proxy from --pool. round-robin: take the proxies in the order of the list, "
        "over and over, from the first one in each run. sticky: choose by account id, so that an account "
        "gets the same proxy in every run.",
    )
    accounts_per_proxy: int | None = _assignment(
        type=options.COUNT,
        help="Maximum number of accounts that get the same proxy from --pool. Accounts that got the proxy in "
        "an earlier run, according to the journal, count too, unless this run sends them again. When all "
        "proxies have this many accounts, further accounts are skipped. No maximum by default.",
    )
    failovers: int = _assignment(
        type=options.COUNT_OR_ZERO,
        default=3,
        help="Maximum number of other proxies from --pool to try for an account whose proxy does not work. "
        "If none of them works, the account fails. 0: try only the first proxy.",
    )
    cool_down: float = _assignment(
        type=options.duration,
        default="30m",
        help="How long a proxy from --pool is not used (quarantined) after it failed for two accounts for "
        "which other proxies then worked. After this time, one account tries the proxy: success ends the "
        "quarantine, failure doubles the time, up to 24h. The journal records quarantined proxies for the "
        "next run. If most proxies fail at the same time, accounts wait until a proxy works again; the "
        "accounts that still wait after this time are skipped.",
    )
    country: str | None = _assignment(
        metavar="CC",
        help="Order a managed proxy (one that PostPress provides) in this country, a two-letter code such as "
        "US, for each account whose row has no proxy, country or ip. Cannot be combined with --pool.",
    )


@frozen(kw_only=True)
class RotateOptions(_InputOptions):
    """All arguments and options of a rotation. This class adds the options that only ``rotate`` has."""

    command: str  # the whole command as it was typed, without secrets because of `refuse_secrets`
    arguments: Mapping[str, list[str]]  # the typed words of each option, without environment variables
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
        help="Start a new run of all accounts if the latest run of all accounts in the journal is complete "
        "and started at least this long ago. Use 20h for a nightly job (less than 24h, so that a late start "
        "does not skip the next night), or 0s to always start a new run. An unfinished run is resumed "
        "first. Without this option, this command never sends the accounts of a complete run again.",
    )
    keep: int | None = _stopping(
        type=options.COUNT,
        help="Number of runs that the journal keeps: when --every starts a new run, older runs than the "
        "latest N are deleted, and rollback cannot go back to them. All runs are kept by default.",
    )
    on: tuple[str, ...] = _input(
        metavar="PROXY",
        multiple=True,
        allow_from_autoenv=False,
        help="Send only the accounts whose latest proxy, according to the journal, is PROXY: HOST, "
        "HOST:PORT, USER@HOST, or a network such as 10.1.1.0/24. This starts or resumes a separate run of "
        "these accounts. When that run is complete, the same command starts another run, of the accounts "
        "that still have PROXY. If no account has it, nothing is sent, and the exit code is 2. Repeat the "
        "option for several proxies. Cannot be combined with --every.",
    )

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Create from the current command's parameters, or raise `click.UsageError`."""
        context = click.get_current_context()
        command = shlex.join([_PROGRAM, str(context.info_name), *context.meta[options.TYPED_WORDS]])
        return cls(**values, command=command, arguments=_arguments_by_option(context))

    def __attrs_post_init__(self) -> None:
        # Reject only typed options. Environment variables may be set for all runs, with and without a pool.
        if not self.pool and (unused := [name for name in _REQUIRE_POOL if name in self.arguments]):
            names = " and ".join(map(_option_name, unused))
            raise click.UsageError(f"{names} require{'s' if len(unused) == 1 else ''} --pool")
        has_faults = self.profile != "steady" or self.seed or self.dead_proxies
        has_database = self.database is not None or self.database_file is not None
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
            (self._files.count("-") > 1, f"standard input can be only one of {_FILE_OPTIONS}"),
        ):
            if is_wrong:
                raise click.UsageError(message)

    @property
    def reads_stdin(self) -> bool:
        return "-" in self._files

    @property
    def _files(self) -> list[str | None]:
        """The values of `_FILE_OPTIONS`."""
        return [self.fleet, self.api_key_file, self.database_file, *(path for _, path in self.lists)]

    @property
    def lists(self) -> list[tuple[str | None, str]]:
        """The tag of each list of proxies, or None, and the path of the list."""
        lists: list[tuple[str | None, str]] = []
        for word in self.pool:
            tag, equals, path = word.partition("=")
            is_path = not equals or not as_tag(tag) or "/" in tag or os.path.exists(word)
            lists.append((None, word) if is_path else (as_tag(tag), path))
        return lists

    def retry_command(self, journal: str) -> str:
        """The command that retries the failed accounts of *journal* with the same fleet, proxies and API."""
        if self.on or self.to is not None:
            # A failed account keeps its proxy, so the same command selects the account again.
            return self.command
        words = [_PROGRAM, "retry-failed", journal, *([] if self.fleet is None else [self.fleet])]
        for name, typed_words in self.arguments.items():
            if name not in _ONE_RUN_ONLY:
                words += typed_words
        return shlex.join(words)


def _arguments_by_option(context: click.Context) -> dict[str, list[str]]:
    """The words of each option that was typed, not set by an environment variable."""
    params = {param.name: param for param in context.command.params}
    typed_words = list(context.meta[options.TYPED_WORDS])
    values_by_name, _, _ = context.command.make_parser(context).parse_args(typed_words)
    arguments: dict[str, list[str]] = {}
    for name, values in values_by_name.items():
        param = params[name]
        if not isinstance(param, click.Option):
            continue
        option_name = max(param.opts, key=len)
        if param.is_flag:
            arguments[name] = [option_name]
        else:
            words = values if isinstance(values, list) else [values]
            arguments[name] = [part for word in words for part in (option_name, word)]
    return arguments


def _add_options(cls: type) -> options.Decorator:
    """Return a decorator that adds the options of *cls*, without the options of its base classes."""
    own = [attribute for attribute in fields(cls) if not attribute.inherited]
    with_option = [attribute for attribute in own if _DECORATOR_OF in attribute.metadata]
    return options.combine(*(attribute.metadata[_DECORATOR_OF](attribute) for attribute in with_option))


run_options: Final = _add_options(_RunOptions)
rotation_options: Final = options.combine(_add_options(_InputOptions), run_options)
journal_options: Final = _add_options(RotateOptions)
