"""
A fleet as the answer of a SQL query, copied to a private temporary file.

All of it is checked before a byte is sent, and what is sent is what was checked, whatever the database
has by then.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Generator
from contextlib import closing
from typing import IO, Final

from postpress_async.errors import FleetError
from postpress_async.models import FieldError
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.fleet._columns import BATCH, Batch, BatchMaker, read_batches
from postpress_async.rotation.fleet._file import View
from postpress_async.rotation.fleet._header import read_header
from postpress_async.rotation.fleet._query import Query
from postpress_async.rotation.fleet._row import RowReader

_BUFFER: Final = 256 * 1024


class QueryTable:
    """
    The rows that a query gave. The line of a row is its number in the answer, from 1.

    Attributes:
        name: What stands for a file's name.
        ignored_columns: Columns of the answer, and keys of proxies in it, that are none of ours.
    """

    name: str = "<query>"

    def __init__(self, url: str, query: str) -> None:
        """Raise `FleetError` if the database does not answer, or with other columns than a fleet's."""
        self._digest = hashlib.sha256()
        # Where the system can, it never has a name: a run that is killed leaves no passwords behind.
        self._spool: IO[bytes] = tempfile.TemporaryFile(prefix="postpress-fleet-")  # noqa: SIM115 - until `close`
        try:
            with closing(Query(url, query)) as answer:
                self.ignored_columns = self._copy(answer)
        except BaseException:
            self._spool.close()
            raise

    def error(self, fact: str) -> FleetError:
        """The error that says *fact* of the query."""
        return FleetError(f"the query {fact}")

    def sha256(self) -> "hashlib._Hash":  # pyright: ignore[reportPrivateUsage]
        """The hash over the values of the columns that are ours, ready to take more."""
        return self._digest.copy()

    def rows(self, reader: RowReader) -> Generator[Row | Refusal, None, None]:
        """Each row, or why it is refused."""
        yield from read_batches(self._batches(), reader)

    def close(self) -> None:
        """Delete the copy."""
        self._spool.close()

    def _copy(self, answer: Query) -> tuple[str, ...]:
        header = read_header(answer.names, self.error)
        maker = BatchMaker()
        for rows in answer.batches(BATCH):
            columns = list(zip(*rows, strict=True))
            values = {column: columns[place] for column, place in header.places.items()}
            self._keep(maker.make(values, len(rows)))
        return header.ignored + tuple(maker.ignored.values())

    def _keep(self, batch: Batch) -> None:
        """Write *batch* as a line of JSON: its columns, null for an empty one, and its faults."""
        columns = [column if any(column) else None for column in batch.columns]
        columns[0] = batch.columns[0]  # it has their number, if nothing else
        faults = [[index, *fault.args] for index, fault in batch.faults.items()]
        line = json.dumps([columns, faults], separators=(",", ":")).encode() + b"\n"
        self._digest.update(line)
        try:
            self._spool.write(line)
            self._spool.flush()
        except OSError as error:
            raise self.error(
                f"cannot be copied to a temporary file: {os.strerror(error.errno or 0)}"
            ) from error

    def _batches(self) -> Generator[Batch, None, None]:
        if self._spool.closed:
            raise self.error("is closed: open the fleet again")
        lines = io.BufferedReader(View(self._spool), _BUFFER)
        while True:
            try:
                line = lines.readline()
            except OSError as error:
                raise self.error(f"cannot be read: {error.strerror}") from error
            if not line:
                return
            columns, faults = json.loads(line)
            nothing = [""] * len(columns[0])
            yield Batch(
                [nothing if column is None else column for column in columns],
                {index: FieldError(*fault) for index, *fault in faults},
            )
