"""A real uvicorn server in a thread, on a free port of the loopback."""

import contextlib
import socket
import threading
import time

from llmds_nb.integrations.serve import run_server


@contextlib.contextmanager
def running(app):
    """The base address of an app that is served while the block runs; it ends by `stop`, too."""
    with serving(app) as (address, _):
        yield address


@contextlib.contextmanager
def serving(app):
    """(base address, stop) of an app that is served while the block runs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ready, stops = threading.Event(), []

        def on_ready(stop):
            stops.append(stop)
            ready.set()

        def serve():
            try:
                run_server(app, listener, on_ready=on_ready)
            finally:
                ready.set()

        thread = threading.Thread(target=serve)
        thread.start()
        ready.wait()
        try:
            (stop,) = stops
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", stop
        finally:
            for stop in stops:
                stop()
            thread.join()


def until(condition, seconds=30.0):
    """Wait until a condition holds, and assert that it does in time."""
    end, moment = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to hold in time"
        moment.wait(0.005)
