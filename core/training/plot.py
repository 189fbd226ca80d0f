"""The learning curves of a run's log, as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from core.training.run import LOG_NAME

HIDDEN = ("step", "hours_seen", "elapsed_s")
COLUMNS_PER_ROW = 3


def read_curves(log: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each column of a log, or of the log in a run's folder; empty columns are left out.

    Raises:
        ValueError: no log is there, or it is not one.
    """
    log = log / LOG_NAME if log.is_dir() else log
    if not log.is_file():
        raise ValueError(f"{log}: no such log")
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "step" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no line"
        raise ValueError(f"{log}: expected a header with step, and lines under it. Found: {found}")
    curves = {}
    for name in rows[0]:
        points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        if points and name not in HIDDEN:
            steps, values = zip(*points, strict=True)
            curves[name] = list(steps), list(values)
    return curves


def plot(logs: Sequence[Path], output: Path) -> None:
    """A panel a column, a line a log. The format follows the file name: png, svg, pdf.

    Raises:
        ValueError: no log, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ValueError("Plots need matplotlib: pip install '.[train]'") from e
    curves = {log: read_curves(log) for log in logs}
    names = list(dict.fromkeys(name for of_log in curves.values() for name in of_log))
    n_rows = -(-len(names) // COLUMNS_PER_ROW)
    figure = Figure(figsize=(4 * COLUMNS_PER_ROW, 3 * n_rows), layout="constrained")
    for i, name in enumerate(names, 1):
        axes = figure.add_subplot(n_rows, COLUMNS_PER_ROW, i)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        for log, of_log in curves.items():
            if name in of_log:
                axes.plot(*of_log[name], marker="." if len(of_log[name][0]) < 30 else "", label=str(log))
        if len(logs) > 1:
            axes.legend(fontsize="small")
    figure.savefig(output)
