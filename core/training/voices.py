"""Speech synthesisers of this machine, each with its voices: programs, and Python packages with their models.

Known are the programs espeak-ng, flite and festival, and the packages hibari-tts, kokoro-onnx and piper-tts. None is
needed; those that are there are found.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from core.audio import Samples
from core.training.manifest import decode, to_16k

# Speakers that espeak-ng makes out of each accent by pitch, formants and timbre.
ESPEAK_SPEAKERS = [*(f"m{i}" for i in range(1, 9)), *(f"f{i}" for i in range(1, 6))]
ESPEAK_WORDS_PER_MINUTE = 175
TIMEOUT_S = 300

Speak = Callable[[str, str, float], Samples]  # text, voice, speed (1 is the voice's own) -> (n,) at 16 kHz


@dataclass(frozen=True, slots=True)
class Engine:
    name: str
    voices: tuple[str, ...]
    speak: Speak


def run_program(command: Sequence[str]) -> str:
    """What a program prints.

    Raises:
        ValueError: it fails; the message has its last line.
    """
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ValueError(f"{command[0]} does not run: {e}") from e
    if result.returncode:
        why = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise ValueError(f"{command[0]} failed: {why[-1]}")
    return result.stdout


def speak_by_file(make_command: Callable[[str, float, str, str], list[str]]) -> Speak:
    """A program that reads a text file and writes a wave file; `make_command` gets voice, speed and both files."""

    def speak(text: str, voice: str, speed: float) -> Samples:
        with TemporaryDirectory() as folder:
            source, wave = Path(folder) / "text", Path(folder) / "speech.wav"
            source.write_text(text + "\n", encoding="utf-8")
            run_program(make_command(voice, speed, str(source), str(wave)))
            if not wave.is_file():
                raise ValueError(f"Expected speech of voice {voice}. Found: no file")
            return decode(voice, wave.read_bytes())

    return speak


def espeak() -> Engine:
    """All English accents with formant synthesis, times the speakers."""
    listed = run_program(["espeak-ng", "--voices=en"]).splitlines()[1:]
    accents = sorted({fields[4] for fields in map(str.split, listed) if fields[4].startswith("gmw/")})

    def command(voice: str, speed: float, source: str, wave: str) -> list[str]:
        rate = str(round(speed * ESPEAK_WORDS_PER_MINUTE))
        return ["espeak-ng", "-v", voice, "-s", rate, "-f", source, "-w", wave]

    voices = tuple(f"{accent}+{speaker}" for accent in accents for speaker in ESPEAK_SPEAKERS)
    return Engine("espeak-ng", voices, speak_by_file(command))


def flite() -> Engine:
    listed = run_program(["flite", "-lv"]).partition(":")[2].split()

    def command(voice: str, speed: float, source: str, wave: str) -> list[str]:
        return ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / speed:.3f}", "-f", source, "-o", wave]

    return Engine("flite", tuple(v for v in listed if v != "awb_time"), speak_by_file(command))


def festival() -> Engine:
    """HTS voices keep their own speed."""
    listed = run_program(["festival", "--batch", "(print (voice.list))"])

    def command(voice: str, speed: float, source: str, wave: str) -> list[str]:
        stretch = f"(Parameter.set 'Duration_Stretch {1 / speed:.3f})"
        return ["text2wave", "-eval", f"(voice_{voice})", "-eval", stretch, "-o", wave, source]

    return Engine("festival", tuple(re.findall(r"[^\s()]+", listed)), speak_by_file(command))


def hibari() -> Engine:
    """The voice inside the package hibari-tts: a student of Kokoro's, and fifty times as fast."""
    try:
        from hibari import Hibari
    except ImportError as e:
        raise ValueError("the program hibari is of another Python: pip install hibari-tts") from e
    speaker = Hibari()
    return Engine(
        "hibari", ("heart",), lambda text, _, speed: to_16k(speaker(text, speed=min(2, max(0.5, speed))), 24_000)
    )


def kokoro(model: Path, voices: Path) -> Engine:
    """The English voices, and each two of one accent in equal parts."""
    try:
        from kokoro_onnx import Kokoro
    except ImportError as e:
        raise ValueError("Kokoro voices need kokoro-onnx: pip install kokoro-onnx") from e
    speaker = Kokoro(str(model), str(voices))
    single = [voice for voice in speaker.get_voices() if voice[0] in "ab"]
    blends = [f"{one}+{other}" for one, other in combinations(single, 2) if one[0] == other[0]]

    def speak(text: str, voice: str, speed: float) -> Samples:
        style = np.mean([speaker.get_voice_style(part) for part in voice.split("+")], 0).astype(np.float32)
        samples, rate = speaker.create(text, style, speed, "en-us" if voice[0] == "a" else "en-gb")
        return to_16k(samples, rate)

    return Engine("kokoro", (*single, *blends), speak)


def piper(models: Sequence[Path]) -> Engine:
    """Every speaker of every model (`NAME.onnx` with `NAME.onnx.json`)."""
    try:
        from piper import PiperVoice, SynthesisConfig
    except ImportError as e:
        raise ValueError("Piper voices need piper-tts: pip install piper-tts") from e
    loaded = {model.stem: PiperVoice.load(model) for model in models}
    voices = tuple(f"{name}/{i}" for name, voice in loaded.items() for i in range(voice.config.num_speakers))

    def speak(text: str, voice: str, speed: float) -> Samples:
        name, _, speaker = voice.rpartition("/")
        settings = SynthesisConfig(speaker_id=int(speaker), length_scale=1 / speed)
        chunks = list(loaded[name].synthesize(text, settings))
        if not chunks:
            return np.zeros(0, np.float32)
        return to_16k(np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate)

    return Engine("piper", voices, speak)


PROGRAMS = {"espeak-ng": espeak, "flite": flite, "festival": festival, "hibari": hibari}


def find_programs() -> list[Engine]:
    """The synthesisers among the programs of this machine that have a voice."""
    return [engine for name, make in PROGRAMS.items() if shutil.which(name) for engine in [make()] if engine.voices]
