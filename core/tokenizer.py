"""Samples to model input, text to labels, and CTC ids to text, as a checkpoint's files describe it.

One object holds what the hub keeps in `vocab.json`, `tokenizer_config.json`, `special_tokens_map.json`
and `preprocessor_config.json`, or newer in `processor_config.json`. Decoding is CTC's (Graves et al. 2006,
section 3.2): repeated ids are collapsed first, then blanks are dropped, so `L <pad> L` stays a double letter.
Of vocabularies nested by language (MMS) the one of `target_lang` is taken. Left out: beam search (`core/beam.py`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.audio import SAMPLE_RATE
from core.checkpoint import TOKENIZER_CONFIG_NAME, CheckpointError, resolve
from core.features import AudioFeatures, RawSpeech, as_tensors, check_call, normalize, padded_lengths, split_utterances

VOCAB_NAME = "vocab.json"
ADDED_TOKENS_NAME = "added_tokens.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"  # of transformers 5, which writes the former into it

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
TEXT_SETTINGS = (*SPECIAL_TOKENS, "word_delimiter_token", "replace_word_delimiter_char", "do_lower_case")
NULLABLE = ("bos_token", "eos_token", "unk_token", "word_delimiter_token")
AUDIO_SETTINGS = ("do_normalize", "return_attention_mask", "sampling_rate", "padding_value")

logger = logging.getLogger(__name__)

Ids = Sequence[int] | NDArray[Any] | Tensor


class CharOffset(TypedDict):
    char: str
    start_offset: int  # frames
    end_offset: int  # frames, exclusive


class WordOffset(TypedDict):
    word: str
    start_offset: int  # frames
    end_offset: int  # frames, exclusive


class DecodedText(str):
    """The text, with the offsets that were asked for (None where they were not)."""

    char_offsets: list[CharOffset] | None
    word_offsets: list[WordOffset] | None

    def __new__(
        cls, text: str, char_offsets: list[CharOffset] | None = None, word_offsets: list[WordOffset] | None = None
    ) -> DecodedText:
        decoded = super().__new__(cls, text)
        decoded.char_offsets = char_offsets
        decoded.word_offsets = word_offsets
        return decoded

    @property
    def text(self) -> str:
        return str(self)


class Wav2Vec2Tokenizer:
    """Prepares audio for the model and turns its ids into text.

    Args:
        vocab: token to id.
        pad_token: also the CTC blank; must be in `vocab`. The other special tokens need not be.
        word_delimiter_token: stands between words; None where the vocabulary has none (phonemes).
        do_lower_case: takes text of any case and gives lower case, whatever the vocabulary's case.
        do_normalize: each utterance to zero mean and unit variance.
        return_attention_mask: whether the checkpoint was trained with one.

    Raises:
        ValueError: `vocab` is nested, empty, has an id twice or lacks the blank.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        bos_token: str | None = "<s>",
        eos_token: str | None = "</s>",
        unk_token: str | None = "<unk>",
        pad_token: str = "<pad>",
        word_delimiter_token: str | None = "|",
        do_lower_case: bool = False,
        do_normalize: bool = True,
        return_attention_mask: bool = False,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        replace_word_delimiter_char: str = " ",
    ) -> None:
        check_vocab(vocab, pad_token)
        self.vocab = dict(vocab)
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = bos_token, eos_token, unk_token, pad_token
        self.word_delimiter_token = word_delimiter_token
        self.replace_word_delimiter_char = replace_word_delimiter_char
        self.do_lower_case = do_lower_case
        self.do_normalize = do_normalize
        self.return_attention_mask = return_attention_mask
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        by_id = {i: token for token, i in self.vocab.items()}
        self._tokens = [by_id.get(i, unk_token or "") for i in range(max(by_id) + 1)]
        long_tokens = sorted((t for t in self.vocab if len(t) > 1), key=len, reverse=True)
        self._pieces = re.compile("|".join([*map(re.escape, long_tokens), "."]), re.DOTALL)
        letters = [t for t in self.vocab if len(t) == 1 and t.lower() != t.upper()]
        self._has_lower = any(t == t.lower() for t in letters)
        self._has_upper = any(t == t.upper() for t in letters)

    @property
    def tokens(self) -> list[str]:
        """Tokens by id; an id that the vocabulary leaves out holds the unknown token."""
        return list(self._tokens)

    @property
    def vocab_size(self) -> int:
        """Number of ids: the logits that a model with this vocabulary has."""
        return len(self._tokens)

    @property
    def blank_id(self) -> int:
        return self.vocab[self.pad_token]

    @property
    def delimiter_id(self) -> int | None:
        """Id of the word delimiter, None if the vocabulary has none."""
        return None if self.word_delimiter_token is None else self.vocab.get(self.word_delimiter_token)

    @property
    def letters(self) -> frozenset[str]:
        """The characters that words are spelled with; those of tokens such as `<s>` and `[UNK]` are none."""
        special = {self.pad_token, self.unk_token, self.bos_token, self.eos_token, self.word_delimiter_token, " "}
        return frozenset("".join(t for t in self.vocab if t not in special and not re.fullmatch(r"<.+>|\[.+\]", t)))

    @property
    def unk_id(self) -> int | None:
        return None if self.unk_token is None else self.vocab.get(self.unk_token)

    def __call__(
        self,
        raw_speech: RawSpeech,
        padding: bool | str = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
        *,
        return_attention_mask: bool | None = None,
        sampling_rate: int | None = None,
    ) -> AudioFeatures:
        """Model input of one utterance or of a batch; always a batch.

        Each utterance is normalised over its own samples, then padded on the right. (transformers includes the
        padding in the statistics of checkpoints without an attention mask; then the neighbours in a batch would
        change the result.) Nothing is ever cut.

        Args:
            raw_speech: (sample,) floats, (batch, sample), or a list of utterances; mono.
            padding: True or 'longest' to the longest, 'max_length' to `max_length` samples, False or 'do_not_pad'.
            pad_to_multiple_of: rounds the padded length up, where padding is done.
            return_tensors: 'pt', 'np', or None for a list of float32 arrays.
            verbose: logs a warning for samples outside [-1, 1] that will not be normalised.
            return_attention_mask: overrides the checkpoint's wish.
            sampling_rate: of `raw_speech`, checked against the checkpoint's where given.

        Raises:
            ValueError: another rate, unknown padding or tensor kind, no samples, samples that are not finite, more
                than two dimensions, or unequal lengths that should become one tensor.
        """
        check_call(padding, max_length, pad_to_multiple_of, return_tensors)
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(f"Expected a sampling rate of {self.sampling_rate} Hz. Found: {sampling_rate}")
        utterances = split_utterances(raw_speech)
        lengths = [len(x) for x in utterances]
        if self.do_normalize:
            utterances = [normalize(x) for x in utterances]
        elif verbose and (peak := max(float(np.abs(x).max()) for x in utterances)) > 1:
            logger.warning("Samples reach %g, beyond [-1, 1], and this checkpoint does not normalise", peak)
        targets = padded_lengths(lengths, padding, max_length, pad_to_multiple_of)
        values: list[NDArray[Any]] = [
            np.pad(x, (0, n - len(x)), constant_values=self.padding_value)
            for x, n in zip(utterances, targets, strict=True)
        ]
        features = AudioFeatures(input_values=as_tensors(values, return_tensors))
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            masks: list[NDArray[Any]] = [
                (np.arange(n) < length).astype(np.int32) for n, length in zip(targets, lengths, strict=True)
            ]
            features["attention_mask"] = as_tensors(masks, return_tensors)
        return features

    def encode(self, text: str) -> list[int]:
        """Ids of `text` for CTC labels; runs of white space are one delimiter, none at the ends.

        Longer tokens win over shorter ones. Letters take the vocabulary's case if it has only one.

        Raises:
            ValueError: a character is not in the vocabulary, which has no unknown token either.
        """
        delimiter = self.word_delimiter_token
        text = (" " if delimiter is None else delimiter).join(text.split())
        ids = []
        for match in self._pieces.finditer(text):
            piece = match.group()
            i = self.vocab.get(piece)
            if i is None:
                i = self.vocab.get(self._recase(piece), self.unk_id)
            if i is None:
                if piece == " ":
                    continue  # no delimiter in this vocabulary
                raise ValueError(f"{piece!r} is not in the vocabulary, which has no unknown token")
            ids.append(i)
        return ids

    def _recase(self, piece: str) -> str:
        if self.do_lower_case or (self._has_upper and not self._has_lower):
            return piece.upper()
        return piece.lower() if self._has_lower and not self._has_upper else piece

    def decode(
        self,
        token_ids: Ids,
        output_word_offsets: bool = False,
        output_char_offsets: bool = False,
        skip_special_tokens: bool = False,
        group_tokens: bool = True,
    ) -> DecodedText:
        """The text of one sequence of ids, one a frame.

        Args:
            token_ids: (frame,), such as `logits.argmax(-1)`. Ids outside the vocabulary read as the unknown token.
            output_word_offsets: fills `.word_offsets`: first frame and end (exclusive) of each word.
            output_char_offsets: fills `.char_offsets`, delimiters included.
            skip_special_tokens: drops bos, eos and unk, after collapsing, so that double letters survive here too.
            group_tokens: False for labels, where a repeated id is a double letter.

        Example: frames `H H <pad> I | |` give "HI" with the word offset {"word": "HI", "start_offset": 0,
        "end_offset": 4}.
        """
        skipped = {self.pad_token}
        if skip_special_tokens:
            skipped |= {t for t in (self.bos_token, self.eos_token, self.unk_token) if t is not None}
            skipped -= {self.word_delimiter_token or ""}
        chars: list[CharOffset] = []
        end = 0
        ids = np.asarray(token_ids).ravel().tolist()
        for token_id, run in groupby(ids) if group_tokens else ((i, [i]) for i in ids):
            start, end = end, end + sum(1 for _ in run)
            token = self._tokens[token_id] if 0 <= token_id < len(self._tokens) else self.unk_token or ""
            if token in skipped:
                continue
            char = self.replace_word_delimiter_char if token == self.word_delimiter_token else token
            chars.append({"char": char, "start_offset": start, "end_offset": end})
        text = "".join(c["char"] for c in chars).strip()
        return DecodedText(
            text.lower() if self.do_lower_case else text,
            chars if output_char_offsets else None,
            word_offsets(chars, self.replace_word_delimiter_char) if output_word_offsets else None,
        )

    def batch_decode(
        self,
        sequences: Iterable[Ids] | NDArray[Any] | Tensor,
        output_word_offsets: bool = False,
        output_char_offsets: bool = False,
        skip_special_tokens: bool = False,
        group_tokens: bool = True,
    ) -> list[DecodedText]:
        """`decode` of every sequence."""
        return [
            self.decode(s, output_word_offsets, output_char_offsets, skip_special_tokens, group_tokens)
            for s in sequences
        ]

    def save_vocabulary(self, directory: str | Path) -> Path:
        """Writes `vocab.json`, in the order of ids, and returns its path."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        return write_json(directory / VOCAB_NAME, dict(sorted(self.vocab.items(), key=lambda item: item[1])))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes all that `from_pretrained`, here or in transformers, reads."""
        directory = Path(directory)
        self.save_vocabulary(directory)
        text = {name: getattr(self, name) for name in TEXT_SETTINGS}
        special = {name: text[name] for name in SPECIAL_TOKENS if text[name] is not None}
        audio = {name: getattr(self, name) for name in AUDIO_SETTINGS}
        write_json(directory / TOKENIZER_CONFIG_NAME, {"tokenizer_class": "Wav2Vec2CTCTokenizer", **text})
        write_json(directory / SPECIAL_TOKENS_NAME, special)
        write_json(
            directory / PREPROCESSOR_NAME,
            {
                "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                "feature_size": 1,
                "padding_side": "right",
                **audio,
            },
        )

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path) -> Wav2Vec2Tokenizer:
        """Reads a checkpoint's files, of a directory or a hub name; only `vocab.json` must be there.

        Where files differ, `processor_config.json` decides about audio, then `preprocessor_config.json`; about text
        `tokenizer_config.json`.

        Raises:
            CheckpointError: no such checkpoint, no `vocab.json`, or a file that cannot be used.
        """
        directory = resolve(name_or_dir)
        tried = f"read {directory / VOCAB_NAME}"
        if not (directory / VOCAB_NAME).is_file():
            raise CheckpointError(str(name_or_dir), tried, f"a CTC checkpoint holds {VOCAB_NAME}")
        try:
            text_settings = read_json(directory / TOKENIZER_CONFIG_NAME)
            vocab = vocabulary_of(read_json(directory / VOCAB_NAME), text_settings.get("target_lang"))
            files = (
                (SPECIAL_TOKENS, read_json(directory / SPECIAL_TOKENS_NAME)),
                ((*TEXT_SETTINGS, *AUDIO_SETTINGS), text_settings),
                (AUDIO_SETTINGS, read_json(directory / PREPROCESSOR_NAME)),
                (AUDIO_SETTINGS, read_json(directory / PROCESSOR_NAME).get("feature_extractor") or {}),
            )
            settings = {
                # An object is an AddedToken of transformers.
                name: value["content"] if isinstance(value, dict) else value
                for names, values in files
                for name, value in values.items()
                if name in names and (value is not None or name in NULLABLE)
            }
            # transformers adds bos and eos that the model has no logits for; only what decoding needs is taken.
            added = read_json(directory / ADDED_TOKENS_NAME)
            for token in (settings.get("pad_token", "<pad>"), settings.get("unk_token", "<unk>")):
                if token in added and token not in vocab:
                    vocab[token] = added[token]
            return cls(vocab, **settings)
        except (ValueError, KeyError, TypeError, AttributeError) as e:  # a file may hold anything
            raise CheckpointError(str(name_or_dir), tried, str(e)) from e


