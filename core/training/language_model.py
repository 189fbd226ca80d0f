"""Text to the folder of a language model, in the layout of hub checkpoints (see `core.beam`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from core.beam import LanguageModel
from core.normalise import normalise
from core.training.ngram import Ngrams, count_grams, estimate, write_arpa

MAX_WORDS = 60  # longer "sentences" are tables and lists


def read_text(path: Path) -> Iterator[str]:
    """Normalised sentences: of a `.tsv` the last column of each line, of prose what full stops part."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".tsv":
        pieces: Iterable[str] = (line.rpartition("\t")[2] for line in text.splitlines())
    else:
        pieces = re.split(r"(?<=[.!?;:])[\"'”’)]*\s", " ".join(text.split()))
    for piece in pieces:
        sentence = normalise(piece)
        if 0 < sentence.count(" ") < MAX_WORDS:
            yield sentence


def read_words(path: Path) -> set[str]:
    """The normalised words of a list, one a line; what is more than one word then is left out."""
    words = map(normalise, path.read_text(encoding="utf-8").splitlines())
    return {word for word in words if word and " " not in word}


def build_language_model(
    texts: Sequence[Path],
    output: Path,
    least: Sequence[int],
    settings: LanguageModel,
    word_lists: Sequence[Path] = (),
) -> Ngrams:
    """Writes `output/Ngram.arpa.gz` and `attrs.json`.

    Args:
        least: how often an n-gram must occur, from words on; its length is the order.
        settings: whose weights are written.
        word_lists: whose words are known, too.

    Raises:
        ValueError: no order, `least` falls, or no sentence in the texts.
    """
    if not least or list(least) != sorted(least) or least[0] < 1:
        raise ValueError(f"Expected counts that begin at 1 or more and do not fall. Found: {list(least)}")
    counts = count_grams((sentence for path in texts for sentence in read_text(path)), len(least))
    if not counts[0]:
        raise ValueError(f"Expected sentences. Found none in {', '.join(map(str, texts))}")
    model = estimate(counts, least, (word for path in word_lists for word in read_words(path)))
    output.mkdir(parents=True, exist_ok=True)
    write_arpa(model, output / f"{len(least)}gram.arpa.gz")
    attributes = {
        "alpha": settings.alpha,
        "beta": settings.beta,
        "acoustic": settings.acoustic,
        "unk_score_offset": settings.unknown,
        "score_boundary": settings.score_boundary,
    }
    (output / "attrs.json").write_text(json.dumps(attributes, indent=2) + "\n", encoding="utf-8")
    return model
