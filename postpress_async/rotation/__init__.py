"""Rotations: many accounts updated by one resumable job."""

from postpress_async.rotation._account_task import Update
from postpress_async.rotation._engine import Rotation
from postpress_async.rotation._faults import Fault, Faults
from postpress_async.rotation._halt import Halt
from postpress_async.rotation._outcome import Outcome, RotationSummary, State
from postpress_async.rotation._results import Results
from postpress_async.rotation._rows import Refusal, Row
from postpress_async.rotation.fleet import Fleet
from postpress_async.rotation.journal import Journal
from postpress_async.rotation.pool import ProxyPool

__all__ = [
    "Fault",
    "Faults",
    "Fleet",
    "Halt",
    "Journal",
    "Outcome",
    "ProxyPool",
    "Refusal",
    "Results",
    "Rotation",
    "RotationSummary",
    "Row",
    "State",
    "Update",
]
