"""The address that a server listens at, and who can reach it."""

import ipaddress
import socket

from ..errors import BadInput


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address; BadInput if there is no such host, or the port is taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such host"
        raise BadInput(f"--host {host}: {reason}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen()  # two processes can bind one address, but only one can listen
    except OSError as error:
        listener.close()
        raise BadInput(f"{_shown(host, port)}: {error.strerror}") from None
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach a bound socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url(listener: socket.socket) -> str:
    """Where clients of this machine find a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{_shown(host, port)}"


def names(host: str) -> tuple[str, ...]:
    """What clients of this machine may call it by in their header Host."""
    own = f"[{host}]" if ":" in host else host.lower()
    return tuple({"localhost": 0, "127.0.0.1": 0, "[::1]": 0, own: 0})


def _shown(host, port):
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
