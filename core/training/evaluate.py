"""Word and letter error rates of a checkpoint on a set, each utterance heard whole.

How well the same model does in a stream is measured by `streamer bench wer`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.acoustic import AcousticModel
from core.audio import SAMPLE_RATE, Samples
from core.decoder import decode_greedy
from core.edit_distance import WordErrors, word_errors
from core.features import normalize
from core.normalise import normalise
from core.training.manifest import Utterance


@dataclass(frozen=True, slots=True)
class Heard:
    """One utterance and what the model made of it; both texts normalised."""

    path: str
    reference: str
    text: str
    words: WordErrors
    letters: WordErrors  # spaces count as letters
    duration_s: float


@dataclass(frozen=True, slots=True)
class Score:
    """Over all utterances."""

    heard: tuple[Heard, ...]

    @property
    def word_error_rate(self) -> float:
        return sum((h.words for h in self.heard), WordErrors()).rate

    @property
    def letter_error_rate(self) -> float:
        return sum((h.letters for h in self.heard), WordErrors()).rate

    def __str__(self) -> str:
        n_words = sum(h.words.n_words for h in self.heard)
        return (
            f"{len(self.heard)} utterances, {sum(h.duration_s for h in self.heard) / 60:.1f} minutes, {n_words} words: "
            f"WER {100 * self.word_error_rate:.2f} %, CER {100 * self.letter_error_rate:.2f} %"
        )


def transcribe(model: AcousticModel, samples: Samples) -> str:
    """The words of the best path, in one pass."""
    if model.tokenizer.do_normalize and len(samples):
        samples = normalize(samples)
    return " ".join(word.text for word in decode_greedy(model.emit([samples])[0], 0, model.alphabet))


def evaluate(model: AcousticModel, utterances: Iterable[Utterance]) -> Score:
    """Both texts are spelled in the model's letters.

    Raises:
        ValueError: no reference has a word.
    """
    heard, letters_of_model = [], model.tokenizer.letters
    for utterance in utterances:
        reference = normalise(utterance.transcript, letters_of_model)
        text = normalise(transcribe(model, utterance.samples), letters_of_model)
        words, letters = word_errors(reference.split(), text.split()), word_errors(reference, text)
        heard.append(Heard(utterance.path, reference, text, words, letters, len(utterance.samples) / SAMPLE_RATE))
    if not any(h.reference for h in heard):
        raise ValueError(f"Expected transcripts with words in the model's letters. Found: none in {len(heard)}")
    return Score(tuple(heard))


def write_texts(score: Score, path: Path) -> None:
    """A line an utterance: path, word errors, reference, text; tab-separated."""
    lines = ["path\terrors\treference\ttext"]
    lines += [f"{h.path}\t{h.words.total}\t{h.reference}\t{h.text}" for h in score.heard]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
