"""Files and addresses that PyAV reads."""

from __future__ import annotations

import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from clients.file import AudioError, open_audio, open_pipe
from clients.media import open_media

av = pytest.importorskip("av")


def tone(path: Path, codec: str) -> Path:
    """Two seconds of 440 Hz at 48 kHz, encoded."""
    wave = (0.3 * np.sin(2 * np.pi * 440 * np.arange(96_000) / 48_000)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def assert_tone(samples: np.ndarray) -> None:
    assert abs(len(samples) - 32_000) < 1_600
    middle = samples[8_000:24_000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 440


@pytest.mark.parametrize(("ending", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("mp4", "aac")])
def test_a_file(tmp_path: Path, ending: str, codec: str) -> None:
    path = tone(tmp_path / f"a.{ending}", codec)
    assert_tone(np.concatenate(list(open_audio(str(path)).blocks)))
    piped = open_pipe(io.BytesIO(path.read_bytes()), 16_000, "pcm_s16le")
    assert_tone(np.concatenate(list(piped.blocks)))


def test_damage_further_on_keeps_what_came_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tone(tmp_path / "a.webm", "libopus")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    samples = np.concatenate(list(open_audio(str(path)).blocks))
    assert 8_000 < len(samples) < 28_000


def test_silent_raw_samples_stay_raw() -> None:
    source = open_pipe(io.BytesIO(bytes(32_000)), 16_000, "pcm_s16le")
    assert sum(len(block) for block in source.blocks) == 16_000


def test_without_pyav_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.media.is_installed", lambda: False)
    with pytest.raises(AudioError, match=r"not audio that libsndfile reads.*streamer\[media\]"):
        open_audio(str(tone(tmp_path / "a.m4a", "aac")))


def test_an_address(tmp_path: Path) -> None:
    tone(tmp_path / "a.m4a", "aac")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        try:
            assert_tone(np.concatenate(list(open_audio(f"{root}/a.m4a").blocks)))
            with pytest.raises(AudioError, match="expected audio that FFmpeg reads"):
                open_audio(f"{root}/absent.m4a")
        finally:
            server.shutdown()


def test_no_audio(tmp_path: Path) -> None:
    (tmp_path / "x.m4a").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(AudioError, match="expected audio that FFmpeg reads"):
        open_media(str(tmp_path / "x.m4a"))
