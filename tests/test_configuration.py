"""The config: defaults, files of the hub, impossible settings."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from core.audio import HOP, RECEPTIVE_FIELD, n_frames
from core.configuration import Wav2Vec2Config


def test_defaults_are_those_of_the_base_model() -> None:
    config = Wav2Vec2Config()
    sizes = (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert sizes == (32, 768, 12, 12)
    assert config.intermediate_size == 3072
    assert config.conv_dim == (512,) * 7
    assert config.conv_stride == (5, 2, 2, 2, 2, 2, 2)
    assert config.conv_kernel == (10, 3, 3, 3, 3, 2, 2)
    assert (config.feat_extract_norm, config.conv_bias, config.do_stable_layer_norm) == ("group", False, False)
    assert (config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups) == (128, 16)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_defaults_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Wav2Vec2Config().to_dict()
    ours = Wav2Vec2Config().to_dict()
    assert ours.pop("feat_extract_dropout") == 0.0  # only in the files of the first checkpoints
    for name, value in ours.items():
        assert theirs[name] == value, name


def test_frames_equal_those_of_the_stream() -> None:
    config = Wav2Vec2Config()
    assert (config.hop, config.receptive_field) == (HOP, RECEPTIVE_FIELD) == (320, 400)
    for n in [*range(0, 1500), 15_999, 16_000, 160_001]:
        assert config.n_frames(n) == n_frames(n), n


def test_frames_of_another_extractor_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = Wav2Vec2Config(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4, 4, 4),
        conv_kernel=(7, 5, 3),
        conv_stride=(4, 3, 2),
        num_conv_pos_embedding_groups=2,
    )
    theirs = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**config.to_dict()))
    lengths = list(range(config.receptive_field, 600))
    expected = theirs._get_feat_extract_output_lengths(torch.tensor(lengths)).tolist()
    assert [config.n_frames(n) for n in lengths] == expected
    assert config.n_frames(config.receptive_field) == 1
    assert config.n_frames(config.receptive_field - 1) == 0


def test_saved_file_loads_the_same_and_keeps_unknown_fields(tmp_path: Path) -> None:
    extra = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], "tdnn_dim": [512, 1500]}
    config = Wav2Vec2Config.from_dict({"hidden_size": 96, "conv_bias": True, "bos_token_id": None, **extra})
    assert config.extra == extra
    config.save(tmp_path)
    config.save(tmp_path / "other.json")
    assert Wav2Vec2Config.load(tmp_path) == Wav2Vec2Config.load(tmp_path / "other.json") == config
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["tdnn_dim"] == [512, 1500]
    assert values["conv_dim"] == [512] * 7
    assert values["bos_token_id"] is None


def test_null_in_a_file_means_the_default() -> None:
    config = Wav2Vec2Config.from_dict({"mask_time_prob": None, "pad_token_id": None, "eos_token_id": None})
    assert (config.mask_time_prob, config.pad_token_id, config.eos_token_id) == (0.05, 0, None)
    assert config.to_dict()["mask_time_prob"] == 0.05


def test_files_pass_to_and_from_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Wav2Vec2Config(hidden_size=96, conv_dim=[8] * 7, layerdrop=0.0, mask_time_length=5)
    theirs.save_pretrained(tmp_path)
    ours = Wav2Vec2Config.load(tmp_path)
    assert (ours.hidden_size, ours.conv_dim, ours.layerdrop, ours.mask_time_length) == (96, (8,) * 7, 0.0, 5)
    ours.save(tmp_path)
    again = transformers.Wav2Vec2Config.from_pretrained(tmp_path)
    assert {**again.to_dict(), "feat_extract_dropout": 0.0} == {**theirs.to_dict(), "feat_extract_dropout": 0.0}


def test_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Wav2Vec2Config().hidden_size = 1  # type: ignore[misc]


def test_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="JSON object.*list"):
        Wav2Vec2Config.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "hidden_size.*Found: 0"),
        ({"vocab_size": -3}, "vocab_size.*Found: -3"),
        ({"num_hidden_layers": -1}, "num_hidden_layers.*Found: -1"),
        ({"num_attention_heads": 5}, "num_attention_heads.*768 and 5"),
        ({"num_conv_pos_embedding_groups": 7}, "num_conv_pos_embedding_groups.*768 and 7"),
        ({"conv_dim": (512, 512)}, "lengths: 2, 7, 7"),
        ({"conv_dim": (), "conv_stride": (), "conv_kernel": ()}, "lengths: 0, 0, 0"),
        ({"conv_stride": (5, 2, 2, 2, 2, 2, 0)}, "conv_stride.*0"),
        ({"pad_token_id": -1}, "pad_token_id.*-1"),
        ({"hidden_act": "tanh"}, "hidden_act.*gelu.*'tanh'"),
        ({"feat_extract_activation": "x"}, "feat_extract_activation.*'x'"),
        ({"feat_extract_norm": "batch"}, "group, layer.*'batch'"),
        ({"conv_padding": (1, 1)}, r"conv_padding.*each layer.*\(1, 1\)"),
        ({"conv_padding": (0, 0, 0, 0, 0, 0, -1), "feat_extract_norm": "layer"}, "conv_padding.*negative"),
        ({"conv_padding": (0, 0, 0, 0, 0, 0, 1)}, "conv_padding.*layer or none.*group"),
        ({"conv_activation": ("gelu",) * 6}, "conv_activation.*each layer"),
        ({"conv_activation": ("gelu",) * 6 + ("cube",)}, "conv_activation.*square, log.*'cube'"),
        ({"adapter_attn_dim": 0}, "adapter_attn_dim.*Found: 0"),
        ({"branch": (3,)}, r"branch.*two numbers.*\(3,\)"),
        ({"branch": (6, 3)}, r"branch.*\(6, 3\)"),
        ({"branch": (3, 12)}, r"branch.*below num_hidden_layers.*\(3, 12\)"),
        ({"ctc_loss_reduction": "max"}, "ctc_loss_reduction.*'max'"),
        ({"hidden_dropout": 1.5}, "hidden_dropout.*1.5"),
        ({"mask_time_prob": -0.1}, "mask_time_prob.*-0.1"),
    ],
)
def test_impossible_settings_are_refused_with_numbers(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wav2Vec2Config(**settings)


def test_padded_convolutions_make_as_many_frames_as_pytorch_s_and_hear_over_the_edge() -> None:
    config = Wav2Vec2Config(
        conv_dim=(4, 4, 4, 4),
        conv_kernel=(400, 1, 3, 3),
        conv_stride=(160, 1, 1, 2),
        conv_padding=(0, 0, 1, 1),
        conv_activation=("square", "log", "gelu", "gelu"),
        feat_extract_norm="none",
    )
    assert (config.hop, config.receptive_field, config.halo) == (HOP, RECEPTIVE_FIELD, 1)
    for n_samples in (0, 399, 400, 719, 720, 16_000, 16_123):
        assert config.n_frames(n_samples) == n_frames(n_samples)
    assert Wav2Vec2Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert Wav2Vec2Config().halo == 0 and not {"conv_padding", "conv_activation"} & set(Wav2Vec2Config().to_dict())
