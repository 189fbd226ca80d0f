"""Recordings with transcripts, read one at a time.

A set is a tab-separated manifest with the header `path, duration_s, speaker, transcript` (no quoting). Its audio
lies beside it or in a folder that is named: as files, or in tar shards `NAME-*.tar` for `NAME.tsv`.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from core.audio import SAMPLE_RATE, Samples, to_seconds

COLUMNS = ("path", "duration_s", "speaker", "transcript")


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    path: str  # as the manifest names it
    transcript: str  # as the manifest has it
    samples: Samples  # (n,) at 16 kHz


@dataclass(frozen=True, slots=True)
class Line:
    """One line to be written."""

    path: str
    n_samples: int
    speaker: str
    transcript: str


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a tab-separated file with a header, by column; a short line lacks its last columns."""
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest")
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a byte order mark
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{k: v for k, v in row.items() if k is not None and v is not None} for row in rows]


def read_manifest(manifest: Path, limit: int | None = None) -> dict[str, str]:
    """Transcript by path, in the manifest's order; the first `limit` of them.

    Raises:
        ValueError: no manifest, a column is missing, or no line is there.
    """
    rows = read_rows(manifest)
    if not rows or not {"path", "transcript"} <= set(rows[0]):
        found = ", ".join(rows[0]) if rows else "no line"
        raise ValueError(f"{manifest}: expected a header with path and transcript, and lines under it. Found: {found}")
    return {row["path"]: row.get("transcript", "") for row in rows[:limit]}


def read_set(manifest: Path, audio: Path | None = None, limit: int | None = None) -> Iterator[Utterance]:
    """The utterances of a manifest, in the order in which their audio is stored.

    Raises:
        ValueError: the manifest is not one, or audio of it is missing or cannot be read.
    """
    transcripts = read_manifest(manifest, limit)
    folder = audio or manifest.parent
    shards = sorted(folder.glob(f"{manifest.stem}-*.tar"))
    found = 0
    for path, data in _from_shards(shards, transcripts) if shards else _from_files(folder, transcripts):
        found += 1
        yield Utterance(path, transcripts[path], decode(path, data))
        if found == len(transcripts):
            return
    raise ValueError(f"{manifest}: audio of {len(transcripts) - found} of {len(transcripts)} lines is not in {folder}")


def decode(path: str, data: bytes) -> Samples:
    """The bytes of an audio file of any rate and channel count, as 16 kHz mono."""
    try:
        samples, sample_rate = soundfile.read(io.BytesIO(data), dtype="float32")
    except soundfile.LibsndfileError as e:
        raise ValueError(f"{path}: not audio that libsndfile reads: {e.error_string}") from e
    return to_16k(samples, sample_rate)


def to_16k(samples: Samples, sample_rate: float) -> Samples:
    """(n,) or (n, channels) at `sample_rate` to (n,) at 16 kHz."""
    mono = samples if samples.ndim == 1 else samples.mean(1)
    return np.asarray(soxr.resample(mono, sample_rate, SAMPLE_RATE), np.float32)


def write_line(manifest: Path, line: Line) -> None:
    """Adds a line to a manifest; begins it, header first, where there is none."""
    is_new = not manifest.exists()
    with manifest.open("a", encoding="utf-8", newline="\n") as file:
        if is_new:
            file.write("\t".join(COLUMNS) + "\n")
        speaker, transcript = (" ".join(text.split()) for text in (line.speaker, line.transcript))
        file.write(f"{line.path}\t{to_seconds(line.n_samples):.3f}\t{speaker}\t{transcript}\n")


def _from_shards(shards: Iterable[Path], wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """A member is the line of its full name, or of its file's name."""
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                path = member.name if member.name in wanted else Path(member.name).name
                file = tar.extractfile(member) if path in wanted else None
                if file is not None:
                    yield path, file.read()


def _from_files(folder: Path, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    for path in wanted:
        file = folder / path
        if not file.is_file():
            raise ValueError(f"{file}: no such file, and no tar shards are there")
        yield path, file.read_bytes()
