"""Syllables and words that texts are made of, and trees of them: what `core.rescorer` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

END, BEGIN = 0, 1  # ids of what follows the last piece, and of what comes before the first
N_SPECIAL = 2
MERGE, NEAR = 4, 3  # texts go on as one where they had so many pieces alike, at places so near to each other


@dataclass(frozen=True)
class Pieces:
    """What texts are made of: letters, syllables and words, which begin with a space where they begin a word."""

    texts: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.texts, N_SPECIAL)}

    @cached_property
    def longest(self) -> int:
        return max(map(len, self.texts))

    def text(self, piece: int) -> str:
        """What an id stands for; nothing where it is `BEGIN` or `END`."""
        return self.texts[piece - N_SPECIAL] if piece >= N_SPECIAL else ""

    def begins(self, piece: int) -> bool:
        """Whether a word begins with it."""
        return self.text(piece).startswith(" ")

    def encode(self, text: str) -> list[int]:
        """The pieces of words, the longest that fit, from left to right. Letters that are none are left out."""
        ids: list[int] = []
        for word in text.lower().split():
            rest = f" {word}"
            while rest:
                n = next((n for n in range(min(self.longest, len(rest)), 0, -1) if rest[:n] in self.ids), 0)
                if n:
                    ids.append(self.ids[rest[:n]])
                rest = rest[max(n, 1) :]
        return ids


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
