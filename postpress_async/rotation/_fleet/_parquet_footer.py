"""
The sizes of the columns in the footer of a Parquet file.

pyarrow's `RowGroupMetaData.column` has them too, but does not catch C++ exceptions: one wrong byte in the
entry of a column ends the process. pyarrow's other functions for these sizes call it, or read the column's
pages first. So this module parses the footer, which is in Thrift's compact protocol.
"""

import io
from typing import Any, Final

from attrs import frozen

DICTIONARIES: Final = frozenset({2, 8})
"""Encodings that store equal values once."""

DELTA_BYTE_ARRAY: Final = 7
"""The encoding that omits the prefix that a value shares with the previous one."""

_TAIL: Final = 8  # bytes: the footer's length, and PAR1

# Numbers of the fields in parquet.thrift.
_ROW_GROUPS: Final = 4  # of FileMetaData
_COLUMNS, _ROWS = 1, 3  # of RowGroup
_META_DATA: Final = 3  # of ColumnChunk
_ENCODINGS, _PATH, _SIZE = 2, 3, 6  # of ColumnMetaData


@frozen
class Chunk:
    """
    One column of a row group.

    Attributes:
        path: The column's name; for a field of a struct, ``struct.field``.
        size: Number of bytes, uncompressed.
        encodings: Numbers of the encodings of its values, as Parquet defines them.
    """

    path: str
    size: int
    encodings: frozenset[int]


@frozen
class RowGroup:
    """A row group: its number of rows, and its columns."""

    rows: int
    chunks: tuple[Chunk, ...]


def read_row_groups(file: io.RawIOBase) -> list[RowGroup]:
    """
    Return the row groups of a Parquet file.

    Raises:
        ValueError: The footer is damaged.
    """
    file.seek(-_TAIL, io.SEEK_END)
    length = int.from_bytes((file.read(_TAIL) or b"")[:4], "little")
    file.seek(-_TAIL - length, io.SEEK_END)
    try:
        footer = _Thrift(file.read(length) or b"").struct()
        return [
            RowGroup(int(group[_ROWS]), tuple(_chunk(column[_META_DATA]) for column in group[_COLUMNS]))
            for group in footer[_ROW_GROUPS]
        ]
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError("the footer is damaged")


def _chunk(fields: dict[int, Any]) -> Chunk:
    return Chunk(b".".join(fields[_PATH]).decode(), int(fields[_SIZE]), frozenset(fields[_ENCODINGS]))


class _Thrift:
    """A parser of Thrift's compact protocol; raises `IndexError` or `ValueError` if *data* is damaged."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self) -> dict[int, Any]:
        """Return the fields of a struct by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._integer()
            # The header of a boolean field contains its value.
            fields[number] = kind == 1 if kind in {1, 2} else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2 | 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                header = self._byte()
                count = header >> 4 if header >> 4 < 15 else self._varint()
                return [self._value(header & 15) for _ in range(count)]
            case 12:
                return self.struct()
            case _:
                raise ValueError("a type that Parquet does not use")

    def _integer(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)

    def _varint(self) -> int:
        number = shift = 0
        while (byte := self._byte()) & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
        return number | byte << shift

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise IndexError
        return self._data[self._at - count : self._at]

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]
