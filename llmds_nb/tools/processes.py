"""What the processes that a command starts have in common."""

import signal


def end_on_interrupt() -> None:
    """Let Ctrl-C, which a terminal sends to all processes, end this one without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
