"""Finds the columns of a fleet by the names in a header."""

from collections.abc import Callable, Sequence

from attrs import frozen

from postpress_async.errors import FleetError
from postpress_async.rotation._fleet._row import COLUMNS, meaning, shown

KNOWN = ", ".join(COLUMNS)


@frozen
class Header:
    """
    The positions of the columns.

    Attributes:
        width: Number of all columns.
        places: The index of each of `COLUMNS` that is present.
        ignored: Unknown names, safe to print.
    """

    width: int
    places: dict[str, int]
    ignored: tuple[str, ...]


def read_header(names: Sequence[str], error: Callable[[str], FleetError]) -> Header:
    """
    Return the `Header` with these *names*.

    Raises:
        FleetError: Two names mean the same column, or no name means account_id. *error* creates it.
    """
    places: dict[str, int] = {}
    ignored: list[str] = []
    for index, name in enumerate(names):
        column = meaning(name)
        if column is None:
            ignored.append(shown(name))
        elif column in places:
            both = f"{shown(names[places[column]])} and {shown(name)}"
            raise error(f"has two columns for {column}, {both}: remove one of them")
        else:
            places[column] = index
    if "account_id" not in places:
        found = ", ".join(filter(None, map(shown, names[:20]))) or "others without a name"
        advice = f"give one of them that name; known are {KNOWN}"
        raise error(f"has no column account_id, only {found}: {advice}")
    return Header(len(names), places, tuple(filter(None, ignored)))
