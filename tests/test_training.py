from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from core.configuration import Wav2Vec2Config
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.augment import Augment
from core.training.command import main
from core.training.corpus import Corpus, load_manifest, normalise
from core.training.distil import distil
from core.training.finetune import ctc_loss, finetune
from core.training.run import LOG_NAME, RunConfig
from core.training.student import make_student, make_tokenizer
from core.training.whisper import WhisperEncoder, load_teacher, mel_filters, read_ctranslate2
from core.wav2vec2 import Wav2Vec2ForCTC

BLOCKS = Wav2Vec2Config(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    intermediate_size=256,
    do_stable_layer_norm=True,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Letters as tones: a tiny language that a tiny model can learn."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    rows = ["path\tduration_s\tspeaker\ttranscript"]
    for i in range(12):
        letters = "".join(rng.choice(list("AB"), 4))
        tones = [np.sin(np.arange(3200) * (0.1 if letter == "A" else 0.5)) * np.hanning(3200) for letter in letters]
        soundfile.write(folder / f"{i}.wav", 0.3 * np.concatenate(tones), 16_000)
        rows.append(f"{i}.wav\t0.8\tx\t{letters.lower()}!")
    (folder / "set.tsv").write_text("\n".join(rows) + "\n")
    return folder / "set.tsv"


def corpus(manifest: Path, seed: int = 1) -> Corpus:
    return Corpus(load_manifest(manifest), make_tokenizer(), Augment(), 4, seed)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("It's  fine—really.", "IT'S FINE REALLY"), ("Don’t", "DON'T"), ("room 12", None), ("", "")],
)
def test_transcripts_are_normalised(raw: str, expected: str | None) -> None:
    assert normalise(raw) == expected


def test_batches_are_whole_and_depend_on_the_seed_alone(manifest: Path) -> None:
    first, again, other = (next(corpus(manifest, seed).batches()) for seed in (1, 1, 2))
    assert torch.equal(first.input_values, again.input_values) and torch.equal(first.labels, again.labels)
    assert first.input_values.shape != other.input_values.shape or not torch.equal(first.labels, other.labels)
    for wave, mask, labels in zip(first.input_values, first.attention_mask, first.labels, strict=True):
        n = int(mask.sum())
        assert not wave[n:].any() and mask[:n].all()
        text = make_tokenizer().decode(labels[labels >= 0].tolist(), group_tokens=False)
        assert set(str(text)) <= {"A", "B", " "}


def test_manifest_in_tar_shards_reads_the_same(manifest: Path, tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "set.tsv").write_text(manifest.read_text())
    with tarfile.open(tmp_path / "set-00.tar", "w") as tar:
        for file in sorted(manifest.parent.glob("*.wav")):
            tar.add(file, f"set/{file.name}")
    ours, theirs = load_manifest(tmp_path / "set.tsv"), load_manifest(manifest)
    assert sorted(u.transcript for u in ours) == sorted(u.transcript for u in theirs)
    (tmp_path / "bad.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="path and transcript"):
        load_manifest(tmp_path / "bad.tsv")


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray]) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, values in variables.items():
        kind = 4 if values.dtype == np.float16 else 0
        data += text(name) + struct.pack("<B", values.ndim) + struct.pack(f"<{values.ndim}I", *values.shape)
        data += struct.pack("<BI", kind, values.nbytes) + values.tobytes()
    data += struct.pack("<I", 1) + text("alias") + text(next(iter(variables)))
    path.write_bytes(data)


