"""An n-gram language model from plain text: interpolated modified Kneser-Ney (Chen and Goodman 1999), as ARPA.

Highest-order n-grams are counted as they occur, lower orders by how many different words come before them.
What is pruned away gives its probability to the back-off, so that every context still sums to one.
"""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Gram = tuple[str, ...]
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"


@dataclass(frozen=True, slots=True)
class Ngrams:
    """`log_probs[n - 1]` and `back_offs[n - 1]`: of the n-grams, natural logarithms."""

    log_probs: tuple[Mapping[Gram, float], ...]
    back_offs: tuple[Mapping[Gram, float], ...]

    @property
    def order(self) -> int:
        return len(self.log_probs)

    def log_prob(self, gram: Gram) -> float:
        """Of the last word after those before it."""
        gram = gram[-self.order :]
        if len(gram) == 1 and gram not in self.log_probs[0]:
            gram = (UNKNOWN,)
        found = self.log_probs[len(gram) - 1].get(gram)
        if found is not None:
            return found
        return self.back_offs[len(gram) - 2].get(gram[:-1], 0.0) + self.log_prob(gram[1:])


def count_grams(sentences: Iterable[str], order: int) -> list[Counter[Gram]]:
    """How often each n-gram occurs, from words to `order` of them, with sentence ends."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = (BEGIN, *sentence.split(), END)
        for n in range(1, order + 1):
            counts[n - 1].update(words[i : i + n] for i in range(len(words) - n + 1))
    return counts


def continuation_counts(counts: Sequence[Counter[Gram]]) -> list[Counter[Gram]]:
    """Lower orders count the different words before them; what begins a sentence has none and keeps its count."""
    results = [Counter({gram: n for gram, n in level.items() if gram[0] == BEGIN}) for level in counts[:-1]]
    for level, longer in zip(results, counts[1:], strict=True):
        level.update(gram[1:] for gram in longer)
    return [*results, counts[-1]]


def discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2, and 3 or more."""
    times = Counter(min(count, 5) for count in counts)
    if not all(times[i] for i in (1, 2, 3)):  # too little text to estimate them
        return 0.5, 0.75, 0.9
    y = times[1] / (times[1] + 2 * times[2])
    found = [i - (i + 1) * y * times[i + 1] / times[i] for i in (1, 2, 3)]
    d1, d2, d3 = (min(max(value, 0.1), i) for i, value in enumerate(found, 1))
    return d1, d2, d3


def estimate(counts: Sequence[Counter[Gram]], least: Sequence[int] = (), words: Iterable[str] = ()) -> Ngrams:
    """The model of these counts.

    Args:
        counts: of `count_grams`.
        least: n-grams of the n-th order that occur less often are left out; single words always stay.
        words: that are known though they do not occur: each as likely as the unknown word.
    """
    kept = [level if n == 0 else prune(level, least[n]) if n < len(least) else level for n, level in enumerate(counts)]
    adjusted = continuation_counts(counts)
    vocabulary = {gram for gram in counts[0] if gram != (BEGIN,)}
    unseen = {(word,) for word in words} - vocabulary | {(UNKNOWN,)}
    uniform = -math.log(len(vocabulary) + len(unseen))
    log_probs: list[dict[Gram, float]] = []
    back_offs: list[dict[Gram, float]] = []
    for n, level in enumerate(adjusted):
        level = Counter({gram: count for gram, count in level.items() if gram != (BEGIN,)})
        steps = discounts(level.values())
        totals: Counter[Gram] = Counter()
        for gram, count in level.items():
            totals[gram[:-1]] += count
        present = {
            gram: max(count - steps[min(count, 3) - 1], 0.0) / totals[gram[:-1]]
            for gram, count in level.items()
            if gram in kept[n]
        }
        rest = dict.fromkeys(totals, 1.0)
        for gram, share in present.items():
            rest[gram[:-1]] -= share
        if n:
            back_offs.append({context: math.log(max(left, 1e-9)) for context, left in rest.items()})
        lower = Ngrams(tuple(log_probs), tuple(back_offs[:-1])) if n else None
        probs = {}
        for gram, share in present.items():
            below = uniform if lower is None else lower.log_prob(gram[1:])
            probs[gram] = math.log(share + rest[gram[:-1]] * math.exp(below))
        if not n:
            probs |= dict.fromkeys(unseen, math.log(max(rest[()], 1e-9)) + uniform)
        log_probs.append(probs)
    return Ngrams(tuple(log_probs), tuple([*back_offs, {}]))


def prune(level: Counter[Gram], least: int) -> set[Gram]:
    return {gram for gram, count in level.items() if count >= least}


def write_arpa(model: Ngrams, path: Path) -> None:
    """The ARPA format that KenLM and others read; compressed where the name ends in .gz."""
    with gzip.GzipFile(path, "wb", mtime=0) if path.suffix == ".gz" else path.open("wb") as file:

        def line(text: str = "") -> None:
            file.write(f"{text}\n".encode())

        # A context that begins sentences has no probability of its own.
        levels = [dict(level) for level in model.log_probs]
        levels[0][(BEGIN,)] = -99 * math.log(10)
        line("\\data\\")
        for n, level in enumerate(levels, 1):
            line(f"ngram {n}={len(level)}")
        for n, (level, weights) in enumerate(zip(levels, model.back_offs, strict=True), 1):
            line()
            line(f"\\{n}-grams:")
            for gram in sorted(level):
                fields = [f"{level[gram] / math.log(10):.2f}", " ".join(gram)]
                if n < len(levels) and gram[-1] != END:
                    fields.append(f"{weights.get(gram, 0.0) / math.log(10):.2f}")
                line("\t".join(fields))
        line()
        line("\\end\\")
