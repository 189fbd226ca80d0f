from __future__ import annotations

import shutil
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from core.acoustic import AcousticModel
from core.checkpoint import save_model
from core.configuration import Wav2Vec2Config
from core.encoder import sinusoids
from core.normalise import foreign, normalise
from core.pretraining import Wav2Vec2ForPreTraining
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.arguments import weighted
from core.training.augment import Augment, telephone
from core.training.command import main
from core.training.consistency import choose_window, weights, window_divergence
from core.training.corpus import Clip, Corpus, Speech, load_manifest, spoken_form
from core.training.distil import distil, likeness
from core.training.evaluate import evaluate
from core.training.finetune import Teaching, finetune, state_error, training_loss
from core.training.manifest import read_manifest, read_set
from core.training.plot import read_curves
from core.training.prepare import prepare
from core.training.pretrain import METRICS, PretrainConfig, pretrain, start_from_data
from core.training.pretrain import batch as make_batch
from core.training.run import LOG_NAME, Run, RunConfig
from core.training.sentences import FRAGMENTS, count_words, make_sentences
from core.training.student import add_branch, make_student, make_tokenizer
from core.training.synthesize import SynthesisConfig, read_sentences, synthesize
from core.training.voices import PROGRAMS, Engine, run_program
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

PRETRAINED = Wav2Vec2Config(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=(32, 32, 32),
    conv_kernel=(160, 2, 2),
    conv_stride=(80, 2, 2),
    feat_extract_norm="layer",
    conv_bias=True,
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=16,
    num_codevectors_per_group=20,
    codevector_dim=16,
    proj_codevector_dim=16,
    num_negatives=10,
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
    [("It's  fine—really, Mr. X.", "IT'S FINE REALLY MISTER X"), ("Don’t", "DON'T"), ("room 12", ""), ("", "")],
)
def test_transcripts_are_normalised(raw: str, expected: str) -> None:
    assert spoken_form(raw) == expected


GERMAN = frozenset("abcdefghijklmnopqrstuvwxyzäöüß")
RUSSIAN = frozenset("абвгдежзийклмнопрстуфхцчшщъыьэюя")


