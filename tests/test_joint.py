"""Training of a model with its rescorer: rows against NumPy, what is put onto them, and runs that go on."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_rescorer import CONFIG, make
from test_training import BLOCKS, manifest
from torch import Tensor

from core.acoustic import AcousticModel
from core.checkpoint import save_model
from core.features import normalize
from core.rescorer import FOLDER, Rescorer, is_rounded
from core.training.augment import Augment
from core.training.command import main
from core.training.corpus import Clip, load_manifest
from core.training.joint import SCENES, Joint, JointConfig, train_jointly
from core.training.rows import FRAMES, Plan, Rows, normalize_rows, render, row_length
from core.training.run import LOG_NAME, Run, RunConfig
from core.training.scenes import BABBLE_CHANCE, TAPS, Scene
from core.training.spectrogram import SpectrogramAugment, is_log_mel, warp
from core.training.student import make_student, make_tokenizer
from core.training.whisper import WhisperEncoder
from core.wav2vec2 import Wav2Vec2ForCTC

__all__ = ["manifest"]
SECOND = 16_000
STILL = Augment(speed_chance=0, silence_chance=0, room_chance=0, telephone_chance=0, gain_chance=0, noise_chance=0)


def clips(n: int = 12, seed: int = 0) -> list[Clip]:
    """Noise of 0.4 to 2 s; each has its own text."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(int(0.4 * SECOND), 2 * SECOND, n)
    return [
        Clip(rng.integers(-9000, 9000, length).astype(np.int16), f"{chr(65 + i)} CAT")
        for i, length in enumerate(lengths)
    ]


def rows(augment: Augment = SCENES, n: int = 12, n_rows: int = 3, seconds: float = 5.0, seed: int = 1) -> Rows:
    return Rows(clips(n), make_tokenizer(), augment, n_rows, int(seconds * SECOND), seed)


@pytest.mark.parametrize("augment", [STILL, replace(STILL, speed_chance=1, speed=(0.8, 1.2), silence_chance=1)])
def test_rows_are_what_numpy_makes_of_them(augment: Augment) -> None:
    source = rows(augment)
    made = [row for number in range(2) for row in source.epoch(number)]
    texts = [text for step in range(2) for text in source.plan(step, made[3 * step : 3 * step + 3]).texts]
    plan = source.plan(0, made)
    found = render(source.reel(), plan, source.n_samples).numpy()
    assert found.shape == (len(made), source.n_samples) and texts == list(plan.texts[:6])
    n_pauses = 0
    for row, samples, labels, text in zip(made, found, plan.labels, plan.texts, strict=True):
        expected, end = np.zeros(source.n_samples), 0
        for placed in row.clips:
            wave = source.clips[placed.clip].samples / 32768
            places = np.arange(placed.length) * placed.speed
            assert len(wave) - 1 - placed.speed < places[-1] <= len(wave) - 1 + 1e-6  # all of it
            expected[placed.start : placed.start + placed.length] = np.interp(places, np.arange(len(wave)), wave)
            assert placed.start >= end
            n_pauses += placed.start > end
            end = placed.start + placed.length
        assert np.abs(samples - expected).max() < 1e-6 and end <= row.n_samples <= source.n_samples
        assert text == " ".join(source.clips[placed.clip].transcript for placed in row.clips)
        assert make_tokenizer().decode(labels[labels >= 0].tolist(), group_tokens=False) == text
    speeds = [placed.speed for row in made for placed in row.clips]
    if augment is STILL:
        assert n_pauses == 0 and set(speeds) == {1.0}
    else:
        assert n_pauses > 5 and max(speeds) > 1.15 * min(speeds)


def test_a_pass_hears_each_clip_and_plans_begin_where_they_are_asked_to() -> None:
    source = rows()
    heard = sorted(placed.clip for row in source.epoch(3) for placed in row.clips)
    assert heard == list(range(12))
    source.clips[0] = replace(source.clips[0], weight=2.0)
    assert sum(placed.clip == 0 for row in source.epoch(3) for placed in row.clips) == 2
    plans = rows().plans()
    skipped = [next(plans) for _ in range(6)][5]
    first = next(rows().plans(5))
    assert first.texts == skipped.texts and first.seconds == skipped.seconds <= 15
    for name in ("starts", "sources", "lengths", "speeds", "labels"):
        assert torch.equal(getattr(first, name), getattr(skipped, name)), name
    assert torch.equal(first.scene.gain, skipped.scene.gain)
    assert next(rows(seed=2).plans(5)).texts != first.texts


