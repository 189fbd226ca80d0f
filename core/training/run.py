"""What every training run shares: learning rate, log, checkpoints that a later run goes on from."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW

from core.checkpoint import SAFETENSORS_NAME

STATE_NAME = "training.pt"
LOG_NAME = "training.csv"
COLUMNS = ("step", "hours_seen", "loss", "learning_rate", "elapsed_s", "audio_s_per_s")
MAX_FAILURES = 10  # steps in a row
SMOOTHING = 0.95  # of logged losses: a mean over about twenty steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run. Steps, not minutes, decide the learning rate, so that a resumed run is the same run."""

    output: Path
    steps: int
    learning_rate: float
    warmup: int = 50  # steps; 0: none
    encoder_rate: float = 0.7  # the blocks' share of the learning rate: they come trained
    branch_rate: float = 1.0  # of the map that a branch ends in
    quantizer_rate: float = 1.0  # of the projection that chooses codes
    rates: Mapping[str, float] = field(default_factory=dict)  # by parts of parameters' names; before the above
    average: float = 0.0  # share of the weights' running mean that a step leaves; the mean is the result; 0: none
    clip: float = 2.0  # norm that gradients are cut to
    log_every: int = 25  # steps, and at the end; 0: never
    save_every: int = 200  # the same
    seed: int = 1
    is_mixed: bool = True  # bfloat16 where PyTorch's autocast deems it safe; slow on CPUs that have none

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(f"Expected steps and a learning rate above 0. Found: {self.steps}, {self.learning_rate}")
        counts = self.warmup, self.log_every, self.save_every
        if min(counts) < 0:
            raise ValueError(f"Expected 0 or more steps of warm-up, and between logs and saves. Found: {counts}")
        if not 0 <= self.average < 1:
            raise ValueError(f"--average must be from 0 to below 1. Found: {self.average}")

    def rate(self, step: int) -> float:
        """Linear warm-up, the full rate, and over the last four fifths a straight line to nothing."""
        left = max(0.0, 1 - step / self.steps)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), left / 0.8)


