"""CTC frames to words, with their frames and confidence (Graves et al. 2006, best path decoding).

Repeats are collapsed on raw ids first and blanks dropped afterwards, so double letters survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import pairwise
from math import exp
from operator import add
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from core.seam import Ints, Marks
from core.stitcher import Ids, LogProbs, Scores

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

    def __call__(self, log_probs: LogProbs, start_frame: int) -> list[WordSpan]:
        return decode_greedy(log_probs, start_frame, self.alphabet)


def decode_greedy(log_probs: LogProbs, start_frame: int, alphabet: Alphabet) -> list[WordSpan]:
    """The words of the best path.

    Args:
        log_probs: (n_frames, n_vocab), raw frames with blanks.
        start_frame: the stream's frame of row 0.

    `A A _ A | B` -> `AA` and `B`.
    """
    ids = log_probs.argmax(1) if len(log_probs) else np.zeros(0, np.int64)
    return decode_path(Path(ids, log_probs[np.arange(len(ids)), ids], start_frame), alphabet)


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The likeliest ids of frames that follow each other, and their log-probabilities."""

    ids: Ids  # (n_frames,)
    scores: Scores  # (n_frames,)
    start_frame: int  # the stream's frame of the first

    @classmethod
    def of(cls, marks: Marks, start_frame: int) -> Path:
        return cls(marks[:, 0].astype(np.int64), marks[:, 1], start_frame)


def confidence_of(mean: float) -> float:
    """Of a word, by the mean log-probability of its letters."""
    return min(1.0, round(exp(mean), 4))


def confidences(means: NDArray[np.float64]) -> list[float]:
    """`confidence_of` of each. Half-way between two, where an error of rounding would matter, it is asked itself."""
    wanted = 1e4 * np.exp(means)
    nearest = np.rint(wanted)
    values: list[float] = np.minimum(nearest / 1e4, 1.0).tolist()
    for i in np.flatnonzero(abs(wanted - nearest) > 0.4999).tolist():
        values[i] = confidence_of(float(means[i]))
    return values


def decode_path(path: Path, alphabet: Alphabet) -> list[WordSpan]:
    """The words of one best path."""
    ids, scores = path.ids, path.scores
    told = np.flatnonzero(ids != alphabet.blank)
    tokens = ids[told]
    names, delimiter = alphabet.letters(), alphabet.delimiter
    words: list[WordSpan] = []
    letters: list[str] = []  # of the running word
    heard: list[float] = []  # of each letter's likeliest row
    start = end = 0  # rows of the word so far
    last, token = -2, -1  # row before, and its token

    def close() -> None:
        if letters:
            confidence = confidence_of(reduce(add, heard) / len(letters))
            words.append(WordSpan("".join(letters), path.start_frame + start, path.start_frame + end, confidence))
            letters.clear()
            heard.clear()

    for row, new, score in zip(told.tolist(), tokens.tolist(), scores[told].tolist(), strict=True):
        is_repeat, last, token = new == token and row == last + 1, row, new
        letter = names[new]
        if letter is None:
            if new == delimiter:
                close()
            continue
        if is_repeat:
            if score > heard[-1]:
                heard[-1] = score
        else:
            if row - end >= MAX_LETTER_GAP:
                close()
            if not letters:
                start = row
            letters.append(letter)
            heard.append(score)
        end = row + 1
    close()
    return words


@dataclass(frozen=True, slots=True, eq=False)
class Spelled:
    """The words of many paths, one behind the other: as those of `WordSpan`, a column each."""

    texts: list[str]
    starts: Ints
    ends: Ints
    confidences: list[float]
    bounds: Ints  # (n_paths + 1,) the words [bounds[i], bounds[i + 1]) are those of path i


def spell_paths(paths: Sequence[tuple[Marks, int]], alphabet: Alphabet) -> Spelled:
    """What `decode_path` finds in each of many paths, to the bit, with most of the work done at once.

    Args:
        paths: marks and the stream's frame of the first.
    """
    lengths, first_frames = np.array([(len(of), first) for of, first in paths]).T
    together = np.concatenate([of for of, _ in paths])
    ends = np.cumsum(lengths)
    rows = np.flatnonzero(together[:, 0] != alphabet.blank)  # of all paths, one behind the other
    tokens, scores = together[rows, 0].astype(np.int64), together[rows, 1]
    owners = np.searchsorted(ends, rows, "right")  # which path a row is of
    is_repeat = np.zeros(len(rows), np.bool_)
    is_repeat[1:] = (tokens[1:] == tokens[:-1]) & (np.diff(rows) == 1) & (owners[1:] == owners[:-1])
    n_delimiters = np.cumsum(tokens == alphabet.delimiter)

    # From here on rows with letters alone.
    spoken = np.flatnonzero(alphabet.is_letter()[tokens])
    if not len(spoken):
        none = np.zeros(0, np.int64)
        return Spelled([], none, none, [], np.zeros(len(paths) + 1, np.int64))
    rows, owners, n_delimiters = rows[spoken], owners[spoken], n_delimiters[spoken]
    is_first = np.ones(len(spoken), np.bool_)  # of its word
    is_first[1:] = (
        (n_delimiters[1:] != n_delimiters[:-1]) | (np.diff(rows) > MAX_LETTER_GAP) | (owners[1:] != owners[:-1])
    )
    begins = np.flatnonzero(~is_repeat[spoken])  # of letters
    best = np.maximum.reduceat(scores[spoken], begins)  # each letter's likeliest row
    words = np.flatnonzero(is_first[begins])  # the first letter of each
    bounds = [*words.tolist(), len(begins)]
    numbers = np.cumsum(is_first[begins]) - 1  # the word of each letter
    sure = confidences(np.bincount(numbers, best) / np.bincount(numbers))
    firsts = np.flatnonzero(is_first)
    lasts = np.append(firsts[1:], len(spoken)) - 1
    of_word = owners[firsts]
    offsets = (first_frames - ends + lengths)[of_word]
    names = alphabet.letters()
    letters = [names[token] or "" for token in tokens[spoken[begins]].tolist()]
    texts = ["".join(letters[a:b]) for a, b in pairwise(bounds)]
    cuts = np.searchsorted(of_word, np.arange(len(paths) + 1))
    return Spelled(texts, rows[firsts] + offsets, rows[lasts] + offsets + 1, sure, cuts)
