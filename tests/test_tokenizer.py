"""Audio in, ids out, text out: against transformers' two classes, and what must hold besides."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.checkpoint import CheckpointError
from core.tokenizer import DecodedText, Wav2Vec2Tokenizer

# The order of facebook/wav2vec2-base-960h.
VOCAB = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"])}
BLANK, BOS, EOS, UNK, BAR = range(5)


def ids_of(text: str, vocab: dict[str, int] = VOCAB) -> list[int]:
    """`_` is the blank: "HEL_LO|" """
    return [vocab["<pad>"] if c == "_" else vocab[c] for c in text]


@pytest.fixture
def tokenizer() -> Wav2Vec2Tokenizer:
    return Wav2Vec2Tokenizer(VOCAB)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("vocab") / "vocab.json"
    path.write_text(json.dumps(VOCAB))
    return transformers.Wav2Vec2CTCTokenizer(str(path))


def noise(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    return [rng.normal(0.1 * i, 0.3 + i, n).astype(np.float32) for i, n in enumerate(lengths)]


# ---- audio


@pytest.mark.parametrize(
    "options",
    [
        {"padding": False},
        {"padding": "do_not_pad"},
        {"padding": True},
        {"padding": "longest"},
        {"padding": True, "pad_to_multiple_of": 64},
        {"padding": "longest", "max_length": 10},
        {"padding": "max_length", "max_length": 1600},
        {"padding": "max_length", "max_length": 1301, "pad_to_multiple_of": 10},
        {"padding": False, "pad_to_multiple_of": 64},
    ],
)
@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("padding_value", [0.0, -1.0])
def test_audio_equals_the_feature_extractor(options: dict[str, Any], do_normalize: bool, padding_value: float) -> None:
    transformers = pytest.importorskip("transformers")
    settings_: dict[str, Any] = {
        "do_normalize": do_normalize,
        "padding_value": padding_value,
        "return_attention_mask": True,
    }
    theirs = transformers.Wav2Vec2FeatureExtractor(**settings_)
    ours = Wav2Vec2Tokenizer(VOCAB, **settings_)
    speech = noise(801, 1000, 1234)
    for batch in (speech, [x.tolist() for x in speech], [x.astype(np.float64) for x in speech]):
        features = ours(batch, **options)
        expected = theirs(batch, sampling_rate=16_000, **options)
        assert features.keys() == expected.keys() == {"input_values", "attention_mask"}
        for name in features:
            assert len(features[name]) == len(expected[name]) == 3
            for value, wanted in zip(features[name], expected[name], strict=True):
                assert value.dtype == wanted.dtype
                np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.floats(-3, 3), st.floats(0, 5), st.integers(1, 40))
def test_any_audio_equals_the_feature_extractor(lengths: list[int], mean: float, scale: float, multiple: int) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    rng = np.random.default_rng(multiple)
    speech = [rng.normal(mean, scale, n).astype(np.float32) for n in lengths]
    options: dict[str, Any] = {"padding": True, "pad_to_multiple_of": multiple, "return_tensors": "np"}
    features = Wav2Vec2Tokenizer(VOCAB, return_attention_mask=True)(speech, **options)
    expected = theirs(speech, sampling_rate=16_000, **options)
    np.testing.assert_allclose(features["input_values"], expected["input_values"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(features["attention_mask"], expected["attention_mask"])


def test_one_utterance_is_a_batch_of_one(tokenizer: Wav2Vec2Tokenizer) -> None:
    (speech,) = noise(800)
    kinds = [speech, speech.tolist(), [speech], [speech.tolist()], speech[None], torch.from_numpy(speech)]
    for raw in [*kinds, [torch.from_numpy(speech)], tuple(speech.tolist()), torch.from_numpy(speech)[None]]:
        features = tokenizer(raw, return_tensors="np")
        assert np.shape(features.input_values) == (1, 800)
        np.testing.assert_array_equal(features.input_values, tokenizer(speech, return_tensors="np")["input_values"])
        assert features.attention_mask is None and "attention_mask" not in features


def test_every_utterance_has_zero_mean_and_unit_variance(tokenizer: Wav2Vec2Tokenizer) -> None:
    for value in tokenizer(noise(800, 1000, 1200)).input_values:
        assert abs(float(value.mean())) < 1e-3
        assert abs(float(value.var()) - 1) < 1e-3
    assert not np.any(tokenizer(np.full(800, 0.25, np.float32)).input_values[0])


def test_neighbours_and_padding_change_nothing(tokenizer: Wav2Vec2Tokenizer) -> None:
    """With or without an attention mask: the statistics are of the utterance's own samples."""
    speech = noise(800, 1000, 1200)
    for want_mask in (False, True):
        padded = tokenizer(speech, padding=True, return_tensors="np", return_attention_mask=want_mask)
        for row, x in zip(padded.input_values, speech, strict=True):
            np.testing.assert_array_equal(row[: len(x)], tokenizer(x).input_values[0])
            assert not row[len(x) :].any()


