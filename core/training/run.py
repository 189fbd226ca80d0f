"""What every training run shares: learning rate, log, checkpoints that a later run goes on from."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW

STATE_NAME = "training.pt"
LOG_NAME = "training.csv"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run. Steps, not minutes, decide the learning rate, so that a resumed run is the same run."""

    output: Path
    steps: int
    learning_rate: float
    warmup: int = 50  # steps
    encoder_rate: float = 0.4  # the blocks' share of the learning rate: they come trained
    clip: float = 2.0  # norm that gradients are cut to
    log_every: int = 25
    save_every: int = 200
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(f"Expected steps and a learning rate above 0. Found: {self.steps}, {self.learning_rate}")

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to nothing."""
        progress = min(1.0, step / self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))


class Run:
    """The optimiser of a model with its step count; logs to CSV and prints."""

    def __init__(self, model: nn.Module, config: RunConfig) -> None:
        self.model = model
        self.config = config
        blocks = [p for name, p in model.named_parameters() if "encoder.layers." in name and p.requires_grad]
        others = [p for name, p in model.named_parameters() if "encoder.layers." not in name and p.requires_grad]
        groups = [{"params": others, "share": 1.0}, {"params": blocks, "share": config.encoder_rate}]
        self.optimizer = AdamW([g for g in groups if g["params"]], lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        self.step_count = 0
        self.seconds_seen = 0.0
        self.started = time.monotonic()
        self.mean_loss: float | None = None
        config.output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)

    def resume(self) -> bool:
        """Goes on from the output folder's checkpoint, if there is one."""
        path = self.config.output / STATE_NAME
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count, self.seconds_seen = state["step"], state["seconds"]
        torch.set_rng_state(state["rng"])
        return True

    def save(self) -> None:
        """Writes the checkpoint; an interrupted write leaves the last one whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_count,
            "seconds": self.seconds_seen,
            "rng": torch.get_rng_state(),
        }
        path = self.config.output / STATE_NAME
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    @property
    def is_done(self) -> bool:
        return self.step_count >= self.config.steps

    def step(self, loss: torch.Tensor, seconds: float) -> None:
        """One update by `loss` of a batch of `seconds` of audio."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.step_count) * group["share"]
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.step_count += 1
        self.seconds_seen += seconds
        value = float(loss.detach())
        self.mean_loss = value if self.mean_loss is None else 0.95 * self.mean_loss + 0.05 * value
        if self.step_count % config.log_every == 0 or self.is_done:
            self.log()
        if self.step_count % config.save_every == 0 or self.is_done:
            self.save()

    def log(self) -> None:
        elapsed = time.monotonic() - self.started
        row = {
            "step": self.step_count,
            "hours_seen": round(self.seconds_seen / 3600, 3),
            "loss": round(self.mean_loss or 0.0, 4),
            "learning_rate": f"{self.config.rate(self.step_count):.2e}",
            "elapsed_s": round(elapsed),
        }
        path = self.config.output / LOG_NAME
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
