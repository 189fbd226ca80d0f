"""The peers as live systems: Whisper heard again and again with local agreement, and PocketSphinx's own stream.

LocalAgreement-2 follows Macháček et al. 2023 (section 2): the buffered audio is transcribed whenever a second of it
is new; what two transcriptions in a row begin with alike is committed, and the buffer is cut at committed words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.audio import SAMPLE_RATE, Samples, encode_pcm16
from streamer.bench.metrics import common_prefix
from streamer.bench.replay import Listener, Shown, ShownWord
from streamer.bench.systems import open_faster_whisper, open_pocketsphinx

MIN_CHUNK_S = 1.0  # new audio before the buffer is transcribed again
BUFFER_S = 15.0  # a longer buffer is cut
PROMPT_WORDS = 40  # that have left the buffer and are told to the model
SLACK_S = 0.1  # a word may begin this much before the last committed one ended
RESAID = 5  # words, at most, that are said again after their commit


@dataclass(slots=True)
class LocalAgreement:
    """What two hypotheses in a row agree on is committed."""

    committed: list[ShownWord] = field(default_factory=list)
    provisional: list[ShownWord] = field(default_factory=list)

    @property
    def committed_s(self) -> float:
        """Where the last committed word ends."""
        return self.committed[-1].end_s if self.committed else 0.0

    @property
    def shown(self) -> Shown:
        return (*self.committed, *self.provisional), len(self.committed)

    def hear(self, words: Sequence[ShownWord]) -> None:
        """Takes in the next hypothesis, which may begin before what is committed."""
        fresh = [word for word in words if word.start_s > self.committed_s - SLACK_S]
        for n in range(min(RESAID, len(fresh), len(self.committed)), 0, -1):
            if spelled(fresh[:n]) == spelled(self.committed[-n:]) and fresh[0].start_s < self.committed_s + 1:
                fresh = fresh[n:]
                break
        n = common_prefix(spelled(self.provisional), spelled(fresh))
        self.committed += fresh[:n]
        self.provisional = fresh[n:]

    def finish(self) -> None:
        self.committed += self.provisional
        self.provisional = []


def spelled(words: Sequence[ShownWord]) -> list[str]:
    """Letters and digits alone: signs come and go between hypotheses."""
    return [re.sub(r"[^\w']", "", word.text).lower() for word in words]


class WhisperListener:
    """faster-whisper through local agreement."""

    takes_all = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.buffer: Samples = np.zeros(0, np.float32)
        self.offset_s = 0.0  # of the buffer's first sample
        self.n_new = 0
        self.agreement = LocalAgreement()

    def push(self, samples: Samples) -> Iterator[Shown]:
        self.buffer = np.concatenate([self.buffer, samples])
        self.n_new += len(samples)
        if self.n_new >= MIN_CHUNK_S * SAMPLE_RATE:
            self.transcribe()
            yield self.agreement.shown

    def finish(self) -> Iterator[Shown]:
        if self.n_new:
            self.transcribe()
        self.agreement.finish()
        yield self.agreement.shown

    def transcribe(self) -> None:
        self.n_new = 0
        before = [word.text for word in self.agreement.committed if word.end_s <= self.offset_s]
        segments, _ = self.model.transcribe(
            self.buffer,
            language="en",
            beam_size=1,
            vad_filter=False,
            word_timestamps=True,
            condition_on_previous_text=False,
            initial_prompt=" ".join(before[-PROMPT_WORDS:]) or None,
        )
        found = list(segments)
        self.agreement.hear(
            [
                ShownWord(word.word.strip(), self.offset_s + word.start, self.offset_s + word.end, word.probability)
                for segment in found
                for word in segment.words
            ]
        )
        if len(self.buffer) > BUFFER_S * SAMPLE_RATE:
            done_s = self.agreement.committed_s
            ends = [self.offset_s + segment.end for segment in found if self.offset_s + segment.end <= done_s]
            self.cut(ends[-1] if ends else done_s)

    def cut(self, at_s: float) -> None:
        n = min(len(self.buffer), max(0, round((at_s - self.offset_s) * SAMPLE_RATE)))
        self.buffer = self.buffer[n:]
        self.offset_s += n / SAMPLE_RATE


class PocketSphinxListener:
    """PocketSphinx's partial hypotheses; all is provisional until the end."""

    takes_all = False

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.decoder.start_utt()

    def push(self, samples: Samples) -> Iterator[Shown]:
        self.decoder.process_raw(encode_pcm16(samples))
        yield decoded_words(self.decoder), 0

    def finish(self) -> Iterator[Shown]:
        self.decoder.end_utt()
        words = decoded_words(self.decoder)
        yield words, len(words)


def decoded_words(decoder: Any) -> tuple[ShownWord, ...]:
    """What PocketSphinx has decoded, without silences, noises and the numbers of pronunciations."""
    if decoder.hyp() is None:
        return ()
    return tuple(
        ShownWord(segment.word.split("(")[0], segment.start_frame / 100, (segment.end_frame + 1) / 100, float("nan"))
        for segment in decoder.seg()
        if segment.word[0] not in "<["
    )


def load_peer(name: str, threads: int | None) -> Callable[[], Listener]:
    """A function that begins a new stream of a peer.

    Raises:
        ValueError: the peer is not installed.
    """
    if name == "pocketsphinx":
        decoder = open_pocketsphinx()
        return lambda: PocketSphinxListener(decoder)
    model = open_faster_whisper(name, threads)
    return lambda: WhisperListener(model)
