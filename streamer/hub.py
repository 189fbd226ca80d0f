"""All live sessions of one server: admission, their connections, lingering after a broken one, and the drain.

Each session has one job in the scheduler and at most one connection. A connection only moves data between its
socket and the session; where a session is behind, its socket is not read, so nothing piles up and nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.websockets import WebSocketDisconnect

from core.engine import Engine
from core.transcript import Gap
from streamer.dialect import Conversation
from streamer.hotwords import session_decoder
from streamer.job import Failed, Item, Job, Opening, Output
from streamer.limits import Limits
from streamer.metrics import Metrics
from streamer.pace import Pace
from streamer.protocols.native import ProtocolError, Start
from streamer.scheduler import Scheduler
from streamer.session import INTERNAL, Session

logger = logging.getLogger(__name__)

REPLACED = 4001  # close code
PIECE = 1 << 16  # bytes that a session is given at once


class Busy(Exception):
    """No room for another session now."""

    retry_after_s = 5


class Connection(Protocol):
    """What a session talks through: a websocket of starlette, or what behaves like one."""

    async def receive(self) -> Mapping[str, Any]:
        """An ASGI message: `bytes` or `text`, or the type `websocket.disconnect`."""

    async def send_text(self, data: str) -> None: ...

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, code: int = 1000, reason: str | None = None) -> None: ...


@dataclass(eq=False)
class Live:
    """A session with what surrounds it. Belongs to the event loop."""

    session: Conversation
    owner: str
    is_reserved: bool = False  # a stream is yet to be opened, and there is a place for it
    opening: Opening | None = None  # of `job`, or of the last there was
    job: Job | None = None
    talk: asyncio.Event = field(default_factory=asyncio.Event)  # there may be a message to send
    room: asyncio.Event = field(default_factory=asyncio.Event)  # the session may no longer be behind
    replaced: asyncio.Event | None = None  # of the present connection: another has taken over
    timer: asyncio.TimerHandle | None = None  # runs while no connection is there

    @property
    def tag(self) -> str:
        """For the log: the id itself would let its reader take the session over."""
        return hashlib.sha256(self.session.session_id.encode()).hexdigest()[:8]

    @property
    def is_running(self) -> bool:
        """Whether it takes one of the places."""
        return self.is_reserved or self.job is not None


class Hub:
    """The sessions of one server. All methods belong to its event loop."""

    def __init__(
        self, scheduler: Scheduler, limits: Limits, metrics: Metrics, engines: Mapping[str, Engine] | None = None
    ) -> None:
        self.scheduler = scheduler
        self.engines = engines or {}  # by the model's name; without, the scheduler's own for every name
        self.limits = limits
        self.metrics = metrics
        self.live: dict[str, Live] = {}
        self.is_draining = False
        self.empty = asyncio.Event()  # or not worth waiting for
        self.loop: asyncio.AbstractEventLoop | None = None  # while it drains
        metrics.sessions.set_function(lambda: sum(live.is_running for live in self.live.values()))
        metrics.lingering.set_function(lambda: sum(live.timer is not None for live in self.live.values()))
        metrics.lag.set_function(lambda: max((live.session.backlog_s for live in self.live.values()), default=0.0))

    # Sessions

    def check_room(self, owner: str, opening: Opening | None = None) -> None:
        """Raises Busy where a new session of this owner would be one too many, or make the others late."""
        if self.is_draining:
            raise Busy("the server is shutting down; use another, or come back later")
        if not self.scheduler.is_alive:
            raise Busy("the recogniser has stopped")
        running = [live for live in self.live.values() if live.is_running]
        if len(running) >= self.limits.sessions:
            raise Busy(f"all {self.limits.sessions} sessions are taken; come back later")
        most = self.limits.sessions_per_client
        if most is not None and Counter(live.owner for live in running)[owner] >= most:
            raise Busy(f"this client has {most} sessions already, as many as it may; end one first")
        opening = opening or Opening(Start().config())
        engine = self.engines.get(opening.model)
        if self.limits.by_load and not self.scheduler.has_room(opening.config, engine, opening.n_streams):
            raise Busy("one session more would make the others late; come back later")

    def open(self, start: Start, owner: str) -> Live:
        """A new session of the native protocol.

        Raises:
            Busy: there is no room for it.
        """
        return self.enter(Session(secrets.token_urlsafe(24), start, self.limits.session), owner)

    def enter(self, session: Conversation, owner: str, reserves: bool = True) -> Live:
        """A new session in any protocol. Its stream is opened now, or as soon as it knows which.

        Args:
            reserves: it takes a place from now on. Otherwise room is looked for when its stream is opened.

        Raises:
            Busy: there is no room for it.
        """
        if reserves or session.opening is not None or self.is_draining:
            self.check_room(owner, session.opening)
        live = Live(session, owner, is_reserved=reserves or session.opening is not None)
        self.live[session.session_id] = live
        try:
            self.submit(live, [])
        except Exception:
            self.drop(live)
            raise
        return live

    def submit(self, live: Live, items: Sequence[Item]) -> None:
        """Hands over what a session wants done, and opens the stream that it wants it done with."""
        opening = live.session.opening
        if opening is not None and opening is not live.opening:
            try:
                self.begin(live, opening)
            except Busy as e:
                self.metrics.refused.labels("busy").inc()
                live.session.refuse(str(e))
                live.talk.set()
        if live.job is not None:
            self.scheduler.submit(live.job, items)

    def begin(self, live: Live, opening: Opening) -> None:
        """Opens a session's stream, in the place of the one before. Raises Busy."""
        if live.job is not None:
            self.scheduler.cancel(live.job)
            live.job = None
        live.is_reserved = False  # it does not stand in its own way
        live.opening = opening
        self.check_room(live.owner, opening)
        loop = asyncio.get_running_loop()

        def deliver(outputs: Sequence[Output]) -> None:
            loop.call_soon_threadsafe(self.deliver, live, opening, outputs)

        engine = self.engines.get(opening.model, self.scheduler.engine)
        decode, ignored = session_decoder(engine.decode, dict(opening.hotwords))
        if ignored:
            live.session.ignore_hotwords(len(ignored))
        live.job = self.scheduler.open(
            opening.config, deliver, engine, opening.n_streams, opening.partials, decode, opening.is_patient
        )
        self.metrics.started.inc()
        details = {"session": live.tag, "model": opening.model}
        logger.info("session %s begins: %s", live.tag, opening.note, extra=details)

    def find(self, session_id: str, seq: int) -> Live:
        """The session that a client comes back to.

        Raises:
            ProtocolError: there is none such, or what the client missed is no longer kept.
        """
        live = self.live.get(session_id)
        if live is None or not live.session.is_resumable:
            seconds = f"{self.limits.resume_s:g}"
            raise ProtocolError("unknown_session", f"no such session; it is kept for {seconds} s, then start a new one")
        assert isinstance(live.session, Session)
        # In one breath with `resume`: the old connection, where it still stands, moves nothing more.
        live.session.resume(seq)
        if live.replaced is not None:
            live.replaced.set()
            live.replaced = None
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None
        self.metrics.resumed.inc()
        return live

    def deliver(self, live: Live, opening: Opening, outputs: Sequence[Output]) -> None:
        if live.opening is not opening:  # of a stream that has been replaced
            return
        for output in outputs:
            self.metrics.gaps.inc(isinstance(output, Gap))
            self.metrics.failures.inc(isinstance(output, Failed))
        try:
            self.submit(live, live.session.deliver(outputs))
        except Exception:
            self.fail(live)
        live.talk.set()
        live.room.set()

    def fail(self, live: Live) -> None:
        """Ends a session, in an `except` block, that cannot go on."""
        logger.exception("session %s broke", live.tag)
        self.metrics.failures.inc()
        live.session.deliver([Failed("internal", "the server failed on this session")])
        live.talk.set()
        live.room.set()

    def drop(self, live: Live) -> None:
        """Forgets a session."""
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None
        self.live.pop(live.session.session_id, None)
        if live.job is not None:
            self.scheduler.cancel(live.job)
            live.job = None
        live.is_reserved = False
        live.session.release()
        audio_s = live.session.accepted_s
        logger.info("session %s is over after %.1f s of audio", live.tag, audio_s, extra={"session": live.tag})
        if not self.live:
            self.empty.set()

    def trim(self) -> None:
        """Forgets the oldest finished sessions where there are more of them than may run."""
        finished = [live for live in self.live.values() if not live.is_running and live.timer is not None]
        for live in finished[: max(0, len(finished) - self.limits.sessions)]:
            self.drop(live)

    # Connections

    async def serve(self, socket: Connection, live: Live) -> None:
        """Moves messages until the session or the connection ends. A broken connection leaves the session behind."""
        replaced = live.replaced = asyncio.Event()
        live.talk.set()
        try:
            ended = await first_of(
                self.read(socket, live, replaced), self.write(socket, live, replaced), replaced.wait()
            )
        except WebSocketDisconnect:
            ended = 0
        except Exception:  # whatever it is, its place is given back
            logger.exception("session %s broke", live.tag)
            self.metrics.failures.inc()
            if live.replaced is replaced:
                live.replaced = None
                self.drop(live)
            await close(socket, INTERNAL, "internal")
            return
        if live.replaced is not replaced:
            await close(socket, REPLACED, "another connection has resumed this session")
            return
        live.replaced = None
        loop = asyncio.get_running_loop()
        if ended == 1 and live.job is not None:
            self.scheduler.cancel(live.job)
            live.job = None
        if self.is_draining or not live.session.is_resumable:
            self.drop(live)
        else:  # a client that missed the last words may come back for them, too
            live.timer = loop.call_later(self.limits.resume_s, self.drop, live)
            self.trim()
        if ended == 1:
            await close(socket, *(live.session.close or (1000, "")))

    async def read(self, socket: Connection, live: Live, replaced: asyncio.Event) -> None:
        """Hands over what the client sends; returns when it has gone."""
        session = live.session
        loop, pace = asyncio.get_running_loop(), Pace(self.limits.speed, self.limits.messages_per_s)
        idle_s = min(self.limits.idle_s, session.idle_s)
        while True:
            await self.has_caught_up(live)
            message: Mapping[str, Any] | None = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if session.is_ended else idle_s):
                    message = await socket.receive()
            if live.replaced is not replaced or message is not None and message["type"] == "websocket.disconnect":
                return
            if message is None:
                self.submit(live, session.expire(idle_s))
                live.talk.set()
                continue
            for frame in frames_of(message, session.takes_pieces):
                await self.has_caught_up(live)
                if live.replaced is not replaced:
                    return
                before_s = session.accepted_s
                items = session.receive_text(frame) if isinstance(frame, str) else session.receive_bytes(frame)
                audio_s = session.accepted_s - before_s
                self.metrics.on_audio(audio_s)
                self.submit(live, items)
                live.talk.set()
                await asyncio.sleep(pace.add(audio_s, loop.time()))

    async def has_caught_up(self, live: Live) -> None:
        """Waits until more may be read from the client."""
        while live.session.is_behind:
            live.room.clear()
            await live.room.wait()

    async def write(self, socket: Connection, live: Live, replaced: asyncio.Event) -> None:
        """Sends what there is to say; returns when the session is over."""
        session = live.session
        while True:
            live.talk.clear()
            while live.replaced is replaced and (frame := session.next_frame()) is not None:
                try:
                    async with asyncio.timeout(self.limits.unread_s):
                        await (socket.send_text(frame) if isinstance(frame, str) else socket.send_bytes(frame))
                    await asyncio.sleep(0)  # sending need not yield: others have their turn, and a loss is noticed
                except (RuntimeError, OSError) as e:  # uvicorn and starlette tell a closed connection, or time is up
                    raise WebSocketDisconnect(1006) from e
                live.room.set()
            if session.is_over:
                return
            await live.talk.wait()

    # The end

    async def drain(self) -> None:
        """Takes no more sessions, and finishes those that are there: every accepted sample is transcribed."""
        self.is_draining = True
        self.loop = asyncio.get_running_loop()
        self.empty.clear()
        for live in list(self.live.values()):
            if live.replaced is None:
                self.drop(live)  # nobody is listening
                continue
            if live.session.close is None:
                try:
                    self.submit(live, live.session.shut_down())
                except Exception:  # the others have last words, too
                    self.fail(live)
                live.talk.set()
        if not self.live:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.drain_s):
                await self.empty.wait()
        for live in list(self.live.values()):
            self.drop(live)

    def give_up(self) -> None:
        """Ends a drain before its time; may be called from a signal handler."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.empty.set)


def frames_of(message: Mapping[str, Any], takes_pieces: bool) -> Iterator[str | bytes]:
    """A message, or its audio in pieces: other sessions have their turn between them."""
    data = message.get("bytes")
    if data is None:
        yield message["text"]
    elif not takes_pieces or len(data) <= PIECE:
        yield data
    else:
        yield from (data[start : start + PIECE] for start in range(0, len(data), PIECE))


async def close(socket: Connection, code: int, reason: str) -> None:
    try:
        await socket.close(code, reason)
    except (WebSocketDisconnect, RuntimeError, OSError):  # it has gone already
        logger.debug("the connection had gone before its close")


async def first_of(*coroutines: Coroutine[object, object, object]) -> int:
    """Runs all until one ends, and cancels the others; the index of the first to end, whose error is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # An orderly end of writing counts before the client's leaving, which often comes with it.
    index = max(i for i, task in enumerate(tasks) if task in done)
    await tasks[index]
    return index
