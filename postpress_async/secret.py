"""A string whose value is hidden when it is printed."""

import hmac
from typing import NoReturn, Self, final

MASK = "***"


@final
class Secret:
    """
    Text that shows as ``***`` when it is printed, formatted or logged.

    Only `reveal` returns the text. Secrets compare and hash by value, and copying returns the same object.
    Neither ``pickle`` nor ``json`` accepts a secret, so that it is not written to a file by accident.
    """

    __slots__ = ("__text",)

    def __init__(self, text: "str | Secret") -> None:
        """Raise `TypeError`, without the value, if *text* is neither a string nor a secret."""
        if isinstance(text, Secret):
            text = text.reveal()
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        self.__text = text

    def reveal(self) -> str:
        """Return the text. Keep it out of logs and messages."""
        return self.__text

    def __repr__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        # surrogatepass: texts with lone surrogates cannot be sent, but must be comparable.
        left, right = (text.encode("utf-8", "surrogatepass") for text in (self.__text, other.__text))
        return hmac.compare_digest(left, right)

    def __hash__(self) -> int:
        return hash((Secret, self.__text))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled; read it again in the process that needs it")
