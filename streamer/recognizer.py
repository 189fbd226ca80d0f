"""The Python API: load a model once, then transcribe files and arrays or feed live streams."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clients.file import Resampler, open_audio, resample
from core.acoustic import AcousticModel
from core.audio import SAMPLE_RATE, Samples, from_int16, to_seconds
from core.beam import BeamDecoder, make_decoder, parse_hotwords
from core.captions import result_object
from core.decoder import Decode
from core.engine import Engine
from core.offline import transcribe_offline
from core.stream import Stream
from core.transcript import Event, Gap, Transcript
from core.windows import StreamConfig

MOST_CHANNELS = 64  # more are the samples of an array that is turned, as torchaudio gives it
BLOCK = SAMPLE_RATE  # samples handed to the engine at once, so that the backlog never overflows


@dataclass(frozen=True, slots=True)
class Result:
    """The transcript of one recording."""

    text: str
    duration_s: float
    model: str
    segments: tuple[Transcript, ...]
    gaps: tuple[Gap, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object that `streamer --format json` prints."""
        return result_object(self.segments, self.gaps, self.duration_s, self.model)


class RecognizerStream:
    """One live stream. Push any amount of audio, get the events that it made ready."""

    def __init__(
        self,
        engine: Engine,
        config: StreamConfig,
        sample_rate: int,
        channels: int,
        decode: Decode | None = None,
        partials: bool = True,
    ) -> None:
        self._engine = engine
        self._stream: Stream = engine.new_stream(config, decode)
        if not partials:
            self._stream.hide_partials()
        self._resampler = Resampler(sample_rate, channels)

    @property
    def audio_s(self) -> float:
        """Seconds of audio accepted so far."""
        return to_seconds(self._stream.n_samples)

    def push(self, samples: NDArray[Any]) -> list[Event]:
        """Events for (n,) mono or (n, channels) samples: float in [-1, 1], or int16.

        Raises:
            ValueError: other shape or type, samples that are not finite, or after `finish`.
        """
        if self._stream.is_finished:
            raise ValueError("Expected samples before finish(). Found: samples after it")
        return self._feed(self._resampler.push(as_float(samples)))

    def flush(self) -> list[Event]:
        """Makes every word so far final; the stream goes on."""
        self._stream.flush()
        return self._engine.drain(self._stream)

    def finish(self) -> list[Event]:
        """Ends the stream: its last finals. A second call gives nothing."""
        if self._stream.is_finished:
            return []
        events = self._feed(self._resampler.finish())
        self._stream.finish()
        return events + self._engine.drain(self._stream)

    def _feed(self, samples: Samples) -> list[Event]:
        events: list[Event] = []
        for start in range(0, len(samples), BLOCK):
            events += self._stream.push(samples[start : start + BLOCK])
            events += self._engine.drain(self._stream)
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()


