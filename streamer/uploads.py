"""Whole recordings over HTTP, for OpenAI's clients: an upload becomes a session of the hub as any live one.

So it waits for its turn in the scheduler, takes one of the places, and live sessions go on beside it. Decoding runs
in threads, a block at a time.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from clients.file import AudioError, open_container
from core.audio import SAMPLE_RATE, Samples
from core.transcript import Event, Transcript
from streamer.dialect import Dialect
from streamer.hub import Busy, Hub, Live
from streamer.intake import Intake
from streamer.job import Item, Opening
from streamer.protocols import openai_rest
from streamer.protocols.native import Start
from streamer.protocols.openai_rest import Deltas, Form, FormError
from streamer.session import INTERNAL, SessionLimits

FIELDS = 200


class Failure(NamedTuple):
    """Why there is no transcript."""

    status: int
    message: str
    code: str
    param: str | None = None


class Refused(Exception):
    """A request that cannot be met."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Upload(Dialect):
    """The conversation about one recording: float samples at 16 kHz, then any text for the end."""

    def __init__(self, form: Form, defaults: Start, limits: SessionLimits) -> None:
        super().__init__(secrets.token_urlsafe(24), limits)
        self.finals: list[Transcript] = []
        self.deltas = Deltas()
        self.failure: Failure | None = None
        config, hotwords = defaults.config(), form.hotwords
        opening = Opening(config, form.model, partials=False, is_patient=True, note="an upload", hotwords=hotwords)
        self.begin(opening, Intake(SAMPLE_RATE, "pcm_f32le", 1))

    def receive_bytes(self, data: bytes) -> list[Item]:
        if self.is_ended:
            return []
        items = self.push(data)
        if self.is_ended:
            message = f"expected less than {self.limits.audio_s:g} s of audio. Found: more"
            self.failure = Failure(413, message, "audio_too_long", "file")
        return items

    def receive_text(self, text: str) -> list[Item]:
        return self.finish()

    def on_event(self, event: Event, channel: int) -> None:
        if not isinstance(event, Transcript):
            return
        if event.is_final:
            self.finals.append(event)
        if delta := self.deltas.add(event):
            self.say(openai_rest.delta_event(delta))

    def on_failed(self, code: str, message: str) -> None:
        self.failure = Failure(500, message, code)
        super().on_failed(code, message)

    def refuse(self, message: str) -> None:
        self.failure = Failure(503, message, "busy")
        super().refuse(message)

    def shut_down(self) -> list[Item]:
        if not self.is_ended:
            self.failure = Failure(503, "the server is shutting down", "shutdown")
        return super().shut_down()


class Feed:
    """A decoded file as the connection of a session. Events are kept for who wants them, in `heard`."""

    def __init__(self, blocks: Iterator[Samples], gone: asyncio.Future[None], is_heard: bool) -> None:
        self.blocks: Iterator[Samples] | None = blocks
        self.gone = gone  # done when the client has left
        self.heard: asyncio.Queue[str | None] | None = asyncio.Queue() if is_heard else None
        self.decoding: asyncio.Future[Samples | None] | None = None  # in its thread, which nothing stops
        self.failure: Failure | None = None

    async def receive(self) -> Mapping[str, Any]:
        try:
            while self.blocks is not None and not self.gone.done():
                self.decoding = asyncio.ensure_future(asyncio.to_thread(next, self.blocks, None))
                block = await asyncio.shield(self.decoding)
                if block is None:
                    self.blocks = None
                    return {"type": "websocket.receive", "text": ""}
                if len(block):
                    return {"type": "websocket.receive", "bytes": block.astype("<f4").tobytes()}
        except AudioError as e:
            self.failure = Failure(400, str(e), "invalid_value", "file")
        else:
            await asyncio.wait([self.gone])
        return {"type": "websocket.disconnect"}

    async def send_text(self, data: str) -> None:
        if self.heard is not None:
            self.heard.put_nowait(data)

    async def send_bytes(self, data: bytes) -> None:
        raise TypeError("Expected text. Found: bytes")

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        if code == INTERNAL:
            self.failure = self.failure or Failure(500, "the server failed on this recording", "internal")


