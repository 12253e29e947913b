"""Errors as OpenAI's interface tells them."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hiermem.errors import HierMemError, InputError, MemoryLockedError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SENTENCES = {404: "There is nothing at this address.", 405: "This address does not take this method."}


class ApiError(Exception):
    """A refusal, in one sentence.

    Attributes:
        status: of HTTP.
        code: a word for programs.
        param: the field that was wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As HTTP has it."""
        return json_response(self.body, self.status, self.headers)


class Busy(ApiError):
    """Too much waits already."""

    def __init__(self, seconds: int, message: str = "Many questions wait: try again in a moment.") -> None:
        super().__init__(503, message, "overloaded", headers={"Retry-After": str(seconds)})


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response; what is no Unicode in a name stands as an escape."""
    data = json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")
    return Response(data, status, dict(headers or {}), "application/json")


def wrong(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """A request that cannot be served as it stands."""
    return ApiError(400, message, code, param)


def missing(message: str, code: str = "not_found", param: str | None = None) -> ApiError:
    """A thing that is not there."""
    return ApiError(404, message, code, param)


def as_api_error(error: BaseException) -> ApiError:
    """Any error, without what a client should not know."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return wrong(str(error))
    if isinstance(error, MemoryLockedError):
        return ApiError(409, "Another process is changing the library: try again soon.", "locked")
    if isinstance(error, HierMemError):  # its sentence names folders of this machine
        return ApiError(503, "The library cannot be used: see the service's log.", "library_error")
    return ApiError(500, "Something went wrong here: see the service's log.", "internal_error")


def add_handlers(app: FastAPI) -> None:
    """Let every error of an app be told so."""

    async def of_ours(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def of_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = _SENTENCES.get(error.status_code, "This request cannot be served.")
        return ApiError(error.status_code, sentence, None, None, error.headers).response()

    app.add_exception_handler(ApiError, of_ours)
    app.add_exception_handler(HierMemError, of_ours)
    app.add_exception_handler(HTTPException, of_http)
