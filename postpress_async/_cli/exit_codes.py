"""
Exit codes, from which scripts know what to do next.

`code_of` is for rotations. `update`, `proxies check`, and `_cli.run` for exceptions, choose among them, too.
"""

from typing import Final

from postpress_async.rotation import RotationSummary

ALL_PATCHED: Final = 0
SOME_LEFT: Final = 1
BAD_INPUT: Final = 2
HALTED: Final = 3
KEY_REFUSED: Final = 4
INTERRUPTED: Final = 130

HELP: Final = """\b
Exit codes:
  0    All accounts were patched, or the next run is not due yet (--every).
  1    Some accounts failed, were skipped (by --limit or --max-duration, too), or have an unknown outcome.
  2    The command line or an input is invalid, and nothing was sent.
  3    The run halted (--halt, --canary, unreachable host), or the journal is in use or not writable.
  4    The API key was refused.
  130  The run was interrupted by Ctrl-C or SIGTERM."""


def code_of(summary: RotationSummary, *, interrupted: bool) -> int:
    """The exit code of a rotation that ended; *interrupted* if a signal ended it."""
    if summary.key_refused:
        return KEY_REFUSED
    if summary.halted:
        return HALTED
    if interrupted:
        return INTERRUPTED
    return ALL_PATCHED if summary.patched == summary.total else SOME_LEFT
