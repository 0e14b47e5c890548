"""
Outcomes as a table for other programs: CSV, JSON Lines, Parquet. The order is the input's.

A spreadsheet runs a cell that begins with one of ``= + - @`` as a formula. In CSV, text of which a cell could
begin so has an apostrophe before that character: at its start, and after what a spreadsheet might take for
the end of a cell. An account ``-acc`` is thus ``'-acc``, which is no valid id, and so never taken for
another account. JSON Lines and Parquet hold every text as it is.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO, Final, TypeAlias

from postpress_async.errors import RotationError
from postpress_async.rotation._outcome import Outcome
from postpress_async.rotation.journal._times import instant

COLUMNS: Final = (
    "line",
    "account_id",
    "state",
    "attempts",
    "status",
    "error_type",
    "scope",
    "applied",
    "instance",
    "elapsed",
    "settled_at",
    "proxy_label",  # not "proxy", which a fleet's rows have for a URL
)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@ -]*")
_GROUP: Final = 65_536  # rows of a row group, and so in memory
# Also the wide forms, which some spreadsheets take for the narrow ones.
_FORMULA: Final = re.compile("(^|[,;|\t\r\n])(\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n'])")

Write: TypeAlias = Callable[[Iterable[Outcome], BinaryIO], None]


def write_csv(outcomes: Iterable[Outcome], file: BinaryIO) -> None:
    """Comma-separated, UTF-8, every text quoted, no byte-order mark."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    try:
        table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(COLUMNS)
        for outcome in outcomes:
            table.writerow(
                [_inert(cell) if isinstance(cell, str) else cell for cell in _cells(outcome, instant)]
            )
    finally:
        text.detach()  # the file stays the caller's


def write_jsonl(outcomes: Iterable[Outcome], file: BinaryIO) -> None:
    """An object a line, with every column; what there is not is null."""
    for outcome in outcomes:
        told = dict(zip(COLUMNS, _cells(outcome, instant), strict=True))
        file.write(json.dumps(told).encode("ascii") + b"\n")


def write_parquet(outcomes: Iterable[Outcome], file: BinaryIO) -> None:
    """
    Parquet, some 65,000 rows a row group.

    Raises:
        RotationError: pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise RotationError("Parquet needs pyarrow: pip install 'postpress-async[parquet]'") from None
    kinds = {"line": arrow.int64(), "attempts": arrow.int64(), "status": arrow.int64()}
    kinds |= {"elapsed": arrow.float64(), "settled_at": arrow.timestamp("us", tz="UTC")}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
    with parquet.ParquetWriter(file, schema) as writer:
        for group in _groups(_cells(outcome, _microseconds) for outcome in outcomes):
            columns = zip(schema.types, zip(*group, strict=True), strict=True)
            writer.write_table(arrow.table([arrow.array(cells, kind) for kind, cells in columns], schema))


FORMATS: Final[dict[str, Write]] = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}
"""By name."""

ENDINGS: Final = {
    "": "csv",
    ".csv": "csv",
    **dict.fromkeys((".jsonl", ".ndjson", ".json-lines", ".jsonlines"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
"""The format that the ending of a file's name says, in small letters; those by which a fleet is read, too."""


def _cells(outcome: Outcome, moment: Callable[[float], object]) -> tuple[Any, ...]:
    return (
        outcome.line,
        outcome.account_id,
        outcome.state.value,
        outcome.attempts,
        outcome.status,
        outcome.error_type,
        outcome.scope and outcome.scope.value,
        outcome.applied and outcome.applied.value,
        outcome.instance,
        round(outcome.elapsed, 6),
        moment(outcome.settled_at),
        outcome.proxy,
    )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _inert(text: str) -> str:
    # Most texts are one plain word, which is quicker to see than what a formula begins with.
    return text if _PLAIN.fullmatch(text) else _FORMULA.sub(r"\1'\2", text)


def _groups(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while group := list(islice(rows, _GROUP)):
        yield group
