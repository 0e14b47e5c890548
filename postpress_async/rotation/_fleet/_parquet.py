"""A fleet as Parquet, read by pyarrow: only the known columns, one batch of rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeVar

from postpress_async.rotation._column_names import PARTS, column_of, field_of, may_be_number, printable_name
from postpress_async.rotation._fleet._columns import BATCH, Batch, BatchMaker, read_header
from postpress_async.rotation._fleet._file import FleetFile
from postpress_async.rotation._fleet._parquet_footer import DELTA_BYTE_ARRAY, DICTIONARIES, read_row_groups

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

# Bytes to read at once. By default, pyarrow reads the whole column of a row group.
_BUFFER: Final = 64 * 1024

MAX_COLUMN_SIZE: Final = 64 * 1024 * 1024
"""Maximum uncompressed bytes of one column of a row group, in addition to `MAX_MEAN_VALUE` for each row."""

MAX_MEAN_VALUE: Final = 512
"""Average size in bytes that a value may have in a large row group. A real fleet has shorter ones."""

T = TypeVar("T")


class ParquetTable:
    """
    The rows of a Parquet file, whose unknown columns are not read.

    Columns contain strings, which may be dictionary-encoded; ``port`` may contain numbers. ``proxy`` may be a
    struct with `PARTS` as its fields. A row with only nulls is refused, because it has no account.
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
        self.file = file
        self._columns = columns
        self._arrow = pyarrow
        with self._opened() as parquet:
            schema = self._convert_errors(lambda: parquet.schema_arrow)
        positions, ignored = read_header(schema.names, file.error, columns)
        self._names = {column: schema.names[index] for column, index in positions.items()}
        self._leaves: list[str] = []
        for column, index in positions.items():
            name, kind = schema.names[index], schema.field(index).type
            if column == "proxy" and pyarrow.types.is_struct(kind):
                ignored += self._check_struct(name, kind)
            else:
                self._check(column, name, kind)
        self.ignored_columns: tuple[str, ...] = ignored

    def _check_struct(self, name: str, struct: "pyarrow.StructType") -> tuple[str, ...]:
        """Check the known fields of *struct*; return the unknown ones, safe to print."""
        known = [field for field in struct if column_of(field.name) in PARTS]
        if not known:
            fact = f"has a struct {printable_name(name)} with none of the fields {', '.join(PARTS)}"
            raise self.file.error(f"{fact}: rename its fields")
        for field in known:
            self._check(field_of(field.name), f"{name}.{field.name}", field.type)
        return tuple(printable_name(field.name) for field in struct if field not in known)

    def _check(self, column: str, path: str, kind: "pyarrow.DataType") -> None:
        """Add *path* to the columns to read; raise `FleetError` if its type is not supported."""
        if self._arrow.types.is_dictionary(kind):
            kind = kind.value_type
        # pandas writes a column without values as floats. If it has values, their rows are refused.
        allowed = ["string", "large_string", "string_view", "null", "floating"]
        if may_be_number(column):
            allowed += ["integer", "decimal"]
        if not any(getattr(self._arrow.types, f"is_{name}")(kind) for name in allowed):
            expected = "text or whole numbers" if may_be_number(column) else "text"
            raise self.file.error(
                f"has {printable_name(path)} as {printable_name(str(kind))}: write that column as {expected}"
            )
        self._leaves.append(path)

    def batches(self) -> Iterator[Batch]:
        maker = BatchMaker(self._columns)
        with self._opened() as parquet:
            row_groups = range(len(self._batch_sizes))
            # Read adjacent row groups together if they have the same batch size.
            for size, groups in groupby(row_groups, key=self._batch_sizes.__getitem__):
                for batch in self._read(parquet, size, list(groups), self._leaves):
                    convert = partial(_to_lists, batch, self._names)
                    yield maker.make(self._convert_errors(convert), batch.num_rows)

    def _read(
        self, parquet: "pyarrow.parquet.ParquetFile", size: int, row_groups: list[int], columns: list[str]
    ) -> Iterator["pyarrow.RecordBatch"]:
        # With threads, pyarrow would read ahead, which takes memory.
        batches = parquet.iter_batches(size, row_groups=row_groups, columns=columns, use_threads=False)
        while (batch := self._convert_errors(partial(next, batches, None))) is not None:
            yield batch

    @cached_property
    def _batch_sizes(self) -> list[int]:
        """
        For each row group, the number of rows that may be in memory at once.

        Even a small file can need much memory, because long values can be compressed to a few bytes, or be
        repeated by a dictionary.
        """
        with self.file.opened() as file:
            row_groups = self._convert_errors(partial(read_row_groups, file))
        sizes: list[int] = []
        with self._opened(read_dictionary=self._leaves) as dictionaries:
            for number, (rows, chunks) in enumerate(row_groups):
                longest = 1
                for path, size, encodings in chunks:
                    if path not in self._leaves:
                        continue
                    if size > MAX_COLUMN_SIZE + MAX_MEAN_VALUE * rows:
                        raise self.file.error(
                            f"has {size:,} bytes in column {printable_name(path)} of row group {number} "
                            f"(of {rows:,} rows), too many for a fleet: correct long values, "
                            "or write smaller row groups"
                        )
                    # This fits into memory even if one value fills the column, and each row repeats it.
                    if size * BATCH <= MAX_COLUMN_SIZE:
                        continue
                    # With all other encodings, a batch takes no more memory than *size*.
                    if DELTA_BYTE_ARRAY in encodings:
                        longest = max(longest, size)
                    elif DICTIONARIES & encodings:
                        longest = max(longest, self._longest_in_dictionary(dictionaries, number, path))
                sizes.append(min(BATCH, max(1, MAX_COLUMN_SIZE // longest)))
        return sizes

    def _longest_in_dictionary(
        self, parquet: "pyarrow.parquet.ParquetFile", row_group: int, path: str
    ) -> int:
        """Size in bytes of the longest text in the dictionary of a column; 0 without one."""
        batch = next(self._read(parquet, 1, [row_group], [path]), None)
        if batch is None:  # the row group is empty
            return 0
        values = batch.column(0)
        while self._arrow.types.is_struct(values.type):
            values = values.field(0)
        if not self._arrow.types.is_dictionary(values.type):
            return 0  # numbers
        compute: Any = self._arrow.compute
        return int(compute.max(compute.binary_length(values.dictionary)).as_py() or 0)

    @contextmanager
    def _opened(self, **options: Any) -> Iterator["pyarrow.parquet.ParquetFile"]:
        with self.file.opened() as file:
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
        # Outside the except block, so that pyarrow's error, which may contain a value, is not chained.
        raise self.file.error("is damaged, or a Parquet file that pyarrow cannot read: write it again")


def _to_lists(batch: "pyarrow.RecordBatch", names: dict[str, str]) -> dict[str, list[Any]]:
    """The values of each column. Text that is not UTF-8 becomes bytes, so that its row is refused."""
    lists = {}
    for column, name in names.items():
        values = batch.column(name)
        try:
            lists[column] = values.to_pylist()
        except UnicodeDecodeError:
            lists[column] = [_to_object(value) for value in values]
    return lists


def _to_object(scalar: "pyarrow.Scalar") -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b""
