"""
The sizes of the columns in the footer of a Parquet file.

pyarrow's `RowGroupMetaData.column` reads them too, but does not catch C++ exceptions: one wrong byte in the
entry of a column ends the process. pyarrow's other functions for these sizes call that method, or read the
column's pages first. So this module parses the footer, which is in Thrift's compact protocol.
"""

import io
from typing import Any, Final, TypeAlias

# Encodings, by their numbers in parquet.thrift.
DICTIONARIES: Final = frozenset({2, 8})  # PLAIN_DICTIONARY and RLE_DICTIONARY: equal values are stored once
DELTA_BYTE_ARRAY: Final = 7  # a value omits the prefix that it shares with the previous one

# Fields, by their numbers in parquet.thrift.
_ROW_GROUPS: Final = 4  # of FileMetaData
_COLUMNS, _NUM_ROWS = 1, 3  # of RowGroup
_META_DATA: Final = 3  # of ColumnChunk
_ENCODINGS, _PATH_IN_SCHEMA, _TOTAL_UNCOMPRESSED_SIZE = 2, 3, 6  # of ColumnMetaData

Chunk: TypeAlias = tuple[str, int, frozenset[int]]
"""A column of a row group: path, such as ``struct.field``; uncompressed bytes; numbers of its encodings."""


def read_row_groups(file: io.BufferedIOBase) -> list[tuple[int, list[Chunk]]]:
    """Return the rows and columns of each row group; raise `ValueError` if the footer is damaged."""
    file.seek(-8, io.SEEK_END)  # the footer's length, and PAR1
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, io.SEEK_END)
    try:
        footer = _read_struct(io.BytesIO(file.read(length)))
        return [
            (int(group[_NUM_ROWS]), [_chunk(column[_META_DATA]) for column in group[_COLUMNS]])
            for group in footer[_ROW_GROUPS]
        ]
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        pass  # raise outside of the block, so that no internal error is chained
    raise ValueError("the footer is damaged")


def _chunk(meta_data: dict[int, Any]) -> Chunk:
    path = b".".join(meta_data[_PATH_IN_SCHEMA]).decode()
    return path, int(meta_data[_TOTAL_UNCOMPRESSED_SIZE]), frozenset(meta_data[_ENCODINGS])


def _read_struct(data: io.BytesIO) -> dict[int, Any]:
    """Return the fields of a struct by their numbers."""
    fields: dict[int, Any] = {}
    number = 0
    while header := _read(data, 1)[0]:
        step, kind = header >> 4, header & 15
        number = number + step if step else _read_integer(data)  # with step 0, the full number follows
        if kind in {1, 2}:  # a boolean, whose value is in the header
            fields[number] = kind == 1
        else:
            fields[number] = _read_value(data, kind)
    return fields


def _read_value(data: io.BytesIO, kind: int) -> Any:
    match kind:
        case 1 | 2 | 3:  # booleans in a list, and i8
            return _read(data, 1)[0]
        case 4 | 5 | 6:  # i16, i32 and i64
            return _read_integer(data)
        case 7:  # double
            return _read(data, 8)
        case 8:  # binary and string
            return _read(data, _read_varint(data))
        case 9 | 10:  # list and set
            header = _read(data, 1)[0]
            count = header >> 4
            if count == 15:  # the count follows
                count = _read_varint(data)
            return [_read_value(data, header & 15) for _ in range(count)]
        case 12:  # struct
            return _read_struct(data)
        case _:
            raise ValueError("a type that Parquet does not use")


def _read_integer(data: io.BytesIO) -> int:
    """Read a signed integer in Thrift's zigzag encoding."""
    number = _read_varint(data)
    return number >> 1 ^ -(number & 1)


def _read_varint(data: io.BytesIO) -> int:
    number = shift = 0
    while (byte := _read(data, 1)[0]) & 0x80:
        number |= (byte & 0x7F) << shift
        shift += 7
    return number | byte << shift


def _read(data: io.BytesIO, count: int) -> bytes:
    content = data.read(count)
    if len(content) < count:
        raise ValueError("the footer is cut short")
    return content