def test_the_longest_clip_has_a_row_of_its_own() -> None:
    whole = Clip(np.arange(2 * SECOND).astype(np.int16), "A")
    source = Rows([whole] * 9, make_tokenizer(), replace(SCENES, silence_chance=1), 1, 2 * SECOND, 1)
    for row in source.epoch(0):
        assert [placed.length for placed in row.clips] == [2 * SECOND] or row.clips[0].speed > 1
    with pytest.raises(ValueError, match="of 0.3 to 1.0 s. Found: none among 2"):
        Rows([whole, Clip(whole.samples[:SECOND], "")], make_tokenizer(), SCENES, 1, SECOND, 1)


def test_frames_of_rows_are_aligned() -> None:
    config = student().config
    for seconds in (0.01, 1, 3.3, 16):
        assert config.n_frames(row_length(config, seconds)) % FRAMES == 0
    assert config.n_frames(row_length(config, 16)) == 800


def scene(n: int, **changes: Tensor) -> Scene:
    """Of nothing at all but the changes."""
    none = Scene.draw(STILL, n, np.random.default_rng(0))
    still = {"equaliser": torch.zeros(n, 8), "is_babble": torch.zeros(n, dtype=torch.bool), "floor": torch.zeros(n)}
    return replace(none, **{**still, **changes})


def test_telephones_rooms_and_equalisers_answer_as_they_should() -> None:
    n, at = 2 * SECOND, SECOND // 2
    click = torch.zeros(4, n)
    click[:, at] = 0.5
    heard = torch.full((4,), n)
    bands = torch.zeros(4, 8)
    bands[3, 4:] = -12
    made = scene(
        4,
        is_telephone=torch.tensor([False, True, False, False]),
        room=torch.full((4,), 0.2),
        room_level=torch.tensor([0, 0, 0.5, 0]),
        equaliser=bands,
    )
    found = made(click, heard, torch.zeros(0))
    torch.testing.assert_close(found[0], click[0], atol=1e-6, rtol=0)
    spectrum = 2 * torch.fft.rfft(found).abs()  # of hertz / 2

    def response(row: int, hertz: int) -> float:
        return float(spectrum[row, 2 * hertz])

    assert response(1, 1000) == pytest.approx(1, abs=0.01) and response(1, 3500) == pytest.approx(0.5, abs=0.02)
    assert response(1, 50) < 0.01 > response(1, 4500)
    assert response(3, 200) == pytest.approx(1, abs=0.02) and response(3, 6000) == pytest.approx(0.25, abs=0.02)
    echo = found[2] / 0.5
    assert echo[:at].abs().max() < 1e-5 and float(echo[at]) == pytest.approx(1, abs=1e-4)
    after = echo[at + 1 : at + TAPS].square()
    assert float(after.sum()) == pytest.approx(0.25, rel=0.05) and after[:1600].sum() > 500 * after[3200:].sum()