@pytest.mark.parametrize(
    ("letters", "raw", "expected", "strange"),
    [
        (GERMAN, "Das MÄDCHEN – [lacht] geht’s? Café, Straße!", "das mädchen geht s cafe straße", set()),
        (GERMAN | {"'"}, "Geht’s u\u0308ber 'ne", "geht's über ne", set()),
        (frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜ"), "Straße für", "STRASSE FÜR", set()),
        (RUSSIAN, "Ещё ёж и Ко́т: 2 GB", "еще еж и кот 2 GB", {"2", "G", "B"}),
        (frozenset("Å"), "A\u030a å Å", "Å Å Å", set()),
        (frozenset("abcdefghijklmnopqrstuvwxyz|'"), "Mädchen, 2nd", "MADCHEN SECOND", set()),
    ],
)
def test_texts_are_spelled_in_the_letters_of_the_vocabulary(
    letters: frozenset[str], raw: str, expected: str, strange: set[str]
) -> None:
    assert normalise(raw, letters) == expected
    assert normalise(expected, letters) == expected
    assert foreign(expected, letters) == strange


def test_a_model_of_another_language_learns_its_own_letters(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model_dir / name, tmp_path)
    tokenizer = Wav2Vec2Tokenizer({token: i for i, token in enumerate(["<pad>", "<s>", "<unk>", "|", *sorted(GERMAN)])})
    assert tokenizer.letters == GERMAN
    tokenizer.save_pretrained(tmp_path)
    sources = sorted(manifest.parent.glob("*.wav"))[:3]
    rows = [f"{source}\t0.8\tx\t{text}" for source, text in zip(sources, ("Das Mädchen", "Привет", "12"), strict=True)]
    mine = tmp_path / "mine.tsv"
    mine.write_text("\n".join(["path\tduration_s\tspeaker\ttranscript", *rows]) + "\n", encoding="utf-8")
    clips = load_manifest(mine, letters=tokenizer.letters)
    assert [clip.transcript for clip in clips] == ["das mädchen", "", ""]
    assert "2 of 3 texts are left out, with what the vocabulary lacks: 1 2 П в е и р т" in caplog.text
    labels = next(Corpus(clips, tokenizer, Augment(), 4, 1).batches()).labels
    assert str(tokenizer.decode(labels[0].tolist(), group_tokens=False)) == "das mädchen"
    command = ["--model", str(tmp_path), "--manifest", str(mine)]
    assert main(["finetune", *command, "--steps", "1", "--output", str(tmp_path / "out")]) == 0
    score = evaluate(AcousticModel.load(tmp_path / "out", "cpu"), read_set(mine))
    assert score.heard[0].reference == "das mädchen" and set(score.heard[0].text) <= GERMAN | {" "}
    mine.write_text("\n".join(["path\tduration_s\tspeaker\ttranscript", rows[1]]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="Found: none in 1"):
        main(["evaluate", "--manifest", str(mine), "--model", str(tiny_model_dir)])


def test_batches_are_whole_and_depend_on_the_seed_alone(manifest: Path) -> None:
    first, again, other = (next(corpus(manifest, seed).batches()) for seed in (1, 1, 2))
    assert torch.equal(first.input_values, again.input_values) and torch.equal(first.labels, again.labels)
    assert first.input_values.shape != other.input_values.shape or not torch.equal(first.labels, other.labels)
    by_threads = next(corpus(manifest).batches(n_workers=3))
    assert torch.equal(first.input_values, by_threads.input_values) and torch.equal(first.labels, by_threads.labels)
    for wave, mask, labels in zip(first.input_values, first.attention_mask, first.labels, strict=True):
        n = int(mask.sum())
        assert not wave[n:].any() and mask[:n].all()
        text = make_tokenizer().decode(labels[labels >= 0].tolist(), group_tokens=False)
        assert set(str(text)) <= {"A", "B", " "}


def test_manifest_in_tar_shards_reads_the_same(manifest: Path, tmp_path: Path) -> None:
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


def test_a_student_hears_as_its_teacher_does(manifest: Path) -> None:
    torch.manual_seed(0)
    teacher = WhisperEncoder(BLOCKS).eval().requires_grad_(False)
    teacher.positions = sinusoids(torch.arange(1500), 64)
    student = make_student(teacher, BLOCKS).eval()
    samples = 0.1 * torch.randn(3, 64_000)  # nothing so soft that the teacher's floor, below the loudest, hides it
    with torch.no_grad():
        heard = student.wav2vec2.feature_extractor(samples).transpose(1, 2)
        told = teacher.front_end(samples[:, 200:])[:, : heard.shape[1]]
    assert heard.shape[1] == student.config.n_frames(samples.shape[1]) == 199
    torch.testing.assert_close(heard[:, 2:-2], told[:, 2:-2], atol=1e-4, rtol=1e-3)
    before = likeness(student, teacher, samples)
    blocks = [p.clone() for p in student.wav2vec2.encoder.layers.parameters()]
    after = distil(student, teacher, Speech(load_manifest(manifest), Augment(), 2), 3)
    assert before.first < 0.5 and after.first > 0.97 and after.last > 0.97
    for old, new in zip(blocks, student.wav2vec2.encoder.layers.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_branch_changes_nothing_until_it_is_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = WhisperEncoder(BLOCKS).eval().requires_grad_(False)
    student = make_student(teacher, BLOCKS).eval()
    wide = add_branch(student, teacher, 1).eval()
    assert wide.config.branch == (1, 2) and wide.config.num_hidden_layers == 3
    samples = 0.1 * torch.randn(2, 32_000)
    with torch.no_grad():
        torch.testing.assert_close(wide(samples).logits, student(samples).logits)
        assert wide.wav2vec2.encoder.branch is not None
        torch.nn.init.normal_(wide.wav2vec2.encoder.branch.projection.weight)
        assert not torch.allclose(wide(samples).logits, student(samples).logits, atol=1e-3)
    for model, first, found in ((wide, 1, "branch .1, 2."), (student, 2, "block 2"), (student, -1, "block -1")):
        with pytest.raises(ValueError, match=found):
            add_branch(model, teacher, first)
    small = Wav2Vec2ForCTC(replace(student.config, intermediate_size=32))
    with pytest.raises(ValueError, match="hidden size 64"):
        add_branch(small, teacher, 1)
    write_ctranslate2(tmp_path / "model.bin", teacher_variables(teacher))
    save_model(student, tmp_path / "student")
    make_tokenizer().save_pretrained(tmp_path / "student")
    out = tmp_path / "wide"
    command = ["branch", "--model", str(tmp_path / "student"), "--teacher", str(tmp_path / "model.bin")]
    assert main([*command, "--first", "1", "--output", str(out)]) == 0
    with torch.no_grad():
        loaded = Wav2Vec2ForCTC.from_pretrained(out)
        torch.testing.assert_close(loaded(samples).logits, student(samples).logits, atol=1e-2, rtol=1e-2)


def test_weights_say_how_often_a_pass_hears_a_clip() -> None:
    clips = [Clip(np.full(16_000, i, np.int16), "A", weight) for i, weight in enumerate((2.0, 0.25, 1.0))]
    corpus = Corpus(clips, make_tokenizer(), Augment(), 4, 1)
    passes = [corpus.epoch(number) for number in range(400)]
    heard = [int(clip.samples[0]) for groups in passes for spans in groups for span in spans for clip in span]
    assert heard.count(0) == 800 and heard.count(2) == 400
    assert heard.count(1) == pytest.approx(100, abs=30)
    assert weighted("a/b.tsv:0.5") == (Path("a/b.tsv"), 0.5)
    assert weighted("C:/b.tsv") == (Path("C:/b.tsv"), 1)
    with pytest.raises(ValueError, match="b.tsv:0"):
        weighted("b.tsv:0")


def test_a_room_echoes_and_a_telephone_has_no_highs() -> None:
    rng = np.random.default_rng(0)
    click = np.zeros(16_000, np.float32)
    click[4_000] = 0.5
    echo = Augment().reverberate(click, rng)
    assert len(echo) == 16_000 and np.abs(echo[:4_000]).max() < 1e-6 and echo[4_000] == pytest.approx(0.5, rel=1e-3)
    near, far = (float(np.square(echo[a:b]).sum()) for a, b in ((4_001, 5_600), (8_000, 10_400)))
    assert near > 1e3 * far and near > 0.25 * 0.2**2 * 0.5  # a fifth of the direct sound at least, most of it early
    low, high = (np.sin(np.arange(15_999) * 2 * np.pi * hertz / 16_000).astype(np.float32) for hertz in (1_000, 6_000))
    assert np.corrcoef(telephone(low)[500:-500], low[500:-500])[0, 1] > 0.99 and len(telephone(low)) == 15_999
    assert np.abs(telephone(high)[500:-500]).max() < 0.02


def test_the_rate_rises_holds_and_falls_to_nothing(tmp_path: Path) -> None:
    config = RunConfig(tmp_path, 1000, 1e-3, warmup=100)
    assert [config.rate(step) for step in (0, 49, 99, 200)] == pytest.approx([1e-5, 5e-4, 1e-3, 1e-3])
    assert [config.rate(step) for step in (600, 800, 1000)] == pytest.approx([5e-4, 2.5e-4, 0])


def test_a_teacher_keeps_last_states_in_place(manifest: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = WhisperEncoder(BLOCKS).eval().requires_grad_(False)
    batch = next(corpus(manifest).batches())
    mask = torch.ones(len(batch.input_values), 60, dtype=torch.bool)
    mask[0, 30:] = False
    states = teacher(batch.input_values[:, 200:])[1][:, :60]
    assert float(state_error(teacher, batch.input_values, states, mask)) == 0
    changed = states.clone()
    changed[0, 30:] += 1  # behind the audio
    assert float(state_error(teacher, batch.input_values, changed, mask)) == 0
    assert float(state_error(teacher, batch.input_values, 0 * states, mask)) == pytest.approx(1)
    student = make_student(teacher, BLOCKS)

    def distance() -> float:
        with torch.no_grad():
            return (training_loss(student, batch, False, True, teacher, 1) - training_loss(student, batch)).item()

    before = distance()
    teaching = Teaching(teacher, 40)
    assert [teaching.weight(step) for step in (0, 20, 40, 60)] == [1, 0.5, 0, 0]
    finetune(student.train(), corpus(manifest), RunConfig(tmp_path, 20, 3e-3, warmup=1), teaching=teaching)
    assert 0 < distance() < 0.8 * before


def tiny(tiny_model_dir: Path) -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC.from_pretrained(tiny_model_dir)


def test_fine_tuning_lowers_the_loss_and_heads_can_go_first(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = tiny(tiny_model_dir)
    batch = next(corpus(manifest, 9).batches())
    before = training_loss(model, batch).item()
    extractor = model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.clone()
    finetune(model, corpus(manifest), RunConfig(tmp_path / "head", 8, 1e-2, warmup=1), head_steps=8)
    assert torch.equal(model.wav2vec2.feature_extractor.conv_layers[0].conv.weight, extractor)
    finetune(model, corpus(manifest), RunConfig(tmp_path / "all", 20, 3e-3, warmup=1))
    assert not torch.equal(model.wav2vec2.feature_extractor.conv_layers[0].conv.weight, extractor)
    assert training_loss(model, batch).item() < before


def test_windows_learn_to_read_as_the_whole(tiny_model_dir: Path) -> None:
    torch.manual_seed(0)
    model = tiny(tiny_model_dir).eval()
    samples = 0.1 * torch.randn(2, 5 * 16_000)

    def divergence(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        features = model.wav2vec2.feature_extractor(samples).transpose(1, 2)
        hidden = model.wav2vec2.feature_projection(features)[0]
        logits = model(samples).logits
        return window_divergence(model, hidden, logits, hidden.shape[1])

    def mean() -> float:
        with torch.no_grad():
            return sum(float(divergence(seed)) for seed in range(8)) / 8

    before = mean()
    assert before > 0
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for seed in range(100, 130):
        optimizer.zero_grad()
        divergence(seed).backward()
        optimizer.step()
    assert mean() < 0.7 * before


def test_windows_are_those_of_streams() -> None:
    torch.manual_seed(0)
    assert choose_window(60) is None
    windows = [choose_window(400) for _ in range(300)]
    assert 60 < sum(window is not None and window[0] == 0 for window in windows) < 140
    for start, end in (window for window in windows if window is not None):
        assert 0 <= start < end <= 400 and 50 <= end - start <= 300
        weight = weights(start, end, 400)
        assert (weight[0] == 0) == (start > 0) and (weight[-1] == 0) == (end < 400) and weight.max() > 0.9


def steps_of(folder: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in (folder / LOG_NAME).read_text().splitlines()[1:]]


def test_a_resumed_run_is_the_run_it_would_have_been(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    whole, parts = tiny(tiny_model_dir), tiny(tiny_model_dir)
    config = RunConfig(tmp_path / "whole", 7, 1e-3, save_every=3, log_every=1)
    finetune(whole, corpus(manifest), config)
    config = replace(config, output=tmp_path / "parts", save_every=3)
    run = Run(parts.train(), config, ["wer"])
    batches = corpus(manifest).batches()
    for _ in range(5):  # cut off after step 5: the steps after the checkpoint of step 3 are lost
        batch = next(batches)
        run.step(training_loss(parts, batch), batch.seconds)
        run.report()
    parts = tiny(tiny_model_dir)
    finetune(parts, corpus(manifest), config)
    assert steps_of(config.output) == steps_of(tmp_path / "whole") == [1, 2, 3, 4, 5, 6, 7]
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, parts.state_dict()[name], atol=1e-7), name


def test_a_checkpoint_of_another_model_or_log_is_refused(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = RunConfig(tmp_path, 1, 1e-3)
    finetune(tiny(tiny_model_dir), corpus(manifest), config)
    with pytest.raises(ValueError, match="another model"):
        Run(torch.nn.Linear(2, 2), config)
    with pytest.raises(ValueError, match="Expected the columns"):
        Run(tiny(tiny_model_dir), config, ["perplexity"])


def test_a_finished_run_and_a_foreign_log_are_not_written_over(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["finetune", "--manifest", str(manifest), "--model", str(tiny_model_dir), "--output", str(out)]
    assert main([*command, "--steps", "2"]) == 0
    (out / "model.safetensors").unlink()  # cut off just before it was written
    assert main([*command, "--steps", "2"]) == 0
    with pytest.raises(ValueError, match="fewer than 2 steps in .*out. Found: one of 2; ask for more --steps"):
        main([*command, "--steps", "2"])
    assert main([*command, "--steps", "3"]) == 0 and steps_of(out)[-1] == 3
    (tmp_path / LOG_NAME).write_text("day,weather\n1,fair\n")
    with pytest.raises(ValueError, match="Found: .'day', 'weather'"):
        Run(torch.nn.Linear(2, 1), RunConfig(tmp_path, 1, 1e-3))
    assert "fair" in (tmp_path / LOG_NAME).read_text()


def test_nothing_is_warmed_up_logged_or_saved_where_that_is_asked(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = RunConfig(tmp_path, 2, 1e-3, warmup=0, log_every=0, save_every=0)
    assert config.rate(0) == 1e-3
    finetune(tiny(tiny_model_dir), corpus(manifest), config)
    assert not list(tmp_path.iterdir())
    finetune(tiny(tiny_model_dir), corpus(manifest), config, word_error_rate=lambda: 0.5)
    assert steps_of(tmp_path) == [2]
    for name in ("warmup", "log_every", "save_every"):
        with pytest.raises(ValueError, match="0 or more steps.*Found: .*-1"):
            RunConfig(tmp_path, 2, 1e-3, **{name: -1})


def test_the_mean_of_the_weights_is_the_result(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    run = Run(model, RunConfig(tmp_path, 30, 1e-2, warmup=1, average=0.9))
    mean = model.weight.detach().clone()
    for step in range(1, 31):
        run.step(model(torch.ones(2)).square().sum(), 1)
        kept = min(0.9, step / (step + 20))
        mean = kept * mean + (1 - kept) * model.weight.detach()
    last = model.weight.detach().clone()
    run.save()
    run.finish()
    assert torch.allclose(model.weight, mean) and not torch.allclose(model.weight, last)
    later = Run(torch.nn.Linear(2, 1), RunConfig(tmp_path, 30, 1e-2, warmup=1, average=0.9))
    assert torch.allclose(later.averages["weight"], mean)


def test_batches_without_a_finite_gradient_change_nothing(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    before = model.weight.clone()
    run = Run(model, RunConfig(tmp_path, 30, 1e-2, warmup=1))
    run.step(model(torch.ones(2)).sum() * float("nan"), 1)
    assert torch.equal(model.weight, before) and run.step_count == 1 and not run.means
    run.step(model(torch.ones(2)).sum(), 1)
    assert not torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="none in 10 steps"):
        for _ in range(10):
            run.step(model(torch.ones(2)).sum() * float("nan"), 1)


def test_batches_begin_where_they_are_asked_to(manifest: Path) -> None:
    batches = corpus(manifest).batches()
    skipped = [next(batches) for _ in range(5)][4]
    first = next(corpus(manifest).batches(4))
    assert torch.equal(first.input_values, skipped.input_values) and torch.equal(first.labels, skipped.labels)


def test_samples_are_normalised_where_the_checkpoint_was(manifest: Path) -> None:
    tokenizer = make_tokenizer(do_normalize=True)
    batch = next(Corpus(load_manifest(manifest), tokenizer, Augment(), 4, 1).batches())
    wave = batch.input_values[0, : int(batch.attention_mask[0].sum())]
    assert abs(float(wave.mean())) < 1e-3 and float(wave.std()) == pytest.approx(1, abs=1e-2)


def test_passages_are_of_one_utterance_each() -> None:
    """Each clip holds its own number, so a crop tells where it is from."""
    clips = [Clip(np.full(16_000 + 1_000 * i, i + 1, np.int16), "") for i in range(20)]
    speech = Speech(clips, Augment(), 1, min_s=1.5)
    seen = set()
    for number in range(40):
        batch = speech.passages(number, batch_s=6, max_s=2)
        assert torch.equal(batch, speech.passages(number, batch_s=6, max_s=2))
        assert 24_000 <= batch.shape[1] <= 32_000 and batch.numel() <= 6 * 16_000
        assert (batch == batch[:, :1]).all()
        seen |= set((batch[:, 0] * 32768).round().int().tolist())
    assert seen == set(range(9, 21))  # clips of 1.5 s and more
    with pytest.raises(ValueError, match="none among 20"):
        Speech(clips, Augment(), 1, min_s=3)


def test_the_command_adapts_a_model(
    manifest: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    with_lm = shutil.copytree(tiny_model_dir, tmp_path / "with_lm")
    (with_lm / "language_model").mkdir()
    (with_lm / "language_model" / "attrs.json").write_text("{}")
    arguments = ["--manifest", f"{manifest}:2", "--model", str(with_lm), "--output", str(out), "--steps", "2"]
    arguments += ["--validate", str(manifest), "--mask-time", "0.1", "--mask-feature", "0.1"]
    assert main(["finetune", *arguments]) == 0
    assert Wav2Vec2Tokenizer.from_pretrained(out).vocab_size == 32
    assert "before: WER" in capsys.readouterr().out
    assert (out / "language_model" / "attrs.json").exists()
    row = dict(zip(*((line.split(",")) for line in (out / LOG_NAME).read_text().splitlines()), strict=True))
    assert float(row["wer"]) > 0 and float(row["audio_s_per_s"]) > 0
    texts = ["--texts", str(tmp_path / "texts")]
    assert main(["evaluate", "--manifest", str(manifest), "--model", str(out), "--limit", "9", *texts]) == 0
    assert "set: 9 utterances" in capsys.readouterr().out
    assert len((tmp_path / "texts" / "set.tsv").read_text().splitlines()) == 10


def test_a_mix_is_the_weighted_mean(tiny_model_dir: Path, tmp_path: Path) -> None:
    one = Wav2Vec2ForCTC.from_pretrained(tiny_model_dir)
    other = tiny(tiny_model_dir)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_model(other, tmp_path / "other")
    assert main(["mix", f"{tiny_model_dir}:3", str(tmp_path / "other"), "--output", str(tmp_path / "mix")]) == 0
    mixed = Wav2Vec2ForCTC.from_pretrained(tmp_path / "mix").state_dict()
    for name, weight in one.state_dict().items():
        expected = 0.75 * weight + 0.25 * other.state_dict()[name]
        torch.testing.assert_close(mixed[name], expected, atol=2e-3, rtol=1e-2)
    save_model(Wav2Vec2ForCTC(replace(one.config, num_hidden_layers=3)), tmp_path / "deep")
    with pytest.raises(ValueError, match="one model. Found: .* and .*deep"):
        main(["mix", str(tiny_model_dir), str(tmp_path / "deep"), "--output", str(tmp_path / "no")])


def test_what_is_frozen_stays(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    arguments = ["--manifest", str(manifest), "--model", str(tiny_model_dir), "--steps", "2", "--learning-rate", "1e-2"]
    assert main(["finetune", *arguments, "--freeze", "1", "--output", str(tmp_path / "mine")]) == 0
    before, after = (Wav2Vec2ForCTC.from_pretrained(path).state_dict() for path in (tiny_model_dir, tmp_path / "mine"))
    moved = {name for name, weight in before.items() if not torch.equal(weight.half(), after[name].half())}
    assert moved and not any("extractor" in name or "pos_conv" in name or "layers.0." in name for name in moved)
    assert "lm_head.weight" in moved
    with pytest.raises(ValueError, match="from 0 to 1 blocks. Found: 99"):
        main(["finetune", *arguments, "--freeze", "99", "--output", str(tmp_path / "no")])


def test_error_rates_are_jiwers(manifest: Path, tiny_model_dir: Path) -> None:
    score = evaluate(AcousticModel.load(tiny_model_dir, "cpu"), read_set(manifest))
    references, texts = [h.reference for h in score.heard], [h.text for h in score.heard]
    assert score.word_error_rate == pytest.approx(jiwer.wer(references, texts))
    assert score.letter_error_rate == pytest.approx(jiwer.cer(references, texts))


def speech_like(seconds: float, rate: int = 16_000) -> np.ndarray:
    return 0.3 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 200 / rate)


def prepared(output: Path, name: str = "prepared") -> dict[str, str]:
    """Transcripts, after a look at the audio."""
    for utterance in read_set(output / f"{name}.tsv"):
        info = soundfile.info(output / utterance.path)
        assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
    return read_manifest(output / f"{name}.tsv")


def test_librispeech_is_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "19" / "198"
    folder.mkdir(parents=True)
    for i in range(2):
        soundfile.write(folder / f"19-198-{i:04}.flac", speech_like(1), 16_000)
    lines = ["19-198-0000 NORTHANGER ABBEY", "19-198-0001 IT'S TRUE", "19-198-0002 IS NOT THERE"]
    (folder / "19-198.trans.txt").write_text("\n".join(lines) + "\n")
    result = prepare([tmp_path / "set"], tmp_path / "out", "prepared")
    assert list(prepared(tmp_path / "out").values()) == ["NORTHANGER ABBEY", "IT'S TRUE"]
    assert result.left_out == {"unreadable": 1} and result.hours == pytest.approx(2 / 3600)
    assert (tmp_path / "out" / "prepared.tsv").read_text().splitlines()[1].split("\t")[1:3] == ["1.000", "19"]


def test_common_voice_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / "clips" / f"{name}.mp3", speech_like(1, 32_000), 32_000)
    rows = ["client_id\tpath\tsentence\tup_votes", 'x\ta.mp3\t"Room 12," he said.\t2', "y\tb.mp3\t…\t0"]
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    result = prepare([tmp_path / "train.tsv"], tmp_path / "out", "cv")
    assert list(prepared(tmp_path / "out", "cv").values()) == ["ROOM TWELVE HE SAID"]
    assert result.left_out == {"text without words": 1}
    with pytest.raises(ValueError, match="already there"):
        prepare([tmp_path / "train.tsv"], tmp_path / "out", "cv")
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="path and sentence"):
        prepare([tmp_path / "other.tsv"], tmp_path / "out", "other")


def test_a_folder_is_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine" / "ann"
    folder.mkdir(parents=True)
    for name, seconds in {"one": 1, "two": 2, "short": 0.1, "long": 18, "silent": 18}.items():
        stereo = np.stack([speech_like(seconds, 22_050)] * 2, 1)
        soundfile.write(folder / f"{name}.wav", stereo, 22_050)
    (folder / "one.txt").write_text("Hello,\nworld!\n")
    (folder / "long.txt").write_text("Nobody knows where these words lie.")
    (folder / "broken.wav").write_text("no audio")
    assert main(["prepare", str(tmp_path / "mine"), "--output", str(tmp_path / "out"), "--name", "ann"]) == 0
    assert list(prepared(tmp_path / "out", "ann").values()) == [
        "HELLO WORLD",
        "",
        "",
        "",
    ]  # two halves of the long one without text
    said = capsys.readouterr().out
    assert "4 utterances" in said
    for reason in ("1 left out (too long)", "1 left out (too short)", "1 left out (unreadable)"):
        assert reason in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected audio files"):
        prepare([tmp_path / "empty"], tmp_path / "out", "none")


def test_what_cannot_be_read_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("good", "latin", "nan"):
        samples = speech_like(1)
        samples[500] = np.nan if name == "nan" else 0
        soundfile.write(folder / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    (folder / "good.txt").write_text("Hello.", encoding="utf-8-sig")
    (folder / "latin.txt").write_bytes("Caf\xe9.".encode("latin-1"))
    (tmp_path / "prepared.tsv.part").write_text("of a call that was cut off")
    result = prepare([folder], tmp_path, "prepared")
    assert list(prepared(tmp_path).values()) == ["HELLO"] and result.left_out == {"unreadable": 2}
    assert "latin.txt: expected a text in UTF-8. Found: 0xe9 at byte 3" in caplog.text and "nan.wav" in caplog.text
    assert not (tmp_path / "prepared.tsv.part").exists()
    # A call that fails leaves no manifest in the way of the next.
    with pytest.raises(ValueError, match="no such manifest"):
        prepare([folder, tmp_path / "none.tsv"], tmp_path, "twice")
    assert prepare([folder], tmp_path, "twice").n_kept == 1


def test_a_byte_order_mark_is_no_column(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "set.tsv").write_text(manifest.read_text(), encoding="utf-8-sig")
    assert read_manifest(tmp_path / "set.tsv") == read_manifest(manifest)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_speak(name: str) -> None:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    engine = PROGRAMS[name]()
    voices = {engine.voices[0], engine.voices[-1]}
    for voice in voices:
        samples = engine.speak("Hello there, what a fine morning.", voice, 1.0)
        assert 16_000 < len(samples) < 80_000 and float(np.abs(samples).max()) > 0.05
    if name != "festival":
        fast, slow = (len(engine.speak("Hello there.", engine.voices[0], speed)) for speed in (1.4, 0.8))
        assert fast < 0.8 * slow


def test_a_program_that_fails_is_named() -> None:
    with pytest.raises(ValueError, match="does not run"):
        run_program(["no-such-program-at-all"])
    with pytest.raises(ValueError, match="failed: .*exit code 3|failed: gone"):
        run_program(["sh", "-c", "echo gone >&2; exit 3"])


def test_sentences_are_read_by_many_voices(tmp_path: Path) -> None:
    """An engine that hums for a twentieth of a second a letter, at a pitch that the voice says."""

    def hum(text: str, voice: str, speed: float) -> np.ndarray:
        if "fail" in text:
            raise ValueError("will not say that")
        heard.append(text)
        return np.asarray(np.sin(np.arange(int(800 * len(text) / speed)) * float(voice)), np.float32)

    heard: list[str] = []
    engines = [Engine("low", ("0.02", "0.03"), hum), Engine("high", ("0.2", "0.3", "0.4"), hum)]
    (tmp_path / "sentences.tsv").write_text(
        "1\tCHAPTER ONE\n2\tRoom 12, please.\n\n3\tNow fail.\n4\t...\n" + "\n".join(f"Line {i}." for i in "abcdefgh")
    )
    sentences = read_sentences(tmp_path / "sentences.tsv")
    config = SynthesisConfig(tmp_path, "many", (0.9, 1.1), (0.8, 1.2))
    result = synthesize(sentences, engines, config)
    assert heard[:2] == ["chapter one", "room twelve please"] and heard[2] == "Line a."
    assert result.n_kept == 10 and result.left_out == {"failed": 1, "text without words": 1}
    rows = [line.split("\t") for line in (tmp_path / "many.tsv").read_text().splitlines()]
    assert rows[2][3] == "ROOM TWELVE PLEASE" and len({row[2] for row in rows[1:]}) >= 3
    assert len(prepared(tmp_path, "many")) == 10
    again = synthesize(sentences[:5], engines, replace(config, output=tmp_path / "again"))
    assert (tmp_path / "again" / "many.tsv").read_text() == "".join(
        line + "\n" for line in (tmp_path / "many.tsv").read_text().splitlines()[: 1 + again.n_kept]
    )
    resumed = synthesize(sentences, engines, replace(config, output=tmp_path / "again"))
    assert resumed.left_out["there already"] == again.n_kept
    assert (tmp_path / "again" / "many.tsv").read_text() == (tmp_path / "many.tsv").read_text()
    with pytest.raises(ValueError, match="install espeak-ng"):
        synthesize(sentences, [], config)


def test_sentences_are_of_words_seldom_recorded(tmp_path: Path) -> None:
    (tmp_path / "text.tsv").write_text(
        "1\tTHE CAT SAT ON THE MAT AND THE DOG SAT ON THE CAT\n2\tTHE CAT SAT\n3\tTHE DOG SAW A YELLOW SUBMARINE\n"
    )
    header = "path\tduration_s\tspeaker\ttranscript\n"
    common = "THE CAT SAT ON THE MAT AND THE DOG SAW A"
    (tmp_path / "set.tsv").write_text(
        header + "".join(f"{i}\t1\ts\t{common}\n" for i in range(9)) + "x\t1\ts\tthe cat sat\n"
    )
    (tmp_path / "words").write_text("zebra\ntwo words\n")
    arguments = ["sentences", str(tmp_path / "text.tsv"), "--recorded", str(tmp_path / "set.tsv"), "--seed", "3"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out").read_text().splitlines()
    assert 1 <= len(lines) <= FRAGMENTS and all("YELLOW" in line or "SUBMARINE" in line for line in lines)
    assert all(line in "THE DOG SAW A YELLOW SUBMARINE" for line in lines)

    more = [*arguments, "--words", str(tmp_path / "words"), "--mixed", "500"]
    assert main([*more, "--output", str(tmp_path / "more")]) == main([*more, "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "more").read_text() == (tmp_path / "again").read_text()
    counts = count_words((tmp_path / "more").read_text().splitlines())
    assert counts["YELLOW"] > 1.3 * counts["CAT"] > 0 and counts["ZEBRA"] > 0 and not counts["WORDS"]
    assert main([*arguments[:1], str(tmp_path / "words"), "--output", str(tmp_path / "none")]) == 0
    with pytest.raises(ValueError, match="not recorded"):
        make_sentences(["The cat sat."], ["the cat sat"], set(), 3, 1)


def test_curves_are_plotted(manifest: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    config = RunConfig(tmp_path / "run", 3, 1e-3, log_every=1)
    finetune(tiny(tiny_model_dir), corpus(manifest), config)
    curves = read_curves(tmp_path / "run")
    assert list(curves) == ["loss", "learning_rate", "audio_s_per_s"] and curves["loss"][0] == [1, 2, 3]
    for suffix, begin in {"png": b"\x89PNG", "svg": b"<?xml"}.items():
        output = tmp_path / f"curve.{suffix}"
        assert main(["plot", str(tmp_path / "run" / LOG_NAME), str(tmp_path / "run"), "--output", str(output)]) == 0
        assert output.read_bytes().startswith(begin)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="Found: a, b"):
        read_curves(tmp_path / "other.csv")


def test_pretraining_learns_and_resumes(manifest: Path, tmp_path: Path) -> None:
    def start() -> Wav2Vec2ForPreTraining:
        torch.manual_seed(0)
        return Wav2Vec2ForPreTraining(PRETRAINED)

    speech = Speech(load_manifest(manifest), Augment(), 1, 0.5)
    settings = PretrainConfig(batch_s=4, mask_length=4)
    config = RunConfig(tmp_path / "whole", 24, 5e-3, warmup=4, log_every=4, save_every=12)
    model = start()
    pretrain(model, speech, config, settings)
    curves = read_curves(tmp_path / "whole")
    assert set(METRICS) <= set(curves)
    assert curves["contrastive"][1][-1] < curves["contrastive"][1][0]
    assert curves["temperature"][1][0] > curves["temperature"][1][-1]
    # Cut off after step 14, it goes on from the checkpoint of step 12.
    short = replace(config, output=tmp_path / "parts")

    class CutOff(Speech):
        def passages(self, number: int, batch_s: float, max_s: float) -> torch.Tensor:
            if number == 14:
                raise KeyboardInterrupt
            return super().passages(number, batch_s, max_s)

    with pytest.raises(KeyboardInterrupt):
        pretrain(start(), CutOff(speech.clips, Augment(), 1, 0.5), short, settings)
    parts = start()
    pretrain(parts, speech, short, settings)
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight, parts.state_dict()[name], atol=1e-6), name


def test_a_new_quantizer_starts_with_choices_that_follow_the_features(manifest: Path) -> None:
    """Features with a large mean, as trained extractors give, choose one code for all frames."""
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(PRETRAINED).eval()
    with torch.no_grad():
        model.wav2vec2.feature_projection.layer_norm.bias.fill_(5.0)
    speech = Speech(load_manifest(manifest), Augment(), 1, 0.5)
    settings = PretrainConfig(batch_s=4, mask_length=4)
    batches = [make_batch(speech, number, settings) for number in range(4)]

    def used() -> float:
        with torch.no_grad():
            return float(model(batches[0]).codevector_perplexity)

    before = used()
    start_from_data(model, batches)
    assert before < 6 and used() > 2 * before
    assert abs(model.quantizer.codevectors.mean().item()) < 1e-6


def test_a_frozen_extractor_stays(manifest: Path, tmp_path: Path) -> None:
    model = Wav2Vec2ForPreTraining(PRETRAINED)
    before = model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.clone()
    speech = Speech(load_manifest(manifest), Augment(), 1, 0.5)
    pretrain(
        model, speech, RunConfig(tmp_path, 2, 1e-2), PretrainConfig(batch_s=4, mask_length=4, extractor_gradient=0)
    )
    extractor = model.wav2vec2.feature_extractor
    assert torch.equal(before, extractor.conv_layers[0].conv.weight)
    assert all(weight.requires_grad for weight in extractor.parameters())


def test_the_command_pretrains_and_what_it_made_is_fine_tuned(manifest: Path, tmp_path: Path) -> None:
    PRETRAINED.save(tmp_path / "small.json")
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["--manifest", str(manifest), "--steps", "2", "--batch-s", "2", "--mask-length", "4"]
    common += ["--dtype", "float32"]
    assert main(["pretrain", "--config", str(tmp_path / "small.json"), "--output", str(first), *common]) == 0
    assert main(["pretrain", "--model", str(first), "--layers", "1", "--output", str(second), *common]) == 0
    # A trained quantizer does not start anew.
    one, two = (
        Wav2Vec2ForPreTraining.from_pretrained(folder).quantizer.weight_proj.weight for folder in (first, second)
    )
    assert torch.allclose(one, two, atol=0.02)
    out = tmp_path / "tuned"
    common = ["--manifest", str(manifest), "--steps", "2", "--head-steps", "1"]
    assert main(["finetune", "--model", str(second), "--output", str(out), *common]) == 0
    assert Wav2Vec2Tokenizer.from_pretrained(out).do_normalize
    assert Wav2Vec2ForCTC.from_pretrained(out).config.num_codevectors_per_group == 20


def test_an_encoder_is_given_the_letters_of_its_tokenizer(manifest: Path, tmp_path: Path) -> None:
    """Its config knows nothing of them: 32 tokens and a blank of 0, as published ones have."""
    start, out, more = tmp_path / "start", tmp_path / "out", tmp_path / "more"
    save_model(Wav2Vec2ForPreTraining(PRETRAINED), start)
    letters = {token: i for i, token in enumerate(["|", *(chr(0xE0 + i) for i in range(30)), *"abcdef", "[PAD]"])}
    Wav2Vec2Tokenizer(letters, pad_token="[PAD]", bos_token=None, eos_token=None, unk_token=None).save_pretrained(start)
    common = ["--manifest", str(manifest), "--steps", "1", "--head-steps", "1", "--dtype", "float32"]
    assert main(["finetune", "--model", str(start), "--output", str(out), *common]) == 0
    model = Wav2Vec2ForCTC.from_pretrained(out)
    assert model.lm_head.weight.shape[0] == model.config.vocab_size == 38
    assert model.config.pad_token_id == AcousticModel.load(out, "cpu").alphabet.blank == 37
    # A head that is there stays, and so do logits that stand for nothing.
    wide = Wav2Vec2ForCTC(replace(model.config, vocab_size=40))
    save_model(wide, start)
    assert main(["finetune", "--model", str(start), "--output", str(more), *common, "--learning-rate", "1e-9"]) == 0
    kept = Wav2Vec2ForCTC.from_pretrained(more)
    torch.testing.assert_close(kept.lm_head.weight, wide.lm_head.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_an_encoder_without_letters_is_trained_on(manifest: Path, tmp_path: Path, do_normalize: bool) -> None:
    save_model(Wav2Vec2ForPreTraining(PRETRAINED), tmp_path / "start")
    (tmp_path / "start" / "preprocessor_config.json").write_text(f'{{"do_normalize": {str(do_normalize).lower()}}}')
    common = ["--manifest", str(manifest), "--steps", "1", "--batch-s", "2", "--mask-length", "4"]
    assert main(["pretrain", "--model", str(tmp_path / "start"), "--output", str(tmp_path / "out"), *common]) == 0
    assert Wav2Vec2Tokenizer.from_pretrained(tmp_path / "out").do_normalize == do_normalize
