"""
What the footer of a Parquet file says about the size of its columns.

pyarrow tells it too, but one wrong byte in a column's entry ends the process: its `RowGroupMetaData.column`
lets a C++ exception pass that nobody catches. So the footer is read here, as Thrift's compact protocol.
"""

import io
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from attrs import frozen

DICTIONARIES: Final = frozenset({2, 8})
"""Encodings by which a value is written once for all that are equal."""

DELTA_BYTE_ARRAY: Final = 7
"""The encoding by which a value's beginning is that of the one before."""

_END: Final = 8  # the footer's length and PAR1

# Which fields of a struct are kept, by their numbers in parquet.thrift, and which of a struct in them.
_Kept: TypeAlias = Mapping[int, "_Kept"]
_ROWS: Final = 3
_COLUMNS: Final = 1
_META_DATA: Final = 3
_ENCODINGS, _PATH, _SIZE = 2, 3, 6
_ROW_GROUPS: Final = 4
_KEPT: Final[_Kept] = {
    _ROW_GROUPS: {_ROWS: {}, _COLUMNS: {_META_DATA: {_ENCODINGS: {}, _PATH: {}, _SIZE: {}}}}
}


@frozen
class Chunk:
    """
    One column of a row group.

    Attributes:
        path: Its name, below that of its struct if it is in one, with a dot between.
        size: Its bytes, uncompressed.
        encodings: How its values are written, by Parquet's numbers.
    """

    path: str
    size: int
    encodings: frozenset[int]


@frozen
class RowGroup:
    """A row group: how many rows it has, and its columns."""

    rows: int
    chunks: tuple[Chunk, ...]


def read_row_groups(file: io.RawIOBase) -> list[RowGroup]:
    """
    The row groups of a whole Parquet file.

    Raises:
        ValueError: The footer is damaged.
    """
    file.seek(-_END, io.SEEK_END)
    length = int.from_bytes((file.read(_END) or b"")[:4], "little")
    file.seek(-_END - length, io.SEEK_END)
    try:
        groups = _Reader(file.read(length) or b"").struct(_KEPT)[_ROW_GROUPS]
        return [_row_group(group) for group in groups]
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError("a footer that is damaged")


def _row_group(fields: dict[int, Any]) -> RowGroup:
    chunks = [column[_META_DATA] for column in fields[_COLUMNS]]
    return RowGroup(
        int(fields[_ROWS]),
        tuple(
            Chunk(b".".join(chunk[_PATH]).decode(), int(chunk[_SIZE]), frozenset(chunk[_ENCODINGS]))
            for chunk in chunks
        ),
    )


class _Reader:
    """Thrift's compact protocol; it raises `IndexError` or `ValueError` on bytes that are none."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self, kept: _Kept) -> dict[int, Any]:
        """The fields of a struct that are *kept*, by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._integer()
            # A field that is true or false has its value in its header.
            value = kind == 1 if kind in {1, 2} else self._value(kind, kept.get(number, {}))
            if number in kept:
                fields[number] = value
        return fields

    def _value(self, kind: int, kept: _Kept) -> Any:
        if kind in {1, 2, 3}:
            return self._byte()
        if kind in {4, 5, 6}:
            return self._integer()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in {9, 10}:
            header = self._byte()
            count = header >> 4 if header >> 4 < 15 else self._varint()
            return [self._value(header & 15, kept) for _ in range(count)]
        if kind == 12:
            return self.struct(kept)
        raise ValueError("a kind of value that Parquet has not")

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
