"""Sentences to be read aloud that teach a model to spell what its recordings seldom say.

What a network writes of a word hangs on how often it was trained on it: words that no recording has are wrong most of
the time. Texts have many more words, but the same frequent ones again and again. So only the surroundings of rare words
are taken of each text, and words without any order are added: a network that learns orders of words guesses by them
later, and the language model is there for that.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

from core.normalise import normalise

ENOUGH = 8  # recordings of a word, after which it is no rare one
FRAGMENTS = 3  # of one rare word, at most
BEFORE, AFTER = (1, 4), (3, 7)  # words around a rare one
MIXED = (5, 13)  # words without order
FLATNESS = 0.45  # exponent of a word's count: 1 has words as often as texts have, 0 all of them alike
LISTED = 0.02  # count of a word that only a list has


def count_words(sentences: Iterable[str]) -> Counter[str]:
    """Of normalised sentences."""
    return Counter(word for sentence in sentences for word in sentence.split())


def rare_fragments(
    sentences: Sequence[str], counts: Counter[str], recorded: Counter[str], rng: random.Random
) -> list[str]:
    """Stretches of sentences, whose words `counts` has, around those that were recorded fewer than `ENOUGH` times."""
    missing = {word: min(FRAGMENTS, ENOUGH - recorded[word]) for word in counts}
    fragments = []
    for sentence in rng.sample(sentences, len(sentences)):
        words = sentence.split()
        end = 0
        for i, word in enumerate(words):
            if i < end or missing[word] <= 0:
                continue
            begin, end = max(end, i - rng.randint(*BEFORE)), i + rng.randint(*AFTER)
            fragments.append(" ".join(words[begin:end]))
            for taken in words[begin:end]:
                missing[taken] -= 1
    return fragments


def mixed_words(
    counts: Counter[str], recorded: Counter[str], listed: set[str], n: int, rng: random.Random
) -> list[str]:
    """`n` lines of words without order, the rarely recorded ones more often than texts have them."""
    words = sorted(word for word in counts.keys() | listed if len(word) > 1)
    if not words:
        return []
    weights = [
        (counts[word] or LISTED) ** FLATNESS * (1 + recorded[word] / FRAGMENTS) ** -(1 - FLATNESS) for word in words
    ]
    sums = list(accumulate(weights))
    return [" ".join(rng.choices(words, cum_weights=sums, k=rng.randint(*MIXED))) for _ in range(n)]


def make_sentences(
    texts: Sequence[str], recorded: Sequence[str], listed: set[str], n_mixed: int, seed: int
) -> list[str]:
    """Lines to be read, in random order.

    Args:
        texts: sentences that may be read.
        recorded: transcripts of what there is to train on already; none of them is made again.
        listed: words to be mixed in besides those of the texts.
        n_mixed: lines of words without order.

    Raises:
        ValueError: no text.
    """
    spoken = list(map(normalise, recorded))
    known = set(spoken)
    new = [sentence for text in texts if (sentence := normalise(text)) and sentence not in known]
    if not new:
        raise ValueError(f"Expected sentences that are not recorded. Found: none among {len(texts)}")
    rng, counts, of_recorded = random.Random(seed), count_words(new), count_words(spoken)
    lines = rare_fragments(new, counts, of_recorded, rng) + mixed_words(counts, of_recorded, listed, n_mixed, rng)
    rng.shuffle(lines)
    return lines
