"""Finds the columns of a fleet in a header."""

from collections.abc import Callable, Sequence

from postpress_async.errors import FleetError
from postpress_async.rotation._column_names import COLUMNS, field_of, printable_name

KNOWN = ", ".join(COLUMNS)


def read_header(
    names: Sequence[str], error: Callable[[str], FleetError], columns: Sequence[str] = COLUMNS
) -> tuple[dict[str, int], tuple[str, ...]]:
    """
    Return the index of each of *columns* that is among *names*, and the unknown names, safe to print.

    Raises:
        FleetError: Two names mean the same column, or no name means account_id or a column that the pool
            needs. *error* creates it.
    """
    positions: dict[str, int] = {}
    ignored: list[str] = []
    for index, name in enumerate(names):
        column = field_of(name)
        if column not in columns:
            ignored.append(printable_name(name))
        elif column in positions:
            both = f"{printable_name(names[positions[column]])} and {printable_name(name)}"
            raise error(f"has two columns for {column}, {both}: remove one of them")
        else:
            positions[column] = index
    if "account_id" not in positions:
        found = ", ".join(filter(None, map(printable_name, names[:20]))) or "columns without a name"
        advice = f"rename one of them; the known columns are {KNOWN}"
        raise error(f"has no column account_id, only {found}: {advice}")
    if missing := next((name for name in columns[len(COLUMNS) :] if name not in positions), None):
        raise error(f"has no column {printable_name(missing)}, which the pool needs: add it")
    return positions, tuple(filter(None, ignored))
