"""A pandas or polars frame as a fleet, without depending on either: it is known by what it can do."""

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from postpress_async.errors import FleetError
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.fleet._columns import BATCH, Batch, BatchMaker, read_batches
from postpress_async.rotation.fleet._header import read_header
from postpress_async.rotation.fleet._row import RowReader, meaning

if TYPE_CHECKING:  # type checkers have stubs of typing_extensions, so it need not be installed
    from typing_extensions import TypeIs


class Frame(Protocol):
    """A frame of pandas or polars, as far as a type checker is to know."""

    @property
    def columns(self) -> Any: ...

    @property
    def dtypes(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, int]: ...


def is_frame(value: object) -> "TypeIs[Frame]":
    """Whether *value* is a frame of pandas or polars, be it a lazy one."""
    # Its type is asked: a frame's columns are attributes of it too, and a lazy one works to answer.
    kind = type(value)
    has_columns = hasattr(kind, "columns") and hasattr(kind, "dtypes")
    return has_columns and any(hasattr(kind, name) for name in ("iloc", "to_series", "collect"))


class FrameTable:
    """
    The rows of a frame, of which some hundred at a time become Python objects.

    The line of a row is its number from 1, whatever its index says: ``frame.iloc[line - 1]`` in pandas,
    ``frame.row(line - 1)`` in polars.

    Attributes:
        name: What stands for a file's name.
    """

    name: str = "<frame>"

    def __init__(self, frame: Frame) -> None:
        """Raise `FleetError` if it is lazy, or its columns are not a fleet's."""
        if hasattr(type(frame), "collect"):
            raise self.error("is lazy, and would be computed for every pass: give frame.collect()")
        self._rows = frame.shape[0]
        names = [str(name) for name in frame.columns]
        labels = [str(name) for name in getattr(getattr(frame, "index", None), "names", ())]
        if "account_id" in map(meaning, labels) and "account_id" not in map(meaning, names):
            raise self.error("has account_id as its index: give frame.reset_index()")
        header = read_header(names, self.error)
        series = _pandas_series if hasattr(type(frame), "iloc") else _polars_series
        self._columns = {column: series(frame, place) for column, place in header.places.items()}
        self._ignored = header.ignored
        self._maker = BatchMaker()

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Columns that are none of ours, and keys of proxies that are not, of those met so far."""
        return self._ignored + tuple(self._maker.ignored.values())

    def error(self, fact: str) -> FleetError:
        """The error that says *fact* of the frame."""
        return FleetError(f"the frame {fact}")

    def sha256(self) -> "hashlib._Hash":  # pyright: ignore[reportPrivateUsage]
        """The hash over the values of the columns that are ours, ready to take more."""
        digest = hashlib.sha256()
        for batch in self._batches():
            faults = {index: str(fault) for index, fault in batch.faults.items()}
            digest.update(json.dumps([batch.columns, faults]).encode())
        return digest

    def rows(self, reader: RowReader) -> Generator[Row | Refusal, None, None]:
        """Each row, or why it is refused."""
        yield from read_batches(self._batches(), reader)

    def close(self) -> None:
        """Nothing: the frame is the caller's."""

    def _batches(self) -> Generator[Batch, None, None]:
        for begin in range(0, self._rows, BATCH):
            end = min(begin + BATCH, self._rows)
            values = {column: take(begin, end) for column, take in self._columns.items()}
            yield self._maker.make(values, end - begin)


# What gives the values of a column from one row up to another, as Python has them.
_Take = Callable[[int, int], Sequence[object]]


def _pandas_series(frame: Any, place: int) -> _Take:
    series = frame.iloc[:, place]

    def take(begin: int, end: int) -> Sequence[object]:
        # What is missing is None, NaN, NaT or NA, by the column's type.
        values: list[object] = series.iloc[begin:end].to_numpy(dtype=object, na_value=None).tolist()
        return values

    return take


def _polars_series(frame: Any, place: int) -> _Take:
    series = frame.to_series(place)

    def take(begin: int, end: int) -> Sequence[object]:
        values: list[object] = series.slice(begin, end - begin).to_list()
        return values

    return take