class Uploads:
    """The handlers. `refusal` and `owner` are those of the app."""

    def __init__(
        self,
        hub: Hub,
        defaults: Start,
        models: tuple[str, ...],
        refusal: Callable[[HTTPConnection], Response | None],
        owner: Callable[[HTTPConnection], str],
    ) -> None:
        self.hub = hub
        self.defaults = defaults
        self.models = models
        self.refusal = refusal
        self.owner = owner
        self.running: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        return [
            Route("/v1/audio/transcriptions", self.transcribe, methods=["POST"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.show_model, methods=["GET"]),
        ]

    async def list_models(self, request: Request) -> Response:
        return self.denied(request) or JSONResponse(openai_rest.model_list(self.models))

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if denied := self.denied(request):
            return denied
        if name not in self.models:
            return respond(Failure(404, f"the model {name!r} does not exist here", "model_not_found", "model"))
        return JSONResponse(openai_rest.model_object(name))

    def denied(self, request: Request) -> Response | None:
        refused = self.refusal(request)
        if refused is None:
            return None
        codes = {401: "invalid_api_key"}
        message = json.loads(bytes(refused.body))["error"]["message"]
        return respond(Failure(refused.status_code, message, codes.get(refused.status_code, "forbidden")))

    async def transcribe(self, request: Request) -> Response:
        """`POST /v1/audio/transcriptions`."""
        if denied := self.denied(request):
            return denied
        try:
            self.hub.check_room(self.owner(request))
            async with asyncio.timeout(self.hub.limits.upload_s):
                fields = await self.read(request)
            try:
                form = openai_rest.parse([(k, v) for k, v in fields.multi_items() if isinstance(v, str)], self.models)
                file = fields.get("file")
                if not isinstance(file, UploadFile):
                    raise FormError("file", "expected a file, as multipart/form-data. Found: none")
                source = await asyncio.to_thread(open_container, file.filename or "file", file.file)
                upload = Upload(form, self.defaults, self.hub.limits.session)
                live = self.hub.enter(upload, self.owner(request))
            except BaseException:
                await fields.close()
                raise
            feed = Feed(source.blocks, asyncio.ensure_future(leaving(request.receive)), form.streams)
            task = asyncio.create_task(self.run(live, feed, fields))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
            if form.streams:
                return StreamingResponse(told(upload, feed), media_type="text/event-stream", headers=named())
            await task
            if failure := upload.failure or feed.failure:
                return respond(failure)
            body = openai_rest.reply(form, upload.finals, upload.accepted_s)
            return Response(body, media_type=openai_rest.FORMATS[form.format], headers=named())
        except FormError as e:
            return respond(Failure(400, str(e), "invalid_value", e.param))
        except AudioError as e:
            return respond(Failure(400, str(e), "invalid_value", "file"))
        except Busy as e:
            return respond(Failure(503, str(e), "busy"))
        except TimeoutError:
            return respond(Failure(408, f"the upload took over {self.hub.limits.upload_s:g} s", "timeout"))
        except Refused as e:
            return respond(e.failure)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    async def read(self, request: Request) -> FormData:
        """The form, its file on disk where it is long. Raises Refused where it is too long, or no form."""
        most, n = self.hub.limits.upload_bytes, 0
        too_long = Failure(413, f"expected an upload of at most {most} bytes", "file_too_large", "file")
        if int(request.headers.get("content-length") or 0) > most:
            raise Refused(too_long)

        async def receive() -> Any:
            nonlocal n
            message = await request.receive()
            n += len(message.get("body", b""))
            if n > most:
                raise Refused(too_long)
            return message

        try:
            return await Request(request.scope, receive).form(max_files=1, max_fields=FIELDS)
        except HTTPException as e:
            raise Refused(Failure(400, f"expected multipart/form-data. Found: {e.detail}", "invalid_form")) from e

    async def run(self, live: Live, feed: Feed, fields: FormData) -> None:
        """The session of an upload, from its first block to its last word."""
        try:
            await self.hub.serve(feed, live)
        finally:
            feed.gone.cancel()
            if feed.heard is not None:
                feed.heard.put_nowait(None)
            if feed.decoding is not None:
                await asyncio.wait([feed.decoding])
            await fields.close()


async def told(upload: Upload, feed: Feed) -> AsyncIterator[str]:
    """Server-sent events up to the last."""
    assert feed.heard is not None
    while (event := await feed.heard.get()) is not None:
        yield event
    failure = upload.failure or feed.failure
    if failure is None:
        yield openai_rest.done_events(upload.deltas.text)
    else:
        yield openai_rest.error_event(failure.status, failure.message, failure.code)


async def leaving(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def named() -> dict[str, str]:
    return {"x-request-id": f"req_{secrets.token_hex(12)}"}


def respond(failure: Failure) -> Response:
    status, message, code, param = failure
    more = {"retry-after": str(Busy.retry_after_s)} if status == 503 else {}
    return JSONResponse(openai_rest.error_object(status, message, code, param), status, {**named(), **more})
