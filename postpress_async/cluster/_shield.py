"""Preloaded by our own workers: Ctrl-C reaches all processes of a terminal, and is the command's to heed."""

import signal


def dask_setup(_worker: object) -> None:
    """Called by Dask in the worker's process, on its main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
