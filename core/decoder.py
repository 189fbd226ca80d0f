"""CTC frames to words, with their frames and confidence (Graves et al. 2006, best path decoding).

Repeats are collapsed on raw ids first and blanks dropped afterwards, so double letters survive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from core.stitcher import Ids, LogProbs

MAX_LETTER_GAP = 50  # frames; letters further apart than a second are not of one word


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What the ids of a CTC model stand for."""

    tokens: tuple[str, ...]
    blank: int
    delimiter: int
    special: frozenset[int] = frozenset()  # neither letter, blank nor delimiter: never shown

    @property
    def silent(self) -> tuple[int, int]:
        return (self.blank, self.delimiter)

    @cache  # noqa: B019, as few as there are models
    def is_letter(self) -> NDArray[np.bool_]:
        """(n_vocab,) True for the ids that become text."""
        return np.array([letter is not None for letter in self.letters()])

    @cache  # noqa: B019
    def letters(self) -> tuple[str | None, ...]:
        """(n_vocab,) the text of each id; None for those that never become text."""
        silent = self.special | set(self.silent)
        return tuple(None if i in silent else token for i, token in enumerate(self.tokens))

    @cache  # noqa: B019
    def ids(self) -> dict[str, int]:
        """The id of each letter, which may be several characters; of two that are alike, the first's."""
        return {letter: i for i, letter in reversed(list(enumerate(self.letters()))) if letter}


@dataclass(frozen=True, slots=True)
class WordSpan:
    """A word on the frame grid: its first letter starts in `start_frame`, its last ends before `end_frame`."""

    text: str
    start_frame: int
    end_frame: int
    confidence: float  # geometric mean of its letters' probabilities, in [0, 1]


class Decode(Protocol):
    """From frames to words."""

    def __call__(self, log_probs: LogProbs, start_frame: int) -> list[WordSpan]:
        """The words of (n_frames, n_vocab) raw rows, the first of which is the stream's frame `start_frame`."""


@runtime_checkable
class DecodeStates(Protocol):
    """A decoder that also reads the states after some of the encoder's blocks, of final passes."""

    @property
    def n_blocks(self) -> int:
        """After how many; 0: it goes by rows alone."""

    def __call__(self, log_probs: LogProbs, start_frame: int, states: LogProbs | None = None) -> list[WordSpan]:
        """As `Decode`, with the (n_frames, hidden) states of the same frames."""


def reads_after(decode: Decode) -> int:
    """After how many of the encoder's blocks a decoder wants the states of final passes; 0: it goes by rows alone."""
    return decode.n_blocks if isinstance(decode, DecodeStates) else 0


def draft(decode: Decode) -> Decode:
    """What decodes partials in its place: they come often, and one that is quicker says nearly the same."""
    quicker: Decode = getattr(decode, "draft", decode)
    return quicker


@dataclass(frozen=True, slots=True)
class GreedyDecoder:
    """The words of the likeliest frames."""

    alphabet: Alphabet

    def __call__(self, log_probs: LogProbs, start_frame: int, ids: Ids | None = None) -> list[WordSpan]:
        return decode_greedy(log_probs, start_frame, self.alphabet, ids)


def decode_greedy(log_probs: LogProbs, start_frame: int, alphabet: Alphabet, ids: Ids | None = None) -> list[WordSpan]:
    """The words of the best path.

    Args:
        log_probs: (n_frames, n_vocab), raw frames with blanks.
        start_frame: the stream's frame of row 0.
        ids: (n_frames,) the likeliest of each row, where they are known.

    `A A _ A | B` -> `AA` and `B`.
    """
    if ids is None:
        ids = log_probs.argmax(1) if len(log_probs) else np.zeros(0, np.int64)
    told = np.flatnonzero(ids != alphabet.blank)
    tokens = ids[told]
    names, delimiter = alphabet.letters(), alphabet.delimiter
    words: list[WordSpan] = []
    letters: list[str] = []  # of the running word
    scores: list[float] = []  # of each letter's likeliest row
    start = end = 0  # rows of the word so far
    last, token = -2, -1  # row before, and its token

    def close() -> None:
        if letters:
            confidence = min(1.0, round(math.exp(sum(scores) / len(letters)), 4))
            words.append(WordSpan("".join(letters), start_frame + start, start_frame + end, confidence))
            letters.clear()
            scores.clear()

    for row, new, score in zip(told.tolist(), tokens.tolist(), log_probs[told, tokens].tolist(), strict=True):
        is_repeat, last, token = new == token and row == last + 1, row, new
        letter = names[new]
        if letter is None:
            if new == delimiter:
                close()
            continue
        if is_repeat:
            if score > scores[-1]:
                scores[-1] = score
        else:
            if row - end >= MAX_LETTER_GAP:
                close()
            if not letters:
                start = row
            letters.append(letter)
            scores.append(score)
        end = row + 1
    close()
    return words
