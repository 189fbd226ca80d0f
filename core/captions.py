"""Finals as text for people and programs: plain text, JSON, SubRip (SRT) and WebVTT.

WebVTT follows https://www.w3.org/TR/webvtt1/; SubRip has no standard, its usual form is kept.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core.transcript import Gap, Transcript, Word

LINE_LENGTH = 42  # characters; two lines a cue, as broadcasters do
CUE_SECONDS = 6.0
LEAST_SECONDS = 1.0  # what is shown for less cannot be read


@dataclass(frozen=True, slots=True)
class Cue:
    start_s: float
    end_s: float
    lines: tuple[str, ...]


def wrap(words: Sequence[Word]) -> tuple[str, ...]:
    """Lines of at most `LINE_LENGTH` characters; a longer word has a line of its own."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word.text) <= LINE_LENGTH:
            lines[-1] += " " + word.text
        else:
            lines.append(word.text)
    return tuple(lines)


def cues(finals: Iterable[Transcript]) -> list[Cue]:
    """Finals cut at word borders into cues of two lines and some seconds, which never overlap.

    A cue stays long enough to be read, as far as the next one lets it.
    """
    groups: list[list[Word]] = []
    for final in finals:
        group: list[Word] = []
        for word in final.words:
            is_full = group and (len(wrap([*group, word])) > 2 or word.end_s - group[0].start_s > CUE_SECONDS)
            if is_full:
                groups.append(group)
                group = []
            group.append(word)
        if group:
            groups.append(group)
    result: list[Cue] = []
    for i, group in enumerate(groups):
        start, end = group[0].start_s, group[-1].end_s
        if result:
            start = max(start, result[-1].end_s)
        end = max(end, start + LEAST_SECONDS)
        if i + 1 < len(groups):
            end = min(end, max(start, groups[i + 1][0].start_s))
        result.append(Cue(start, max(end, start + 0.001), wrap(group)))
    return result


def timestamp(seconds: float, mark: str) -> str:
    """`3661.5` to `01:01:01,500` (mark `,`) or `01:01:01.500` (mark `.`)."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def srt_cue(number: int, cue: Cue) -> str:
    lines = "\n".join(cue.lines)
    return f"{number}\n{timestamp(cue.start_s, ',')} --> {timestamp(cue.end_s, ',')}\n{lines}\n\n"


def to_srt(finals: Iterable[Transcript]) -> str:
    return "".join(srt_cue(number, cue) for number, cue in enumerate(cues(finals), 1))


def to_vtt(finals: Iterable[Transcript]) -> str:
    blocks = ["WEBVTT\n\n"]
    for cue in cues(finals):
        lines = html.escape("\n".join(cue.lines), quote=False)
        blocks.append(f"{timestamp(cue.start_s, '.')} --> {timestamp(cue.end_s, '.')}\n{lines}\n\n")
    return "".join(blocks)


def to_text(finals: Iterable[Transcript]) -> str:
    """One line a segment."""
    return "".join(final.text + "\n" for final in finals)


def word_object(word: Word) -> dict[str, Any]:
    return {"word": word.text, "start_s": word.start_s, "end_s": word.end_s, "confidence": word.confidence}


def segment_object(final: Transcript) -> dict[str, Any]:
    words = [word_object(word) for word in final.words]
    return {"start_s": final.start_s, "end_s": final.end_s, "text": final.text, "words": words}


def gap_object(gap: Gap) -> dict[str, Any]:
    return {"start_s": gap.start_s, "end_s": gap.end_s, "reason": gap.reason}


def result_object(
    finals: Sequence[Transcript], gaps: Sequence[Gap], duration_s: float, model: str, path: str | None = None
) -> dict[str, Any]:
    """What `--format json` prints; `path` only where several files were asked for."""
    where = {} if path is None else {"path": path}
    return {
        **where,
        "text": " ".join(final.text for final in finals),
        "duration_s": duration_s,
        "model": model,
        "segments": [segment_object(final) for final in finals],
        "gaps": [gap_object(gap) for gap in gaps],
    }


def event_object(event: Transcript | Gap, audio_s: float) -> dict[str, Any]:
    """One line of `--format jsonl`, and the body of the native protocol's messages.

    `audio_s`: seconds of audio received so far.
    """
    if isinstance(event, Gap):
        return {"type": "gap", **gap_object(event), "audio_s": audio_s}
    kind = "final" if event.is_final else "partial"
    counts = {"segment": event.segment, "n_committed_words": event.n_committed_words}
    return {"type": kind, **counts, **segment_object(event), "audio_s": audio_s}


def to_json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
