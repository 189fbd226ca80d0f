"""Beam search over CTC frames, with an n-gram language model and hot words (the `lm` extra: ctc-beam-decoder).

A checkpoint may bring its language model as hub checkpoints do, in a folder `language_model`: an ARPA or KenLM file,
`attrs.json` with the weights, and `unigrams.txt` with the words (an ARPA file holds them itself).
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.acoustic import AcousticModel, Features
from core.aligner import align_words, spell
from core.decoder import Alphabet, Decode, GreedyDecoder, WordSpan
from core.likelihood import without_pauses
from core.proposals import Proposals, ReadingDecoder
from core.rescorer import Rescorer
from core.stitcher import LogProbs

logger = logging.getLogger(__name__)

FOLDER = "language_model"
ARPA = (".arpa", ".arpa.gz")
FILES = (*ARPA, ".bin", ".binary", ".klm", ".kenlm")
LEAST_HOT = -6.0  # `Search.least` with hot words, at least: none may come of letters that were not heard
NEVER = -1e4  # log-probability
HOTWORD_WEIGHT = 8.0  # natural logarithm


class LanguageModelError(ValueError):
    """The language model cannot be used; the message is for the user."""


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A file and how much its word counts for.

    The score of a text is that of its frames, whose probabilities are to the power of `acoustic`, + `alpha` * model +
    `beta` a word. Networks are surer than they are right: below 1 the model of the language can mend more.
    """

    path: Path
    words: tuple[str, ...] | None = None  # None: not known, so that any spelling is as good as a word
    alpha: float = 0.6
    beta: float = 1.5
    acoustic: float = 1.0
    unknown: float = -10.0  # for a word that the model does not have
    score_boundary: bool = True  # whether sentence ends are scored

    @classmethod
    def load(cls, path: str | Path) -> LanguageModel:
        """A file, or a folder that holds one.

        Raises:
            LanguageModelError: there is none, or its settings cannot be read.
        """
        path = Path(path)
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if file.name.endswith(FILES)]
            if len(files) != 1:
                raise LanguageModelError(f"Expected one file of {', '.join(FILES)} in {path}. Found: {len(files)}")
            return cls(files[0], read_words(files[0]), **read_attributes(path / "attrs.json"))
        if not path.is_file():
            raise LanguageModelError(f"Expected an ARPA or KenLM file. Found: no file {path}")
        if not path.name.endswith(FILES):
            raise LanguageModelError(f"Expected a file of {', '.join(FILES)}. Found: {path}")
        return cls(path, read_words(path))

    @classmethod
    def of_checkpoint(cls, directory: Path) -> LanguageModel | None:
        """The one that comes with a checkpoint; None where it has none."""
        return cls.load(directory / FOLDER) if (directory / FOLDER).is_dir() else None


@dataclass(frozen=True, slots=True)
class Search:
    """How far a decoder looks."""

    width: int  # hypotheses kept
    pruned: float = 12  # how much worse than the best one may be
    least: float = -7  # log-probability below which a token is not tried


WHOLE, DRAFT = Search(150), Search(75)  # partials are decoded often


def read_attributes(path: Path) -> dict[str, Any]:
    """The settings in the names of this module; what is not given keeps its default."""
    if not path.is_file():
        return {}
    own = ("alpha", "beta", "acoustic", "score_boundary")
    names = {**{name: name for name in own}, "unk_score_offset": "unknown"}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
    except (ValueError, TypeError) as e:
        raise LanguageModelError(f"Expected a JSON object in {path}. Found: {e}") from e


def read_words(path: Path) -> tuple[str, ...] | None:
    """The words of an ARPA file, or of `unigrams.txt` beside a compiled one."""
    if not path.name.endswith(ARPA):
        listed = path.with_name("unigrams.txt")
        return tuple(listed.read_text(encoding="utf-8").split()) if listed.is_file() else None
    words = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            while (line := file.readline()) and line.strip() != "\\1-grams:":
                pass
            while (line := file.readline()) and not line.startswith("\\"):
                fields = line.split("\t")
                if len(fields) >= 2:
                    words.append(fields[1].strip())
    except (OSError, UnicodeDecodeError) as e:
        raise LanguageModelError(f"Expected an ARPA file. Found in {path}: {e}") from e
    if not words:
        raise LanguageModelError(f"Expected an ARPA file. Found no words in {path}")
    return tuple(word for word in words if word not in ("<s>", "</s>", "<unk>"))


def parse_hotwords(lines: Sequence[str]) -> dict[str, float]:
    """Words or phrases and their weights: `word` or `word:weight` a line, `#` begins a comment.

    Raises:
        ValueError: a weight is not a finite number.
    """
    hotwords: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        text, _, weight = line.split("#")[0].strip().partition(":")
        if not text.strip():
            continue
        try:
            value = float(weight) if weight.strip() else HOTWORD_WEIGHT
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"Expected word or word:weight in line {number}. Found: {line.strip()!r}")
        hotwords[" ".join(text.split())] = value
    return hotwords


