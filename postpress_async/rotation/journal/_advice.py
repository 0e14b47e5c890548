"""The operator's next step, derived from a journal alone."""

import os
import shlex

from postpress_async.rotation._outcome import State
from postpress_async.rotation.journal._statistics import Stage, Statistics


def advice(journal: str, statistics: Statistics, *, seen: bool = False) -> str:
    """
    The next step in a sentence, with its command if the run recorded one.

    The command can be pasted: it begins with a `cd` if its folder is not the present one. In the report,
    which is *seen*, the sentence does not name the report.
    """
    name, states = shlex.quote(journal), statistics.states
    command = _with_folder(statistics.command, statistics.folder)
    again = f"run the same command again ({command})" if command else "start the same rotation again"
    if statistics.stage is Stage.UNDER_WAY:
        return f"nothing; look again with `postpress-async status {name}`"
    if statistics.stage is Stage.HALTED:
        return f"correct what halted it, then {again}: it goes on from here"
    if statistics.stage is not Stage.ENDED:
        return f"{again}: it goes on from here"
    if states[State.UNKNOWN] and statistics.leaves_unknown:
        option = "--on-unknown report" if command else 'on_unknown="report"'
        return (
            f"look at the accounts whose outcome is unknown (`postpress-async export {name} --state unknown` "
            f"lists them); to send them, {again} without {option}"
        )
    if states[State.UNKNOWN] or states[State.SKIPPED] > statistics.refused:
        left = " and ".join(state for state in (State.UNKNOWN, State.SKIPPED) if states[state])
        return f"{again}: it sends what is {left}{_but_expired(name, statistics.expired)}"
    if states[State.FAILED]:
        why = "" if seen else f"see which accounts failed and why with `postpress-async report {name}`; "
        retry = _with_folder(statistics.retry_command, statistics.folder)
        send = f"run {retry}" if retry else 'start the same rotation again with on_failed="retry"'
        return f"{why}once the causes are corrected, {send}: it sends the failed accounts again"
    if statistics.refused:
        listed = f"`postpress-async export {name} --state skipped`"
        return f"correct the rows that were refused ({listed} lists them), and rotate them as another fleet"
    return "nothing; every account was patched"


def _but_expired(name: str, expired: int) -> str:
    if not expired:
        return ""
    accounts = "1 account" if expired == 1 else f"{expired:,} accounts"
    return (
        f", except {accounts} that may have got a managed proxy more than 24 hours ago (see --key-lifetime): "
        f"check them in the dashboard (`postpress-async export {name} --state unknown` lists them)"
    )


def _with_folder(command: str | None, folder: str | None) -> str | None:
    """*command* in backticks, after a `cd` if it ran in another *folder* than the present one."""
    if command is None:
        return None
    if folder is not None and not _is_here(folder):
        command = f"cd {shlex.quote(folder)} && {command}"
    return f"`{command}`"


def _is_here(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)
    except OSError:  # it was deleted, or the journal comes from another machine
        return False