class Run:
    """The optimiser of a model with its step count; logs to CSV and prints.

    Random numbers of PyTorch are seeded anew for each step, so that a resumed run is the run it would have been.

    Args:
        extra: columns of the log beyond `COLUMNS`.
    """

    def __init__(self, model: nn.Module, config: RunConfig, extra: Sequence[str] = ()) -> None:
        self.model = model
        self.config = config
        shares = {**config.rates, "encoder.layers.": config.encoder_rate, "encoder.branch.": config.branch_rate}
        shares |= {"quantizer.weight_proj.": config.quantizer_rate, "": 1.0}
        groups: dict[str, list[nn.Parameter]] = {part: [] for part in shares}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[next(part for part in shares if part in name)].append(parameter)
        self.optimizer = AdamW(
            [{"params": parameters, "share": shares[part]} for part, parameters in groups.items() if parameters],
            lr=1e-3,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=True,
        )
        self.averages: dict[str, torch.Tensor] = {}
        if config.average > 0:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            self.averages = {name: p.detach().clone() for name, p in trained.items()}
        self.columns = (*COLUMNS, *extra)
        self.step_count = 0
        self.seconds_seen = 0.0
        self.elapsed_s = 0.0
        self.means: dict[str, float] = {}
        self.n_failures = 0
        self.log_path = config.output / LOG_NAME
        config.output.mkdir(parents=True, exist_ok=True)
        self.resume()
        self.trim_log()
        self.at = time.monotonic()
        self.logged_at, self.logged_seconds = self.at, self.seconds_seen
        torch.manual_seed(config.seed + self.step_count)

    def resume(self) -> None:
        """Goes on from the output folder's checkpoint, if there is one."""
        path = self.config.output / STATE_NAME
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location="cpu")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as e:
            raise ValueError(f"{path} is of a run of another model: give another output folder") from e
        # One whose checkpoint was not written yet is only to be finished.
        if state["step"] >= self.config.steps and (self.config.output / SAFETENSORS_NAME).exists():
            raise ValueError(
                f"Expected a run of fewer than {self.config.steps} steps in {self.config.output}. Found: one of "
                f"{state['step']}; ask for more --steps to go on with it, or give another output folder"
            )
        self.step_count, self.seconds_seen = state["step"], state["seconds"]
        self.elapsed_s, self.means = state["elapsed_s"], state["means"]
        known = state.get("averages", {})
        for name, average in self.averages.items():
            average.copy_(known.get(name, state["model"][name]))

    def trim_log(self) -> None:
        """Drops the lines of steps that were lost with their weights."""
        if not self.log_path.exists():
            return
        with self.log_path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            found = tuple(rows.fieldnames or ())
            lines = list(rows)
        kept = [row for row in lines if int(row["step"]) <= self.step_count] if "step" in found else lines
        if kept and found != self.columns:
            raise ValueError(f"Expected the columns {', '.join(self.columns)} in {self.log_path}. Found: {found}")
        with self.log_path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def save(self) -> None:
        """Writes the checkpoint; an interrupted write leaves the last one whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_count,
            "seconds": self.seconds_seen,
            "elapsed_s": self.elapsed_s,
            "means": self.means,
            "averages": self.averages,
        }
        path = self.config.output / STATE_NAME
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    @property
    def is_done(self) -> bool:
        return self.step_count >= self.config.steps

    def is_due(self, every: int) -> bool:
        """Whether something that happens all `every` steps and at the end happens now; 0: never."""
        return every > 0 and (self.step_count % every == 0 or self.is_done)

    def step(self, loss: torch.Tensor, seconds: float, **metrics: float | torch.Tensor) -> None:
        """One update by `loss` of a batch of `seconds` of audio; `metrics` are smoothed and logged.

        A batch whose gradients are not finite changes nothing.

        Raises:
            ValueError: that happened `MAX_FAILURES` times in a row.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.step_count) * group["share"]
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if nn.utils.clip_grad_norm_(self.model.parameters(), config.clip).isfinite():
            self.optimizer.step()
            self.n_failures = 0
            for name, value in {"loss": loss.detach(), **metrics}.items():
                self.means[name] = SMOOTHING * self.means.get(name, float(value)) + (1 - SMOOTHING) * float(value)
        else:
            self.n_failures += 1
            logger.warning("step %d: gradients are not finite; the batch is left out", self.step_count)
        if self.n_failures == MAX_FAILURES:
            raise ValueError(f"Expected finite gradients. Found: none in {MAX_FAILURES} steps; lower the learning rate")
        self.step_count += 1
        self.average()
        self.seconds_seen += seconds
        now = time.monotonic()
        self.elapsed_s, self.at = self.elapsed_s + now - self.at, now
        torch.manual_seed(config.seed + self.step_count)

    @torch.no_grad()
    def average(self) -> None:
        """Takes the weights into their running mean, which at first follows them closely."""
        kept = min(self.config.average, self.step_count / (self.step_count + 20))
        for name, parameter in self.model.named_parameters():
            if name in self.averages:
                self.averages[name].lerp_(parameter, 1 - kept)

    def finish(self) -> None:
        """Gives the model the mean of its weights, where one was taken."""
        self.model.load_state_dict(self.averages, strict=False)

    def report(self, **scores: float) -> None:
        """Logs and saves where that is due; `scores` go into the log as they are."""
        if self.is_due(self.config.log_every) or scores:
            self.log(scores)
        if self.is_due(self.config.save_every):
            self.save()

    def log(self, scores: dict[str, float]) -> None:
        throughput = (self.seconds_seen - self.logged_seconds) / max(1e-3, self.at - self.logged_at)
        self.logged_at, self.logged_seconds = self.at, self.seconds_seen
        row: dict[str, object] = {
            "step": self.step_count,
            "hours_seen": round(self.seconds_seen / 3600, 4),
            "learning_rate": f"{self.config.rate(self.step_count):.2e}",
            "elapsed_s": round(self.elapsed_s),
            "audio_s_per_s": round(throughput, 1),
        }
        row |= {name: round(value, 4) for name, value in (self.means | scores).items()}
        with self.log_path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{name} {row[name]}" for name in self.columns if name in row), flush=True)
