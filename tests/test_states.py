"""Training on what the frozen half made of the audio, against training on the audio."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from core.configuration import Wav2Vec2Config
from core.training.augment import Augment
from core.training.command import main
from core.training.corpus import Clip, Corpus
from core.training.finetune import finetune, freeze, set_dropout, training_loss
from core.training.run import RunConfig
from core.training.states import StateCorpus, hear, load, mask, save, states_loss
from core.training.student import make_tokenizer
from core.wav2vec2 import Wav2Vec2ForCTC

CONFIG = Wav2Vec2Config(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(16, 16),
    conv_kernel=(200, 4),
    conv_stride=(80, 4),
    feat_extract_norm="layer",
    conv_bias=True,
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    hidden_dropout=0.0,
    activation_dropout=0.0,
    attention_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.0,
    mask_time_prob=0.0,
    mask_time_min_masks=0,
    ctc_loss_reduction="mean",
    ctc_zero_infinity=True,
)


def make_model(branch: tuple[int, ...] = ()) -> Wav2Vec2ForCTC:
    torch.manual_seed(1)
    return Wav2Vec2ForCTC(replace(CONFIG, branch=branch)).train()


def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    clips = [
        Clip((3000 * rng.standard_normal(int(n))).astype(np.int16), "A BAD CAB")
        for n in rng.uniform(20_000, 60_000, 12)
    ]
    return Corpus(clips, make_tokenizer(), Augment(), 8, 1)


def gradients(model: Wav2Vec2ForCTC) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("branch", [(), (1, 3)])
@pytest.mark.parametrize("n_blocks", [0, 1, 2, 3, 4])
def test_loss_and_gradients_are_those_of_the_audio(branch: tuple[int, ...], n_blocks: int, tmp_path: Path) -> None:
    """But for the rounding of states to bfloat16."""
    batch = next(corpus().batches())
    plain, ours = make_model(branch), make_model(branch)
    freeze(plain, n_blocks)
    freeze(ours, n_blocks)
    save(hear(ours, batch, n_blocks, 0.0, is_mixed=False), tmp_path / "0.pt")
    heard = load(tmp_path / "0.pt")
    assert heard.seconds == batch.seconds and heard.window is None
    assert (heard.whole.trunk is heard.whole.hidden) == (not branch or n_blocks not in (2, 3))
    expected, found = training_loss(plain, batch, is_mixed=False), states_loss(ours, heard, n_blocks, is_mixed=False)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=2e-3)
    for loss in (expected, found):
        loss.backward()  # type: ignore[no-untyped-call]
    theirs = gradients(plain)
    assert gradients(ours).keys() == theirs.keys() and len(theirs) > 2
    for name, gradient in gradients(ours).items():
        assert float((gradient - theirs[name]).norm()) <= 0.05 * float(theirs[name].norm()) + 1e-4, name


def test_windows_are_those_of_the_stream(tmp_path: Path) -> None:
    model, batch = make_model((1, 3)).eval(), next(corpus().batches())
    torch.nn.init.normal_(model.lm_head.weight)  # a model that says something
    heard = hear(model, batch, 3, 1.0, is_mixed=False)
    assert heard.window is not None
    end = heard.start + heard.window.hidden.shape[1]
    hidden = model.wav2vec2.embed(batch.input_values)[0][:, heard.start : end]
    encoder = model.wav2vec2.encoder
    states = encoder(hidden, want_states=True)[1]
    assert states is not None
    torch.testing.assert_close(heard.window.hidden, states[-2].bfloat16(), atol=0.02, rtol=0.02)
    whole = states_loss(model, replace(heard, window=None), 3, is_mixed=False)
    assert float(states_loss(model, heard, 3, is_mixed=False).detach()) > float(whole.detach())


def test_what_is_kept_is_heard_again_in_another_order(tmp_path: Path) -> None:
    model = make_model()
    states = StateCorpus(model, corpus(), tmp_path, 5, 2, consistency=0.5)
    sums = [float(heard.whole.hidden.double().sum()) for heard in islice(states.batches(), 15)]
    assert len(set(sums)) == 5 and len(list(tmp_path.glob("*.pt"))) == 5
    first, second, third = sums[:5], sums[5:10], sums[10:]
    assert set(first) == set(second) == set(third) and len({*map(tuple, (first, second, third))}) > 1
    for start in (0, 3, 7):  # from another process
        again = StateCorpus(make_model(), corpus(), tmp_path, 5, 2, consistency=0.5)
        found = [float(heard.whole.hidden.double().sum()) for heard in islice(again.batches(start), 15 - start)]
        assert found == sums[start:]
    for start in (3, 7):  # and to an emptied folder
        again = replace(states, folder=tmp_path / f"emptied-{start}")
        found = [float(heard.whole.hidden.double().sum()) for heard in islice(again.batches(start), 15 - start)]
        assert found == sums[start:]
    assert model.training


def test_states_of_something_else_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def first(states: StateCorpus) -> Tensor:
        return next(states.batches()).whole.hidden

    states = StateCorpus(make_model(), corpus(), tmp_path, 2, 2, consistency=0.5)
    expected = first(states)
    assert torch.equal(first(replace(states, n_kept=3)), expected)
    moved, fewer = make_model(), corpus()
    with torch.no_grad():
        moved.lm_head.weight.add_(1)
        moved.wav2vec2.encoder.layers[2].final_layer_norm.bias.add_(1)
    assert torch.equal(first(replace(states, model=moved)), expected)  # what is not frozen may learn
    with torch.no_grad():
        moved.wav2vec2.encoder.layers[1].final_layer_norm.bias.add_(1)
    fewer.clips = fewer.clips[1:]
    others = {
        "weights": replace(states, model=moved),
        "clips": replace(states, corpus=fewer),
        "weights, n_blocks": replace(states, n_blocks=1),
        "consistency, is_mixed": replace(states, consistency=0.0, is_mixed=False),
    }
    for names, other in others.items():
        with pytest.raises(ValueError, match=f"Found: others .{names} differ"):
            first(other)
    (tmp_path / "states.json").unlink()  # files of several runs, put together by hand
    assert torch.equal(first(others["clips"]), expected)
    assert "taken as they are" in caplog.text and not (tmp_path / "states.json").exists()


def test_a_resumed_run_is_the_run_it_would_have_been(tmp_path: Path) -> None:
    ends = []
    for name, stops in (("whole", (9,)), ("parts", (4, 9))):
        for stop in stops:
            model = make_model((1, 3))
            set_dropout(model, 0.1)
            freeze(model, 3)
            states = StateCorpus(model, corpus(), tmp_path / f"{name}-states", 6, 3, consistency=0.5)
            config = RunConfig(tmp_path / name, 9, 1e-3, save_every=2, average=0.9)
            if stop < 9:
                with pytest.raises(KeyboardInterrupt):
                    finetune(model, stopping(states, stop), config)
            else:
                finetune(model, states, config)
        ends.append(model.state_dict())
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, msg=name)


def stopping(states: StateCorpus, after: int) -> StateCorpus:
    class Stopping(StateCorpus):
        def batches(self, first: int = 0, n_workers: int = 1):  # type: ignore[no-untyped-def]
            yield from islice(super().batches(first, n_workers), after)
            raise KeyboardInterrupt

    return Stopping(**{name: getattr(states, name) for name in StateCorpus.__dataclass_fields__})


def test_masks_are_spans_of_frames_and_channels() -> None:
    model = make_model()
    batch = next(corpus().batches())
    heard = hear(model, batch, 2, 0.0, is_mixed=False)
    model.config = replace(model.config, mask_time_prob=0.3, mask_feature_prob=0.4)
    masked = mask(heard.whole, heard.n_frames, model)
    is_zero = masked.hidden == 0
    frames, channels = is_zero.all(2), is_zero.all(1)
    assert 0.1 < float(frames.double().mean()) < 0.4 and 0.1 < float(channels.double().mean()) < 0.7
    rest = ~(frames[:, :, None] | channels[:, None])
    assert torch.equal(masked.hidden[rest], heard.whole.hidden[rest])


def test_the_command_trains_on_states(tiny_model_dir: Path, sample: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "set.tsv"
    manifest.write_text(f"path\tduration_s\tspeaker\ttranscript\n{sample}\t12\tx\tIT IS READ\n")
    common = ["finetune", "--model", str(tiny_model_dir), "--manifest", str(manifest), "--batch-s", "4"]
    states = ["--states", str(tmp_path / "states"), "--states-hours", "0.003", "--dropout", "0.1", "--average", "0.9"]
    out = ["--output", str(tmp_path / "out"), "--steps", "5", "--int8"]
    assert main([*common, *states, *out, "--freeze", "1"]) == 0
    assert len(list((tmp_path / "states").glob("*.pt"))) == 3
    with pytest.raises(ValueError, match="--states needs --freeze"):
        main([*common, *states, *out])
    with pytest.raises(ValueError, match="neither --head-steps"):
        main([*common, *states, *out, "--freeze", "1", "--head-steps", "3"])
