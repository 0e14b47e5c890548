"""Refused rows and lines, grouped by kind of fault."""

from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

from attrs import define, field


class Refused(Protocol):
    """An invalid row of a fleet, or an invalid line of a proxy list."""

    @property
    def line(self) -> int | None: ...

    @property
    def column(self) -> str | None: ...

    @property
    def reason(self) -> str: ...

    @property
    def advice(self) -> str: ...


R = TypeVar("R", bound=Refused)

MAX_KINDS: Final = 50  # kinds of fault that `Faults` lists; rows with further kinds are only counted
_MAX_LINES: Final = 5  # line numbers that a `Fault` stores


@define
class Fault(Generic[R]):
    """
    One kind of fault: all rows refused for the same reason, with the same advice.

    Attributes:
        first: The first of the refused rows.
        count: Number of refused rows.
        lines: Line numbers of the first five refused rows.
    """

    first: R
    count: int = 0
    lines: list[int | None] = field(factory=list)

    def sentence(self, advice: str | None = None) -> str:
        """Describe the fault, its lines and how to correct it. *advice* replaces the advice of the rows."""
        if self.count == 1 and advice is None:
            return str(self.first)
        lines = ", ".join(str(line) for line in self.lines)
        more = f" and {self.count - len(self.lines):,} more" if self.count > len(self.lines) else ""
        where = f"line {lines}" if self.count == 1 else f"{self.count:,} lines ({lines}{more})"
        column = "" if self.first.column is None else f", {self.first.column}"
        return f"{where}{column}: {self.first.reason}: {advice or self.first.advice}"


@define
class Faults(Generic[R]):
    """
    Refused rows, grouped by kind of fault so that memory and messages stay small.

    Attributes:
        count: Number of refused rows.
        unlisted: Number of refused rows whose kind of fault is not listed.
    """

    count: int = 0
    unlisted: int = 0
    _kinds: dict[tuple[str | None, str, str], Fault[R]] = field(factory=dict)

    def add(self, refused: R) -> None:
        """Count a refused row."""
        self.count += 1
        kind = refused.column, refused.reason, refused.advice
        fault = self._kinds.get(kind)
        if fault is None:
            if len(self._kinds) == MAX_KINDS:
                self.unlisted += 1
                return
            fault = self._kinds[kind] = Fault(refused)
        fault.count += 1
        if len(fault.lines) < _MAX_LINES:
            fault.lines.append(refused.line)

    def __iter__(self) -> Iterator[Fault[R]]:
        """Yield the listed kinds of fault, in the order of their first rows."""
        return iter(self._kinds.values())