def teacher_variables(teacher: WhisperEncoder) -> dict[str, np.ndarray]:
    """A teacher's weights under CTranslate2's names."""

    def values(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().numpy().astype(np.float32)

    out = {"position_encodings/encodings": values(teacher.positions)}
    for conv in ("conv1", "conv2"):
        module = getattr(teacher, conv)
        out |= {f"{conv}/weight": values(module.weight), f"{conv}/bias": values(module.bias)}
    norms = [("layer_norm", teacher.layer_norm)]
    linears = []
    for i, layer in enumerate(teacher.layers):
        at, a, ff = f"layer_{i}/", layer.attention, layer.feed_forward
        qkv = [torch.cat([getattr(getattr(a, f"{p}_proj"), kind) for p in "qkv"]) for kind in ("weight", "bias")]
        out |= {f"{at}self_attention/linear_0/{k}": values(v) for k, v in zip(("weight", "bias"), qkv, strict=True)}
        linears += [(f"{at}self_attention/linear_1", a.out_proj)]
        linears += [(f"{at}ffn/linear_0", ff.intermediate_dense), (f"{at}ffn/linear_1", ff.output_dense)]
        norms += [(f"{at}self_attention/layer_norm", layer.layer_norm), (f"{at}ffn/layer_norm", layer.final_layer_norm)]
    out |= {f"{name}/{k}": values(getattr(m, k)) for name, m in linears for k in ("weight", "bias")}
    for name, norm in norms:
        out |= {f"{name}/gamma": values(norm.weight), f"{name}/beta": values(norm.bias)}
    return {f"encoder/{name}": array for name, array in out.items()}


def test_a_teacher_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = WhisperEncoder(BLOCKS).eval()
    write_ctranslate2(tmp_path / "model.bin", teacher_variables(teacher))
    assert "alias" in read_ctranslate2(tmp_path / "model.bin")
    loaded, blocks = load_teacher(tmp_path / "model.bin")
    assert (blocks.hidden_size, blocks.num_hidden_layers) == (64, 2)
    samples = 0.1 * torch.randn(1, 16_000)
    for ours, theirs in zip(loaded(samples), teacher(samples), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_mel_filters_cover_every_band() -> None:
    filters = mel_filters()
    assert filters.shape == (80, 201)
    assert (filters >= 0).all() and (filters.sum(1) > 0).all()
    assert (filters.argmax(1).diff() >= 0).all()


def test_distilling_learns_the_front_end(manifest: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = WhisperEncoder(BLOCKS).eval().requires_grad_(False)
    student = make_student(teacher, BLOCKS)
    blocks = [p.clone() for p in student.wav2vec2.encoder.layers.parameters()]
    distil(student, teacher, corpus(manifest), RunConfig(tmp_path, 12, 3e-3, warmup=2, log_every=4))
    losses = [float(line.split(",")[2]) for line in (tmp_path / LOG_NAME).read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    for before, after in zip(blocks, student.wav2vec2.encoder.layers.parameters(), strict=True):
        assert torch.equal(before, after)


def tiny(tiny_model_dir: Path) -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC.from_pretrained(tiny_model_dir)


def test_fine_tuning_lowers_the_loss_and_heads_can_go_first(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = tiny(tiny_model_dir)
    batch = next(corpus(manifest, 9).batches())
    before = ctc_loss(model, batch, True).item()
    extractor = model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.clone()
    finetune(model, corpus(manifest), RunConfig(tmp_path / "head", 8, 1e-2, warmup=1), head_steps=8)
    assert torch.equal(model.wav2vec2.feature_extractor.conv_layers[0].conv.weight, extractor)
    finetune(model, corpus(manifest), RunConfig(tmp_path / "all", 20, 3e-3, warmup=1))
    assert not torch.equal(model.wav2vec2.feature_extractor.conv_layers[0].conv.weight, extractor)
    assert ctc_loss(model, batch, True).item() < before


def test_a_run_goes_on_from_its_checkpoint(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    finetune(tiny(tiny_model_dir), corpus(manifest), RunConfig(tmp_path, 4, 1e-3, save_every=2, log_every=1))
    finetune(tiny(tiny_model_dir), corpus(manifest), RunConfig(tmp_path, 6, 1e-3, save_every=2, log_every=1))
    steps = [int(line.split(",")[0]) for line in (tmp_path / LOG_NAME).read_text().splitlines()[1:]]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_command_adapts_a_model(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    arguments = ["--manifest", str(manifest), "--model", str(tiny_model_dir), "--output", str(out), "--steps", "2"]
    assert main(["finetune", *arguments]) == 0
    assert Wav2Vec2Tokenizer.from_pretrained(out).vocab_size == 32
    assert main(["evaluate", "--manifest", str(manifest), "--model", str(out)]) == 0
    assert "12 utterances, mean CTC loss" in capsys.readouterr().out
