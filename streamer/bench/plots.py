"""The pictures of `streamer bench stitch`, `latency` and `speed`; the file name decides the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.windows import LATENCIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raises ValueError where it is not installed."""
    if find_spec("matplotlib") is None:
        raise ValueError("Plots need matplotlib: pip install '.[bench]'")


def new_figure(width: float, height: float) -> Figure:
    """Inches. Raises ValueError where matplotlib is not installed."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plot_stitch(result: dict[str, Any], path: Path) -> None:
    """Edits against one pass over the algorithmic latency, a line a method: words left, letters right."""
    figure = new_figure(10, 4)
    names = [method["method"] for method in result["plans"][0]["methods"]]
    for place, unit in enumerate(("word", "letter"), 1):
        axes = figure.add_subplot(1, 2, place)
        for number, name in enumerate(names):
            of_method = sorted(
                (of["methods"][number]["latency_ms"], 100 * of["methods"][number][f"{unit}_edit_rate"])
                for of in result["plans"]
            )
            axes.plot(*zip(*of_method, strict=True), marker="o", label=name)
        axes.set_xlabel("algorithmic latency, ms")
        axes.set_ylabel(f"{unit} edits against one pass, %")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path)


def plot_latency(result: dict[str, Any], delays: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """The share of words that came within a time, by system; and word error rate over the median time.

    Args:
        result: the object that `streamer bench latency --json` prints.
        delays: of each system and kind (`settled`, `committed`), the emission latency of every word in seconds.
    """
    figure = new_figure(11, 5)
    shares, trade = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for number, (system, kinds) in enumerate(delays.items()):
        for kind, style in (("settled", "-"), ("committed", ":")):
            values = np.sort(np.asarray(kinds[kind], float))
            share = np.arange(1, len(values) + 1) / max(1, len(values))
            shares.plot(values, share, style, color=f"C{number}", label=f"{system}, {kind}")
    shares.set_xlabel("time from the end of a word to its text, s")
    shares.set_ylabel("share of words")
    shares.set_xscale("symlog", linthresh=1)
    shares.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    for number, of in enumerate(result["systems"]):
        for kind, marker in (("settled", "o"), ("committed", "s")):
            median = of["emission_s"][kind]["with_compute"].get("p50")
            if median is not None:
                trade.plot([median], [100 * of["wer"]], marker, color=f"C{number}", linestyle="")
    trade.set_xlabel("median of it, s (round: settled, square: committed)")
    trade.set_ylabel("word error rate, %")
    trade.grid(alpha=0.3)
    figure.savefig(path)


def plot_speed(result: dict[str, Any], path: Path) -> None:
    """Streams a core over the hop, a line a system: left; where the time of one pass goes: right."""
    figure = new_figure(11, 4.5)
    streams, parts = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for name, of in result["systems"].items():
        points = sorted((step["hop_s"], step["streams"]) for step in of["streams_per_core"].values())
        streams.plot(*zip(*points, strict=True), marker="o", label=name)
    streams.set_xlabel("hop, s")
    streams.set_ylabel("streams a core")
    streams.grid(alpha=0.3)
    streams.legend(fontsize="small")
    ours = {name: of["parts_s_per_audio_s"] for name, of in result["systems"].items() if "parts_s_per_audio_s" in of}
    heights = np.zeros(len(ours))
    for part in next(iter(ours.values())):
        values = np.array([1000 * seconds[part] for seconds in ours.values()])
        parts.bar(list(ours), values, bottom=heights, label=part)
        heights += values
    parts.set_ylabel("processor ms a second of audio")
    parts.legend(fontsize="small")
    figure.savefig(path)


def plot_device(result: dict[str, Any], path: Path) -> None:
    """Streams a device over the hop, a line a way of sending windows: left; the time of a step by its batch: right."""
    figure = new_figure(11, 4.5)
    streams, steps = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    plans = [result["streams"][latency] for latency in LATENCIES]
    for way in plans[0]["ways"]:
        most = [max(batch["streams"] for batch in plan["ways"][way]["batches"]) for plan in plans]
        streams.plot([plan["hop_s"] for plan in plans], most, marker="o", label=way)
        batches = result["streams"]["balanced"]["ways"][way]["batches"]
        steps.plot([of["batch"] for of in batches], [of["step_ms"]["p99"] for of in batches], marker="o", label=way)
    streams.set_xlabel("hop, s")
    streams.set_ylabel("streams a device")
    steps.set_xlabel("sessions in a batch, --latency balanced")
    steps.set_ylabel("p99 of a step, ms")
    steps.set_xscale("log", base=2)
    for axes in (streams, steps):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path)
