"""A real uvicorn server in a thread, on a free port of the loopback."""

import contextlib
import socket
import threading

import uvicorn


@contextlib.contextmanager
def running(app, **options):
    """The base address of an app that is served while the block runs."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", lifespan="on", **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.01)
            assert server.started
            yield address
        finally:
            server.should_exit = True
            thread.join()
