"""Word errors: the fewest substitutions, deletions and insertions between two lists of words.

Levenshtein's dynamic program. Which of several equally short alignments is counted is fixed (a substitution
before a deletion before an insertion), so the split is reproducible; the sum does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Counts over one utterance, or summed over many."""

    substitutions: int = 0
    deletions: int = 0  # words of the reference that are missing
    insertions: int = 0  # words that are not in the reference
    n_words: int = 0  # of the reference

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Word error rate.

        Raises:
            ValueError: the reference has no word.
        """
        if not self.n_words:
            raise ValueError("Expected a reference of at least one word. Found: none")
        return self.total / self.n_words

    @property
    def change(self) -> float:
        """The same of texts neither of which need say anything: over none every insertion counts as a whole error."""
        return self.total / max(1, self.n_words)

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.n_words + other.n_words,
        )


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> WordErrors:
    """[A, B, C] against [A, X, C, D]: 1 substitution, 0 deletions, 1 insertion, 3 words."""
    # row[j]: (errors, substitutions, deletions, insertions) of reference[:i] against hypothesis[:j]
    row = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, word in enumerate(reference, 1):
        above, row = row, [(i, 0, i, 0)]
        for j, heard in enumerate(hypothesis, 1):
            e, s, d, n = above[j - 1]
            best = (e, s, d, n) if word == heard else (e + 1, s + 1, d, n)
            e, s, d, n = above[j]
            if e + 1 < best[0]:
                best = (e + 1, s, d + 1, n)
            e, s, d, n = row[j - 1]
            if e + 1 < best[0]:
                best = (e + 1, s, d, n + 1)
            row.append(best)
    return WordErrors(*row[-1][1:], n_words=len(reference))
