"""Settings: the limits of a server, and who may call it."""

import dataclasses
import math
from typing import Any

_WHOLE = {
    "max_body_bytes": (1, 2**40), "max_queries": (1, 2**20), "max_k": (1, 2**24),
    "max_query_chars": (1, 2**40), "max_documents": (1, 2**24), "max_requests": (1, 2**20),
    "max_waiting": (1, 2**20), "max_writes": (1, 2**20), "max_batch_queries": (1, 2**20),
    "workers": (1, 256), "threads": (1, 4096), "retrieval_k": (0, 2**10),
}  # fmt: skip
_SECONDS = "request_timeout_s", "body_timeout_s", "client_timeout_s", "drain_timeout_s"
_RATES = "qps_limit", "token_rate_limit", "key_qps_limit", "key_token_rate_limit"
_TEXTS = "api_keys", "allowed_hosts", "cors_origins"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server allows. Every number is a limit; beyond it a request gets an error.

    Parameters
    ----------
    api_keys : tuple of str
        Whoever gives one of them, as `Authorization: Bearer KEY` or `X-API-Key: KEY`, may call.
        Without any, everyone may.
    read_only : bool
        Whether documents cannot be added, removed or saved.
    allowed_hosts : tuple of str
        Names, without a port, that the header Host may have. Without any, all. It keeps web pages
        of others, whose names were made to lead to this machine, from a server without a key.
    cors_origins : tuple of str
        Origins whose web pages may call, or "*". Without any, none but its own.
    max_body_bytes : int
        Of a request.
    max_queries, max_k, max_query_chars : int
        Queries of a search, hits of a query, and characters of a query.
    max_documents : int
        Documents that one request adds, removes or reads.
    max_requests, max_waiting, max_writes : int
        Requests under way, and searches and writes among them that wait; beyond that 503.
    max_batch_queries : int
        Queries that are searched in one call.
    workers, threads : int
        Calls of search at a time, and threads of each.
    retrieval_k : int
        Documents that come into the prompt of a chat that does not say (`openai.retrieval`).
    request_timeout_s : float
        From the whole request to its answer: 504. What is computed or written goes on, unseen.
    body_timeout_s : float
        Until the body of a request has arrived: 408.
    client_timeout_s : float
        Until the head of a request has arrived, and for a client that stops reading its answer;
        then the connection ends.
    drain_timeout_s : float
        How long requests under way may take after the signal to stop; then each gets 503.
    qps_limit, token_rate_limit, key_qps_limit, key_token_rate_limit : float, optional
        Requests and tokens a second, of all, and of each API key or, without keys, each address.
    burst_ms : float
        How long an idle limit fills, as in AdmissionController.
    access_log : bool
        Whether each request is logged as a line of JSON (logger `llmds_nb.serve.access`, INFO).

    Raises
    ------
    TypeError, ValueError
        A value of the wrong kind, or out of range; it names the field.

    >>> Settings(max_k=0)
    Traceback (most recent call last):
    ...
    ValueError: max_k must be in [1, 16777216], not 0
    """

    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    read_only: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    max_queries: int = 256
    max_k: int = 1000
    max_query_chars: int = 20_000
    max_documents: int = 10_000
    max_requests: int = 2048
    max_waiting: int = 1024
    max_writes: int = 64
    max_batch_queries: int = 256
    workers: int = 1
    threads: int = 1
    retrieval_k: int = 0
    request_timeout_s: float = 30.0
    body_timeout_s: float = 30.0
    client_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    qps_limit: float | None = None
    token_rate_limit: float | None = None
    key_qps_limit: float | None = None
    key_token_rate_limit: float | None = None
    burst_ms: float = 1000.0
    access_log: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int:
                raise TypeError(f"{name} must be an int, not {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], not {value}")
        for name in (*_SECONDS, *_RATES, "burst_ms"):
            value = getattr(self, name)
            if value is None and name in _RATES:
                continue
            if type(value) not in (int, float):
                raise TypeError(f"{name} must be a number, not {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be > 0, not {value}")
        for name in ("read_only", "access_log"):
            if type(getattr(self, name)) is not bool:
                raise TypeError(f"{name} must be a bool, not {getattr(self, name)!r}")
        for name in _TEXTS:
            values: Any = getattr(self, name)
            right = isinstance(values, tuple) and all(isinstance(one, str) for one in values)
            if not right:
                raise TypeError(f"{name} must be a tuple of str")
            if not all(values):
                raise ValueError(f"{name} must not hold an empty text")
