"""One session of the native protocol, sans I/O: messages in, items for the scheduler out, and back.

A session outlives its connection: what it has said is kept, bounded, and said again after a resume from the
last `seq` that the client saw. Partials that nobody has read yet are replaced by newer ones; finals stay.
No socket, thread or clock here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from core.transcript import Gap, Transcript
from streamer.intake import Intake
from streamer.job import Command, Failed, Finished, Flushed, Item, OfChannel, Opening, Output, Progress, Widened
from streamer.protocols import native
from streamer.protocols.native import Message, ProtocolError, Start

NORMAL, GOING_AWAY, POLICY, INTERNAL, TRY_LATER = 1000, 1001, 1008, 1011, 1013  # websocket close codes
IDLE_S = 60.0  # without any message
LONG_IDLE_S = 3600.0  # the same, of protocols whose clients may stay silent as long as they answer pings


@dataclass(frozen=True, slots=True)
class SessionLimits:
    backlog_s: float = 10.0  # audio that may wait for the model before no more is read
    lag_s: float = 2.0  # audio that waits when the client is first told
    unsent: int = 256  # messages that may wait for a slow reader before no more audio is read
    replay: int = 512  # sent messages kept for a resume
    ack_s: float = 1.0  # accepted audio between two acks
    audio_s: float = 4 * 3600.0  # longest session


@dataclass(frozen=True, slots=True)
class Entry:
    """A message, and what a newer one would replace: `partial 3` by a newer partial or the final of segment 3."""

    seq: int
    key: str  # empty: never replaced
    message: Message


class Session:
    """The state of one session. `receive_*` for what the client says, `deliver` for what the engine says."""

    is_resumable: ClassVar[bool] = True
    takes_pieces: ClassVar[bool] = True
    idle_s: ClassVar[float] = IDLE_S

    def __init__(self, session_id: str, start: Start, limits: SessionLimits | None = None) -> None:
        self.session_id = session_id
        self.start = start
        self.limits = limits or SessionLimits()
        self.config = start.config()
        self.opening = Opening(self.config, start.model, start.n_streams, start.partials, str(start), start.hotwords)
        self.intake = Intake(start.sample_rate, start.encoding, start.channels, start.split)
        self.seq = 0
        self.unsent: deque[Entry] = deque()
        self.sent: deque[Entry] = deque()  # for a resume
        self.forgotten_seq = 0  # newest message that must not be missed, but can no longer be said again
        self.n_pushed = 0  # 16 kHz samples handed to the scheduler
        self.processed = [0] * start.n_streams  # of them, done
        self.answers = {Flushed: [0] * start.n_streams, Finished: [0] * start.n_streams}
        self.n_flushes = 0
        self.told_lag_s = 0.0
        self.is_widened = False  # steps that only show partials are left out
        self.acked_s = 0.0
        self.is_ended = False  # the client may send nothing more
        self.farewell = (NORMAL, "")  # the close code and reason after `end`
        self.close: tuple[int, str] | None = None  # the same, once there is nothing more to wait for
        self.greeting: Message | None = self.ready(self.next_seq())

    # The client's side

    def receive_bytes(self, data: bytes) -> list[Item]:
        """Audio of any length; none asks what has been accepted. Returns what the scheduler shall do."""
        if self.is_ended:
            self.error("after_end", "audio after end is not transcribed; start a new session")
            return []
        samples, gaps = self.intake.push(data)
        for gap in gaps:
            self.say(native.event_message(gap, False))
            self.error("bad_samples", gap.reason)
        self.n_pushed += len(samples)
        self.acknowledge(is_asked=not data)
        self.watch_lag()
        items: list[Item] = [samples] if len(samples) else []
        if self.intake.accepted_s >= self.limits.audio_s:
            self.error("session_limit", f"a session may hold {self.limits.audio_s:g} s of audio; start a new one")
            items += self.finish()
        return items

    def receive_text(self, text: str) -> list[Item]:
        """A text message. A wrong one is answered by an error, and the session goes on."""
        try:
            message = native.parse(text, self.start)
        except ProtocolError as e:
            self.error(e.code, str(e))
            return []
        if isinstance(message, native.Flush):
            if self.is_ended:
                self.error("after_end", "flush after end has nothing left to do")
                return []
            self.n_flushes += 1
            return [Command.FLUSH]
        if isinstance(message, native.End):
            return self.finish()
        self.error("already_started", "start and resume are the first message of a connection only")
        return []

    def finish(self) -> list[Item]:
        """No more audio: at the client's wish, or ours. Its tail is still transcribed."""
        if self.is_ended:
            return []
        self.is_ended = True
        tail = self.intake.finish()
        self.n_pushed += len(tail)
        return [tail, Command.FINISH] if len(tail) else [Command.FINISH]

    def expire(self, idle_s: float) -> list[Item]:
        """Nothing came for so long: the session ends."""
        self.error("idle", f"no message came for {idle_s:g} s; the session ends, start a new one")
        return self.finish()

    def shut_down(self) -> list[Item]:
        """The server stops: the last words, then the end."""
        self.error("shutdown", "the server is shutting down; the last words follow")
        self.farewell = (GOING_AWAY, "shutdown")
        return self.finish()

    def refuse(self, message: str) -> None:
        self.fail("busy", message, TRY_LATER)

    def ignore_hotwords(self, n: int) -> None:
        why = "this server searches without a beam, or its model has no letters for them"
        self.error("hotwords_ignored", f"{n} of {len(self.start.hotwords)} hot words are ignored: {why}")

    def release(self) -> None:
        """Nothing but memory."""

    @property
    def accepted_s(self) -> float:
        """Seconds of audio accepted, from the beginning."""
        return self.intake.accepted_s

    @property
    def is_behind(self) -> bool:
        """Whether no more should be read from the client until this turns False."""
        return self.backlog_s > self.limits.backlog_s or len(self.unsent) > self.limits.unsent

    @property
    def backlog_s(self) -> float:
        """Seconds of audio that wait for the model, without those it needs as context anyway."""
        return self.opening.backlog_s(self.n_pushed, min(self.processed), self.is_widened)

    # The engine's side

    def deliver(self, outputs: Sequence[Output]) -> list[Item]:
        """Turns what the scheduler says into messages; nothing follows for the scheduler."""
        for tagged in outputs:
            output = tagged.output if isinstance(tagged, OfChannel) else tagged
            channel = tagged.channel if isinstance(tagged, OfChannel) else 0
            if isinstance(output, Progress):
                self.processed[channel] = output.n_processed
                self.watch_lag()
            elif isinstance(output, Widened):
                if output.is_widened != self.is_widened:
                    self.is_widened = output.is_widened
                    self.tell_lag()
            elif isinstance(output, Transcript | Gap):
                self.tell(output, channel)
            elif isinstance(output, Flushed):
                if self.is_answered(Flushed, channel):
                    self.say({"type": "flushed"})
            elif isinstance(output, Finished):
                if self.is_answered(Finished, channel):
                    self.say({"type": "end"})
                    self.close = self.close or self.farewell
            elif isinstance(output, Failed):
                self.fail(output.code, output.message, INTERNAL)
        return []

    def is_answered(self, kind: type[Flushed | Finished], channel: int) -> bool:
        """Notes the answer of a channel; True where it was the last one missing."""
        counts = self.answers[kind]
        before = min(counts)
        counts[channel] += 1
        return min(counts) > before

    def tell(self, event: Transcript | Gap, channel: int) -> None:
        message = native.event_message(event, self.start.words)
        if self.start.split:
            message["channel"] = channel
        if isinstance(event, Gap):
            self.say(message)
            return
        key = f"partial {channel} {event.segment}"
        if event.is_final:
            self.drop(key)
            self.say(message)
        elif self.start.partials:
            self.say(message, key)

    def fail(self, code: str, message: str, close_code: int = POLICY) -> None:
        """The session is over, after what it has already to say."""
        self.is_ended = True
        if self.close is None:
            self.error(code, message)
            self.close = (close_code, code)

    def error(self, code: str, message: str) -> None:
        # The same complaint need not queue up: of those unread, the newest is enough.
        self.say(native.error_message(code, message), f"error {code}")

    def watch_lag(self) -> None:
        """Tells the client when the backlog doubles, and when it is gone."""
        behind = self.backlog_s
        if behind >= max(self.limits.lag_s, 2 * self.told_lag_s):
            self.told_lag_s = behind
            self.tell_lag()
        elif self.told_lag_s and behind < self.limits.lag_s / 2:
            self.told_lag_s = 0.0
            self.tell_lag()

    def tell_lag(self) -> None:
        """Seconds that the text is late, and whether partials come at wider steps than asked for."""
        self.say({"type": "lag", "lag_s": round(self.told_lag_s, 3), "widened": self.is_widened}, "lag")

    def acknowledge(self, is_asked: bool) -> None:
        new_s = self.intake.accepted_s - self.acked_s
        if self.start.acks and (new_s >= self.limits.ack_s or (is_asked and new_s > 0)):
            self.say({"type": "ack"}, "ack")

    # Messages out

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def say(self, message: Message, key: str = "") -> None:
        """Queues a message; an unread one of the same key makes way."""
        if key:
            self.drop(key)
        self.acked_s = self.intake.accepted_s
        seq = self.next_seq()
        self.unsent.append(Entry(seq, key, {**message, "seq": seq, "audio_s": self.acked_s}))

    def drop(self, key: str) -> None:
        """Forgets what something newer replaces."""
        for entries in (self.unsent, self.sent):
            for entry in [entry for entry in entries if entry.key == key]:
                entries.remove(entry)

    def next_message(self) -> Message | None:
        """The message to send now; it counts as sent. None where there is nothing to say."""
        if self.greeting is not None:
            greeting, self.greeting = self.greeting, None
            return greeting
        if not self.unsent:
            return None
        entry = self.unsent.popleft()
        self.sent.append(entry)
        while len(self.sent) > self.limits.replay:
            old = self.sent.popleft()
            self.forgotten_seq = self.forgotten_seq if old.key else old.seq
        return entry.message

    def next_frame(self) -> str | None:
        """`next_message` as it is sent."""
        message = self.next_message()
        return None if message is None else native.to_json(message)

    @property
    def is_over(self) -> bool:
        """Everything has been said, and the connection may be closed with `close`."""
        return self.close is not None and self.greeting is None and not self.unsent

    # Resume

    def ready(self, seq: int) -> Message:
        """The first message of a connection. `samples` and `flushes` say what need not be sent again."""
        return {
            "type": "ready",
            "session": self.session_id,
            "seq": seq,
            "audio_s": self.intake.accepted_s,
            "samples": self.intake.n_frames,
            "flushes": self.n_flushes,
            "is_ended": self.is_ended,
            "model": self.start.model,
            "sample_rate": self.start.sample_rate,
            "encoding": self.start.encoding,
            "channels": self.start.channels,
            "split": self.start.split,
            "latency": self.start.latency,
            "latency_ms": self.config.algorithmic_latency_ms,
        }

    def resume(self, seq: int) -> None:
        """A new connection takes over: what came after `seq` is sent again, `ready` before it.

        Raises:
            ProtocolError: `seq` was never sent, or what followed is no longer kept.
        """
        if seq > self.seq:
            raise ProtocolError("bad_resume", f"Expected the seq of a message sent, at most {self.seq}. Found: {seq}")
        if seq < self.forgotten_seq:
            raise ProtocolError("replay_lost", f"messages up to {self.forgotten_seq} are no longer kept. Found: {seq}")
        while self.sent and (entry := self.sent.pop()).seq > seq:
            self.unsent.appendleft(entry)
        self.sent.clear()  # seen by the client
        self.intake.forget_partial_frame()
        self.greeting = self.ready(seq)
