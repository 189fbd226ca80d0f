"""What the hub needs of a conversation, and the base of those that are not native: sans I/O, without resume.

A dialect translates: what its client says into audio and commands for the scheduler, what the engine says into
messages. It asks for a stream by `begin` as soon as it knows the audio's format, at the first audio at the latest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from core.audio import HOP, SAMPLE_RATE, Samples
from core.transcript import Event, Gap, Transcript
from streamer.job import Command, Failed, Finished, Flushed, Item, OfChannel, Opening, Output, Progress, Widened
from streamer.protocols.native import to_json
from streamer.session import GOING_AWAY, IDLE_S, INTERNAL, NORMAL, TRY_LATER, SessionLimits

REASON_BYTES = 123  # that a close frame has room for

Frame = str | bytes  # a text or a binary message


class Conversation(Protocol):
    """What the hub serves: `Session`, and every `Dialect`."""

    @property
    def session_id(self) -> str: ...

    @property
    def is_resumable(self) -> bool:
        """Whether it outlives a broken connection."""

    @property
    def takes_pieces(self) -> bool:
        """Whether a long message may come as several."""

    @property
    def idle_s(self) -> float:
        """The longest silence of its client that the protocol knows."""

    @property
    def opening(self) -> Opening | None:
        """The stream to feed; None before it is known. A new object ends the last stream and begins another."""

    @property
    def accepted_s(self) -> float: ...

    @property
    def backlog_s(self) -> float: ...

    @property
    def is_behind(self) -> bool:
        """Whether no more should be read from the client until this turns False."""

    @property
    def is_ended(self) -> bool:
        """The client may send nothing more."""

    @property
    def is_over(self) -> bool:
        """Everything has been said, and the connection may be closed with `close`."""

    @property
    def close(self) -> tuple[int, str] | None:
        """Close code and reason, once there is nothing more to wait for."""

    def receive_bytes(self, data: bytes) -> list[Item]: ...

    def receive_text(self, text: str) -> list[Item]: ...

    def deliver(self, outputs: Sequence[Output]) -> list[Item]: ...

    def next_frame(self) -> Frame | None:
        """The message to send now; it counts as sent. None where there is nothing to say."""

    def expire(self, idle_s: float) -> list[Item]:
        """Nothing came for so long: the conversation ends."""

    def shut_down(self) -> list[Item]:
        """The server stops: the last words, then the end."""

    def refuse(self, message: str) -> None:
        """There is no room for the stream that it asked for: the conversation is over."""

    def ignore_hotwords(self, n: int) -> None:
        """So many of the hot words that it asked for mean nothing here."""

    def release(self) -> None:
        """It is forgotten: whatever it holds besides memory is given back."""


class Decoder(Protocol):
    """Bytes to samples at 16 kHz, (n,) or (n, channels): `Intake`, or the reader of a container."""

    @property
    def accepted_s(self) -> float: ...

    def push(self, data: bytes) -> tuple[Samples, list[Gap]]: ...

    def finish(self) -> Samples: ...


class Dialect:
    """A conversation in another protocol. Subclasses implement `receive_*` and the `on_*` they care for."""

    is_resumable: ClassVar[bool] = False
    takes_pieces: ClassVar[bool] = True
    idle_s: ClassVar[float] = IDLE_S

    def __init__(self, session_id: str, limits: SessionLimits | None = None) -> None:
        self.session_id = session_id
        self.limits = limits or SessionLimits()
        self.opening: Opening | None = None
        self.decoder: Decoder | None = None
        self.before_s = 0.0  # accepted by earlier streams of this conversation
        self.unsent: deque[tuple[str, Frame]] = deque()  # with what a newer one would replace
        self.n_pushed = 0  # 16 kHz samples handed to the scheduler
        self.processed = [0]  # of them, done; of each stream
        self.answers: dict[type[Flushed | Finished], list[int]] = {}
        self.is_widened = False  # steps that only show partials are left out
        self.is_ended = False
        self.farewell = (NORMAL, "")  # the close code and reason after the last words
        self.close: tuple[int, str] | None = None

    # For subclasses

    def begin(self, opening: Opening, decoder: Decoder) -> None:
        """Asks for a stream, instead of the one before if there was one."""
        self.before_s = self.accepted_s
        self.opening, self.decoder = opening, decoder
        self.n_pushed, self.processed = 0, [0] * opening.n_streams
        self.answers = {Flushed: [0] * opening.n_streams, Finished: [0] * opening.n_streams}

    def push(self, data: bytes) -> list[Item]:
        """Audio for the present stream. What the scheduler shall do; more than a session may hold ends it."""
        assert self.decoder is not None
        samples, gaps = self.decoder.push(data)
        for gap in gaps:
            self.on_event(gap, 0)
        self.n_pushed += len(samples)
        items: list[Item] = [samples] if len(samples) else []
        return items + self.finish() if self.accepted_s >= self.limits.audio_s else items

    def finish_stream(self) -> list[Item]:
        """The tail of the present stream; `on_finished` follows its last event."""
        if self.decoder is None:
            return []
        tail = self.decoder.finish()
        self.n_pushed += len(tail)
        return [tail, Command.FINISH] if len(tail) else [Command.FINISH]

    def finish(self) -> list[Item]:
        """No more audio: at the client's wish, or ours. Its tail is still transcribed."""
        if self.is_ended:
            return []
        self.is_ended = True
        if self.opening is None:
            self.on_finished()
        return self.finish_stream()

    def say(self, message: Mapping[str, object] | Frame, key: str = "") -> None:
        """Queues a message, objects as JSON; an unread one of the same key makes way."""
        frame = message if isinstance(message, str | bytes) else to_json(message)
        if key:
            self.drop(key)
        self.unsent.append((key, frame))

    def drop(self, key: str) -> None:
        """Forgets unread messages of this key."""
        self.unsent = deque(entry for entry in self.unsent if entry[0] != key)

    def end(self, code: int = NORMAL, reason: str = "") -> None:
        """The conversation is over, after what it has already to say."""
        self.is_ended = True
        self.close = self.close or (code, reason.encode()[:REASON_BYTES].decode(errors="ignore"))

    def heard_s(self, channel: int = 0) -> float:
        """Audio of the present stream that the engine has heard, context included."""
        if self.opening is None:
            return 0.0
        return min(self.processed[channel] + self.opening.config.right * HOP, self.n_pushed) / SAMPLE_RATE

    def on_event(self, event: Event, channel: int) -> None:
        """A partial, a final or a gap."""

    def on_progress(self, channel: int) -> None:
        """The engine has heard more of a channel, after the events that came of it."""

    def on_flushed(self) -> list[Item]:
        """Every channel has said all that came before the oldest FLUSH that waits."""
        return []

    def on_finished(self) -> list[Item]:
        """The last event of the present stream has come."""
        self.end(*self.farewell)
        return []

    def on_failed(self, code: str, message: str) -> None:
        """The recogniser has given this stream up."""
        self.end(INTERNAL, code)

    # For the hub

    def deliver(self, outputs: Sequence[Output]) -> list[Item]:
        """Turns what the scheduler says into messages, and into what it shall do next."""
        items: list[Item] = []
        for tagged in outputs:
            output = tagged.output if isinstance(tagged, OfChannel) else tagged
            channel = tagged.channel if isinstance(tagged, OfChannel) else 0
            if isinstance(output, Progress):
                self.processed[channel] = output.n_processed
                self.on_progress(channel)
            elif isinstance(output, Widened):
                self.is_widened = output.is_widened
            elif isinstance(output, Transcript | Gap):
                self.on_event(output, channel)
            elif isinstance(output, Flushed):
                if self.is_answered(Flushed, channel):
                    items += self.on_flushed()
            elif isinstance(output, Finished):
                if self.is_answered(Finished, channel):
                    items += self.on_finished()
            elif isinstance(output, Failed):
                self.on_failed(output.code, output.message)
        return items

    def is_answered(self, kind: type[Flushed | Finished], channel: int) -> bool:
        """Notes the answer of a channel; True where it was the last one missing."""
        counts = self.answers[kind]
        before = min(counts)
        counts[channel] += 1
        return min(counts) > before

    @property
    def accepted_s(self) -> float:
        """Seconds of audio of all streams."""
        return self.before_s + (self.decoder.accepted_s if self.decoder is not None else 0.0)

    @property
    def backlog_s(self) -> float:
        """Seconds of audio that wait for the model, without those it needs as context anyway."""
        if self.opening is None:
            return 0.0
        return self.opening.backlog_s(self.n_pushed, min(self.processed), self.is_widened)

    @property
    def is_behind(self) -> bool:
        return self.backlog_s > self.limits.backlog_s or len(self.unsent) > self.limits.unsent

    @property
    def is_over(self) -> bool:
        return self.close is not None and not self.unsent

    def receive_bytes(self, data: bytes) -> list[Item]:
        raise NotImplementedError

    def receive_text(self, text: str) -> list[Item]:
        raise NotImplementedError

    def next_frame(self) -> Frame | None:
        return self.unsent.popleft()[1] if self.unsent else None

    def expire(self, idle_s: float) -> list[Item]:
        self.farewell = (INTERNAL, f"nothing came for {idle_s:g} s")
        return self.finish()

    def shut_down(self) -> list[Item]:
        self.farewell = (GOING_AWAY, "shutdown")
        return self.finish()

    def refuse(self, message: str) -> None:
        self.end(TRY_LATER, message)

    def ignore_hotwords(self, n: int) -> None:
        """Most protocols have no words for it."""

    def release(self) -> None:
        """Nothing but memory, here."""
