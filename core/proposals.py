"""Texts that a search did not find, proposed by the decoder that reads its best ones.

What reads a text (`core.rescorer`) says at each piece what it would rather have read. So it writes a text by itself,
along those that it has read wherever it agrees, and each difference is a change that may be made. And where another
piece is about as likely, it goes on from there to the end of a word or a few, behind which the rest of the text is
joined again, with a word more or less. Such changes are judged as all texts are: by the frames, the language model and
the decoder together, so that what was not heard has no chance. Those that are better are made, and looked at again.

One word at a time, in all places at once, it is a batched and local form of joint CTC and attention decoding (Watanabe
et al. 2017, https://doi.org/10.1109/JSTSP.2017.2763455), whose search writes the whole text piece by piece.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from itertools import dropwhile, pairwise

import numpy as np
from numpy.typing import NDArray

from core.aligner import align_words, spell
from core.decoder import Alphabet, GreedyDecoder, WordSpan
from core.likelihood import log_likelihoods, without_pauses
from core.pieces import BEGIN, END
from core.rescorer import Reading, Rescorer
from core.stitcher import LogProbs

BRANCHES = 32  # pieces tried in all places of a text
READ = 16  # changes of one round that the decoder reads
MORE = 6  # pieces than the longest text that was read has: then it stops writing
GUESS = 3  # pieces behind a new one that are read with it
NEXT = 6  # pieces of a text among which a new one may be
HOPE = 6.0  # natural logarithm: how much worse than the text a change may promise to be that it reads

Prior = Callable[[Sequence[str]], Sequence[float]]  # of texts, what the language model adds to their scores


@dataclass(frozen=True, slots=True)
class Reach:
    """How much is proposed."""

    margin: float  # natural logarithm: how much likelier than another piece the one in the text may be
    others: int  # pieces tried at one place
    steps: int  # pieces that a branch may have from there on
    rounds: int


NEAR, FAR = Reach(0.0, 1, 2, 2), Reach(3.0, 3, 5, 6)  # of texts that a language model had its say in, and of others


@dataclass(frozen=True, slots=True)
class Change:
    """Words `first` to `end` of a text become others."""

    first: int
    end: int
    words: tuple[str, ...]

    def of(self, words: Sequence[str]) -> list[str]:
        return [*words[: self.first], *self.words, *words[self.end :]]

    def trimmed(self, words: Sequence[str]) -> Change:
        """Without the words at both ends that stay as they are."""
        first, end, own = self.first, self.end, list(self.words)
        while own and first < end and own[0] == words[first]:
            first, own = first + 1, own[1:]
        while own and first < end and own[-1] == words[end - 1]:
            end, own = end - 1, own[:-1]
        return Change(first, end, tuple(own))

    def is_beside(self, other: Change) -> bool:
        """Whether both can be made."""
        return (
            self.end < other.first
            or other.end < self.first
            or (
                (self.end == other.first or other.end == self.first)
                and self.first < self.end
                and other.first < other.end
            )
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """Where the decoder left a text: pieces in place of those from the beginning of word `first` on."""

    first: int
    pieces: tuple[int, ...]
    node: int  # of the last one
    log_prob: float  # of the text up to there


@dataclass(frozen=True, slots=True)
class Read:
    """A text as it was read."""

    words: list[str]  # as pieces write them
    ids: list[int]
    starts: list[int]  # place of the first piece of each word, and of the end
    nodes: list[int]  # before each piece, and before the end
    sums: NDArray[np.float64]  # log-probability of what is before each place, and of all

    @classmethod
    def of(cls, text: str, nodes: list[int], reading: Reading) -> Read | None:
        """None where it is too long to be read to its end."""
        words, ids, starts = text.lower().split(), list[int](), [0]
        for word in words:
            ids += reading.rescorer.pieces.encode(word)
            starts.append(len(ids))
        if len(ids) + 1 != len(nodes):
            return None
        said = reading.log_probs[nodes, [*ids, END]]
        return cls(words, ids, starts, nodes, np.concatenate([[0.0], np.cumsum(said, dtype=np.float64)]))

    def word_at(self, place: int, is_new: bool) -> int:
        """The word that another piece at a place is of, or follows in the midst of, where a word is new with it."""
        word = bisect_left(self.starts, place)
        return word if is_new and self.starts[word] == place else word - 1

    def ends(self, first: int, n: int, is_end: bool) -> range:
        """Before which words the text may go on after `n` new ones, in place of as many, or of one more or less."""
        last = len(self.words)
        return range(last, last + 1) if is_end else range(max(first, first + n - 1), min(last, first + n + 1) + 1)

    def rest(self, word: int) -> float:
        """Log-probability of the text from a word on."""
        return float(self.sums[-1] - self.sums[self.starts[word]])

    def goes_on(self, word: int, piece: str) -> bool:
        """Whether a piece begins as one of the words around that one does, so that nothing new comes."""
        near = self.words[max(0, word - 1) : word + 2]
        return piece.startswith(" ") and len(piece) > 2 and any(own.startswith(piece[1:]) for own in near)


@dataclass
class Proposals:
    """The texts of one audio and how good they are.

    Args:
        log_probs: (n_frames, n_vocab).
        states: (n_frames, hidden) that the rescorer reads.
        has_model: whether a language model is in the prior.
        priors: of texts, where they are known.
    """

    rescorer: Rescorer
    alphabet: Alphabet
    log_probs: LogProbs
    states: NDArray[np.float32]
    prior: Prior | None = None
    has_model: bool = False
    priors: dict[str, float] = field(default_factory=dict)
    judged: dict[str, float] = field(default_factory=dict)  # by frames and language model; hopeless ones are −inf
    scores: dict[str, float] = field(default_factory=dict)  # and by the decoder
    nodes: dict[str, list[int]] = field(default_factory=dict)  # of texts that were read
    written: str = ""  # what the decoder writes by itself

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.rescorer, self.states)

    @property
    def reach(self) -> Reach:
        return NEAR if self.has_model else FAR

    @property
    def weight(self) -> float:
        """Of the decoder's log-probability."""
        return self.rescorer.config.weight if self.has_model else self.rescorer.config.alone

    def best(self, texts: Sequence[str]) -> str:
        """The best of some texts and of what comes of them."""
        self.consider(texts)
        if not self.scores:
            return texts[0] if texts else ""
        self.written = self.write()
        self.consider([self.written] if self.written else [])
        text = max(self.scores, key=self.scores.__getitem__)
        for _ in range(self.reach.rounds):
            text, before = self.improve(text), text
            if text == before:
                break
        return text

    def consider(self, texts: Sequence[str]) -> None:
        """Judges texts and reads those that the frames can hold."""
        self.judge(texts)
        self.read(text for text in texts if np.isfinite(self.judged[text]))

    def judge(self, texts: Iterable[str]) -> None:
        """By frames and language model."""
        new = [text for text in dict.fromkeys(texts) if text not in self.judged]
        if not new:
            return
        frames = log_likelihoods(self.log_probs, [self.labels(text) for text in new], self.alphabet.silent)
        if self.prior is not None:
            unknown = [text for text in new if text not in self.priors]
            self.priors |= zip(unknown, self.prior(unknown), strict=True)
        priors = np.array([self.priors.get(text, 0.0) for text in new])
        self.judged |= zip(new, (self.rescorer.config.frames * frames + priors).tolist(), strict=True)

    def read(self, texts: Iterable[str]) -> None:
        """By the decoder, those that were judged."""
        new = [text for text in dict.fromkeys(texts) if text not in self.scores]
        for text, nodes in zip(new, self.reading.read(new), strict=True):
            self.nodes[text] = nodes
            self.scores[text] = self.judged[text] + self.weight * self.reading.log_prob(nodes)

    def write(self) -> str:
        """What the decoder writes by itself, the likeliest piece at a time; nothing where the alphabet lacks a letter.

        Along texts that were read nothing is read again (as drafts are verified by Leviathan et al. 2023,
        https://arxiv.org/abs/2211.17192).
        """
        reading, node, pieces = self.reading, 0, list[int]()
        rests, rest = self.rests(), list[int]()
        for _ in range(max(map(len, self.nodes.values())) + MORE):
            reading.catch_up()
            piece = int(reading.log_probs[node].argmax())
            if piece in (BEGIN, END):
                break
            pieces.append(piece)
            rest = rests[node] if node in rests else self.behind(piece, rest)
            node = reading.tree.follow(node, piece)
            if node >= reading.n_read:
                guess = node
                for after in rest[:GUESS]:
                    guess = reading.tree.follow(guess, after)
        return " ".join(self.words(pieces) or ())

    def rests(self) -> dict[int, list[int]]:
        """What texts that were read go on with behind the next word, by the node before that; the best come first."""
        found: dict[int, list[int]] = {}
        for text in sorted(self.nodes, key=self.scores.__getitem__, reverse=True):
            if (read := Read.of(text, self.nodes[text], self.reading)) is not None:
                for first, end in pairwise(read.starts):
                    rest = read.ids[end:]
                    for node in read.nodes[first:end]:
                        found.setdefault(node, rest)
        return found

    def behind(self, piece: int, rest: list[int]) -> list[int]:
        """What a text goes on with behind a piece that may be in place of one of its next ones."""
        if piece in rest[:NEXT]:
            return rest[rest.index(piece) + 1 :]
        begins = self.rescorer.pieces.begins
        if not begins(piece):
            return rest
        return list(dropwhile(lambda other: not begins(other), rest[1:]))

    def labels(self, text: str) -> list[int]:
        """The ids of a text, a delimiter between words."""
        ids: list[int] = []
        for word in text.split():
            ids += [self.alphabet.delimiter, *spell(word, self.alphabet)]
        return ids[1:]

    def improve(self, text: str) -> str:
        """The text with the changes that make it better."""
        words = text.split()
        found = {" ".join(change.of(words)): (change, log_prob) for change, log_prob in self.changes(text).items()}
        found.pop(text, None)
        found.pop("", None)
        self.judge(found)
        hopeful = {new: self.judged[new] + self.weight * of[1] for new, of in found.items() if new not in self.scores}
        best = sorted(hopeful, key=hopeful.__getitem__, reverse=True)[:READ]
        self.read(new for new in best if hopeful[new] > self.scores[text] - HOPE)
        better = [new for new in found if self.scores.get(new, -np.inf) > self.scores[text]]
        made: list[Change] = []
        for new in sorted(better, key=self.scores.__getitem__, reverse=True):
            change = found[new][0].trimmed(words)
            if all(change.is_beside(other) for other in made):
                made.append(change)
        if len(made) > 1:
            whole = words
            for change in sorted(made, key=lambda change: change.first, reverse=True):
                whole = change.of(whole)
            better.append(" ".join(whole))
            self.judge(better[-1:])
            self.read(better[-1:])
        return max([text, *better], key=self.scores.__getitem__)

    def changes(self, text: str) -> dict[Change, float]:
        """What the decoder writes otherwise or would rather read, and how likely, at most, it finds the text then."""
        reading, begins = self.reading, self.rescorer.pieces.begins
        found = dict.fromkeys(differences(text, self.written), 0.0)
        read = Read.of(text, self.nodes[text], reading)
        if read is None:
            return found

        def join(branch: Branch, log_prob: float, is_end: bool) -> int:
            """Adds the texts that go on behind a branch; the number of its words."""
            words = self.words(branch.pieces)
            if words is None:
                return 0
            for end in read.ends(branch.first, len(words), is_end):
                change = Change(branch.first, end, words)
                whole = log_prob if is_end else log_prob + read.rest(end)
                found[change] = max(whole, found.get(change, -np.inf))
            return len(words)

        live: list[Branch] = []
        for place, piece in self.places(read):
            first = read.word_at(place, piece == END or begins(piece))
            if first < 0:
                continue
            before = tuple(read.ids[read.starts[first] : place])
            log_prob = float(read.sums[place] + reading.log_probs[read.nodes[place], piece])
            if piece == END:
                join(Branch(first, before, 0, log_prob), log_prob, True)
            else:
                node = reading.tree.follow(read.nodes[place], piece)
                live.append(Branch(first, (*before, piece), node, log_prob))
        for _ in range(self.reach.steps):
            reading.catch_up()
            going: list[Branch] = []
            for branch in live:
                row = reading.log_probs[branch.node]
                piece = int(row.argmax())
                log_prob = branch.log_prob + float(row[piece])
                if piece == END:
                    join(branch, log_prob, True)
                n = join(branch, branch.log_prob, False) if piece == END or begins(piece) else 0
                if piece > END and not read.goes_on(branch.first + n, self.rescorer.pieces.text(piece)):
                    going.append(replace(branch, pieces=(*branch.pieces, piece), log_prob=log_prob))
            live = [replace(branch, node=reading.tree.follow(branch.node, branch.pieces[-1])) for branch in going]
        return found

    def places(self, read: Read) -> list[tuple[int, int]]:
        """Where a text may go on otherwise, and with which piece; the likeliest first."""
        said = [*read.ids, END]
        others = self.reading.log_probs[read.nodes]  # a copy
        own = others[range(len(said)), said]
        others[:, BEGIN] = others[range(len(said)), said] = -np.inf
        open_places = np.flatnonzero(others.max(1) > own - self.reach.margin)
        n = min(self.reach.others, others.shape[1] - 1)
        pieces = np.argpartition(others[open_places], -n, 1)[:, -n:]
        gaps = own[open_places, None] - others[open_places[:, None], pieces]
        found = [(float(gaps[at]), int(open_places[at[0]]), int(pieces[at])) for at in np.ndindex(gaps.shape)]
        return [(place, piece) for gap, place, piece in sorted(found) if gap < self.reach.margin][:BRANCHES]

    def words(self, pieces: Sequence[int]) -> tuple[str, ...] | None:
        """What pieces say, in the alphabet's letters; None where it lacks one."""
        try:
            spelled = [spell(word, self.alphabet) for word in "".join(map(self.rescorer.pieces.text, pieces)).split()]
        except ValueError:
            return None
        return tuple("".join(self.alphabet.tokens[i] for i in word) for word in spelled)


