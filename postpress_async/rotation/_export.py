"""
Outcomes as a table for other programs: CSV, JSON Lines or Parquet, in the order of the input.

A spreadsheet executes a cell that begins with ``=``, ``+``, ``-`` or ``@`` as a formula. In CSV, such a
character is therefore preceded by an apostrophe, both at the start of a text and after any character that a
spreadsheet might read as the end of a cell. The account ``-acc`` becomes ``'-acc``, which is not a valid id
and so cannot be confused with another account. JSON Lines and Parquet contain all texts unchanged.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, Final, TypeAlias

from cattrs.gen import make_dict_unstructure_fn, override

from postpress_async._converter import own_converter
from postpress_async.errors import RotationError
from postpress_async.rotation._outcome import Outcome, State, label_of
from postpress_async.rotation.journal._history import Assigned
from postpress_async.rotation.journal._times import instant

_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@ -]*")
_ROWS_PER_GROUP: Final = 65_536  # of a Parquet row group, which is held in memory
# Includes the full-width forms of = + - @, which some spreadsheets also execute.
_FORMULA: Final = re.compile("(^|[,;|\t\r\n])(\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n'])")

Write: TypeAlias = Callable[[Iterable[Outcome], BinaryIO], None]
Cells: TypeAlias = Mapping[str, Any]  # the cells of a row by column


def _cells_function(convert_time: Callable[[float], object]) -> Callable[[Outcome], Cells]:
    """Make the function that returns an outcome's cells; *convert_time* converts its Unix time to a cell."""
    return make_dict_unstructure_fn(
        Outcome,
        own_converter,
        ordinal=override(omit=True),
        elapsed=override(unstruct_hook=partial(round, ndigits=6)),
        settled_at=override(unstruct_hook=convert_time),
        # Not named "proxy": in a fleet, that column contains proxy URLs.
        assignment=override(rename="proxy_label", unstruct_hook=label_of),
        error=override(omit=True),
    )


_cells: Final = _cells_function(instant)
_exact_cells: Final = _cells_function(lambda seconds: round(seconds * 1_000_000))  # microseconds
COLUMNS: Final = tuple(_cells(Outcome(0, None, "", State.PATCHED)))


def write_csv(outcomes: Iterable[Outcome], file: BinaryIO) -> None:
    """Write CSV: comma-separated, UTF-8 without a byte-order mark, all texts quoted."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    try:
        table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(COLUMNS)
        for outcome in outcomes:
            cells = _cells(outcome).values()
            table.writerow([_without_formulas(cell) if isinstance(cell, str) else cell for cell in cells])
    finally:
        text.detach()  # keep the caller's file open


def write_jsonl(outcomes: Iterable[Outcome], file: BinaryIO) -> None:
    """Write JSON Lines: one object per line with all columns; missing values are null."""
    for outcome in outcomes:
        file.write(json.dumps(_cells(outcome)).encode("ascii") + b"\n")


def write_assignments(assignments: Iterable[Assigned], file: BinaryIO, kind: str) -> None:
    """Write the latest assignment of each account. *kind* is ``csv`` or ``jsonl``."""
    # Formatting with a template takes half as long as the modules `csv` and `json` for 1,000,000 rows.
    cells = dict(zip(Assigned._fields, ("%s", "%s", '"%s"', "%d", '"%s"'), strict=True))
    if kind == "jsonl":
        quote: Callable[[str], str] = json.JSONEncoder().encode
        template = "{" + ", ".join(f'"{name}": {cell}' for name, cell in cells.items()) + "}\n"
    else:
        quote, template = _csv_text, ",".join(cells.values()) + "\r\n"
        file.write(",".join(map(_csv_text, cells)).encode() + b"\r\n")
    file.writelines(
        (template % (quote(account_id), quote(assignment), state, run, instant(settled_at))).encode()
        for account_id, assignment, state, run, settled_at in assignments
    )


def write_parquet(outcomes: Iterable[Outcome], file: BinaryIO) -> None:
    """Write Parquet, with up to 65,536 rows per row group. Raises `RotationError` without pyarrow."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise RotationError("Parquet requires pyarrow: pip install 'postpress-async[parquet]'") from None
    kinds = {"line": arrow.int64(), "attempts": arrow.int64(), "status": arrow.int64()}
    kinds |= {"elapsed": arrow.float64(), "settled_at": arrow.timestamp("us", tz="UTC")}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
    with parquet.ParquetWriter(file, schema) as writer:
        rows = (_exact_cells(outcome).values() for outcome in outcomes)
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            columns = zip(schema.types, zip(*group, strict=True), strict=True)
            writer.write_table(arrow.table([arrow.array(cells, kind) for kind, cells in columns], schema))


FORMATS: Final[dict[str, Write]] = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}

ENDINGS: Final = {
    "": "csv",
    ".csv": "csv",
    **dict.fromkeys((".jsonl", ".ndjson", ".json-lines", ".jsonlines"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
"""Formats by the lower-case suffix of the file name, including all suffixes that a fleet may have."""


def _without_formulas(text: str) -> str:
    # Most texts match `_PLAIN`, which is faster.
    return text if _PLAIN.fullmatch(text) else _FORMULA.sub(r"\1'\2", text)


def _csv_text(text: str) -> str:
    return f'"{text}"' if _PLAIN.fullmatch(text) else '"' + _without_formulas(text).replace('"', '""') + '"'
