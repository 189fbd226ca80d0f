"""CORS (https://fetch.spec.whatwg.org/#http-cors-protocol) for the HTTP API, so that pages that may use it can read it.

Who may is decided by `Access`, for websockets and HTTP alike. Left out: credentials, which no key here needs.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamer.auth import Access

PREFIX = "/v1/"
METHODS = "GET, POST"


class Cors:
    """Middleware: answers preflights of pages that are let in, and names them in all other answers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        origin, host = asked.get("origin"), asked.get("host")
        is_allowed = origin is not None and self.access.check_host(host) and self.access.check_origin(origin, host)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.add_vary_header("Origin")
                if origin is not None and is_allowed:
                    headers["access-control-allow-origin"] = origin
            await send(message)

        if is_allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
            headers = MutableHeaders({"access-control-allow-methods": METHODS})
            # Echoed, as `*` does not cover `authorization`, and OpenAI's SDK sends many of its own.
            if wanted := asked.get("access-control-request-headers"):
                headers["access-control-allow-headers"] = wanted
            await tell({"type": "http.response.start", "status": 204, "headers": headers.raw})
            await tell({"type": "http.response.body"})
            return
        await self.app(scope, receive, tell)
