"""What an operator does next, told from a journal alone."""

import shlex
from pathlib import Path
from typing import Final

from postpress_async.rotation.journal.numbers import Numbers, Stage
from postpress_async.rotation.outcome import State

_ENDING: Final = ".rotation.sqlite3"


def advice(journal: str, numbers: Numbers, *, seen: bool = False) -> str:
    """What to do next, in a sentence with the command; *seen* where the report is what is being read."""
    name, again = shlex.quote(journal), f"`{_command(journal)}`"
    states = numbers.states
    if numbers.stage is Stage.UNDER_WAY:
        return f"nothing; look again with `postpress-async status {name}`"
    if numbers.stage is Stage.HALTED:
        return f"mend what halted it, then give the same command again ({again}): it goes on from here"
    if numbers.stage is not Stage.ENDED:
        return f"give the same command again ({again}): it goes on from here"
    if states[State.UNKNOWN] or states[State.SKIPPED] > numbers.refused:
        left = " and ".join(state for state in (State.UNKNOWN, State.SKIPPED) if states[state])
        return f"give the same command again ({again}): it sends what is {left}"
    if states[State.FAILED]:
        why = "" if seen else f"see which and why with `postpress-async report {name}`; once it is mended, "
        retry = f"`postpress-async retry-failed {name} FLEET`"
        return f"{why}{retry}, with the same options, sends what failed again"
    if numbers.refused:
        listed = f"`postpress-async export {name} --state skipped`"
        return (
            f"mend the rows that were refused ({listed} lists them), and rotate them as a fleet of their own"
        )
    return "nothing; every account was patched"


def _command(journal: str) -> str:
    """The command that began it, as far as the journal's name tells."""
    fleet = Path(journal).name.removesuffix(_ENDING)
    if fleet == "sandbox":
        return "postpress-async rotate --sandbox"
    if journal == fleet + _ENDING:  # where the command puts it by itself
        return f"postpress-async rotate {shlex.quote(fleet)}"
    return f"postpress-async rotate FLEET --journal {shlex.quote(journal)}"
