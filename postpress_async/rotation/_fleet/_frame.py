"""A pandas or polars frame as a fleet. A frame is recognized by its attributes, so no library is imported."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from postpress_async.errors import FleetError
from postpress_async.rotation._column_names import column_of
from postpress_async.rotation._fleet._columns import BATCH, Batch, BatchMaker, read_header

if TYPE_CHECKING:  # type checkers have stubs of typing_extensions, so it need not be installed
    from typing_extensions import TypeIs


class Frame(Protocol):
    """A frame of pandas or polars, for type checkers."""

    @property
    def columns(self) -> Any: ...

    @property
    def dtypes(self) -> Any: ...

    @property
    def shape(self) -> tuple[int, int]: ...


def is_frame(value: object) -> "TypeIs[Frame]":
    """Whether *value* is a frame of pandas or polars, including a lazy one."""
    # Check the type: attributes of a frame include its columns, and reading one may compute a lazy frame.
    kind = type(value)
    has_columns = hasattr(kind, "columns") and hasattr(kind, "dtypes")
    return has_columns and any(hasattr(kind, name) for name in ("iloc", "to_series", "collect"))


class FrameTable:
    """The rows of a frame, converted to Python objects one batch at a time."""

    name: str = "<frame>"

    def __init__(self, frame: Frame, columns: Sequence[str]) -> None:
        """Raise `FleetError` if the frame is lazy, or its columns are not those of a fleet."""
        if hasattr(type(frame), "collect"):
            raise self.error("is lazy, and would be computed for every pass: pass frame.collect()")
        names = [str(name) for name in frame.columns]
        index_names = [str(name) for name in getattr(getattr(frame, "index", None), "names", ())]
        if "account_id" in map(column_of, index_names) and "account_id" not in map(column_of, names):
            raise self.error("has account_id as its index: pass frame.reset_index()")
        self._frame = frame
        self._positions, self._ignored = read_header(names, self.error, columns)
        self._maker = BatchMaker(columns)

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        return self._ignored + self._maker.keys.ignored

    def error(self, fact: str) -> FleetError:
        return FleetError(f"the frame {fact}")

    def sha256(self) -> "hashlib._Hash":  # pyright: ignore[reportPrivateUsage]
        """Return an updatable hash of the values of the known columns."""
        digest = hashlib.sha256()
        for batch in self.batches():
            digest.update(batch.encode())
        return digest

    def close(self) -> None:
        """Do nothing: the frame belongs to the caller."""

    def batches(self) -> Iterator[Batch]:
        size = self._frame.shape[0]
        for start in range(0, size, BATCH):
            rows = slice(start, min(start + BATCH, size))
            values = {name: _values(self._frame, rows, index) for name, index in self._positions.items()}
            yield self._maker.make(values, rows.stop - start)


def _values(frame: Any, rows: slice, column: int) -> Sequence[object]:
    if hasattr(type(frame), "iloc"):
        # A missing value may be None, NaN, NaT or NA, depending on the type of the column.
        return frame.iloc[rows, column].to_numpy(dtype=object, na_value=None).tolist()  # type: ignore[no-any-return]
    return frame.to_series(column)[rows].to_list()  # type: ignore[no-any-return]
