"""The ASGI app: routes, access, health and metrics. `streamer/serve.py` runs it.

The app holds no audio of its own: sessions live in `Hub`, the model in the scheduler's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import clients
from core.engine import Engine
from streamer.auth import Access, carried_keys, choose_subprotocol
from streamer.cors import Cors
from streamer.dialect import Conversation
from streamer.hub import Busy, Hub, close
from streamer.job import Opening
from streamer.limits import Limits
from streamer.metrics import Metrics
from streamer.models import language_of
from streamer.protocols import deepgram, native
from streamer.protocols.deepgram import QueryError
from streamer.protocols.deepgram_session import Deepgram
from streamer.protocols.native import ProtocolError, Resume, Start
from streamer.protocols.openai_realtime import Realtime
from streamer.protocols.vosk import Vosk
from streamer.protocols.wyoming import Wyoming
from streamer.scheduler import Scheduler
from streamer.session import POLICY, TRY_LATER
from streamer.tcp import serving_tcp
from streamer.uploads import Uploads

PAGE = Path(clients.__file__).parent / "web"
PAGE_FILES = {
    "/": "index.html",
    "/app.js": "app.js",
    "/worklet.js": "worklet.js",
    "/style.css": "style.css",
    "/icon.svg": "icon.svg",
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
ACCESS_OPTIONS = ("token", "api_key")  # of the query string; not for the session


class App:
    """The handlers of one app. `hub` lives from the app's startup on."""

    def __init__(
        self,
        engines: Sequence[Engine],
        defaults: Start,
        access: Access,
        limits: Limits,
        wyoming: socket.socket | None = None,
        workers: int = 1,
    ) -> None:
        self.metrics = Metrics()
        self.scheduler = Scheduler(engines[0], on_step=self.metrics.on_step, others=engines[1:], workers=workers)
        self.metrics.watch(self.scheduler)
        self.defaults = defaults
        self.models = tuple(engine.model.name for engine in engines)
        self.languages = {
            engine.model.name: language_of(engine.model.name, engine.model.config.extra) for engine in engines
        }
        self.access = access
        self.limits = limits
        self.wyoming = wyoming
        self.hub = Hub(self.scheduler, limits, self.metrics, dict(zip(self.models, engines, strict=True)))
        self.uploads = Uploads(self.hub, defaults, self.models, self.refusal, self.owner)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(self.scheduler.start)
        try:
            async with contextlib.AsyncExitStack() as stack:
                if self.wyoming is not None:
                    await stack.enter_async_context(serving_tcp(self.wyoming, self.hub, self.new_wyoming))
                stack.push_async_callback(self.hub.drain)
                yield
        finally:
            await asyncio.to_thread(self.scheduler.close)

    def routes(self) -> list[Route | WebSocketRoute]:
        return [
            *(Route(path, self.page, methods=["GET"]) for path in PAGE_FILES),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.show_metrics, methods=["GET"]),
            *self.uploads.routes(),
            WebSocketRoute("/v1/stream", self.stream),
            WebSocketRoute("/v1/listen", self.listen),
            WebSocketRoute("/v1/realtime", self.realtime),
            WebSocketRoute("/{path:path}", self.vosk),
        ]

    # Access

    def refusal(self, connection: HTTPConnection, needs_key: bool = True) -> Response | None:
        """The answer to a request that may not go on; None where it may."""
        headers, host = connection.headers, connection.headers.get("host")
        offered = connection.scope.get("subprotocols", [])
        if not self.access.check_host(host):
            return self.refuse(403, "host", f"this server does not go by the name {native.shown(host)}")
        if not self.access.check_origin(headers.get("origin"), host):
            return self.refuse(403, "origin", f"pages of {native.shown(headers.get('origin'))} may not use this server")
        if needs_key and not self.access.check_key(headers, connection.query_params, offered):
            return self.refuse(401, "key", "expected an API key, as in `Authorization: Bearer KEY`; found no right one")
        return None

    def refuse(self, status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> Response:
        self.metrics.refused.labels(reason).inc()
        return JSONResponse({"error": {"code": reason, "message": message}}, status, headers)

    def owner(self, connection: HTTPConnection) -> str:
        """Whom a session counts for: the key that let it in, or the address."""
        if self.access.keys:
            offered = connection.scope.get("subprotocols", [])
            carried = set(carried_keys(connection.headers, connection.query_params, offered))
            return next(f"key {i}" for i, key in enumerate(self.access.keys) if key in carried)
        return connection.client.host if connection.client else ""

    # HTTP

    async def page(self, request: Request) -> Response:
        """The page asks for nothing secret: it opens the websocket with the key that its user types."""
        refused = self.refusal(request, needs_key=False)
        return refused or FileResponse(PAGE / PAGE_FILES[request.url.path], headers=PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        """Whether the process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether a session would be taken now."""
        try:
            self.hub.check_room("")
        except Busy as e:
            return JSONResponse({"status": "busy", "message": str(e)}, 503)
        return JSONResponse({"status": "ready", "model": self.defaults.model, "models": self.models})

    async def show_metrics(self, request: Request) -> Response:
        return self.refusal(request) or PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    # The native protocol

    async def stream(self, websocket: WebSocket) -> None:
        """`/v1/stream`. What can be refused is refused by HTTP status, before the websocket is accepted."""
        refused = self.refusal(websocket)
        # Without options in the query, the first message may be a resume, which needs no room.
        if refused is None and (self.hub.is_draining or self.start_options(websocket)):
            refused = self.refused_for_room(websocket)
        if refused is not None:
            await self.deny(websocket, refused)
            return
        await websocket.accept(choose_subprotocol(websocket.scope["subprotocols"]))
        try:
            message = await self.first_message(websocket)
            if isinstance(message, Resume):
                live = self.hub.find(message.session, message.seq)
            else:
                live = self.hub.open(message, self.owner(websocket))
        except WebSocketDisconnect:
            return
        except ProtocolError as e:
            self.metrics.refused.labels(e.code).inc()
            await self.turn_away(websocket, e.code, str(e), POLICY)
            return
        except Busy as e:
            self.metrics.refused.labels("busy").inc()
            await self.turn_away(websocket, "busy", str(e), TRY_LATER, {"retry_after_s": e.retry_after_s})
            return
        await self.hub.serve(websocket, live)

    # Other protocols

    async def vosk(self, websocket: WebSocket) -> None:
        """Any path that is not another's: clients of Vosk use what their user has typed."""
        refused = self.refusal(websocket) or self.refused_for_room(websocket)
        if refused is not None:
            await self.deny(websocket, refused)
            return
        await self.converse(websocket, Vosk(secrets.token_urlsafe(24), self.defaults, self.models, self.limits.session))

    async def listen(self, websocket: WebSocket) -> None:
        """`/v1/listen` of Deepgram."""
        request_id, created = str(uuid.uuid4()), datetime.now(UTC).isoformat(timespec="milliseconds")
        headers, refused = {"dg-request-id": request_id}, self.refusal(websocket)
        if refused is None:
            try:
                listen = deepgram.parse(websocket.query_params.multi_items(), self.defaults, self.models)
                session = Deepgram(request_id, listen, created.replace("+00:00", "Z"), self.limits.session)
                refused = self.refused_for_room(websocket, session.opening)
            except QueryError as e:
                refused = self.refuse(400, "query", str(e))
        if refused is None:
            await self.converse(websocket, session, headers)
            return
        body = deepgram.refusal(refused.status_code, json.loads(bytes(refused.body))["error"]["message"], request_id)
        headers["dg-error"] = str(body["err_msg"]).encode("ascii", "replace").decode()
        await self.deny(websocket, JSONResponse(body, refused.status_code, headers))

    async def realtime(self, websocket: WebSocket) -> None:
        """`/v1/realtime` of OpenAI."""
        refused = self.refusal(websocket) or self.refused_for_room(websocket)
        if refused is not None:
            await self.deny(websocket, refused)
            return
        offered = websocket.scope["subprotocols"]
        is_beta = "realtime=v1" in websocket.headers.get("openai-beta", "") or "openai-beta.realtime-v1" in offered
        model = websocket.query_params.get("model", "")
        session = Realtime(secrets.token_urlsafe(24), self.defaults, self.models, model, is_beta, self.limits.session)
        await self.converse(websocket, session)

    def new_wyoming(self, session_id: str) -> Wyoming:
        return Wyoming(session_id, self.defaults, self.languages, self.limits.session)

    async def converse(
        self, websocket: WebSocket, session: Conversation, headers: dict[str, str] | None = None
    ) -> None:
        """One connection in another protocol, from its acceptance to its end."""
        raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        await websocket.accept(choose_subprotocol(websocket.scope["subprotocols"]), raw)
        try:
            live = self.hub.enter(session, self.owner(websocket))
        except Busy as e:
            await close(websocket, TRY_LATER, str(e))
            return
        await self.hub.serve(websocket, live)

    async def deny(self, websocket: WebSocket, refused: Response) -> None:
        await websocket.send_denial_response(refused)

    def refused_for_room(self, websocket: WebSocket, opening: Opening | None = None) -> Response | None:
        try:
            self.hub.check_room(self.owner(websocket), opening)
        except Busy as e:
            return self.refuse(503, "busy", str(e), {"retry-after": str(e.retry_after_s)})
        return None

    def start_options(self, websocket: WebSocket) -> dict[str, str]:
        return {name: value for name, value in websocket.query_params.items() if name not in ACCESS_OPTIONS}

    async def first_message(self, websocket: WebSocket) -> Start | Resume:
        """`start` from the query string or the first message, or `resume`.

        Raises:
            ProtocolError: it is something else, or did not come in time.
            WebSocketDisconnect: the client went without a word.
        """
        if options := self.start_options(websocket):
            return native.parse_start(options, self.defaults, self.models)
        try:
            async with asyncio.timeout(self.limits.start_s):
                message = await websocket.receive()
        except TimeoutError as e:
            seconds = f"{self.limits.start_s:g}"
            raise ProtocolError("not_started", f"expected start or resume within {seconds} s. Found: nothing") from e
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text = message.get("text")
        if text is None:
            raise ProtocolError("not_started", 'expected {"type": "start", ...} before audio. Found: a binary message')
        first = native.parse(text, self.defaults, self.models)
        if not isinstance(first, Start | Resume):
            raise ProtocolError("not_started", f"expected start or resume first. Found: {type(first).__name__.lower()}")
        return first

    async def turn_away(
        self, websocket: WebSocket, code: str, message: str, close_code: int, more: native.Message | None = None
    ) -> None:
        error = {**native.error_message(code, message), **(more or {}), "seq": 1, "audio_s": 0.0}
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            await websocket.send_json(error)
        await close(websocket, close_code, code)


def create_app(
    engine: Engine,
    defaults: Start | None = None,
    access: Access | None = None,
    limits: Limits | None = None,
    others: Sequence[Engine] = (),
    wyoming: socket.socket | None = None,
    workers: int = 1,
) -> Starlette:
    """The app; its startup begins the scheduler's threads, its shutdown drains all sessions.

    Args:
        others: engines of more models, which a client may ask for by name.
        wyoming: where clients of Home Assistant's protocol connect.
        workers: batches that run at the same time.
    """
    defaults = defaults or Start(model=engine.model.name)
    handlers = App([engine, *others], defaults, access or Access(), limits or Limits(), wyoming, workers)
    cors = Middleware(Cors, access=handlers.access)
    app = Starlette(routes=handlers.routes(), lifespan=handlers.lifespan, middleware=[cors])
    app.state.hub = handlers.hub
    return app
