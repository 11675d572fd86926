"""Limits of rates: what a request reserves when it comes, and what it used in the end."""

from collections.abc import Sequence

from llmds_nb import AdmissionController

from .errors import problem, retry_after
from .settings import Settings

_REASONS = {
    "qps": "requests a second", "tokens": "tokens a second",
    "key_qps": "requests a second of one caller", "key_tokens": "tokens a second of one caller",
}  # fmt: skip


def new_controller(settings: Settings) -> AdmissionController | None:
    """The controller that the settings ask for; None without a limit of rates."""
    per_key = settings.key_qps_limit, settings.key_token_rate_limit
    limits = settings.qps_limit, settings.token_rate_limit, *per_key
    if all(limit is None for limit in limits):
        return None
    key_limit = None if per_key == (None, None) else per_key
    return AdmissionController(*limits[:2], burst_ms=settings.burst_ms, key_limit=key_limit)


class Reservation:
    """The tokens of one admitted request, settled once: `close`.

    What it used is `used`; left None, all that was reserved. `detached` is for an answer that goes
    on after its handler has returned, such as a stream: whoever sets it calls `close`.
    """

    def __init__(
        self, controller: AdmissionController | None, reserved: int, key: str | None
    ) -> None:
        self._controller, self._key = controller, key
        self.reserved = reserved
        self.used: int | None = None
        self.detached = self.closed = False

    def close(self) -> None:
        """Give back what was not used, or take what was used beyond; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        used = self.reserved if self.used is None else self.used
        if self._controller is not None and used != self.reserved:
            self._controller.settle(self.reserved, used, key=self._key)


def admit(
    controller: AdmissionController | None, tokens: int, key: str, settings: Settings
) -> Reservation:
    """Reserve tokens for a request of a caller.

    A Problem of status 429, which says when to try again, or 413 where that would never help.
    """
    if controller is None:
        return Reservation(None, tokens, None)
    keyed = settings.key_qps_limit is not None or settings.key_token_rate_limit is not None
    named = key if keyed else None
    answer = controller.admit(tokens, key=named)
    if answer.admitted:
        return Reservation(controller, tokens, named)
    if answer.reason == "too_large":
        problem(413, f"{tokens} tokens are more than the limit ever allows", code="too_many_tokens")
    headers = retry_after(answer.retry_after_ms / 1e3)
    text = (
        f"the limit of {_REASONS[answer.reason]} is reached; retry after {headers['Retry-After']} s"
    )
    problem(429, text, code=answer.reason, headers=headers)


def estimated_tokens(texts: Sequence[str]) -> int:
    """About how many tokens texts have: one for four characters, and one for each text.

    >>> estimated_tokens(["how do I reset it", "page"])
    7
    """
    return len(texts) + sum(len(text) // 4 for text in texts)
