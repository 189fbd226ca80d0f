"""Stage B: CTC on text. First the head alone, then everything.

Training everything at once from a random head sits at the all-blank plateau and spoils the blocks; a head
trained for some hundred steps has left it before the blocks begin to move. Until a new model spells, a teacher whose
blocks it took over keeps its last states in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.encoder import EncoderLayer
from core.training.consistency import window_divergence
from core.training.corpus import Batch, Corpus
from core.training.run import Run, RunConfig
from core.training.states import Heard, StateCorpus, lower_parts, states_loss
from core.training.whisper import FRAME_SHIFT, WhisperEncoder
from core.wav2vec2 import Wav2Vec2ForCTC


@dataclass(frozen=True, slots=True, eq=False)
class Teaching:
    teacher: WhisperEncoder
    steps: int  # over which its weight falls from one to nothing

    def weight(self, step: int) -> float:
        return max(0.0, 1 - step / self.steps)


def state_error(teacher: WhisperEncoder, samples: Tensor, states: Tensor, frame_mask: Tensor) -> Tensor:
    """Squared distance of (batch, frame, hidden) to the teacher's last states, over the square of those."""
    with torch.no_grad():
        targets = teacher(samples[:, FRAME_SHIFT:])[1].float()
    n = min(targets.shape[1], states.shape[1])
    targets, heard = targets[:, :n], frame_mask[:, :n, None]
    error: Tensor = ((states[:, :n].float() - targets).square() * heard).sum() / (targets.square() * heard).sum()
    return error


def training_loss(
    model: Wav2Vec2ForCTC,
    batch: Batch,
    is_head_only: bool = False,
    is_mixed: bool = True,
    teacher: WhisperEncoder | None = None,
    teacher_weight: float = 0.0,
    is_cut: bool = False,
) -> Tensor:
    """CTC, the distance to the teacher's states, and with `is_cut` that of a window's frames from the whole's."""
    device = model.device
    samples, mask = batch.input_values.to(device), batch.attention_mask.to(device)
    projected: list[Tensor] = []
    projection = model.wav2vec2.feature_projection
    hook = projection.register_forward_hook(lambda _, __, output: projected.append(output[0]))
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
        with torch.set_grad_enabled(not is_head_only):
            states = model.wav2vec2(samples, mask).last_hidden_state
        hook.remove()
        logits = model.lm_head(model.dropout(states)).float()
        loss = model.ctc_loss(logits, batch.labels.to(device), mask)
        if teacher is not None and teacher_weight > 0:
            loss = loss + teacher_weight * state_error(teacher, samples, states, model.wav2vec2.frame_mask(mask))
        if is_cut:
            n_frames = int(model.wav2vec2.frame_mask(mask).sum(1).min())
            loss = loss + window_divergence(model, projected[0], logits, n_frames)
    return loss


def freeze(model: Wav2Vec2ForCTC, n_blocks: int) -> None:
    """Keeps all before the encoder's blocks, and the first of those: half of the time, and less to forget."""
    for part in lower_parts(model, n_blocks):
        part.requires_grad_(False)


def set_dropout(model: Wav2Vec2ForCTC, p: float, n_blocks: int | None = None) -> None:
    """Of what blocks add to the states: that of activations takes long, and without attention's that is fused."""
    for layer in model.wav2vec2.encoder.layers[:n_blocks]:
        assert isinstance(layer, EncoderLayer)
        layer.dropout.p = layer.feed_forward.output_dropout.p = p
        layer.feed_forward.intermediate_dropout.p = layer.attention.dropout = 0.0


def finetune(
    model: Wav2Vec2ForCTC,
    corpus: Corpus | StateCorpus,
    config: RunConfig,
    head_steps: int = 0,
    word_error_rate: Callable[[], float] | None = None,
    teaching: Teaching | None = None,
    n_workers: int = 1,
    consistency: float = 0.0,
) -> None:
    """Trains `model` on the corpus, or on what its frozen half made of it.

    Args:
        head_steps: so many first steps move the head alone; not of states.
        word_error_rate: of the model on a set for validation, measured and logged with every checkpoint.
        teaching: not of states.
        n_workers: threads that make batches ahead.
        consistency: share of the steps that also hold a window's frames against the whole's; states have their own.
    """
    run = Run(model, config, ["wer"])
    model.train()

    def loss_of(batch: Batch | Heard) -> Tensor:
        if isinstance(batch, Heard):
            assert isinstance(corpus, StateCorpus)
            return states_loss(model, batch, corpus.n_blocks, config.is_mixed)
        is_head_only = run.step_count < head_steps
        teacher, weight = (teaching.teacher, teaching.weight(run.step_count)) if teaching else (None, 0.0)
        is_cut = consistency > 0 and not is_head_only and float(torch.rand(())) < consistency
        return training_loss(model, batch, is_head_only, config.is_mixed, teacher, weight, is_cut)

    for batch in corpus.batches(run.step_count, n_workers):
        if run.is_done:
            break
        run.step(loss_of(batch), batch.seconds)
        scores = {}
        if word_error_rate and (run.is_due(config.save_every) or run.is_done):
            scores["wer"] = word_error_rate()
            model.train()
        run.report(**scores)
    run.finish()
    model.eval()
