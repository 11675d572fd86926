"""What `/metrics` tells, by the conventions of Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..prometheus import Collector

_SECONDS = .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30  # fmt: skip
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of requests and the collectors of a server, in a registry of its own.

    Attributes
    ----------
    registry : prometheus_client.CollectorRegistry
        To which other metrics may be added.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ["route", "method", "status"]
        of_server: dict[str, Any] = {"namespace": "llmds_nb", "subsystem": "http"}
        of_server["registry"] = self.registry
        text = "Requests answered; status 499: the client went away"
        self._requests = Counter("requests", text, names, **of_server)
        text = "From the head of a request to the end of its answer"
        self._seconds = Histogram(
            "request_duration_seconds", text, ["route"], buckets=_SECONDS, **of_server
        )
        text = "Requests that have no whole answer yet"
        self.under_way = Gauge("requests_under_way", text, **of_server)
        self.connections = Gauge("connections", "Connections of clients", **of_server)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, structure: Any, name: str) -> None:
        """Show the `stats()` of a structure, too, with the label `name`."""
        Collector(structure, name, registry=self.registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