def test_longest_ignores_max_length(tokenizer: Wav2Vec2Tokenizer) -> None:
    speech = noise(800, 1000, 1200)
    assert np.shape(tokenizer(speech, padding="longest", max_length=1000).input_values) == (3, 1200)
    assert np.shape(tokenizer(speech, padding="longest", max_length=2000).input_values) == (3, 1200)
    shape = np.shape(tokenizer(speech, padding="max_length", max_length=2000).input_values)
    assert shape == (3, 2000)
    filled = tokenizer(speech, padding="max_length", max_length=1000)
    assert [len(x) for x in filled.input_values] == [1000, 1000, 1200]  # padded, never cut


def test_tensors_of_torch(tokenizer: Wav2Vec2Tokenizer) -> None:
    features = tokenizer(noise(800, 700), padding=True, return_tensors="pt", return_attention_mask=True)
    assert isinstance(features.input_values, torch.Tensor) and isinstance(features.attention_mask, torch.Tensor)
    assert (features.input_values.dtype, features.attention_mask.dtype) == (torch.float32, torch.int32)
    assert features.attention_mask.sum(1).tolist() == [800, 700]


def test_samples_of_the_caller_stay_as_they_are(tokenizer: Wav2Vec2Tokenizer) -> None:
    (speech,) = noise(800)
    before = speech.copy()
    raw = Wav2Vec2Tokenizer(VOCAB, do_normalize=False)(speech).input_values[0]
    raw += 1
    tokenizer(speech).input_values[0][:] = 0
    np.testing.assert_array_equal(speech, before)


def test_unnormalised_samples_out_of_range_are_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Wav2Vec2Tokenizer(VOCAB, do_normalize=False)
    loud = np.array([0.0, -300.0], np.float32)
    with caplog.at_level(logging.WARNING):
        tokenizer(loud, verbose=False)
        assert not caplog.records
        tokenizer(loud)
    assert "300" in caplog.text


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        ([], {}, "at least one sample"),
        (np.zeros(0, np.float32), {}, "at least one sample"),
        ([np.zeros(4), np.zeros(0)], {}, "utterance 1"),
        (np.zeros((2, 2, 2)), {}, r"shape \(n,\). Found: \(2, 2\)"),
        (np.array([0.0, np.nan]), {}, "finite.*sample 1"),
        (np.zeros(4), {"return_tensors": "tf"}, "TensorFlow.*'tf'"),
        (np.zeros(4), {"return_tensors": "jax"}, "'pt', 'np' or None.*'jax'"),
        (np.zeros(4), {"padding": "left"}, "'longest'.*'left'"),
        (np.zeros(4), {"padding": "max_length"}, "needs max_length"),
        (np.zeros(4), {"padding": True, "pad_to_multiple_of": 0}, "Found: 0"),
        (np.zeros(4), {"sampling_rate": 8000}, "16000 Hz. Found: 8000"),
        ([np.zeros(4), np.zeros(5)], {"return_tensors": "pt"}, r"\[4, 5\] samples.*padding=True"),
    ],
)
def test_wrong_calls_are_refused(tokenizer: Wav2Vec2Tokenizer, raw: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer(raw, **options)


# ---- ids to text


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ("HHHEEL_LLO", "HELLO"),
        ("HELLO", "HELO"),
        ("H_E_L_L_O", "HELLO"),
        ("__HI|||THERE__", "HI THERE"),
        ("||HI||", "HI"),
        ("A|_|B", "A  B"),
        ("____", ""),
        ("||", ""),
        ("", ""),
        ("DON'T", "DON'T"),
    ],
)
def test_repeats_collapse_before_blanks_are_dropped(tokenizer: Wav2Vec2Tokenizer, frames: str, text: str) -> None:
    assert tokenizer.decode(ids_of(frames)) == text
    # Blanks are special too, yet skipping special tokens must not join double letters.
    assert tokenizer.decode(ids_of(frames), skip_special_tokens=True) == text


