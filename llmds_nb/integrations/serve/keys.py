"""Who calls: API keys, compared in constant time, or else addresses."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.requests import HTTPConnection

from .errors import problem


class Keys:
    """The keys that may call; without any, everyone may.

    A key is known by its number only, so that none comes into a log or a metric.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode("utf-8", "surrogateescape")) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def caller(self, request: HTTPConnection) -> str:
        """Who a request is from: "key:0", or "address:127.0.0.1" where there are no keys.

        A Problem of status 401 unless it has a key. All keys are looked at, whatever is given.
        """
        if not self._digests:
            return f"address:{request.client.host if request.client else ''}"
        given = request.headers.get("x-api-key")
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if given is None and kind.lower() == "bearer":
            given = token.strip()
        headers = {"WWW-Authenticate": "Bearer"}
        if not given:
            text = "an API key is needed: Authorization: Bearer KEY"
            problem(401, text, code="missing_api_key", headers=headers)
        digest = _digest(given.encode("latin-1"))  # the bytes of the header
        equal = [hmac.compare_digest(digest, own) for own in self._digests]
        if not any(equal):
            problem(401, "the API key is wrong", code="invalid_api_key", headers=headers)
        return f"key:{equal.index(True)}"

    def tenant(self, request: HTTPConnection) -> int:
        """The number of the key that a request has; 0 where there are no keys."""
        kind, _, number = self.caller(request).partition(":")
        return int(number) if kind == "key" else 0


def _digest(key):
    return hashlib.sha256(key).digest()  # of one length, whatever the length of a key
