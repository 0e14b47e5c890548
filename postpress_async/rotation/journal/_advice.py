"""What an operator does next, told from a journal alone."""

import os
import shlex

from postpress_async.rotation._outcome import State
from postpress_async.rotation.journal._statistics import Numbers, Stage


def advice(journal: str, numbers: Numbers, *, seen: bool = False) -> str:
    """
    What to do next, in a sentence with the command.

    A command that is named works when it is pasted: it is what the run itself noted, with the folder to go to
    if that is another one. If the journal has none, as of a run from Python, none is made up.

    Args:
        journal: The journal's path, as it was named.
        numbers: The journal in numbers.
        seen: Whether the report is what is being read.
    """
    name, states = shlex.quote(journal), numbers.states
    command = _here(numbers.command, numbers.folder)
    again = f"run the same command again ({command})" if command else "start the same rotation again"
    if numbers.stage is Stage.UNDER_WAY:
        return f"nothing; look again with `postpress-async status {name}`"
    if numbers.stage is Stage.HALTED:
        return f"correct what halted it, then {again}: it goes on from here"
    if numbers.stage is not Stage.ENDED:
        return f"{again}: it goes on from here"
    if states[State.UNKNOWN] and numbers.leaves_unknown:
        option = "--on-unknown report" if command else 'on_unknown="report"'
        return (
            f"look at the accounts whose outcome is unknown (`postpress-async export {name} --state unknown` "
            f"lists them); to send them, {again} without {option}"
        )
    if states[State.UNKNOWN] or states[State.SKIPPED] > numbers.refused:
        left = " and ".join(state for state in (State.UNKNOWN, State.SKIPPED) if states[state])
        return f"{again}: it sends what is {left}"
    if states[State.FAILED]:
        why = "" if seen else f"see which failed and why with `postpress-async report {name}`; "
        retry = _here(numbers.retry_command, numbers.folder)
        send = f"run {retry}" if retry else 'start the same rotation again with on_failed="retry"'
        return f"{why}once the causes are corrected, {send}: it sends what failed again"
    if numbers.refused:
        listed = f"`postpress-async export {name} --state skipped`"
        return f"correct the rows that were refused ({listed} lists them), and rotate them as another fleet"
    return "nothing; every account was patched"


def _here(command: str | None, folder: str | None) -> str | None:
    """*command*, which was run in *folder*, for whoever types in the present one."""
    if command is None:
        return None
    if folder is not None and not _is_here(folder):
        command = f"cd {shlex.quote(folder)} && {command}"
    return f"`{command}`"


def _is_here(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:  # it is gone, or the journal comes from another machine
        return False