def test_labels_are_read_without_collapsing(tokenizer: Wav2Vec2Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("HELLO ALL"), group_tokens=False) == "HELLO ALL"


def test_special_tokens_are_kept_or_skipped(tokenizer: Wav2Vec2Tokenizer) -> None:
    frames = [BOS, *ids_of("L"), UNK, *ids_of("L"), EOS]
    assert tokenizer.decode(frames) == "<s>L<unk>L</s>"
    assert tokenizer.decode(frames, skip_special_tokens=True) == "LL"
    assert tokenizer.decode([99, -1]) == "<unk><unk>"


def test_kinds_of_ids(tokenizer: Wav2Vec2Tokenizer) -> None:
    frames = ids_of("HEL_LO")
    for ids in (frames, tuple(frames), np.array(frames), torch.tensor(frames)):
        assert tokenizer.decode(ids) == "HELLO"
    batch = torch.tensor([ids_of("HI____"), ids_of("AL_L||")])
    assert tokenizer.batch_decode(batch) == ["HI", "ALL"]
    assert tokenizer.batch_decode([[], frames]) == ["", "HELLO"]
    assert tokenizer.batch_decode(batch, output_word_offsets=True)[1].word_offsets == [
        {"word": "ALL", "start_offset": 0, "end_offset": 4}
    ]


def test_offsets_are_frames(tokenizer: Wav2Vec2Tokenizer) -> None:
    #                                 0123456789
    text = tokenizer.decode(ids_of("|_HHI_||OK"), output_word_offsets=True, output_char_offsets=True)
    assert isinstance(text, str) and text == text.text == "HI OK"
    assert text.word_offsets == [
        {"word": "HI", "start_offset": 2, "end_offset": 5},
        {"word": "OK", "start_offset": 8, "end_offset": 10},
    ]
    assert text.char_offsets == [
        {"char": " ", "start_offset": 0, "end_offset": 1},
        {"char": "H", "start_offset": 2, "end_offset": 4},
        {"char": "I", "start_offset": 4, "end_offset": 5},
        {"char": " ", "start_offset": 6, "end_offset": 8},
        {"char": "O", "start_offset": 8, "end_offset": 9},
        {"char": "K", "start_offset": 9, "end_offset": 10},
    ]
    plain = tokenizer.decode(ids_of("HI"))
    assert plain.word_offsets is None and plain.char_offsets is None
    json.dumps([text, text.word_offsets, text.char_offsets])  # numbers are Python's own


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([BLANK, BLANK, BOS, UNK, BAR, BAR, 5, 5, 6, 7, 31]), max_size=40))
def test_any_ids_decode_as_transformers(reference: Any, frames: list[int]) -> None:
    tokenizer = Wav2Vec2Tokenizer(VOCAB)
    options = {"output_word_offsets": True, "output_char_offsets": True}
    expected = reference.decode(frames, **options)
    text: DecodedText = tokenizer.decode(frames, **options)
    assert text == expected.text
    assert text.char_offsets == (expected.char_offsets or [])
    assert text.word_offsets == (expected.word_offsets or [])
    assert tokenizer.decode(frames, group_tokens=False) == reference.decode(frames, group_tokens=False)


# ---- text to ids


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ABEHLOTZ'! é", max_size=30))
def test_any_text_encodes_as_transformers(reference: Any, text: str) -> None:
    text = " ".join(text.split())
    assert Wav2Vec2Tokenizer(VOCAB).encode(text) == reference(text).input_ids


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ABEHLOTZ' ", max_size=30))
def test_encoded_text_decodes_to_itself(text: str) -> None:
    tokenizer = Wav2Vec2Tokenizer(VOCAB)
    assert tokenizer.decode(tokenizer.encode(text), group_tokens=False) == " ".join(text.split())


