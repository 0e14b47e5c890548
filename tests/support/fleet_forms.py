"""Opens the same values as a fleet in each format, and helpers to compare the results."""

import csv
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pandas
import polars
import pyarrow
import pyarrow.parquet

from postpress_async.models import ProxyChange
from postpress_async.rotation import Fleet
from postpress_async.rotation._rows import Refusal, Row

Values: TypeAlias = Mapping[str, Sequence[Any]]
"""Values by column, in which None is a missing value."""

Form: TypeAlias = Callable[..., Fleet]
"""A function of the values, a folder, the default change, and other options of a fleet."""


def as_csv(values: Values, folder: Path, default: ProxyChange | None = None, **options: Any) -> Fleet:
    path = folder / "fleet.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(values)
        writer.writerows(zip(*values.values(), strict=True))
    return Fleet.open(path, default=default, **options)


def as_json_lines(values: Values, folder: Path, default: ProxyChange | None = None, **options: Any) -> Fleet:
    path = folder / "fleet.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in zip(*values.values(), strict=True):
            file.write(json.dumps(dict(zip(values, row, strict=True))) + "\n")
    return Fleet.open(path, default=default, **options)


def as_parquet(values: Values, folder: Path, default: ProxyChange | None = None, **options: Any) -> Fleet:
    path = folder / "fleet.parquet"
    pyarrow.parquet.write_table(pyarrow.table(dict(values)), path, row_group_size=3)
    return Fleet.open(path, default=default, **options)


def as_query(values: Values, folder: Path, default: ProxyChange | None = None, **options: Any) -> Fleet:
    path = folder / "fleet.db"
    path.unlink(missing_ok=True)
    names = ", ".join(f'"{name}"' for name in values)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE fleet ({names})")
        marks = ", ".join("?" * len(values))
        connection.executemany(f"INSERT INTO fleet VALUES ({marks})", zip(*values.values(), strict=True))
    return Fleet.open_query(
        f"sqlite:///{path}", "SELECT * FROM fleet ORDER BY rowid", default=default, **options
    )


def as_pandas(values: Values, folder: Path, default: ProxyChange | None = None, **options: Any) -> Fleet:
    # The index is not 0, 1, 2 and so on, as in a frame that was filtered.
    size = len(next(iter(values.values())))
    return Fleet.of(
        pandas.DataFrame(dict(values), index=range(7, 7 + 3 * size, 3)), default=default, **options
    )


def as_polars(values: Values, folder: Path, default: ProxyChange | None = None, **options: Any) -> Fleet:
    return Fleet.of(polars.DataFrame(dict(values)), default=default, **options)


FORMS: dict[str, Form] = {
    "CSV": as_csv,
    "JSON Lines": as_json_lines,
    "Parquet": as_parquet,
    "query": as_query,
    "pandas": as_pandas,
    "polars": as_polars,
}


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and all errors chained to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def all_text(error: BaseException | None) -> str:
    """All text and attributes of *error* and of the errors chained to it."""
    text = ""
    for exception in chain(error):
        attributes = {name: getattr(exception, name, None) for name in ("args", "doc", "object")}
        text += f"{exception} {exception!r} {vars(exception) | attributes!r}"
    return text


def refusals(rows: Sequence[Row | Refusal]) -> list[tuple[int | None, str | None, str]]:
    """Line, column and reason of each refused row."""
    return [(row.line, row.column, row.reason) for row in rows if isinstance(row, Refusal)]