@dataclass(frozen=True)
class BeamDecoder:
    """The likeliest words of frames, instead of those of the likeliest frames. Holds no stream's state.

    Args:
        hotwords: natural logarithms by which a word or phrase becomes likelier.

    Raises:
        LanguageModelError: the library is not installed, or cannot read the model.
        ValueError: a hot word has letters that the model cannot write, or a weight that is not finite.
    """

    alphabet: Alphabet
    language_model: LanguageModel | None = None
    hotwords: Mapping[str, float] = field(default_factory=dict)
    search: Search = WHOLE
    engine: Any = None
    rescorer: Rescorer | None = None  # reads the best texts of final passes again, and proposes others

    def __post_init__(self) -> None:
        if self.alphabet.delimiter == self.alphabet.blank:
            raise LanguageModelError("Expected a model with a word delimiter. Found: a vocabulary without one")
        spelled = {self.spell(word): weight for word, weight in self.hotwords.items()}
        for word, weight in spelled.items():
            if not math.isfinite(weight):  # every text would be as good as any other
                raise ValueError(f"Expected finite weights of hot words. Found: {weight} of {word!r}")
            if wrong := self.foreign_letters(word):
                raise ValueError(f"Expected hot words in the model's letters. Found {sorted(wrong)} in {word!r}")
        object.__setattr__(self, "hotwords", spelled)
        if self.engine is None:
            object.__setattr__(self, "engine", build(self.alphabet, self.language_model))

    @cached_property
    def weights(self) -> dict[str, float]:
        """Of the hot words, as frames count; those that the language model lacks are spared its charge for them."""
        model = self.language_model
        if model is None or not self.hotwords:
            return dict(self.hotwords)
        weights = {word: model.acoustic * weight for word, weight in self.hotwords.items()}
        if model.words is None:
            return weights
        known = set(model.words)
        return {word: w if known.issuperset(word.split()) else w - model.unknown for word, w in weights.items()}

    @property
    def strongest(self) -> float:
        """The one weight that the library is given."""
        return max(self.weights.values(), default=0.0)

    @cached_property
    def draft(self) -> BeamDecoder:
        """For partials; see `core.decoder.draft`."""
        return replace(self, search=DRAFT)

    def with_hotwords(self, hotwords: Mapping[str, float]) -> BeamDecoder:
        """The same language model for another stream."""
        return BeamDecoder(self.alphabet, self.language_model, hotwords, self.search, self.engine, self.rescorer)

    @property
    def n_blocks(self) -> int:
        """See `core.decoder.reads_after`."""
        return self.rescorer.config.n_blocks if self.rescorer else 0

    def can_spell(self, word: str) -> bool:
        """Whether the model has letters for a hot word."""
        return not self.foreign_letters(self.spell(word))

    def foreign_letters(self, spelled: str) -> set[str]:
        tokens = (token for i, token in enumerate(self.alphabet.tokens) if i not in self.alphabet.special)
        return set(spelled) - set("".join(tokens)) - {" "}

    def spell(self, word: str) -> str:
        """In the model's letters: those that it has in one case alone are written in that."""
        known = set("".join(self.alphabet.ids()))
        forms = ((letter, letter.upper(), letter.lower()) for letter in word)
        return "".join(next((form for form in of if known.issuperset(form)), of[0]) for of in forms)

    def __call__(self, log_probs: LogProbs, start_frame: int, states: Features | None = None) -> list[WordSpan]:
        silent = [self.alphabet.blank, self.alphabet.delimiter, *self.alphabet.special]
        if np.isin(log_probs.argmax(1), silent).all():
            return []  # nobody speaks; a reward for each word would make one up
        log_probs = np.array(log_probs, np.float32)
        log_probs[:, list(self.alphabet.special)] = NEVER
        heard = without_pauses(log_probs, self.alphabet.blank)
        # A delimiter that is certain ends them: the library charges texts that end with one for a word of no letters.
        rows = np.pad(heard, ((0, 1), (0, 0)), constant_values=NEVER)
        rows[-1, self.alphabet.delimiter] = 0
        rescorer = None if states is None else self.rescorer
        power = 1.0 if self.language_model is None else self.language_model.acoustic
        weight = self.strongest
        least = max(self.search.least, LEAST_HOT) if self.hotwords else self.search.least
        beams = self.engine.decode_beams(
            power * rows,
            beam_width=self.search.width,
            # The letters of a hot word count before it is whole, or turns out to be another.
            beam_prune_logp=-power * self.search.pruned - weight,
            token_min_logp=power * least,
            prune_history=not (self.hotwords or rescorer),  # which leaves one of all texts that end alike
            hotwords=list(self.hotwords),
            hotword_weight=weight,
        )
        # The library knows one weight: what it gave too much to lesser words is taken back here.
        texts = [(beam[4] - self.excess(beam[0], weight), beam[0]) for beam in beams]
        if states is not None and rescorer is not None:
            if rescorer.config.is_proposing:
                found = [text for _, text in sorted(texts, reverse=True)[: rescorer.config.n_best]]
                priors = {text: score - beam[3] for (score, text), beam in zip(texts, beams, strict=True)}
                has_model = self.language_model is not None
                proposals = Proposals(rescorer, self.alphabet, heard, states, self.prior, has_model, priors)
                return align_words(log_probs, start_frame, proposals.best(found), self.alphabet)
            texts = rescorer.rank(texts, states)
        text = max(texts)[1] if texts else ""
        return align_words(log_probs, start_frame, text, self.alphabet)

    def prior(self, texts: Sequence[str]) -> list[float]:
        """What the language model and the hot words add to the scores of texts.

        The library tells it of what it finds alone: it is given frames that can say nothing else.
        """
        if self.language_model is None and not self.hotwords:
            return [0.0] * len(texts)
        weight, hotwords = self.strongest, list(self.hotwords)
        added = []
        for text in texts:
            ids: list[int] = []
            for word in text.split():
                for i in (*spell(word, self.alphabet), self.alphabet.delimiter):
                    ids += [self.alphabet.blank, i] if ids and ids[-1] == i else [i]
            ids = ids or [self.alphabet.blank]  # of no word
            rows = np.full((len(ids), len(self.alphabet.tokens)), NEVER, np.float32)
            rows[range(len(ids)), ids] = 0
            beams = self.engine.decode_beams(rows, beam_width=1, hotwords=hotwords, hotword_weight=weight)
            added.append(beams[0][4] - beams[0][3] - self.excess(text, weight))
        return added

    def excess(self, text: str, weight: float) -> float:
        padded = f" {text} "
        return sum((weight - own) * padded.count(f" {word} ") for word, own in self.weights.items() if own != weight)


