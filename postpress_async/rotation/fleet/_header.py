"""Which columns of a table are ours, by the names in its header."""

from collections.abc import Callable, Sequence

from attrs import frozen

from postpress_async.errors import FleetError
from postpress_async.rotation.fleet._row import COLUMNS, meaning, shown

KNOWN = ", ".join(COLUMNS)


@frozen
class Header:
    """
    Where the columns are.

    Attributes:
        width: How many there are in all.
        places: The place, from 0, of each of `COLUMNS` that is there.
        ignored: The names that mean nothing here, fit to be printed.
    """

    width: int
    places: dict[str, int]
    ignored: tuple[str, ...]


def read_header(names: Sequence[str], error: Callable[[str], FleetError]) -> Header:
    """
    The `Header` that *names* are.

    Raises:
        FleetError: Two of them mean the same, or none means account_id; *error* makes it of a fact.
    """
    places: dict[str, int] = {}
    ignored: list[str] = []
    for index, name in enumerate(names):
        column = meaning(name)
        if column is None:
            ignored.append(shown(name))
        elif column in places:
            both = f"{shown(names[places[column]])} and {shown(name)}"
            raise error(f"has two columns for {column}, {both}: leave one of them out")
        else:
            places[column] = index
    if "account_id" not in places:
        found = ", ".join(filter(None, map(shown, names[:20]))) or "others without a name"
        advice = f"give one of them that name; known are {KNOWN}"
        raise error(f"has no column account_id, only {found}: {advice}")
    return Header(len(names), places, tuple(filter(None, ignored)))
