"""`streamer models`: what is there, what it is, and fetching more from the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping

from core.checkpoint import load_config, resolve
from core.tokenizer import Wav2Vec2Tokenizer

KNOWN = {
    "streamer-en": "English, ships with this package; no download",
    "facebook/wav2vec2-base-960h": "English, 94 M parameters",
    "facebook/wav2vec2-large-960h-lv60-self": "English, 315 M parameters, the most accurate of these",
}

ENGLISH = "en"
LANGUAGES = {
    "arabic": "ar",
    "chinese": "zh",
    "czech": "cs",
    "danish": "da",
    "dutch": "nl",
    "english": ENGLISH,
    "finnish": "fi",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "hungarian": "hu",
    "italian": "it",
    "japanese": "ja",
    "norwegian": "no",
    "persian": "fa",
    "polish": "pl",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "swedish": "sv",
    "turkish": "tr",
    "ukrainian": "uk",
}


def language_of(name: str, extra: Mapping[str, object] | None = None) -> str:
    """The ISO 639-1 code of a model's language: of its config, or of how its name ends; else English.

    `facebook/wav2vec2-large-xlsr-53-german` -> `de`

    Args:
        extra: of the checkpoint's config, what no architecture needs.
    """
    told = str((extra or {}).get("language") or "").lower()
    ending = re.split(r"[-_/.]", name.lower().rstrip("/"))[-1]
    for word in (told, ending):
        if word in LANGUAGES:
            return LANGUAGES[word]
        if word in LANGUAGES.values():
            return word
    return told or ENGLISH


def list_models() -> str:
    """A line a model. Any Wav2Vec2 CTC checkpoint of the hub, or a directory in its layout, works as well."""
    width = max(map(len, KNOWN))
    lines = [f"{name:{width}}  {text}" for name, text in KNOWN.items()]
    return "\n".join([*lines, "any other Wav2Vec2 CTC checkpoint: --model OWNER/NAME or --model DIRECTORY"])


def download(name: str) -> str:
    """Fetches a hub checkpoint into the hub's cache; the directory."""
    return str(resolve(name))


def info(name: str) -> str:
    directory = resolve(name)
    config = load_config(directory, name)
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
    return "\n".join(
        [
            f"name        {name}",
            f"directory   {directory}",
            f"encoder     {config.num_hidden_layers} layers of {config.hidden_size}, "
            f"{'pre' if config.do_stable_layer_norm else 'post'}-norm",
            f"extractor   {len(config.conv_dim)} convolutions, {config.feat_extract_norm} norm",
            f"vocabulary  {config.vocab_size} tokens",
            f"input       {'normalised' if tokenizer.do_normalize else 'as it is'}, {tokenizer.sampling_rate} Hz",
        ]
    )
