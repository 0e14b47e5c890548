"""Rotations: many accounts updated by one resumable job."""

from postpress_async.rotation._account_task import Update
from postpress_async.rotation._engine import Rotation
from postpress_async.rotation._faults import Fault, Faults
from postpress_async.rotation._fleet import Fleet, Survey
from postpress_async.rotation._halt import Halt
from postpress_async.rotation._outcome import Outcome, Results, RotationSummary, State
from postpress_async.rotation._pool import PooledProxy, ProxyPool
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.journal._reading import JournalView

__all__ = [
    "Fault",
    "Faults",
    "Fleet",
    "Halt",
    "JournalView",
    "Outcome",
    "PooledProxy",
    "ProxyPool",
    "Refusal",
    "Results",
    "Rotation",
    "RotationSummary",
    "Row",
    "State",
    "Survey",
    "Update",
]
