"""Files in hub layout: ours, transformers', sharded, pickled, old, wrong, absent."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core import checkpoint
from core.checkpoint import CheckpointError, load_model, resolve, save_model
from core.configuration import Wav2Vec2Config
from core.wav2vec2 import Wav2Vec2ForCTC, Wav2Vec2Model

TINY = Wav2Vec2Config(
    vocab_size=11,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(16, 16),
    conv_stride=(5, 4),
    conv_kernel=(10, 4),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
POS = "wav2vec2.encoder.pos_conv_embed.conv."
NEW_G, NEW_V = POS + "parametrizations.weight.original0", POS + "parametrizations.weight.original1"


@pytest.fixture
def model() -> Wav2Vec2ForCTC:
    torch.manual_seed(5)
    return Wav2Vec2ForCTC(TINY).eval()


def assert_equal(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = directory / "model.safetensors"
    weights = {k: v.clone() for k, v in load_file(path).items()}
    save_file(change(weights), path)


# ---- round trips


def test_saved_model_loads_the_same(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    model.train().save_pretrained(tmp_path / "new" / "dir")
    loaded = Wav2Vec2ForCTC.from_pretrained(tmp_path / "new" / "dir")
    assert_equal(loaded, model)
    assert not loaded.training and loaded.dtype == torch.float32
    assert all(p.requires_grad for p in loaded.parameters())
    assert replace(loaded.config, extra={}) == model.config
    assert sorted(p.name for p in (tmp_path / "new" / "dir").iterdir()) == ["config.json", "model.safetensors"]
    audio = torch.randn(1, 500)
    assert torch.equal(loaded.log_probs(audio), model.eval().log_probs(audio))


def test_weights_are_written_in_the_spelling_that_all_readers_know(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    keys = load_file(tmp_path / "model.safetensors").keys()
    assert {POS + "weight_g", POS + "weight_v"} <= keys
    assert not any("parametrizations" in key for key in keys)


def test_loading_draws_no_random_numbers(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_the_bytes_on_disk_are_floats_in_memory(model: Wav2Vec2ForCTC, tmp_path: Path, dtype: torch.dtype) -> None:
    save_model(model, tmp_path, dtype=dtype)
    assert {w.dtype for w in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    loaded = Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert_equal(loaded, Wav2Vec2ForCTC.from_pretrained(tmp_path, dtype=dtype).float())
    assert float((loaded.lm_head.weight - model.lm_head.weight).detach().abs().max()) < 1e-3
    assert Wav2Vec2ForCTC.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["dtype"] == values["torch_dtype"] == str(dtype).removeprefix("torch.")
    save_model(loaded, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_rounded_weights_are_a_quarter_on_disk_and_floats_in_memory(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    save_model(model, tmp_path / "whole")
    save_model(model, tmp_path / "rounded", dtype=torch.int8)
    on_disk = load_file(tmp_path / "rounded" / "model.safetensors")
    key = "wav2vec2.encoder.layers.0.feed_forward.output_dense.weight"
    assert on_disk[key].dtype == torch.int8 and on_disk[key + "_scale"].shape == (len(on_disk[key]), 1)
    assert on_disk["lm_head.weight"].dtype == torch.float16
    loaded = Wav2Vec2ForCTC.from_pretrained(tmp_path / "rounded")
    for name, weight in model.state_dict().items():
        error = (loaded.state_dict()[name] - weight).abs().amax(-1)
        limit = (
            weight.abs().amax(-1) / 31 / 2 if ".layers." in name and weight.dim() == 2 else weight.abs().amax(-1) / 1000
        )
        assert (error <= limit * 1.001 + 1e-7).all(), name
    save_model(loaded, tmp_path / "again", dtype=torch.int8)
    for name, tensor in load_file(tmp_path / "again" / "model.safetensors").items():
        torch.testing.assert_close(tensor, on_disk[name])


@pytest.mark.parametrize("scale", [None, torch.ones(3, 3)])
def test_integers_without_fitting_scales_are_named(model: Wav2Vec2ForCTC, tmp_path: Path, scale: Tensor | None) -> None:
    save_model(model, tmp_path, dtype=torch.int8)
    key = "wav2vec2.encoder.layers.0.feed_forward.output_dense.weight"

    def spoil(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = {name: weight for name, weight in weights.items() if name != key + "_scale"}
        return rest if scale is None else {**rest, key + "_scale": scale}

    rewrite(tmp_path, spoil)
    with pytest.raises(CheckpointError, match=f"{key}.*int8, expected"):
        Wav2Vec2ForCTC.from_pretrained(tmp_path)


def test_weight_that_a_small_dtype_cannot_hold_is_refused(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    with torch.no_grad():
        model.lm_head.bias[0] = 1e6
    with pytest.raises(ValueError, match="lm_head.bias is not finite in torch.float16"):
        save_model(model, tmp_path, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


# ---- with transformers


STABLE = replace(TINY, do_stable_layer_norm=True, conv_bias=True, feat_extract_norm="layer")
ADAPTED = replace(STABLE, adapter_attn_dim=8)


@pytest.fixture(params=[TINY, STABLE, ADAPTED], ids=["base", "stable", "adapters"])
def theirs(request: pytest.FixtureRequest) -> Any:
    transformers = pytest.importorskip("transformers")
    config = request.param
    torch.manual_seed(3)
    return transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**config.to_dict())).eval()


def assert_same_logits(ours: Wav2Vec2ForCTC, theirs: Any) -> None:
    audio = torch.randn(2, 731)
    with torch.no_grad():
        assert float((ours(audio).logits - theirs(audio).logits).abs().max()) <= 1e-5


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_we_read_what_transformers_writes(theirs: Any, tmp_path: Path, shard_size: str) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    sharded = shard_size == "20KB"
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    assert (tmp_path / "model.safetensors").exists() != sharded
    ours = Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert_equal(ours, theirs)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("sharded", [False, True])
def test_we_read_pickled_weights(theirs: Any, tmp_path: Path, sharded: bool) -> None:
    """As transformers before 5 wrote them, with `weight_g` and `weight_v`."""
    theirs.config.save_pretrained(tmp_path)
    weights = {
        k.replace(NEW_G, POS + "weight_g").replace(NEW_V, POS + "weight_v"): w for k, w in theirs.state_dict().items()
    }
    if sharded:
        names = sorted(weights)
        parts = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
        for file_name, keys in parts.items():
            torch.save({k: weights[k] for k in keys}, tmp_path / file_name)
        index = {"weight_map": {k: file_name for file_name, keys in parts.items() for k in keys}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_equal(Wav2Vec2ForCTC.from_pretrained(tmp_path), theirs)


def test_transformers_reads_what_we_write(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(tmp_path)
    loaded, report = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal(model, loaded)
    assert loaded.config.architectures == ["Wav2Vec2ForCTC"]
    assert_same_logits(model, loaded.eval())


def test_pretraining_checkpoints_of_transformers_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    transformers = pytest.importorskip("transformers")
    values = {**TINY.to_dict(), "codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}
    theirs = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**values))
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="core.checkpoint"):
        assert_equal(Wav2Vec2Model.from_pretrained(tmp_path), theirs.wav2vec2)
    assert "quantizer.codevectors" in caplog.text and "project_q.weight" in caplog.text
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_the_adapters_of_the_target_language_are_taken(tmp_path: Path) -> None:
    """As MMS has them: the main weights are of one language, the others in files of their own, with their heads."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    theirs = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**ADAPTED.to_dict())).eval()
    theirs.save_pretrained(tmp_path)
    adapter = {k: torch.randn_like(w) for k, w in theirs._get_adapters().items()}
    adapter |= {"lm_head.weight": torch.randn(7, 32), "lm_head.bias": torch.randn(7)}
    save_file(adapter, tmp_path / "adapter.deu.safetensors")
    for language in (None, "eng", "../deu", 1):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"target_lang": language}))
        assert_equal(Wav2Vec2ForCTC.from_pretrained(tmp_path), theirs)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"target_lang": "deu"}))
    ours = Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert ours.config.vocab_size == 7
    expected = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, target_lang="deu", ignore_mismatched_sizes=True)
    assert_equal(ours, expected)
    assert_same_logits(ours, expected.eval())
    ours.save_pretrained(tmp_path / "new")
    assert_equal(Wav2Vec2ForCTC.from_pretrained(tmp_path / "new"), ours)


