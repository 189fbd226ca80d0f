"""Stage B: CTC on text. First the head alone, then everything.

Training everything at once from a random head sits at the all-blank plateau and spoils the blocks; a head
trained for some hundred steps has left it before the blocks begin to move.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.training.corpus import Batch, Corpus
from core.training.run import Run, RunConfig
from core.wav2vec2 import Wav2Vec2ForCTC


def ctc_loss(model: Wav2Vec2ForCTC, batch: Batch, is_head_only: bool, is_mixed: bool = True) -> torch.Tensor:
    device = model.device
    mask = batch.attention_mask.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
        with torch.set_grad_enabled(not is_head_only):
            states = model.wav2vec2(batch.input_values.to(device), mask).last_hidden_state
        logits = model.lm_head(model.dropout(states)).float()
    return model.ctc_loss(logits, batch.labels.to(device), mask)


def finetune(
    model: Wav2Vec2ForCTC,
    corpus: Corpus,
    config: RunConfig,
    head_steps: int = 0,
    word_error_rate: Callable[[], float] | None = None,
) -> None:
    """Trains `model` on the corpus.

    Args:
        head_steps: so many first steps move the head alone.
        word_error_rate: of the model on a set for validation, measured and logged with every checkpoint.
    """
    run = Run(model, config, ["wer"])
    model.train()
    for batch in corpus.batches(run.step_count):
        if run.is_done:
            break
        loss = ctc_loss(model, batch, run.step_count < head_steps, config.is_mixed)
        run.step(loss, batch.seconds)
        scores = {}
        if word_error_rate and run.is_due(config.save_every):
            scores["wer"] = word_error_rate()
            model.train()
        run.report(**scores)
    model.eval()
