"""A fleet as Parquet, read by pyarrow: only the known columns, one batch of rows at a time."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from postpress_async.rotation._fleet._columns import BATCH, Batch, BatchMaker, Values, read_batches
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.rotation._fleet._header import read_header
from postpress_async.rotation._fleet._parquet_footer import (
    DELTA_BYTE_ARRAY,
    DICTIONARIES,
    Chunk,
    read_row_groups,
)
from postpress_async.rotation._fleet._row import PARTS, RowReader, column_of, may_be_number, printable_name
from postpress_async.rotation._rows import Refusal, Row

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

# Bytes to read at once: by default, pyarrow reads the whole column of a row group.
_BUFFER: Final = 64 * 1024

MAX_COLUMN_SIZE: Final = 64 * 1024 * 1024
"""Maximum uncompressed bytes of one column of a row group, in addition to `MAX_MEAN_VALUE` for each row."""

MAX_MEAN_VALUE: Final = 512
"""Average size in bytes that a value may have in a large row group. A real fleet has shorter ones."""

T = TypeVar("T")


class ParquetTable:
    """
    The rows of a Parquet file. Unknown columns are not read.

    Columns are strings, dictionary-encoded or not, and ``port`` may be a column of numbers. ``proxy`` may be
    a struct with the fields host, port, protocol, username and password. The line of a row is its number in
    the file, from 1. A row with only nulls is refused, because it has no account.

    Attributes:
        ignored_columns: Unknown columns, and unknown fields of the proxy.
    """

    def __init__(self, file: FleetFile, columns: Sequence[str]) -> None:
        """Raise `FleetError` if pyarrow is not installed, or a column has an unsupported type."""
        try:
            import pyarrow
            import pyarrow.compute
            import pyarrow.parquet
        except ImportError:
            advice = "pip install 'postpress-async[parquet]', or export it as CSV"
            raise file.error(f"is Parquet, which requires pyarrow: {advice}") from None
        self._file = file
        self._columns = columns
        self._arrow = pyarrow
        with self._opened() as parquet:
            schema = self._convert_errors(lambda: parquet.schema_arrow)
        header = read_header(schema.names, file.error, columns)
        self._names = {column: schema.names[index] for column, index in header.positions.items()}
        self._leaves: list[str] = []
        self._batch_sizes: list[int] | None = None
        ignored = list(header.ignored)
        for column, index in header.positions.items():
            name, kind = schema.names[index], schema.field(index).type
            if column == "proxy" and pyarrow.types.is_struct(kind):
                ignored += self._check_struct(name, kind)
            else:
                self._check(column, name, kind)
                self._leaves.append(name)
        self.ignored_columns: tuple[str, ...] = tuple(ignored)

    def rows(self, reader: RowReader) -> Generator[Row | Refusal, None, None]:
        """Yield each row, or its refusal."""
        yield from read_batches(self._batches(), reader)

    def _check_struct(self, name: str, struct: "pyarrow.StructType") -> list[str]:
        """Add the known fields of *struct* to the leaves; return the unknown ones, safe to print."""
        ignored = []
        for field in struct:
            path, column = f"{name}.{field.name}", column_of(field.name)
            if column in PARTS:
                self._check(column, path, field.type)
                self._leaves.append(path)
            else:
                ignored.append(printable_name(field.name))
        if len(ignored) == struct.num_fields:
            raise self._file.error(
                f"has a struct {printable_name(name)} without a host: see what its fields are called"
            )
        return ignored

    def _check(self, column: str, name: str, kind: "pyarrow.DataType") -> None:
        types = self._arrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        # pandas writes a column without values as floats. A row with a float value is refused.
        floats = (types.is_floating,)
        numbers = (types.is_integer, types.is_decimal) if may_be_number(column) else ()
        if not any(fits(kind) for fits in texts + floats + numbers):
            expected = "text or whole numbers" if may_be_number(column) else "text"
            raise self._file.error(
                f"has {printable_name(name)} as {printable_name(str(kind))}: write that column as {expected}"
            )

    def _batches(self) -> Generator[Batch, None, None]:
        maker = BatchMaker(self._columns)
        if self._batch_sizes is None:
            self._batch_sizes = self._find_batch_sizes()
        with self._opened() as parquet:
            for size, groups in groupby(enumerate(self._batch_sizes), key=itemgetter(1)):
                numbers = [number for number, _ in groups]
                # Threads would read ahead, which takes memory.
                batches = parquet.iter_batches(
                    size, row_groups=numbers, columns=self._leaves, use_threads=False
                )
                while (batch := self._convert_errors(partial(next, batches, None))) is not None:
                    values = self._convert_errors(partial(self._values, batch))
                    yield maker.make(values, batch.num_rows)

    def _find_batch_sizes(self) -> list[int]:
        """
        The number of rows of each row group that may be in memory at once.

        The size of the file does not limit memory: long values can be compressed to a few bytes, or repeated
        by a dictionary.

        Raises:
            FleetError: A column of a row group is too large.
        """
        with self._file.opened() as file:
            row_groups = self._convert_errors(partial(read_row_groups, file))
        sizes: list[int] = []
        with self._opened(read_dictionary=self._leaves) as dictionaries:
            for number, group in enumerate(row_groups):
                longest = 1
                for chunk in group.chunks:
                    if chunk.path not in self._leaves:
                        continue
                    if chunk.size > MAX_COLUMN_SIZE + MAX_MEAN_VALUE * group.rows:
                        raise self._file.error(
                            f"has {chunk.size:,} bytes in column {printable_name(chunk.path)} of row group "
                            f"{number} (of {group.rows:,} rows), too many for a fleet: correct long values, "
                            "or write smaller row groups"
                        )
                    if chunk.size * BATCH > MAX_COLUMN_SIZE:
                        longest = max(longest, self._longest_repeated(number, chunk, dictionaries))
                sizes.append(min(BATCH, max(1, MAX_COLUMN_SIZE // longest)))
        return sizes

    def _longest_repeated(
        self, number: int, chunk: Chunk, dictionaries: "pyarrow.parquet.ParquetFile"
    ) -> int:
        """Size of the largest value that *chunk* stores once but memory may hold repeatedly; 0 if none."""
        if DELTA_BYTE_ARRAY in chunk.encodings:
            return chunk.size
        if not DICTIONARIES & chunk.encodings:
            return 0
        batches = dictionaries.iter_batches(1, row_groups=[number], columns=[chunk.path], use_threads=False)
        batch = self._convert_errors(partial(next, batches, None))
        if batch is None:  # without rows
            return 0
        values = batch.column(0)
        while self._arrow.types.is_struct(values.type):
            values = values.field(0)
        if not self._arrow.types.is_dictionary(values.type):
            return 0  # numbers
        compute: Any = self._arrow.compute
        return int(compute.max(compute.binary_length(values.dictionary)).as_py() or 0)

    def _values(self, batch: "pyarrow.RecordBatch") -> Values:
        return {column: _to_list(batch.column(name)) for column, name in self._names.items()}

    @contextmanager
    def _opened(self, **options: Any) -> Iterator["pyarrow.parquet.ParquetFile"]:
        with self._file.opened() as file:
            options |= {"buffer_size": _BUFFER, "pre_buffer": False}
            yield self._convert_errors(partial(self._arrow.parquet.ParquetFile, file, **options))

    def _convert_errors(self, call: Callable[[], T]) -> T:
        """Return the result of *call*; convert the errors that pyarrow raises for damaged files."""
        try:
            return call()
        except OSError as error:
            if error.errno is not None:  # a disk error, which `FleetFile` handles
                raise
        except (self._arrow.ArrowException, ValueError, TypeError, KeyError, MemoryError):
            pass
        # Outside the except block: otherwise an error that may hold a value would be chained.
        raise self._file.error("is damaged, or a Parquet file that pyarrow cannot read: write it again")


def _to_list(values: "pyarrow.Array") -> list[Any]:
    try:
        return values.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [_to_value(value) for value in values]


def _to_value(scalar: "pyarrow.Scalar") -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b""  # not text, so the row is refused
