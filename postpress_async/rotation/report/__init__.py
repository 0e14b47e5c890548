"""
The report of a rotation: one HTML file, from its journal alone, that works without a network.

It is calm on purpose: who opens it in the morning wants to know in five seconds whether all went well, and
then what to do about the rest.
"""

from postpress_async.rotation.report._page import write_report

__all__ = ["write_report"]
