"""Exit codes, so that a script can tell what to do next."""

from typing import Final

from postpress_async.rotation import RotationSummary

ALL_PATCHED: Final = 0
SOME_LEFT: Final = 1
BAD_INPUT: Final = 2
HALTED: Final = 3
KEY_REFUSED: Final = 4
INTERRUPTED: Final = 130

HELP: Final = (
    "Exit codes: 0 all patched; 1 some failed, unknown or skipped; 2 usage or bad input, and nothing was "
    "sent; 3 halted, or the journal cannot be written; 4 the API key was refused; 130 interrupted."
)


def code_of(summary: RotationSummary, *, interrupted: bool) -> int:
    """The exit code of a rotation that ended; whether a person or the system ended it by a signal."""
    if summary.key_refused:
        return KEY_REFUSED
    if summary.halted:
        return HALTED
    if interrupted:
        return INTERRUPTED
    return ALL_PATCHED if summary.patched == summary.total else SOME_LEFT
