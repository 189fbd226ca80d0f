"""The websocket protocol of vosk-server (alphacep/vosk-server, `websocket/asr_server.py`), which ignores the path.

Lockstep: every message with audio, `eof` and `reset` get exactly one reply each, in order, and nothing else is ever
said. Audio is answered at once with the newest partial there is, or with a final that has not been told; `eof` and
`reset` wait for the last words. The phrases of `phrase_list` are hot words where the server has a beam, and no grammar
that forbids all others. Settings of other servers are accepted and change nothing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from core.beam import HOTWORD_WEIGHT
from core.transcript import Event, Transcript, Word
from streamer.dialect import Dialect
from streamer.hotwords import LETTERS, MOST, HotWords, bounded
from streamer.intake import Intake
from streamer.job import Command, Item, Opening
from streamer.protocols.native import SAMPLE_RATES, Message, Start, shown
from streamer.session import LONG_IDLE_S, POLICY, SessionLimits

SAMPLE_RATE = 8000  # of clients that send no config
BAD_DATA = 1007  # websocket close code


class Vosk(Dialect):
    """One connection.

    Args:
        defaults: latency, endpoint and model.
        models: that a config may name; any other name means the default.
    """

    takes_pieces: ClassVar[bool] = False  # a message is a reply
    idle_s: ClassVar[float] = LONG_IDLE_S

    def __init__(
        self, session_id: str, defaults: Start, models: Sequence[str] = (), limits: SessionLimits | None = None
    ) -> None:
        super().__init__(session_id, limits)
        self.start = replace(defaults, sample_rate=SAMPLE_RATE, encoding="pcm_s16le", channels=1, split=False)
        self.models = models
        self.words = True
        self.alternatives = 0
        self.partial = ""
        self.finals: deque[Transcript] = deque()  # not told yet
        self.owed: deque[Command | None] = deque()  # replies, from the first that waits for its command on

    # The client's side

    def receive_bytes(self, data: bytes) -> list[Item]:
        if self.is_ended:
            return []
        if self.opening is None:
            note = f"vosk, {self.start.sample_rate} Hz"
            opening = Opening(self.start.config(), self.start.model, note=note, hotwords=self.start.hotwords)
            self.begin(opening, Intake(self.start.sample_rate, self.start.encoding, self.start.channels))
        items = self.push(data)
        self.owed.append(None)
        self.pay()
        return items

    def receive_text(self, text: str) -> list[Item]:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            self.end(BAD_DATA, "expected JSON")
            return []
        if self.is_ended or not isinstance(message, dict):
            return []
        if "config" in message:
            self.configure(message["config"])
        elif message.get("eof"):
            self.owed.append(Command.FINISH)
            return self.finish()
        elif message.get("reset"):
            self.owed.append(Command.FLUSH)
            if self.opening is not None:
                return [Command.FLUSH]
            self.on_flushed()
        return []

    def configure(self, config: object) -> None:
        """Takes what is known; the rate counts until the first audio."""
        options: Mapping[str, object] = config if isinstance(config, dict) else {}
        try:
            rate = number(options, "sample_rate", self.start.sample_rate)
            self.alternatives = number(options, "max_alternatives", self.alternatives)
            if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
                lowest, highest = SAMPLE_RATES
                raise ValueError(f"expected a sample_rate of {lowest} to {highest}. Found: {rate:.6g}")
        except ValueError as e:
            self.end(POLICY, str(e))
            return
        self.words = bool(options.get("words", self.words))
        model = options.get("model")
        named = model if isinstance(model, str) and model in self.models else self.start.model
        hotwords = phrases(options["phrase_list"]) if "phrase_list" in options else self.start.hotwords
        self.start = replace(self.start, sample_rate=rate, model=named, hotwords=hotwords)

    # The engine's side

    def on_event(self, event: Event, channel: int) -> None:
        if not isinstance(event, Transcript):
            return
        self.partial = "" if event.is_final else event.text
        if event.is_final:
            self.finals.append(event)

    def on_flushed(self) -> list[Item]:
        self.owed.popleft()
        self.conclude()
        self.pay()
        return []

    def on_finished(self) -> list[Item]:
        if self.owed or self.finals:  # without `eof`, where it is the server that ends
            self.conclude()
        self.end(*self.farewell)
        return []

    # Replies

    def conclude(self) -> None:
        """Replies with all that was not told."""
        self.say(self.final(self.finals))
        self.finals.clear()

    def pay(self) -> None:
        """Replies to audio, up to the next command that waits."""
        while self.owed and self.owed[0] is None:
            self.owed.popleft()
            if self.finals:
                self.say(self.final([self.finals.popleft()]))
            else:
                self.say({"partial": self.partial})

    def final(self, finals: Iterable[Transcript]) -> Message:
        """One reply for any number of segments."""
        finals = list(finals)
        words = [word for final in finals for word in final.words]
        text = " ".join(final.text for final in finals if final.text)
        result = [word_object(word) for word in words] if self.words and words else []
        if self.alternatives > 0:
            listed = [{key: entry[key] for key in ("start", "end", "word")} for entry in result]
            alternative = {"confidence": confidence(words), **({"result": listed} if listed else {}), "text": text}
            return {"alternatives": [alternative]}
        return {**({"result": result} if result else {}), "text": text}


def number(options: Mapping[str, object], name: str, default: int) -> int:
    """Raises ValueError, which names it."""
    found = options.get(name, default)
    try:
        return int(float(str(found)))
    except (ValueError, OverflowError) as e:
        raise ValueError(f"expected a number as {name}. Found: {shown(found)}") from e


def phrases(value: object) -> HotWords:
    """As many of a `phrase_list` as a session may have; `[unk]` and the like are none."""
    listed = value if isinstance(value, list) else []
    words = [word for word in listed if isinstance(word, str) and len(word) <= LETTERS and not word.startswith("[")]
    return bounded((word, HOTWORD_WEIGHT) for word in words[:MOST])


def word_object(word: Word) -> Message:
    return {"conf": round(word.confidence, 6), "end": word.end_s, "start": word.start_s, "word": word.text}


def confidence(words: Sequence[Word]) -> float:
    """Mean of the words'; 1 for silence, as upstream says."""
    return round(sum(word.confidence for word in words) / len(words), 6) if words else 1.0