def differences(text: str, other: str) -> list[Change]:
    """What makes one text the other, each by itself; of no other text nothing."""
    words, others = text.split(), other.split()
    parts = SequenceMatcher(None, words, others, autojunk=False).get_opcodes() if others else []
    return [Change(first, end, tuple(others[a:b])) for kind, first, end, a, b in parts if kind != "equal"]


@dataclass(frozen=True, slots=True)
class ReadingDecoder:
    """The words of the likeliest frames, and what a rescorer proposes instead, without a language model."""

    alphabet: Alphabet
    rescorer: Rescorer

    @property
    def n_blocks(self) -> int:
        """See `core.decoder.reads_after`."""
        return self.rescorer.config.n_blocks

    @property
    def draft(self) -> GreedyDecoder:
        """For partials; see `core.decoder.draft`."""
        return GreedyDecoder(self.alphabet)

    def __call__(
        self, log_probs: LogProbs, start_frame: int, states: NDArray[np.float32] | None = None
    ) -> list[WordSpan]:
        words = self.draft(log_probs, start_frame)
        if states is None or not words:
            return words
        text = " ".join(word.text for word in words)
        heard = without_pauses(log_probs, self.alphabet.blank)
        best = Proposals(self.rescorer, self.alphabet, heard, states).best([text])
        return words if best == text else align_words(log_probs, start_frame, best, self.alphabet)