def test_letters_take_the_case_of_the_vocabulary(tokenizer: Wav2Vec2Tokenizer) -> None:
    assert tokenizer.encode("Hello  all\n") == ids_of("HELLO|ALL")
    lower = Wav2Vec2Tokenizer({t if len(t) > 1 else t.lower(): i for t, i in VOCAB.items()})
    assert lower.encode("Hello All") == ids_of("HELLO|ALL")
    assert lower.decode(lower.encode("HI"), group_tokens=False) == "hi"
    both = Wav2Vec2Tokenizer({"<pad>": 0, "|": 1, "a": 2, "A": 3, "<unk>": 4})
    assert both.encode("aA a") == [2, 3, 1, 2]


def test_lower_case_text_of_an_upper_case_vocabulary() -> None:
    tokenizer = Wav2Vec2Tokenizer(VOCAB, do_lower_case=True)
    assert tokenizer.encode("Hello") == ids_of("HELLO")
    assert tokenizer.decode(ids_of("HEL_LO|YOU")) == "hello you"


def test_unknown_characters(tokenizer: Wav2Vec2Tokenizer) -> None:
    assert tokenizer.encode("A9B") == [VOCAB["A"], UNK, VOCAB["B"]]
    with pytest.raises(ValueError, match="'9' is not in the vocabulary"):
        Wav2Vec2Tokenizer({"<pad>": 0, "A": 1}).encode("9")


def test_tokens_of_several_characters() -> None:
    vocab = {"<pad>": 0, "t": 1, "tʃ": 2, "tʃː": 3, "a": 4, "ʃ": 5}
    tokenizer = Wav2Vec2Tokenizer(vocab, word_delimiter_token=None)
    assert tokenizer.encode("tʃa tatʃːʃ") == [2, 4, 1, 4, 3, 5]
    text = tokenizer.decode([2, 2, 0, 2, 4], output_char_offsets=True)
    assert text == "tʃtʃa"
    assert [c["char"] for c in text.char_offsets or []] == ["tʃ", "tʃ", "a"]
    assert tokenizer.delimiter_id is None


def test_properties(tokenizer: Wav2Vec2Tokenizer) -> None:
    assert (tokenizer.blank_id, tokenizer.delimiter_id, tokenizer.unk_id) == (BLANK, BAR, UNK)
    assert tokenizer.vocab_size == len(tokenizer.tokens) == 32
    assert [tokenizer.vocab[t] for t in tokenizer.tokens] == list(range(32))
    gap = Wav2Vec2Tokenizer({"<pad>": 2, "A": 0})
    assert (gap.tokens, gap.blank_id, gap.vocab_size) == (["A", "<unk>", "<pad>"], 2, 3)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"eng": {"<pad>": 0}, "deu": {"<pad>": 0}}, r"2 languages \(eng, deu\)"),
        ({"A": 0}, "'<pad>', which is the CTC blank"),
        ({"<pad>": 0, "A": 1, "B": 1}, r"\[1\]"),
        ({"<pad>": -1}, "at least 0"),
        ({"<pad>": "0"}, "whole numbers"),
        ({}, "blank"),
    ],
)
def test_impossible_vocabularies_are_refused(vocab: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wav2Vec2Tokenizer(vocab)


# ---- files


def test_saved_files_load_the_same(tmp_path: Path) -> None:
    tokenizer = Wav2Vec2Tokenizer(
        {"[PAD]": 0, "_": 1, "ü": 2, "[UNK]": 3},
        bos_token=None,
        unk_token="[UNK]",
        pad_token="[PAD]",
        word_delimiter_token="_",
        do_lower_case=True,
        do_normalize=False,
        return_attention_mask=True,
        sampling_rate=8000,
        padding_value=-1.0,
    )
    tokenizer.save_pretrained(tmp_path / "new")
    assert vars(Wav2Vec2Tokenizer.from_pretrained(tmp_path / "new")) == vars(tokenizer)
    assert "ü" in (tmp_path / "new" / "vocab.json").read_text(encoding="utf-8")


def test_transformers_reads_our_files(tokenizer: Wav2Vec2Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    Wav2Vec2Tokenizer(VOCAB, do_normalize=False, return_attention_mask=True).save_pretrained(tmp_path)
    text = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert text.get_vocab() == VOCAB
    assert text.decode(ids_of("HEL_LO|YOU")) == "HELLO YOU"
    audio = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    assert (audio.do_normalize, audio.return_attention_mask, audio.sampling_rate) == (False, True, 16_000)


def test_we_read_the_files_of_transformers(reference: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False).save_pretrained(tmp_path)
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(tmp_path)
    assert vars(tokenizer) == vars(Wav2Vec2Tokenizer(VOCAB, do_normalize=False, return_attention_mask=True))


def test_we_read_the_processors_of_transformers(reference: Any, tmp_path: Path) -> None:
    """Since version 5 the feature extractor's settings are in the processor's file alone."""
    transformers = pytest.importorskip("transformers")
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False)
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=reference).save_pretrained(tmp_path)
    expected = vars(Wav2Vec2Tokenizer(VOCAB, do_normalize=False, return_attention_mask=True))
    assert vars(Wav2Vec2Tokenizer.from_pretrained(tmp_path)) == expected
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    settings = {"feature_extractor": {"do_normalize": False, "return_attention_mask": True}, "processor_class": "any"}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    assert vars(Wav2Vec2Tokenizer.from_pretrained(tmp_path)) == expected
    (tmp_path / "processor_config.json").write_text('{"processor_class": "any"}')
    assert Wav2Vec2Tokenizer.from_pretrained(tmp_path).do_normalize