def make_decoder(model: AcousticModel, lm: str | Path = "auto", hotwords: Mapping[str, float] | None = None) -> Decode:
    """From frames to words for this model.

    Args:
        lm: a file or folder; `auto` is the checkpoint's own where there is one and the library is installed. With it,
            and with `none`, goes the checkpoint's rescorer, where it has one; `letters` is the best path alone.
        hotwords: see `parse_hotwords`.

    Raises:
        LanguageModelError: what was asked for cannot be had.
        RescorerError: the checkpoint's cannot be used.
    """
    language_model = None
    rescorer = model.rescorer() if lm in ("auto", "none") else None
    if lm == "auto":
        if model.directory is not None and (model.directory / FOLDER).is_dir():
            if is_installed():
                language_model = LanguageModel.of_checkpoint(model.directory)
            else:
                logger.warning(
                    "%s goes without its language model, which needs: pip install 'streamer[lm]'", model.name
                )
    elif lm not in ("none", "letters"):
        language_model = LanguageModel.load(lm)
    if language_model is not None or hotwords:
        return BeamDecoder(model.alphabet, language_model, hotwords or {}, rescorer=rescorer)
    if rescorer is not None and rescorer.config.is_proposing and model.alphabet.delimiter != model.alphabet.blank:
        return ReadingDecoder(model.alphabet, rescorer)
    return GreedyDecoder(model.alphabet)


def is_installed() -> bool:
    return importlib.util.find_spec("ctc_beam_decoder") is not None


def build(alphabet: Alphabet, language_model: LanguageModel | None) -> Any:
    """The library's decoder."""
    try:
        from ctc_beam_decoder import build_ctcdecoder
    except (ImportError, OSError) as e:
        raise LanguageModelError(
            f"a language model or hot words need ctc-beam-decoder, which is not there ({e}): pip install 'streamer[lm]'"
        ) from e
    labels = ["" if i == alphabet.blank else token for i, token in enumerate(alphabet.tokens)]
    for i in alphabet.special:
        labels[i] = chr(0xE000 + i)  # never chosen; the library wants single letters
    labels[alphabet.delimiter] = " "
    if language_model is None:
        return build_ctcdecoder(labels)
    try:
        with quiet():
            return build_ctcdecoder(
                labels,
                str(language_model.path),
                language_model.words,
                language_model.alpha,
                language_model.beta,
                language_model.unknown,
                language_model.score_boundary,
            )
    except (ValueError, RuntimeError) as e:
        raise LanguageModelError(f"cannot use the language model {language_model.path}: {e}") from e


@contextmanager
def quiet() -> Iterator[None]:
    """KenLM draws a progress bar on the process's standard error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
