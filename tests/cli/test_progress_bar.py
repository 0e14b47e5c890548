"""The progress bar on a terminal."""

import os
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals on this system")


@pytest.mark.slow
def test_bar_with_statistics_is_drawn_on_a_terminal(folder) -> None:
    """Messages are printed above the bar, and at the end the bar shows all accounts as completed."""
    main, terminal = pty.openpty()
    arguments = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "postpress_async",
        "rotate",
        "--sandbox",
        "--canary",
        "10",
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 65_536):
            shown += part
    except OSError:  # Linux raises it when the process has closed the terminal
        pass
    os.close(main)
    stdout, _ = process.communicate()
    bar, counts, pace = shown.decode().rstrip("\x1b[?25h\r\n").splitlines()[-3:]

    assert process.returncode == 0
    assert stdout.startswith("1,000 accounts: 1,000 patched in ")
    assert b"the canary of 10 accounts passed: sending the other accounts" in shown
    assert "1000/1000" in bar
    assert counts == "1,000 patched"
    assert "/s, p50 " in pace
