"""Recordings as others publish them, or as they lie in a folder, made into a manifest with 16 kHz FLAC files.

Known are: the LibriSpeech layout (`*.trans.txt` beside the audio), Common Voice's tsv (columns `path` and `sentence`,
audio in `clips/`), and any folder of audio files, each with its text in a `.txt` of the same name or
with none. Utterances too long for training are left out, not cut, where they have a text: nothing tells where its
words lie.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from core.audio import SAMPLE_RATE, Samples
from core.normalise import ENGLISH, foreign, normalise
from core.training.corpus import MAX_SECONDS, MIN_SECONDS
from core.training.manifest import Line, decode, read_rows, write_line

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".w64")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recording:
    path: Path
    transcript: str | None  # as it was found; empty if there is none, None if it cannot be read
    speaker: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of the recordings."""

    n_kept: int
    hours: float
    left_out: Counter[str]  # by reason


def find_recordings(source: Path) -> Iterator[Recording]:
    """The recordings of a folder or of a tab-separated file, in a fixed order.

    Raises:
        ValueError: nothing of a known form is there.
    """
    if source.is_dir():
        transcripts = sorted(source.rglob("*.trans.txt"))
        yield from _from_librispeech(transcripts) if transcripts else _from_folder(source)
    else:
        yield from _from_table(source)


def _from_librispeech(transcripts: list[Path]) -> Iterator[Recording]:
    for file in transcripts:
        audio = _audio_by_stem(file.parent)
        text = _text_of(file)
        if text is None:
            yield Recording(file, None, "")
            continue
        for line in text.splitlines():
            name, _, text = line.partition(" ")
            if name:
                yield Recording(audio.get(name, file.parent / f"{name}.flac"), text, name.split("-")[0])


def _from_folder(folder: Path) -> Iterator[Recording]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: expected audio files ({', '.join(AUDIO_SUFFIXES)}). Found: none")
    for path in files:
        text = path.with_suffix(".txt")
        transcript = _text_of(text) if text.is_file() else ""
        yield Recording(path, transcript and " ".join(transcript.split()), path.parent.name)


def _from_table(table: Path) -> Iterator[Recording]:
    rows = read_rows(table)
    columns = set(rows[0]) if rows else set()
    if not {"path", "sentence"} <= columns:
        raise ValueError(f"{table}: expected a header with path and sentence, and lines. Found: {', '.join(columns)}")
    folder = table.parent / "clips"
    for row in rows:
        path = (folder if folder.is_dir() else table.parent) / row["path"]
        yield Recording(path, row.get("sentence", ""), row.get("client_id", "")[:12])


def _text_of(path: Path) -> str | None:
    """None, and a warning, where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        logger.warning("%s: expected a text in UTF-8. Found: %s at byte %d", path, hex(e.object[e.start]), e.start)
        return None


def _audio_by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in AUDIO_SUFFIXES}


def pieces(samples: Samples, max_s: float) -> list[Samples]:
    """Audio without text in as few equal pieces as are short enough."""
    n = max(1, math.ceil(len(samples) / (max_s * SAMPLE_RATE)))
    return [np.asarray(piece) for piece in np.array_split(samples, n)]


def prepare(
    sources: list[Path],
    output: Path,
    name: str,
    min_s: float = MIN_SECONDS,
    max_s: float = MAX_SECONDS,
    letters: frozenset[str] = ENGLISH,
) -> Prepared:
    """Writes `output/NAME.tsv` and the audio in `output/NAME/`. Transcripts are normalised, numbers spelled out.

    Transcripts that cannot be spelled with `letters`, where those are not of English, are left out.

    Raises:
        ValueError: the manifest is already there, or a source holds nothing of a known form.
    """
    manifest, part = output / f"{name}.tsv", output / f"{name}.tsv.part"
    if manifest.exists():
        raise ValueError(f"{manifest} is already there: give another output folder or name")
    (output / name).mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)  # of a call that was cut off
    left_out: Counter[str] = Counter()
    n_samples, n_kept = 0, 0
    for source in sources:
        for recording in find_recordings(source):
            if recording.transcript is None:
                left_out["unreadable"] += 1
                continue
            transcript = normalise(recording.transcript, letters)
            if foreign(transcript, letters):
                left_out["foreign letters"] += 1
                continue
            if recording.transcript and not transcript:
                left_out["text without words"] += 1
                continue
            try:
                samples = decode(str(recording.path), recording.path.read_bytes())
                if not np.isfinite(samples).all():
                    raise ValueError(f"{recording.path}: expected finite samples. Found: others")
            except (ValueError, OSError) as e:
                logger.warning("%s", e)
                left_out["unreadable"] += 1
                continue
            for piece in [samples] if transcript else pieces(samples, max_s):
                if not min_s * SAMPLE_RATE <= len(piece) <= max_s * SAMPLE_RATE:
                    left_out["too short" if len(piece) < min_s * SAMPLE_RATE else "too long"] += 1
                    continue
                path = f"{name}/{n_kept:06}.flac"
                soundfile.write(output / path, piece, SAMPLE_RATE, subtype="PCM_16")
                write_line(part, Line(path, len(piece), recording.speaker, transcript))
                n_kept, n_samples = n_kept + 1, n_samples + len(piece)
    if n_kept:
        part.replace(manifest)
    return Prepared(n_kept, n_samples / SAMPLE_RATE / 3600, left_out)
