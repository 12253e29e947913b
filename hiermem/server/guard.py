"""The door of the service: who may call it, how often, and how much may be sent.

Wraps the app: what is refused here reaches nothing behind it. Text that a browser of another site sends is
refused by its `Origin`, and names that a stranger's DNS gave this machine by their `Host`.
"""

import asyncio
import hmac
from collections.abc import Iterable
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiermem.server.failures import ApiError
from hiermem.server.limits import RateLimit
from hiermem.server.settings import ServerSettings, is_loopback
from hiermem.server.uploads import too_large

UPLOADS = "/v1/files"

_SAFE = ("GET", "HEAD")
_SPARE = 64 << 10  # bytes around an uploaded file
_READING_COST = 0.1
_PROTECTED = ("/v1/", "/api/", "/metrics")


class ApiKeys:
    """The keys of the service; each compared in constant time, and all of them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, shown: str) -> str | None:
        """A name for whoever shows a key; None: it is none of them."""
        digest, found = sha256(shown.encode("utf-8", "surrogatepass")).digest(), False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return f"key-{digest.hex()[:16]}" if found else None


class Guard:
    """The door.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings, self._keys = app, settings, ApiKeys(settings.api_keys)
        self._rates = RateLimit(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(scope["method"], headers)
            self._admit(scope, headers)
            receive = self._limited(scope, headers, receive)
        except ApiError as refusal:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, self._timed(send))

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        known = name.lower() in (host.lower() for host in self._settings.allowed_hosts)
        if not name or not (known or self._may_be_called(name)):
            raise ApiError(
                421, "The service is not called by this name: see --allowed-host.", "unknown_host", "host"
            )

    def _may_be_called(self, name: str) -> bool:
        if self._settings.is_local:
            return is_loopback(name)
        return not self._settings.allowed_hosts or is_loopback(name)

    def _check_origin(self, method: str, headers: Headers) -> None:
        if method in _SAFE:
            return
        origin = headers.get("origin")
        own = origin is None or urlsplit(origin).netloc.lower() == headers["host"].lower()
        if not own or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(403, "Pages of other sites may not use this service.", "cross_origin")

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Say who calls, and take what it costs."""
        address, owner = (scope.get("client") or ("unknown",))[0], ""
        state: dict[str, Any] = scope.setdefault("state", {})
        protected = scope["path"].startswith(_PROTECTED)
        if self._keys and protected:
            kind, _, key = headers.get("authorization", "").partition(" ")
            known = self._keys.owner(key.strip()) if kind.lower() == "bearer" else None
            if known is None:
                self._take(address, 1.0)
                raise ApiError(
                    401,
                    "An API key is needed: send it as Authorization: Bearer KEY.",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            owner = known
        state["owner"], state["client"] = owner, owner or address
        if protected:
            self._take(owner or address, _READING_COST if scope["method"] in _SAFE else 1.0)

    def _take(self, client: str, cost: float) -> None:
        if seconds := self._rates.take(client, cost):
            raise ApiError(
                429,
                f"Too many requests: try again in {seconds} seconds.",
                "rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """A body that is refused as soon as it is too large, or too slow."""
        uploads = scope["method"] == "POST" and scope["path"] == UPLOADS
        most = self._settings.max_upload_bytes + _SPARE if uploads else self._settings.max_body_bytes
        given = headers.get("content-length", "0")
        if not given.isascii() or not given.isdigit() or int(given[:20]) > most:
            raise too_large(self._settings.max_upload_bytes if uploads else most)
        seconds = self._settings.upload_seconds if uploads else self._settings.body_seconds
        end, size, done = asyncio.get_running_loop().time() + seconds, 0, False

        async def limited() -> Message:
            nonlocal size, done
            if done:
                return await receive()
            now = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout_at(min(end, now + self._settings.idle_seconds)):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    "The request came too slowly: send it again.",
                    "timeout",
                    headers={"Connection": "close"},
                ) from None
            size += len(message.get("body", b""))
            if size > most:
                raise too_large(most)
            done = not message.get("more_body", False)
            return message

        return limited

    def _timed(self, send: Send) -> Send:
        """A response that ends where nobody takes it."""

        async def timed(message: Message) -> None:
            async with asyncio.timeout(self._settings.idle_seconds):
                await send(message)

        return timed


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; empty: it is malformed."""
    try:
        found = urlsplit(f"//{host}")
        _ = found.port  # raises where it is no number
    except ValueError:
        return ""
    return (found.hostname or "") if found.netloc == host and "@" not in host else ""
