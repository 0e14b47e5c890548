"""The report of a rotation: a single HTML file, written from the journal, that works offline."""

from postpress_async.rotation.report._page import write_report

__all__ = ["write_report"]