def vocabulary_of(vocab: dict[str, Any], language: str | None) -> dict[str, Any]:
    """One language's vocabulary; one that is not nested by language is of any.

    Raises:
        ValueError: it has no such language.
    """
    if language is None or not any(isinstance(value, dict) for value in vocab.values()):
        return vocab
    if not isinstance(vocab.get(language), dict):
        raise ValueError(f"Expected a target_lang of {', '.join(vocab)}. Found: {language!r}")
    return dict(vocab[language])


def check_vocab(vocab: dict[str, int], pad_token: str) -> None:
    nested = [name for name, value in vocab.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(
            f"Expected one vocabulary, token to id. Found one for each of {len(nested)} languages "
            f"({', '.join(nested[:5])}); name the wanted one as target_lang in {TOKENIZER_CONFIG_NAME}"
        )
    ids = list(vocab.values())
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise ValueError("Expected ids that are whole numbers of at least 0 in the vocabulary")
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ValueError(f"Expected one token for each id in the vocabulary. Found more for: {twice}")
    if pad_token not in vocab:
        raise ValueError(f"The pad token {pad_token!r}, which is the CTC blank, is not in the vocabulary")


def word_offsets(chars: list[CharOffset], delimiter: str) -> list[WordOffset]:
    """Words between delimiters, from the first frame of their first character to the end of their last."""
    words: list[WordOffset] = []
    for is_delimiter, run in groupby(chars, key=lambda c: c["char"] == delimiter):
        if not is_delimiter:
            word = list(run)
            words.append(
                {
                    "word": "".join(c["char"] for c in word),
                    "start_offset": word[0]["start_offset"],
                    "end_offset": word[-1]["end_offset"],
                }
            )
    return words


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"Expected a JSON object in {path}. Found: {type(values).__name__}")
    return values


def write_json(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
