"""JSON bodies of requests: strict, and nothing that is deep, huge or no Unicode ends in a traceback."""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import Request

from hiermem.server.failures import wrong

_DEEPEST = 32


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that a request holds; fields that are null are left out, as if they were not given.

    Raises:
        ApiError: it holds none.
    """
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json":
        raise wrong("The body is sent as application/json.", code="invalid_content_type")
    try:
        body = json.loads(await request.body(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise wrong("The body is no JSON object: check its syntax.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise wrong("The body is no JSON object: send one.", code="invalid_json")
    _check(body)
    return {name: value for name, value in body.items() if value is not None}


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _check(body: Any) -> None:
    """Refuse what is deep, and texts with halves of surrogate pairs."""
    level, waiting = 0, [body]
    while waiting:
        if level > _DEEPEST:
            raise wrong("The body is nested too deeply.", code="invalid_json")
        for text in (each for each in waiting if isinstance(each, str)):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise wrong("A text of the body is no valid Unicode.", code="invalid_json") from error
        waiting = [inner for each in waiting for inner in _inside(each)]
        level += 1


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value
