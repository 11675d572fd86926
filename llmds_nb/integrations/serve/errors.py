"""Every error that a client sees: a status and JSON in the shape of OpenAI's API.

{"error": {"type": str, "message": str, "param": str or null, "code": str or null}}

`type` is one for each status (`TYPES`), `param` names the field that is wrong, `code` tells apart
errors of one status. No message holds a path of this machine or a traceback: what was not expected
is logged with the id of the request, and the client is told that id.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.responses import Response

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "method_not_allowed_error", 408: "timeout_error",
    409: "conflict_error", 413: "request_too_large_error", 415: "unsupported_media_type_error",
    421: "misdirected_request_error", 429: "rate_limit_error", 500: "server_error",
    503: "unavailable_error", 504: "timeout_error", 507: "insufficient_storage_error",
}  # fmt: skip
_COMPACT: dict[str, Any] = {"allow_nan": False, "separators": (",", ":")}
_encode = json.JSONEncoder(ensure_ascii=False, **_COMPACT).encode
_encode_ascii = json.JSONEncoder(**_COMPACT).encode


class Problem(Exception):
    """Raised anywhere in a request, it becomes the answer.

    Parameters
    ----------
    status : int
        One of `TYPES`; another of 4xx or 5xx has the type of 400 or 500.
    message : str
        One sentence that the client may read.
    param : str, optional
        The field of the request that it is about.
    code : str, optional
    headers : dict, optional
        Of the answer.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, *, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as the client gets it."""
        kind = TYPES.get(self.status) or TYPES[400 if self.status < 500 else 500]
        error = {"type": kind, "message": self.message, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The error as an answer."""
        return json_response(self.body(), self.status, self.headers)


def problem(
    status: int, message: str, param: str | None = None, *, code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> NoReturn:  # fmt: skip
    """Raise a Problem."""
    raise Problem(status, message, param, code=code, headers=headers)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to try again, in whole seconds, at least 1."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def json_bytes(value: Any) -> bytes:
    r"""A value as JSON. ValueError for NaN and infinities.

    >>> json_bytes({"é": "\ud800"})
    b'{"\\u00e9":"\\ud800"}'
    """
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 does not have
        return _encode_ascii(value).encode()


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer of JSON."""
    return Response(json_bytes(value), status, dict(headers or {}), "application/json")
