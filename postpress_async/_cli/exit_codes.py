"""
Exit codes, which tell scripts what to do next.

`code_of` chooses the exit code of a rotation. `update` and `proxies check` choose their own, and `_cli.run`
maps exceptions to exit codes.
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
  1    Some accounts failed, were skipped (also by --limit), or have an unknown outcome.
  2    The command line or an input is invalid, and nothing was sent.
  3    The run halted (--halt, --canary, unreachable API), or the journal is in use or not writable.
  4    The API key was refused.
  130  The run was interrupted by Ctrl-C or SIGTERM."""


def code_of(summary: RotationSummary, *, interrupted: bool, left_behind: int) -> int:
    """
    Return the exit code of a rotation that ended.

    *interrupted* is whether a signal ended it, and *left_behind* the number of accounts of a rollback that
    were not part of it.
    """
    if summary.key_refused:
        return KEY_REFUSED
    if summary.halted:
        return HALTED
    if interrupted:
        return INTERRUPTED
    return ALL_PATCHED if summary.patched == summary.total and not left_behind else SOME_LEFT
