"""What `streamer bench latency` prints for people."""

from __future__ import annotations

from typing import Any

from streamer.bench.latency_report import KINDS

PERCENTILES = ("p50", "p90", "p95", "p99")


def table(result: dict[str, Any]) -> str:
    """The object that `--json` prints, for reading."""
    systems = result["systems"]
    lines = [
        f"model {result['model']}, condition {result['condition']}, {result['n_utterances']} recordings, "
        f"{result['audio_s']:.1f} s in blocks of {result['block_ms']:.0f} ms, {result['silence_s']:.1f} s of silence "
        "after each",
        f"words aligned by {result['aligner']}; {result['n_not_aligned']} recordings cannot be",
    ]
    return "\n".join([*lines, "", *emission_lines(systems), "", *system_lines(systems), "", *word_lines(systems)])


def emission_lines(systems: list[dict[str, Any]]) -> list[str]:
    heads = " ".join(f"{head:>7}" for head in ("audio", *PERCENTILES, "words"))
    lines = [
        "Seconds from the end of a word until it is shown: median by audio alone, and with computing",
        f"{'system':20} {'word is':12} {heads}",
    ]
    for of in systems:
        for kind in KINDS:
            audio, delay = of["emission_s"][kind]["audio"], of["emission_s"][kind]["with_compute"]
            if audio["n"]:
                values = " ".join(f"{value:7.2f}" for value in (audio["p50"], *(delay[p] for p in PERCENTILES)))
                lines.append(f"{of['system']:20} {kind:12} {values} {audio['n']:7}")
    return lines


def system_lines(systems: list[dict[str, Any]]) -> list[str]:
    heads = (
        "WER %",
        "induced %",
        "equal",
        "first s",
        "final s",
        "LAAL s",
        "unstable",
        "no growth",
        "erasure",
        "revised",
    )
    lines = [f"{'system':20} {' '.join(f'{head:>9}' for head in (*heads, 'compute'))}"]
    for of in systems:
        values = (
            number(100 * of["wer"]),
            number(100 * of["induced_word_edit_rate"]),
            str(of["n_equal_to_offline"]),
            number(of["first_word_s"]["with_compute"].get("p50")),
            number(of["finalization_s"]["after_audio"].get("p50")),
            number(of["laal_s"]["committed"]["with_compute"]),
            number(of["unstable_word_ratio"], 3),
            number(of["unstable_word_ratio_without_growth"], 3),
            number(of["normalised_erasure"], 3),
            str(of["revised_committed_words"]),
            number(of["compute_s_per_audio_s"], 3),
        )
        lines.append(f"{of['system']:20} {' '.join(f'{value:>9}' for value in values)}")
    return lines


def word_lines(systems: list[dict[str, Any]]) -> list[str]:
    """Times against the alignment, and calibration."""
    lines = [
        "Words whose borders are within 60 ms of the alignment; how far off they are; calibration of confidence",
        f"{'system':20} {'both %':>7} {'start %':>7} {'end %':>7} {'start p5 … p50 … p95 ms':>25} "
        f"{'end p5 … p50 … p95 ms':>25} {'ECE':>6} {'refitted':>8} {'exponent':>8}",
    ]
    for of in systems:
        words = of["words"]
        if words["n_timed"]:
            borders = [words["start_off_ms"], words["end_off_ms"]]
            shares = [words["share_within_60_ms"], *(border["share_within_60"] for border in borders)]
            spreads = [" … ".join(f"{border[p]:.0f}" for p in ("p5", "p50", "p95")) for border in borders]
            lines.append(
                f"{of['system']:20} {' '.join(f'{100 * share:7.1f}' for share in shares)} "
                f"{spreads[0]:>25} {spreads[1]:>25} {number(words['calibration_error'], 3):>6} "
                f"{number(words['calibration_error_refitted'], 3):>8} {number(words['best_exponent'], 3):>8}"
            )
    return lines


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