def test_vocabulary_alone_is_enough(tokenizer: Wav2Vec2Tokenizer, tmp_path: Path) -> None:
    path = tokenizer.save_vocabulary(tmp_path)
    assert path == tmp_path / "vocab.json"
    assert vars(Wav2Vec2Tokenizer.from_pretrained(tmp_path)) == vars(tokenizer)


def test_old_and_odd_files(tmp_path: Path) -> None:
    """As fine-tuned checkpoints have them: tokens as objects, added tokens apart, audio settings in two places."""
    files: dict[str, Any] = {
        "vocab.json": {"|": 0, "A": 1},
        "added_tokens.json": {"[UNK]": 2, "[PAD]": 3, "<s>": 4, "</s>": 5},
        "special_tokens_map.json": {"pad_token": {"content": "[PAD]", "lstrip": False}, "unk_token": "[UNK]"},
        "tokenizer_config.json": {
            "bos_token": {"__type": "AddedToken", "content": "<s>"},
            "do_normalize": False,
            "return_attention_mask": True,
            "do_lower_case": None,
            "model_max_length": 10**30,
        },
    }
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokens == ["|", "A", "[UNK]", "[PAD]"]  # those without logits are left out
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token) == ("[PAD]", "[UNK]", "<s>")
    assert (tokenizer.do_normalize, tokenizer.return_attention_mask, tokenizer.do_lower_case) == (False, True, False)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "feature_size": 1}))
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(tmp_path)
    assert (tokenizer.do_normalize, tokenizer.return_attention_mask) == (True, True)


def test_the_vocabulary_of_the_target_language_is_taken(tmp_path: Path) -> None:
    """As MMS has them, a vocabulary for each language."""
    vocab = {"eng": {"<pad>": 0, "a": 1}, "deu": {"<pad>": 0, "a": 1, "ä": 2}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(
        CheckpointError, match=r"2 languages \(eng, deu\); name .* target_lang in tokenizer_config.json"
    ):
        Wav2Vec2Tokenizer.from_pretrained(tmp_path)
    for language, letters in vocab.items():
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"target_lang": language}))
        assert Wav2Vec2Tokenizer.from_pretrained(tmp_path).vocab == letters
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"target_lang": "fra"}))
    with pytest.raises(CheckpointError, match="target_lang of eng, deu. Found: 'fra'"):
        Wav2Vec2Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab["eng"]))
    assert Wav2Vec2Tokenizer.from_pretrained(tmp_path).vocab == vocab["eng"]


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("processor_config.json", '{"feature_extractor": "none"}'),
        ("tokenizer_config.json", '{"pad_token": ["<pad>"]}'),
        ("tokenizer_config.json", '{"pad_token": {}}'),
        ("special_tokens_map.json", "3"),
    ],
)
def test_unusable_settings_are_named(
    tokenizer: Wav2Vec2Tokenizer, tmp_path: Path, file_name: str, content: str
) -> None:
    tokenizer.save_vocabulary(tmp_path)
    (tmp_path / file_name).write_text(content)
    with pytest.raises(CheckpointError):
        Wav2Vec2Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds vocab.json"),
        ('{"eng": {"<pad>": 0}}', r"1 languages \(eng\)"),
        ("[]", "JSON object"),
        ("{", "vocab.json"),
    ],
)
def test_unusable_vocabulary_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Wav2Vec2Tokenizer.from_pretrained(tmp_path)
