"""An injected clock for tests."""

MS = 10**6


class Clock:
    """Returns `now`, in ns, which a test sets."""

    def __init__(self, now=0):
        self.now = now

    def __call__(self):
        return self.now