class Recognizer:
    """A loaded model. Streams are independent of each other and share it."""

    def __init__(self, model: AcousticModel, decode: Decode | None = None) -> None:
        self.model = model
        self.engine = Engine(model, decode)

    @classmethod
    def load(
        cls,
        model: str | Path = "streamer-en",
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        lm: str | Path = "auto",
        hotwords: Mapping[str, float] | None = None,
    ) -> Recognizer:
        """Loads the embedded model, a checkpoint directory, or a Wav2Vec2 CTC checkpoint of the hub by name.

        Args:
            lm: an n-gram language model (ARPA or KenLM); `auto` is the checkpoint's own; with that, and with `none`,
                goes the checkpoint's rescorer; `letters` is the best path.
            hotwords: words or phrases and by how much they become likelier (natural logarithm; 8 is strong).
        """
        acoustic = AcousticModel.load(model, device, dtype, threads)
        return cls(acoustic, make_decoder(acoustic, lm, hotwords))

    def stream(
        self,
        sample_rate: int = SAMPLE_RATE,
        channels: int = 1,
        latency: str = "balanced",
        hotwords: Mapping[str, float] | None = None,
        partials: bool = True,
        config: StreamConfig | None = None,
    ) -> RecognizerStream:
        """A new live stream. Leaving its `with` block finishes it; call `finish` to get the last events.

        Args:
            config: windows, pauses that end segments, and when words are committed; instead of `latency`.
            hotwords: of this stream, instead of the recognizer's.
            partials: False asks for none, which saves more than half of the time; the finals are the same.
        """
        decode = self.engine.decode
        if hotwords is not None:
            if isinstance(decode, BeamDecoder):
                decode = decode.with_hotwords(hotwords)
            elif hotwords:
                decode = BeamDecoder(self.model.alphabet, None, hotwords, rescorer=getattr(decode, "rescorer", None))
        config = config or StreamConfig.preset(latency)
        return RecognizerStream(self.engine, config, sample_rate, channels, decode, partials)

    def transcribe(
        self,
        audio: str | Path | NDArray[Any],
        sample_rate: int | None = None,
        latency: str = "balanced",
        offline: bool = False,
    ) -> Result:
        """The transcript of a file or of samples.

        Args:
            audio: a path, or (n,) or (n, channels) samples, float in [-1, 1] or int16.
            sample_rate: of an array, in Hz; a file knows its own.
            offline: one pass over the whole recording instead of the streaming path.

        Raises:
            AudioError: the file cannot be read. ValueError: the array cannot be.
        """
        blocks: Iterable[Samples]
        if isinstance(audio, np.ndarray):
            if sample_rate is None:
                raise ValueError("Expected sample_rate (Hz) with an array of samples. Found: None")
            blocks = [resample(as_float(audio), sample_rate)]
        else:
            blocks = open_audio(str(audio)).blocks
        if offline:
            return self._offline(np.concatenate(list(blocks)), latency)
        finals: list[Transcript] = []
        gaps: list[Gap] = []
        stream = self.stream(latency=latency, partials=False)
        for event in self.events(stream, blocks):
            if isinstance(event, Gap):
                gaps.append(event)
            elif event.is_final:
                finals.append(event)
        return self._result(finals, gaps, stream.audio_s)

    def events(self, stream: RecognizerStream, blocks: Iterable[Samples]) -> Iterator[Event]:
        """Feeds 16 kHz blocks to the end, event by event."""
        for block in blocks:
            yield from stream.push(block)
        yield from stream.finish()

    def _offline(self, samples: Samples, latency: str) -> Result:
        finals = transcribe_offline(self.engine, samples, StreamConfig.preset(latency))
        return self._result(finals, [], to_seconds(len(samples)))

    def _result(self, finals: list[Transcript], gaps: list[Gap], duration_s: float) -> Result:
        text = " ".join(final.text for final in finals)
        return Result(text, duration_s, self.model.name, tuple(finals), tuple(gaps))


def load_recognizer(args: argparse.Namespace) -> Recognizer:
    """As the model options of the command line say.

    Raises:
        OSError, ValueError: the file of hot words cannot be read. CheckpointError: the model cannot be.
    """
    return Recognizer.load(args.model, args.device, args.dtype, args.threads, args.lm, read_hotwords(args.hotwords))


def read_hotwords(path: str | None) -> dict[str, float]:
    """Raises OSError or ValueError, which name the file."""
    if path is None:
        return {}
    try:
        return parse_hotwords(Path(path).read_text(encoding="utf-8").splitlines())
    except OSError as e:
        raise OSError(f"cannot read the hot words in {path}: {e.strerror}") from e
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def as_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    """int16 scaled to [-1, 1], floats as they are.

    Raises:
        ValueError: another type, more than two dimensions or than `MOST_CHANNELS`, or not finite.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2) or samples.shape[1:] > (MOST_CHANNELS,):
        raise ValueError(
            f"Expected samples of shape (n,) or (n, channels), of at most {MOST_CHANNELS} channels. "
            f"Found: {samples.shape}"
        )
    if samples.dtype == np.int16:
        return from_int16(samples)
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"Expected float samples in [-1, 1], or int16. Found: {samples.dtype}")
    if not np.isfinite(samples).all():
        raise ValueError("Expected finite samples. Found: NaN or infinity")
    return samples.astype(np.float32)
