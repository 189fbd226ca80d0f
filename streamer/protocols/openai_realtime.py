"""OpenAI's realtime transcription, both dialects (GA and beta), sans I/O. Its settings are in `openai_settings.py`.

Deltas only grow: they are committed words. With voice detection each segment is an item; without, an item is what
was said between two commits.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.transcript import Event, Transcript
from streamer.dialect import Dialect
from streamer.intake import Intake
from streamer.job import Command, Item, Opening
from streamer.protocols.native import Message, Start, shown
from streamer.protocols.openai_rest import Deltas
from streamer.protocols.openai_settings import Settings, SettingsError
from streamer.session import LONG_IDLE_S, POLICY, SessionLimits

LEAST_COMMIT_MS = 100
UPDATES = {"session.update": False, "transcription_session.update": True}  # whether it is the beta dialect


@dataclass(slots=True)
class Turn:
    """One item: what is said from one commit to the next."""

    item_id: str
    deltas: Deltas = field(default_factory=Deltas)
    is_started: bool = False  # `speech_started` has been said
    is_cleared: bool = False  # the client wants nothing of it
    is_awaited: bool = False  # the client has committed it, and will hear `committed` with its last word
    is_announced: bool = False  # `committed` has been said
    end_s: float = 0.0  # of the session, once it is known


class Realtime(Dialect):
    """One connection.

    Args:
        model: of the address; as any model that this server does not have, it stands for the server's own.
        is_beta: as a header or subprotocol told; the first update may tell too.
    """

    takes_pieces = False
    idle_s = LONG_IDLE_S  # as long as one of the service's sessions may be

    def __init__(
        self,
        session_id: str,
        defaults: Start,
        models: Sequence[str],
        model: str = "",
        is_beta: bool = False,
        limits: SessionLimits | None = None,
    ) -> None:
        super().__init__(session_id, limits)
        self.defaults = defaults
        self.models = models
        self.is_beta = is_beta
        self.settings = Settings(model=model)
        self.n_events = self.n_items = 0
        self.committed_s = 0.0  # audio up to the last commit or clear
        self.told_s = 0.0  # end of the last item
        self.last_item: str | None = None  # the last that was committed
        self.turns = deque([self.new_turn()])  # the oldest first; flushes that wait part them
        self.is_changing = False  # the stream ends, to begin anew with other settings
        self.tell(f"{self.prefix}session.created", session=self.shown_session())

    # The client's side

    @property
    def is_behind(self) -> bool:
        return self.is_changing or super().is_behind

    def receive_bytes(self, data: bytes) -> list[Item]:
        self.complain("expected events as JSON text. Found: a binary message")
        return []

    def receive_text(self, text: str) -> list[Item]:
        if self.is_ended:
            return []
        event_id: object = None
        try:
            event = json.loads(text)
            if not isinstance(event, dict):
                raise SettingsError("", f"expected an object. Found: {shown(event)}")
            event_id = event.get("event_id")
            return self.obey(event)
        except SettingsError as e:
            self.complain(str(e), e.code, e.param or None, event_id)
        except (ValueError, RecursionError) as e:
            self.complain(f"expected JSON. Found: {e}", "invalid_json")
        return []

    def obey(self, event: Mapping[str, Any]) -> list[Item]:
        """What the scheduler shall do. Raises SettingsError."""
        kind = event.get("type")
        if not isinstance(kind, str):
            raise SettingsError("type", f"expected the name of an event. Found: {shown(kind)}")
        if kind == "input_audio_buffer.append":
            return self.append(event.get("audio"))
        if kind == "input_audio_buffer.commit":
            return self.commit()
        if kind == "input_audio_buffer.clear":
            self.tell("input_audio_buffer.cleared")
            return self.close_turn(is_cleared=True)
        if kind in UPDATES:
            self.is_beta = UPDATES[kind]
            return self.update(event.get("session"))
        raise SettingsError("type", f"expected an event of realtime transcription. Found: {shown(kind)}")

    def append(self, audio: object) -> list[Item]:
        if not isinstance(audio, str):
            raise SettingsError("audio", f"expected base64 text. Found: {shown(audio)}")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError) as e:
            raise SettingsError("audio", f"expected base64 text. Found: {e}") from e
        if self.decoder is None:
            self.open()
        return self.push(data)

    def commit(self) -> list[Item]:
        ms = round(1000 * (self.accepted_s - self.committed_s), 2)
        if ms < LEAST_COMMIT_MS:
            raise SettingsError(
                "",
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, "
                f"but buffer only has {ms:.2f}ms of audio.",
                "input_audio_buffer_commit_empty",
            )
        if self.settings.finds_turns:
            self.turns[-1].is_awaited = True
        else:
            self.announce(self.turns[-1])
        return self.close_turn()

    def close_turn(self, is_cleared: bool = False) -> list[Item]:
        """Ends the running turn; `on_flushed` follows its last word."""
        self.committed_s = self.accepted_s
        if self.decoder is None:
            return []
        self.turns[-1].is_cleared, self.turns[-1].end_s = is_cleared, self.accepted_s
        self.turns.append(self.new_turn())
        return [Command.FLUSH]

    def update(self, session: object) -> list[Item]:
        before, self.settings = self.settings, self.settings.updated(session, self.is_beta)
        self.tell(f"{self.prefix}session.updated", session=self.shown_session())
        if self.decoder is None or before.stream == self.settings.stream:
            return []
        if not self.accepted_s:
            self.open()
            return []
        self.is_changing = True
        return self.finish_stream()

    def open(self) -> None:
        """A stream with the present settings."""
        settings = self.settings
        start = settings.start(self.defaults, self.models)
        opening = Opening(
            settings.config(start), start.model, note=f"openai, {settings.encoding}", hotwords=start.hotwords
        )
        self.begin(opening, Intake(start.sample_rate, start.encoding, 1))

    # The engine's side

    def on_event(self, event: Event, channel: int) -> None:
        if not isinstance(event, Transcript) or not event.words:
            return
        turn = self.turns[0]
        if turn.is_cleared:
            return
        # What was committed before turn detection was switched on is no item of its own finding.
        is_found = self.settings.finds_turns and not turn.is_announced
        if is_found and not turn.is_started:
            turn.is_started = True
            start_ms = self.ms(event.words[0].start_s) - self.settings.padding_ms
            self.tell("input_audio_buffer.speech_started", audio_start_ms=max(0, start_ms), item_id=turn.item_id)
        if delta := turn.deltas.add(event):
            self.tell(f"{TRANSCRIPTION}.delta", item_id=turn.item_id, content_index=0, delta=delta)
        if event.is_final and is_found:
            self.tell("input_audio_buffer.speech_stopped", audio_end_ms=self.ms(event.end_s), item_id=turn.item_id)
            turn.end_s = self.before_s + event.end_s
            self.announce(turn)
            self.complete(turn)
            # Its place is kept: a commit that waits is answered by it.
            self.turns[0] = self.new_turn()
            self.committed_s = max(self.committed_s, turn.end_s)

    def on_flushed(self) -> list[Item]:
        turn = self.turns.popleft()
        if turn.is_awaited:  # and nothing was said
            self.announce(turn)
        if turn.is_announced:
            self.complete(turn)
        elif turn.is_cleared:
            self.told_s = max(self.told_s, turn.end_s)
        return []

    def finish(self) -> list[Item]:
        if self.is_changing and not self.is_ended:  # the tail is on its way, and no other stream follows it
            self.is_ended = True
            return []
        return super().finish()

    def on_finished(self) -> list[Item]:
        if self.is_changing and not self.is_ended:
            self.is_changing = False
            for turn in self.turns:
                turn.deltas.begin()
            self.open()
            return []
        return super().on_finished()

    def on_failed(self, code: str, message: str) -> None:
        error = {"type": "server_error", "code": code, "message": message, "param": None}
        for turn in self.turns:
            self.tell(f"{TRANSCRIPTION}.failed", item_id=turn.item_id, content_index=0, error=error)
        super().on_failed(code, message)

    def expire(self, idle_s: float) -> list[Item]:
        self.complain(f"nothing came for {idle_s:g} s", "session_expired")
        self.farewell = (POLICY, "session_expired")
        return self.finish()

    # Messages

    @property
    def prefix(self) -> str:
        return "transcription_" if self.is_beta else ""

    def ms(self, second: float) -> int:
        """Of the session, for a time of the present stream."""
        return round(1000 * (self.before_s + second))

    def new_turn(self) -> Turn:
        return Turn(self.next_item_id())

    def next_item_id(self) -> str:
        self.n_items += 1
        return f"item_{self.session_id[:8]}_{self.n_items}"

    def tell(self, kind: str, **more: object) -> None:
        self.n_events += 1
        self.say({"type": kind, "event_id": f"event_{self.session_id[:8]}_{self.n_events}", **more})

    def complain(
        self, message: str, code: str = "invalid_value", param: str | None = None, event_id: object = None
    ) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
        self.tell("error", error={**error, "event_id": event_id})

    def announce(self, turn: Turn) -> None:
        """The audio of a turn is complete."""
        turn.is_announced = True
        before, self.last_item = self.last_item, turn.item_id
        self.tell("input_audio_buffer.committed", item_id=turn.item_id, previous_item_id=before)
        content: list[Message] = [{"type": "input_audio", "transcript": None}]
        item = {
            "id": turn.item_id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": content,
        }
        for kind in ("created",) if self.is_beta else ("added", "done"):
            self.tell(f"conversation.item.{kind}", previous_item_id=before, item=item)

    def complete(self, turn: Turn) -> None:
        """An item holds what came since the one before."""
        self.tell(
            f"{TRANSCRIPTION}.completed",
            item_id=turn.item_id,
            content_index=0,
            transcript=turn.deltas.text,
            usage={"type": "duration", "seconds": round(max(0.0, turn.end_s - self.told_s), 3)},
        )
        self.told_s = max(self.told_s, turn.end_s)

    def shown_session(self) -> Message:
        return self.settings.shown(f"sess_{self.session_id[:16]}", self.is_beta)


TRANSCRIPTION = "conversation.item.input_audio_transcription"