def test_backgrounds_are_as_loud_as_drawn_and_end_with_the_row() -> None:
    torch.manual_seed(0)
    samples = 0.1 * torch.randn(3, SECOND)
    heard = torch.tensor([SECOND, SECOND // 2, SECOND])
    samples[1, SECOND // 2 :] = 0
    noise = 0.01 * torch.randn(5000)  # shorter than a row
    made = scene(3, background=torch.tensor([0.5, 0.25, 0.0]))
    added = made(samples, heard, noise) - samples
    loudness = added.square().sum(1).sqrt() / samples.square().sum(1).sqrt()
    torch.testing.assert_close(loudness, torch.tensor([0.5, 0.25, 0]), atol=1e-3, rtol=0)
    assert not added[1, SECOND // 2 :].any()
    louder = scene(3, gain=torch.tensor([20.0, 1.0, 1.0]), floor=torch.tensor([0, 0.01, 0.0]))(samples, heard, noise)
    assert louder[0].abs().max() == 1 and torch.equal(louder[2], louder[2].clamp(-1, 1))
    assert float((louder - samples)[1, : SECOND // 2].std()) == pytest.approx(0.01, rel=0.05)
    assert not louder[1, SECOND // 2 :].any()


def test_rows_hang_on_each_other_by_babble_alone() -> None:
    noise = 0.1 * torch.randn(SECOND)
    augment = replace(SCENES, noise=noise.numpy(), noise_chance=1, room_chance=1)
    source = rows(augment, n_rows=8)
    every = [row for number in range(9) for row in source.epoch(number)]

    def heard(plan: Plan) -> Tensor:
        torch.manual_seed(1)
        return plan.scene(render(source.reel(), plan, source.n_samples), plan.n_samples, noise)

    one, other = source.plan(7, every[:8]), source.plan(7, [every[0], *every[8:12], *every[5:8]])
    changed = (heard(one) - heard(other)).abs().amax(1) > 1e-6
    assert changed[1:5].all() and 0 < int(one.scene.is_babble.sum()) < 8
    for row in (0, 5, 6, 7):
        others = {(row - i) % 8 for i in range(1, 4)}
        assert bool(changed[row]) == (bool(one.scene.is_babble[row]) and bool(others & {1, 2, 3, 4}))
    alone = scene(1, is_babble=torch.ones(1, dtype=torch.bool), background=torch.ones(1))
    samples = torch.randn(1, SECOND).clamp(-1, 1)
    torch.testing.assert_close(alone(samples, torch.tensor([SECOND]), noise), samples, atol=1e-5, rtol=0)


def test_scenes_are_drawn_as_often_as_they_should() -> None:
    silent = Scene.draw(SCENES, 4000, np.random.default_rng(1))
    noisy = Scene.draw(replace(SCENES, noise=np.ones(9, np.float32)), 4000, np.random.default_rng(1))
    assert float((silent.background > 0).float().mean()) == pytest.approx(0.4 * BABBLE_CHANCE, abs=0.02)
    assert float((noisy.background > 0).float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float((noisy.room_level > 0).float().mean()) == pytest.approx(0.12, abs=0.02)
    assert float(noisy.is_telephone.float().mean()) == pytest.approx(0.08, abs=0.02)


def test_rows_are_normalised_as_utterances_are() -> None:
    torch.manual_seed(0)
    samples, heard = 0.1 * torch.randn(2, 1000) + 0.3, torch.tensor([1000, 400])
    found = normalize_rows(samples, heard)
    for row, wave, n in zip(found, samples, heard.tolist(), strict=True):
        assert np.abs(row[:n].numpy() - normalize(wave[:n].numpy())).max() < 1e-4 and not row[n:].any()


def test_a_warp_by_one_changes_nothing_and_others_shift_bands() -> None:
    levels = torch.randn(3, 80, 50)
    assert torch.equal(warp(levels, torch.ones(3)), levels)
    slope = torch.arange(80.0)[None, :, None].expand(3, -1, 5)
    found = warp(slope, torch.tensor([0.9, 1.0, 1.1]))
    assert found[:, 40, 0].tolist() == pytest.approx([36, 40, 44]) and float(found.max()) == 79
    still = SpectrogramAugment(warp_chance=0, band_chance=0, time_chance=0)
    assert torch.equal(still(levels), levels)
    torch.manual_seed(0)
    hidden = SpectrogramAugment(warp_chance=0, band_chance=1, time_chance=1)(levels) != levels
    bands, times = hidden.all(2).sum(1), hidden.all(1).sum(1)
    assert (bands > 0).all() and (bands <= 34).all() and (times > 0).all() and times.max() > 10


def student(seed: int = 0) -> Wav2Vec2ForCTC:
    """A tiny model whose extractor is a log-mel; its positional convolution tells something."""
    torch.manual_seed(seed)
    teacher = WhisperEncoder(BLOCKS).eval().requires_grad_(False)
    return make_student(teacher, BLOCKS)


def reader(hidden_size: int = 64) -> Rescorer:
    torch.manual_seed(1)
    rescorer = Rescorer(replace(CONFIG, hidden_size=hidden_size))
    with torch.no_grad():
        rescorer.embedding.weight.mul_(0.2)
    return rescorer


def tones(manifest: Path, augment: Augment = STILL) -> Rows:
    return Rows(load_manifest(manifest), make_tokenizer(), augment, 4, row_length(student().config, 3.3), 1)


def run_config(output: Path, steps: int, **changes: object) -> RunConfig:
    start = RunConfig(output, steps, 1e-3, warmup=1, log_every=1, save_every=0, average=0.5, encoder_rate=1)
    return replace(start, **({"rates": JointConfig().rates(1)} | changes))


def column(folder: Path, name: str) -> list[float]:
    with (folder / LOG_NAME).open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_all_losses_fall_and_the_spectrum_stays(manifest: Path, tmp_path: Path) -> None:
    model, rescorer = student(), reader()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = JointConfig(consistency=0.7, lower_rate=0.25, lower_dropout=0.05, rescorer_dropout=0.2)
    changes = {"learning_rate": 3e-3, "is_mixed": False, "rates": settings.rates(1)}
    joint = Joint(model, rescorer, settings)
    train_jointly(joint, tones(manifest), run_config(tmp_path, 24, **changes))
    for name in ("loss", "ctc", "reading"):
        losses = column(tmp_path, name)
        assert losses[-1] < 0.8 * losses[0], name
    assert len(column(tmp_path, "consistency")) > 8
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert not any(name.startswith("wav2vec2.feature_extractor.conv_layers.1.") for name in moved)
    assert "wav2vec2.feature_extractor.conv_layers.2.conv.weight" in moved and "lm_head.weight" in moved
    layers = model.wav2vec2.encoder.layers
    assert [layer.dropout.p for layer in (*layers, *rescorer.layers)] == [0.05, 0.1, 0.2, 0.2]


def test_the_lower_half_stays_by_default() -> None:
    joint = Joint(student(), reader(), JointConfig())
    moved = {name.removeprefix("model.wav2vec2.") for name, p in joint.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("feature_", "encoder.pos_conv", "encoder.layers.0.")) for name in moved)
    assert {"encoder.layers.1.layer_norm.bias", "model.lm_head.bias", "rescorer.embedding.weight"} <= moved
    assert not any(part.p for part in joint.rescorer.modules() if isinstance(part, torch.nn.Dropout))


def test_parts_learn_at_their_rates(tmp_path: Path) -> None:
    settings = JointConfig(lower_rate=0.25)
    joint = Joint(student(), reader(), settings)
    run = Run(joint, run_config(tmp_path, 1, rates=settings.rates(1)))
    names = {id(parameter): name for name, parameter in joint.named_parameters()}
    share = {names[id(p)]: group["share"] for group in run.optimizer.param_groups for p in group["params"]}
    assert {share[name] for name in share if name.startswith("rescorer.")} == {0.4}
    lower = ("feature_", "pos_conv_embed", "encoder.layers.0.")
    for name in (name for name in share if name.startswith("model.")):
        assert share[name] == (0.25 if any(part in name for part in lower) else 1.0), name
    assert not any("conv_layers.0." in name or "conv_layers.1." in name for name in share)


def test_losses_are_those_of_the_parts(manifest: Path) -> None:
    source, joint = tones(manifest), Joint(student(), reader(), JointConfig(consistency=0)).eval()
    plan = next(source.plans())
    samples = render(source.reel(), plan, source.n_samples)
    with torch.no_grad():
        losses = joint.losses(samples, plan, is_mixed=False)
        heard = (torch.arange(source.n_samples) < plan.n_samples[:, None]).long()
        output = joint.model(samples, heard, labels=plan.labels)
        assert set(losses) == {"ctc", "reading"}
        assert float(losses["ctc"]) == pytest.approx(float(output.loss), rel=1e-4)
        frames, said = joint.model.wav2vec2.frame_mask(heard), []
        for row, text in enumerate(plan.texts):  # each alone, without padding
            _, states = joint.model.log_probs_and_states(samples[row : row + 1, : int(plan.n_samples[row])], 1)
            assert states.shape[1] == int(frames[row].sum())
            said.append(joint.rescorer.score(states[0].numpy(), [text])[0])
    n = sum(len(joint.rescorer.pieces.encode(text)) + 1 for text in plan.texts)
    assert float(losses["reading"]) == pytest.approx(-sum(said) / n, rel=1e-3)
    assert float(joint.total(losses)) == pytest.approx(float(losses["ctc"] + 0.5 * losses["reading"]), rel=1e-5)


def test_a_resumed_run_is_the_run_it_would_have_been(manifest: Path, tmp_path: Path) -> None:
    def go(folder: str) -> Joint:
        joint = Joint(student(), reader(), JointConfig(consistency=0.5))
        train_jointly(joint, tones(manifest, SCENES), run_config(tmp_path / folder, 5, save_every=2))
        return joint

    whole, plan_of = go("whole"), Rows.plan

    def cut(self: Rows, step: int, *rest: object) -> Plan:
        if step == 3:
            raise KeyboardInterrupt
        return plan_of(self, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "plan", cut)
        with pytest.raises(KeyboardInterrupt):
            go("parts")
    resumed = go("parts")
    assert column(tmp_path / "parts", "step") == column(tmp_path / "whole", "step") == [1, 2, 3, 4, 5]
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, resumed.state_dict()[name], atol=1e-6), name


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a rescorer and a language model."""
    folder = tmp_path_factory.mktemp("joint") / "start"
    save_model(student(), folder)
    make_tokenizer().save_pretrained(folder)
    reader().save(folder / FOLDER, is_rough=False)
    (folder / "language_model").mkdir()
    (folder / "language_model" / "attrs.json").write_text("{}")
    return folder


QUICK = ["--steps", "2", "--batch-s", "8", "--row-s", "3.3", "--warmup", "1", "--device", "cpu"]


def test_the_command_trains_both_and_mixes_both(start: Path, manifest: Path, tmp_path: Path) -> None:
    out, mixed = tmp_path / "out", tmp_path / "mixed"
    command = ["joint", "--model", str(start), "--manifest", f"{manifest}:2", "--noise", str(manifest)]
    assert main([*command, *QUICK, "--output", str(out), "--learning-rate", "1e-2", "--consistency", "1"]) == 0
    assert (out / "language_model" / "attrs.json").exists() and column(out, "consistency")
    assert AcousticModel.load(out, "cpu").rescorer() is not None
    before, after = (Rescorer.load(folder / FOLDER).state_dict() for folder in (start, out))
    moved = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert len(moved) > 20
    assert main(["mix", f"{start}:3", str(out), "--output", str(mixed)]) == 0
    assert (mixed / "language_model" / "attrs.json").exists()
    for name, weight in Rescorer.load(mixed / FOLDER).state_dict().items():
        torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * after[name], atol=1e-3, rtol=1e-3)
    assert main(["mix", str(start), str(out), "--int8", "--output", str(tmp_path / "small")]) == 0
    sizes = [(folder / FOLDER / "model.safetensors").stat().st_size for folder in (mixed, tmp_path / "small")]
    assert sizes[1] < 0.5 * sizes[0]
    fitted = [
        "mix",
        str(start),
        str(out),
        "--int8",
        "--compensate",
        str(manifest),
        "--output",
        str(tmp_path / "fitted"),
    ]
    assert main(fitted) == 0
    weights, plain = (Rescorer.load(tmp_path / name / FOLDER).state_dict() for name in ("fitted", "small"))
    others = {name for name, weight in plain.items() if not torch.equal(weight, weights[name])}
    assert others == {name for name, weight in plain.items() if is_rounded(name, weight)}
    assert main([*command, *QUICK, "--output", str(tmp_path / "int8"), "--int8"]) == 0
    assert (tmp_path / "int8" / FOLDER / "model.safetensors").stat().st_size == sizes[1]


def test_rescorers_of_other_settings_are_not_mixed(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = shutil.copytree(start, tmp_path / "other")
    make(replace(CONFIG, intermediate_size=192)).save(other / FOLDER)
    assert main(["mix", str(start), str(other), "--output", str(tmp_path / "mixed")]) == 0
    files = [folder / FOLDER / "model.safetensors" for folder in (start, tmp_path / "mixed")]
    assert files[0].read_bytes() == files[1].read_bytes()  # of the first, whose blocks the mean has
    shutil.rmtree(other / FOLDER)
    assert main(["mix", str(other), str(start), "--output", str(tmp_path / "without")]) == 0
    assert not (tmp_path / "without" / FOLDER).exists()


def test_other_extractors_are_trained_whole(tiny_model_dir: Path, manifest: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    assert not is_log_mel(Wav2Vec2ForCTC.from_pretrained(model).config)
    make(replace(CONFIG, hidden_size=32)).save(model / FOLDER)
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": True}))
    command = ["joint", "--model", str(model), "--manifest", str(manifest), *QUICK, "--learning-rate", "1e-2"]
    assert main([*command, "--output", str(tmp_path / "out"), "--dtype", "float32"]) == 0
    key = "wav2vec2.feature_extractor.conv_layers.0.conv.weight"
    one, other = (Wav2Vec2ForCTC.from_pretrained(folder).state_dict()[key] for folder in (model, tmp_path / "out"))
    assert not torch.allclose(one, other, atol=1e-4)


def test_what_cannot_be_trained_is_named(tiny_model_dir: Path, start: Path, manifest: Path, tmp_path: Path) -> None:
    command = ["joint", "--manifest", str(manifest), *QUICK, "--output", str(tmp_path)]
    with pytest.raises(ValueError, match=r"Expected a folder rescorer.*Found: none"):
        main([*command, "--model", str(tiny_model_dir)])
    with pytest.raises(ValueError, match="of 0.3 to 0.5 s. Found: none among 12"):
        main([*command, "--model", str(start), "--row-s", "0.5"])
    with pytest.raises(ValueError, match="from 0 to below 1. Found: 1"):
        main([*command, "--model", str(start), "--average", "1"])
    with pytest.raises(ValueError, match="from 0 to 1. Found: .*1.5"):
        main([*command, "--model", str(start), "--consistency", "1.5"])
    with pytest.raises(ValueError, match="at least 0. Found: .*-1"):
        JointConfig(lower_rate=-1)