# ---- keys


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_both_spellings_of_weight_norm_load(model: Wav2Vec2ForCTC, tmp_path: Path, spelling: str) -> None:
    save_model(model, tmp_path)
    if spelling == "new":
        old = {POS + "weight_g": NEW_G, POS + "weight_v": NEW_V}
        rewrite(tmp_path, lambda weights: {old.get(k, k): w for k, w in weights.items()})
    assert_equal(Wav2Vec2ForCTC.from_pretrained(tmp_path), model)


def test_encoder_of_a_ctc_checkpoint(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    assert_equal(Wav2Vec2Model.from_pretrained(tmp_path), model.wav2vec2)


def test_encoder_alone_needs_permission_for_a_new_head(
    model: Wav2Vec2ForCTC, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(model.wav2vec2, tmp_path)
    with pytest.raises(CheckpointError, match=r"2 missing: lm_head.bias \[11\], lm_head.weight \[11, 32\]"):
        Wav2Vec2ForCTC.from_pretrained(tmp_path)
    loaded = Wav2Vec2ForCTC.from_pretrained(tmp_path, allow_missing=("lm_head.",))
    assert_equal(loaded.wav2vec2, model.wav2vec2)
    assert loaded.lm_head.weight.isfinite().all() and loaded.lm_head.weight.any()
    assert "new random weights for lm_head.bias, lm_head.weight" in caplog.text


def test_new_vocabulary_gets_a_new_head(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    config = replace(TINY, vocab_size=5, layerdrop=0.0)
    with pytest.raises(CheckpointError, match=r"lm_head.weight \[11, 32\] float32, expected \[5, 32\]"):
        Wav2Vec2ForCTC.from_pretrained(tmp_path, config=config)
    loaded = Wav2Vec2ForCTC.from_pretrained(tmp_path, config=config, allow_missing=("lm_head.",))
    assert loaded.config is config and loaded.lm_head.out_features == 5
    assert_equal(loaded.wav2vec2, model.wav2vec2)


def test_leftovers_are_told_and_harmless(
    model: Wav2Vec2ForCTC, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(model, tmp_path)

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        del weights["wav2vec2.masked_spec_embed"]
        return {**weights, "quantizer.vars": torch.zeros(2), "w2v_encoder.proj.weight": torch.zeros(2)}

    rewrite(tmp_path, change)
    with caplog.at_level(logging.INFO, logger="core.checkpoint"):
        loaded = Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    levels = {record.levelname: record.getMessage() for record in caplog.records if "not used" in record.getMessage()}
    assert "quantizer.vars" in levels["INFO"] and "w2v_encoder.proj.weight" in levels["WARNING"]
    assert "new random weights for wav2vec2.masked_spec_embed" in caplog.text


def test_missing_and_wrong_keys_are_all_listed(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    save_model(model, tmp_path)

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        del weights[POS + "weight_g"], weights["wav2vec2.encoder.layer_norm.bias"]
        wrong = {"lm_head.weight": torch.zeros(12, 32), "lm_head.bias": torch.zeros(11, dtype=torch.int8)}
        return {**weights, **wrong}

    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        Wav2Vec2ForCTC.from_pretrained(tmp_path)
    message = str(caught.value)
    assert f"2 missing: wav2vec2.encoder.layer_norm.bias [32], {NEW_G} [1, 1, 16]" in message
    assert "2 of another shape or kind: " in message
    assert "lm_head.bias [11] int8, expected [11] float" in message
    assert "lm_head.weight [12, 32] float32, expected [11, 32] float" in message
    assert "\n" not in message


def test_weights_that_a_block_has_no_place_for_are_an_error(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    """They are part of what was trained: without them the model says something else."""
    save_model(model, tmp_path)
    key = "wav2vec2.encoder.layers.1.novelty.weight"
    rewrite(tmp_path, lambda weights: {**weights, key: torch.zeros(2)})
    with pytest.raises(CheckpointError, match=f"1 that the blocks have no place for: {key}"):
        Wav2Vec2ForCTC.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"1 that the blocks have no place for: {key}"):
        Wav2Vec2Model.from_pretrained(tmp_path)


# ---- files that cannot be used


def test_safetensors_win_over_pickled_weights(model: Wav2Vec2ForCTC, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert_equal(Wav2Vec2ForCTC.from_pretrained(tmp_path), model)


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("file_name", "write", "message"),
    [
        ("model.safetensors", lambda path: path.write_bytes(b"\x08" * 40), "damaged"),
        ("pytorch_model.bin", lambda path: path.write_bytes(b""), "damaged"),
        ("pytorch_model.bin", lambda path: path.write_bytes(b"hello there"), "damaged"),
        ("pytorch_model.bin", lambda path: torch.save({"a": Dangerous()}, path), "more than tensors"),
        ("pytorch_model.bin", lambda path: torch.save({"model": {"a": torch.zeros(1)}}, path), "dictionary of tensors"),
        ("model.safetensors.index.json", lambda path: path.write_text("{}"), "weight_map"),
        ("model.safetensors.index.json", lambda path: path.write_text("x"), "weight_map"),
        (
            "model.safetensors.index.json",
            lambda path: path.write_text(json.dumps({"weight_map": {"a": "../b.safetensors", "c": "d.safetensors"}})),
            r"2 parts are absent: ../b.safetensors, d.safetensors",
        ),
    ],
)
def test_unusable_weights_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_name: str, write: Callable[[Path], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    TINY.save(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path.parent / "b.safetensors")
    write(tmp_path / file_name)
    with pytest.raises(CheckpointError, match=message) as caught:
        Wav2Vec2ForCTC.from_pretrained(tmp_path)
    assert file_name in caught.value.tried
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds config.json"),
        ("{", "config.json"),
        ('{"hidden_size": 10, "num_attention_heads": 3}', "10 and 3"),
        ('{"hidden_size": "large"}', "hidden_size must be a number. Found: 'large'"),
        ('{"hidden_act": 3}', "hidden_act must be a text. Found: 3"),
        ('{"conv_dim": 3}', "int"),
        ('{"conv_dim": ["a"]}', "str"),
        ('{"model_type": "hubert"}', "expected model_type wav2vec2, found hubert"),
        ('{"add_adapter": true}', "add_adapter"),
    ],
)
def test_unusable_configs_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Wav2Vec2ForCTC.from_pretrained(tmp_path)


def test_directory_without_weights_is_named(tmp_path: Path) -> None:
    TINY.save(tmp_path)
    with pytest.raises(CheckpointError, match="holds model.safetensors or pytorch_model.bin"):
        load_model(Wav2Vec2ForCTC, tmp_path)


# ---- names


def test_directories_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(tmp_path) == tmp_path == resolve(str(tmp_path))
    assert resolve("mine") == Path("mine")
    assert resolve("~/mine") == tmp_path / "mine"


def test_embedded_name_means_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "streamer-en").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path / "assets")
    with pytest.raises(CheckpointError, match="came without it"):
        resolve("streamer-en")
    (tmp_path / "assets" / "streamer-en").mkdir(parents=True)
    assert resolve("streamer-en") == tmp_path / "assets" / "streamer-en"
    assert resolve("./streamer-en") == Path("streamer-en")


def test_paths_that_do_not_exist_are_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "fetch", lambda name: pytest.fail(f"fetched {name}"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in (tmp_path / "no", str(tmp_path / "no"), "./no", "../no", "a/b/c", "~/no", Path("a/b")):
        with pytest.raises(CheckpointError, match="there is none; give a directory"):
            resolve(name)
    with pytest.raises(CheckpointError, match="it is a file; give the directory"):
        resolve("model.safetensors")


class Hub:
    """Stands for huggingface_hub: copies the wanted files of a directory, or fails."""

    def __init__(self, files: dict[str, bytes], cache: Path, error: Exception | None = None) -> None:
        self.files, self.cache, self.error = files, cache, error

    def snapshot_download(self, name: str, allow_patterns: list[str]) -> str:
        if self.error:
            raise self.error
        self.cache.mkdir(exist_ok=True)
        for file_name, content in self.files.items():
            if any(Path(file_name).match(pattern) for pattern in allow_patterns):
                (self.cache / file_name).parent.mkdir(exist_ok=True)
                (self.cache / file_name).write_bytes(content)
        return str(self.cache)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(snapshot_download=hub.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.mark.parametrize(
    ("weights", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (
            ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
            ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "flax_model.msgpack"],
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ),
    ],
)
def test_only_the_needed_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: list[str], fetched: list[str]
) -> None:
    settings = ["config.json", "preprocessor_config.json", "processor_config.json", "vocab.json"]
    files = {name: b"" for name in [*settings, *weights, "README.md", "onnx/model.onnx", "language_model/5gram.bin"]}
    use(Hub(files, tmp_path / "cache"), monkeypatch)
    assert resolve("someone/model") == tmp_path / "cache"
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted([*settings, *fetched, "language_model"])


def test_fetched_model_loads(model: Wav2Vec2ForCTC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(model, tmp_path / "there")
    files = {p.name: p.read_bytes() for p in (tmp_path / "there").iterdir()}
    use(Hub(files, tmp_path / "cache"), monkeypatch)
    assert_equal(Wav2Vec2ForCTC.from_pretrained("someone/model"), model)


def test_the_adapters_of_the_target_language_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["model.safetensors", "adapter.eng.safetensors", "adapter.deu.safetensors"]
    files = {name: b"" for name in names} | {"tokenizer_config.json": b'{"target_lang": "deu"}'}
    use(Hub(files, tmp_path / "cache"), monkeypatch)
    found = {p.name for p in resolve("someone/model").iterdir()}
    assert found == {"model.safetensors", "tokenizer_config.json", "adapter.deu.safetensors"}


def test_failed_fetch_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConnectionError("no route\nlong story")
    use(Hub({}, tmp_path, error), monkeypatch)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(CheckpointError, match="check the name and the network.*ConnectionError: no route") as caught:
        resolve("someone/model")
    assert caught.value.name == "someone/model" and "huggingface.co" in caught.value.tried
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="local cache and HF_HUB_OFFLINE is set"):
        resolve("someone/model")


def test_without_huggingface_hub_a_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        resolve("someone/model")


def test_real_hub_library_offline(tmp_path: Path) -> None:
    """The library itself, in a process of its own: it reads HF_HUB_OFFLINE when it is imported."""
    pytest.importorskip("huggingface_hub")
    code = "from core.checkpoint import resolve\ntry: resolve('someone/model')\nexcept Exception as e: print(repr(e))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.stdout.startswith("CheckpointError(") and "HF_HUB_OFFLINE is set" in done.stdout
    assert done.stderr == ""
