"""Syllables and words that texts are made of, and trees of them: what `core.rescorer` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from math import inf

END, BEGIN = 0, 1  # ids of what follows the last piece, and of what comes before the first
N_SPECIAL = 2
KNOWN_WORDS = 1 << 14  # whose pieces are kept
MERGE, NEAR = 4, 3  # texts go on as one where they had so many pieces alike, at places so near to each other


@dataclass(frozen=True)
class Pieces:
    """What texts are made of: letters, syllables and words, which begin with a space where they begin a word.

    Words are cut as the decoder was taught to read them, by byte pair encoding (Sennrich et al. 2016,
    https://arxiv.org/abs/1508.07909): of two neighbours that are a piece together, those become one whose piece stands
    first in `texts`. Cut by the longest match, each word of a text is half a nat less likely to Whisper's decoder.
    """

    texts: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.texts, N_SPECIAL)}

    @cached_property
    def split(self) -> Callable[[str], tuple[int, ...]]:
        """The pieces of one word in lower case; those of the newest words are kept."""
        return lru_cache(KNOWN_WORDS)(self.merge)

    def text(self, piece: int) -> str:
        """What an id stands for; nothing where it is `BEGIN` or `END`."""
        return self.texts[piece - N_SPECIAL] if piece >= N_SPECIAL else ""

    def begins(self, piece: int) -> bool:
        """Whether a word begins with it."""
        return self.text(piece).startswith(" ")

    def encode(self, text: str) -> list[int]:
        """The pieces of a text's words. Letters that are none are left out."""
        return [piece for word in text.lower().split() for piece in self.split(word)]

    def merge(self, word: str) -> tuple[int, ...]:
        """See `split`; nothing is kept."""
        letters = [letter for letter in word if letter in self.ids]
        first, *rest = merged([" ", *letters], self.ids)
        if first == " " and rest and f" {rest[0][0]}" in self.ids:  # no piece by itself
            first, rest = " " + rest[0][0], [*rest[0][1:], *rest[1:]]
        return tuple(self.ids[part] for part in (first, *rest) if part in self.ids)


def merged(parts: list[str], ranks: Mapping[str, int], below: float = inf) -> list[str]:
    """Neighbours made one, those of the lowest rank first, as long as some have a rank below that one."""
    while len(parts) > 1:
        rank, i = min((ranks.get(a + b, inf), i) for i, (a, b) in enumerate(pairwise(parts)))
        if rank >= below:
            break
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return parts


@dataclass(slots=True)
class Tree:
    """The pieces of texts, those that are alike in one node; it grows, and node 0 is `BEGIN`.

    The best texts of a search differ in a few words. Each beginning is there once, and some pieces after a difference
    the texts go on as one again: what follows is read after the first of both beginnings alone. Of the texts of 338
    recordings that leaves a third of the pieces, and the order as good as it was.
    """

    pieces: list[int] = field(default_factory=lambda: [BEGIN])  # of each node
    places: list[int] = field(default_factory=lambda: [0])  # in the text
    paths: list[frozenset[int]] = field(default_factory=lambda: [frozenset()])  # the nodes that lead to it
    lasts: list[tuple[int, ...]] = field(default_factory=lambda: [(BEGIN,) * MERGE])  # its last pieces
    newest: dict[tuple[int, ...], int] = field(default_factory=dict)  # node that has those

    def follow(self, node: int, piece: int) -> int:
        """The node of a piece after that one, made where there is none."""
        last, place = (*self.lasts[node][1:], piece), self.places[node] + 1
        found = self.newest.get(last, -1)
        if found < 0 or abs(self.places[found] - place) > NEAR or found in self.paths[node] or found == node:
            found = self.newest[last] = len(self.pieces)
            self.pieces.append(piece)
            self.places.append(place)
            self.paths.append(self.paths[node] | {node})
            self.lasts.append(last)
        return found

    def walk(self, text: Sequence[int]) -> list[int]:
        """The nodes of a text, from the first on: one more than it has pieces."""
        nodes = [0]
        for piece in text:
            nodes.append(self.follow(nodes[-1], piece))
        return nodes
