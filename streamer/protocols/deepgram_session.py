"""One live connection in Deepgram's protocol, sans I/O. Its messages are in `deepgram.py`.

All times are of the audio: a pause bridged by KeepAlive adds nothing. While a Finalize or CloseStream waits, the last
final is held back, to be the one that answers it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from clients.container import ContainerReader
from clients.file import AudioError
from core.audio import FRAMES_PER_SECOND
from core.transcript import Event, Transcript, Word
from streamer.dialect import Decoder, Dialect
from streamer.intake import Intake
from streamer.job import Command, Item, Opening
from streamer.protocols import deepgram
from streamer.protocols.deepgram import Listen, Span
from streamer.protocols.native import Message, shown
from streamer.session import SessionLimits

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Channel:
    """What has been said of one channel."""

    said_s: float = 0.0  # end of the last final span
    partial: Transcript | None = None  # of the segment that runs
    held: Transcript | None = None  # a final that may answer a Finalize
    is_speaking: bool = False
    last_word_s: float | None = None  # end of the last word that no UtteranceEnd has followed


class Deepgram(Dialect):
    """One connection.

    Args:
        session_id: which is also its `request_id`.
        created: when it began, as ISO 8601.
    """

    idle_s: ClassVar[float] = deepgram.IDLE_S

    def __init__(self, session_id: str, listen: Listen, created: str, limits: SessionLimits | None = None) -> None:
        super().__init__(session_id, limits)
        self.listen = listen
        self.created = created
        self.channels = [Channel() for _ in range(listen.start.n_streams)]
        self.finalizes: deque[tuple[int | None, float]] = deque()  # that wait: which channel, and after how much audio
        self.sha256 = hashlib.sha256()
        start = listen.start
        note = f"deepgram, {'a container' if listen.is_container else f'{start.encoding} {start.sample_rate} Hz'}"
        raw = Intake(start.sample_rate, start.encoding, start.channels, start.split)
        decoder: Decoder = ContainerReader() if listen.is_container else raw
        opening = Opening(listen.config(), start.model, start.n_streams, start.partials, note, start.hotwords)
        self.begin(opening, decoder)

    # The client's side

    def receive_bytes(self, data: bytes) -> list[Item]:
        if self.is_ended:
            return []
        if not data:
            return self.finish()
        self.sha256.update(data)
        try:
            return self.push(data)
        except AudioError as e:
            return self.give_up(e)

    def receive_text(self, text: str) -> list[Item]:
        if self.is_ended:
            return []
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as e:
            self.say(deepgram.schema_error(text, str(e)))
            return []
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "CloseStream":
            return self.finish()
        if kind == "Finalize":
            channel = message.get("channel")
            is_one = isinstance(channel, int) and 0 <= channel < len(self.channels)
            self.finalizes.append((channel if is_one else None, self.accepted_s))
            return [Command.FLUSH]
        if kind == "Configure":
            self.configure(message.get("keyterms"))
        elif kind != "KeepAlive":
            why = f"expected a type of KeepAlive, Finalize, CloseStream or Configure, found {shown(kind)}"
            self.say(deepgram.schema_error(text, why))
        return []

    def configure(self, keyterms: object) -> None:
        answer: Message = {"type": "ConfigureSuccess", "request_id": self.session_id, "keyterms": []}
        if keyterms:
            answer = {
                "type": "ConfigureFailure",
                "request_id": self.session_id,
                "code": "CONFIGURE_KEYTERMS_NOT_SUPPORTED",
                "description": "keyterms cannot be changed on this server",
            }
        self.say(answer)

    def finish_stream(self) -> list[Item]:
        try:
            return super().finish_stream()
        except AudioError as e:
            return self.give_up(e)

    def give_up(self, error: AudioError) -> list[Item]:
        logger.info("session %s sent what is no audio: %s", self.session_id, error)
        self.end(*deepgram.UNDECODABLE)
        return []

    def release(self) -> None:
        if isinstance(self.decoder, ContainerReader):
            self.decoder.close()

    def expire(self, idle_s: float) -> list[Item]:
        self.farewell = deepgram.NO_AUDIO
        return self.finish()

    # The engine's side

    def on_event(self, event: Event, channel: int) -> None:
        if not isinstance(event, Transcript):
            return
        state = self.channels[channel]
        self.let_go(channel)
        if event.words:
            self.end_utterance(channel, event.words[0].start_s)
        if event.words and not state.is_speaking:
            state.is_speaking = True
            if self.listen.vad_events:
                self.say(deepgram.speech_started(channel, len(self.channels), event.words[0].start_s))
        if not event.is_final:
            state.partial = event
            if self.listen.interim_results:
                end_s = max(state.said_s, self.heard_s(channel), event.end_s)
                self.tell(Span(state.said_s, end_s, event.words, is_final=False), channel)
        elif self.finalizes or self.is_ended:
            state.held = event
        else:
            self.conclude(event, channel, event.end_s, self.listen.ends_by_silence and not self.is_cut(event, channel))

    def on_progress(self, channel: int) -> None:
        partial = self.channels[channel].partial
        if partial is None or not partial.words:
            self.end_utterance(channel, self.heard_s(channel))

    def on_flushed(self) -> list[Item]:
        which, accepted_s = self.finalizes.popleft()
        for channel in range(len(self.channels)):
            if which is None or which == channel:
                self.answer(channel, accepted_s, from_finalize=True)
            else:
                self.let_go(channel)
        return []

    def on_finished(self) -> list[Item]:
        for channel in range(len(self.channels)):
            self.answer(channel, self.accepted_s, from_finalize=False)
        if self.farewell[0] == 1000:
            digest = self.sha256.hexdigest()
            self.say(deepgram.metadata(self.listen, self.session_id, self.created, self.accepted_s, digest))
        self.end(*self.farewell)
        return []

    # Messages

    def end_utterance(self, channel: int, quiet_until_s: float) -> None:
        """UtteranceEnd, where no word followed the last final for long enough."""
        state, gap_ms = self.channels[channel], self.listen.utterance_end_ms
        if gap_ms is None or state.last_word_s is None or quiet_until_s - state.last_word_s < gap_ms / 1000:
            return
        self.say(deepgram.utterance_end(channel, len(self.channels), state.last_word_s))
        state.last_word_s, state.is_speaking = None, False

    def is_cut(self, final: Transcript, channel: int) -> bool:
        """Whether a segment ended by its length, amid speech: then its last partial went on after its last word."""
        assert self.opening is not None
        rules, partial = self.opening.config.endpoint, self.channels[channel].partial
        if partial is None or not partial.words or not final.words:
            return False
        longest_s = (rules.max_length - rules.before_speech) / FRAMES_PER_SECOND
        is_long = self.heard_s(channel) - partial.words[0].start_s >= longest_s
        return is_long and partial.words[-1].start_s >= final.end_s

    def let_go(self, channel: int) -> None:
        """Tells a final that is not the last before a Finalize."""
        held, self.channels[channel].held = self.channels[channel].held, None
        if held is not None:
            self.conclude(held, channel, held.end_s, self.listen.ends_by_silence)

    def answer(self, channel: int, end_s: float, from_finalize: bool) -> None:
        """The final span up to a Finalize or the end, with the words that were held back if there are any."""
        held, self.channels[channel].held = self.channels[channel].held, None
        self.conclude(held, channel, end_s, True, from_finalize)

    def conclude(
        self, final: Transcript | None, channel: int, end_s: float, speech_final: bool, from_finalize: bool = False
    ) -> None:
        state = self.channels[channel]
        words: tuple[Word, ...] = final.words if final is not None else ()
        span = Span(state.said_s, max(state.said_s, end_s), words, True, speech_final, from_finalize)
        self.drop(f"interim {channel}")
        self.tell(span, channel)
        state.said_s, state.partial = span.end_s, None
        state.last_word_s = words[-1].end_s if words else state.last_word_s
        state.is_speaking = state.is_speaking and not speech_final

    def tell(self, span: Span, channel: int) -> None:
        message = deepgram.results(span, channel, self.listen, self.session_id)
        self.say(message, "" if span.is_final else f"interim {channel}")
