"""A string that does not print."""

import hmac
from typing import NoReturn, Self, final

MASK = "***"


@final
class Secret:
    """
    Text that shows as ``***`` wherever it is printed, formatted or logged.

    `reveal` is the one way to read it. It compares and hashes by value, copies as itself,
    and is refused by ``pickle``, since a pickle is a file that nobody thinks of as holding keys.
    JSON refuses it by itself: it is not a ``str``.
    """

    __slots__ = ("__text",)

    def __init__(self, text: "str | Secret") -> None:
        """Raise `TypeError` if *text* is not text; the message does not show it."""
        if isinstance(text, Secret):
            text = text.reveal()
        if not isinstance(text, str):
            raise TypeError(f"a secret is made of text, not of {type(text).__name__}")
        self.__text = text

    def reveal(self) -> str:
        """The text itself: keep it out of names, logs and messages."""
        return self.__text

    def __repr__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        # surrogatepass: any text compares, even text that could never be sent.
        mine, theirs = (text.encode("utf-8", "surrogatepass") for text in (self.__text, other.__text))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self.__text))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: read it again where it is needed")
