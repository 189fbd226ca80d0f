"""Hot words of one session: how many there may be, and the decoder that knows them where the server has a beam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.beam import HOTWORD_WEIGHT, BeamDecoder
from core.decoder import Decode

MOST = 100  # words or phrases of one session: so many make decoding a third slower
LETTERS = 60  # of one
STRONGEST = 1.5 * HOTWORD_WEIGHT

HotWords = tuple[tuple[str, float], ...]


def bounded(words: Iterable[tuple[str, float]]) -> HotWords:
    """Words or phrases and their weights, each once, the weights within bounds.

    Raises:
        ValueError: there are too many, or one is too long. The message holds none of them.
    """
    found: dict[str, float] = {}
    for word, weight in words:
        word = " ".join(word.split())
        if len(word) > LETTERS:
            raise ValueError(f"Expected hot words of at most {LETTERS} letters. Found: {len(word)}")
        if word and weight > 0:
            found[word] = min(weight, STRONGEST)
        if len(found) > MOST:
            raise ValueError(f"Expected at most {MOST} hot words. Found: more")
    return tuple(found.items())


def session_decoder(decode: Decode, words: Mapping[str, float]) -> tuple[Decode | None, list[str]]:
    """The server's decoder with more hot words, None where there are none; and those that it cannot take.

    Without a beam that is all of them; a beam takes what its model has letters for.
    """
    if not isinstance(decode, BeamDecoder):
        return None, list(words)
    taken = {word: weight for word, weight in words.items() if decode.can_spell(word)}
    ignored = [word for word in words if word not in taken]
    return (decode.with_hotwords({**decode.hotwords, **taken}) if taken else None), ignored
