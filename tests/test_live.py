"""Whole live sessions without a device, here and against a real server: a file is played."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from planted import PlantedModel, plant
from serving import Serving, serving

from clients.console import LiveCaptions, Output
from clients.controls import Screen
from clients.live_input import PlayedFile
from clients.microphone import Heard
from core.audio import HOP
from core.captions import to_text
from streamer.cli import main
from streamer.connect import RemoteStream
from streamer.limits import Limits
from streamer.live import LiveSession
from streamer.recognizer import Recognizer
from streamer.transcribe import LocalStream

SPEECH = plant("GIVE ME THE~~~", tail=2)[: 320 * 200]
KEYS = ("output", "record", "captions_file", "exec", "hotwords", "model", "endpoint_ms", "commit_ms", "steady")
OFF = {**dict.fromkeys(KEYS), "clipboard": False, "type": False, "format": "text", "partials": False, "latency": "low"}
ROOT = Path(__file__).parent.parent


def live_session(screen: Screen, **options: object) -> LiveSession:
    """One that recognises here what is played."""
    recognizer = Recognizer(PlantedModel())  # type: ignore[arg-type]
    source = PlayedFile("planted", iter([SPEECH]), is_audible=False)
    return LiveSession(Namespace(**{**OFF, **options}), source, LocalStream(recognizer.stream(), "planted"), screen)


@pytest.mark.parametrize("is_writable", [True, False])
def test_s_saves_or_says_why_not(is_writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either case the session goes on to its last word."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if not is_writable:
        folder.rmdir()
    with LiveCaptions() as screen:
        session = live_session(screen)
        screen.controls.press("s")
        session.run(lambda: False)
    assert [final.text for final in session.finals] == ["GIVE ME THE"]
    if is_writable:
        assert [path.suffix for path in folder.iterdir()] == [".txt"] and session.failures == []
    else:
        assert len(session.failures) == 1 and session.failures[0].startswith("not saved: ")


def test_a_server_s_words_reach_screen_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.txt"

    def run(url: str) -> LiveSession:
        args = Namespace(url=url, api_key=None, **{**OFF, "output": str(target)})
        source = PlayedFile("planted", iter([SPEECH]), is_audible=False)
        with source, RemoteStream(args) as live, LiveCaptions() as screen:
            session = LiveSession(args, source, live, screen)
            with ExitStack() as stack:
                session.open_outputs(stack)
                session.run(lambda: False)
        return session

    async def serve() -> LiveSession:
        async with serving() as server:
            return await asyncio.to_thread(run, server.url)

    session = asyncio.run(serve())
    assert target.read_text() == to_text(session.finals) == "GIVE ME THE\n"
    assert "GIVE ME THE" in capsys.readouterr().out
    assert session.failures == [] and session.timeline.audio_s == len(SPEECH) / 16_000


class Listening:
    """A microphone in a quiet room, after some speech; `steps` are what happens at its readings."""

    name, trouble, waiting_s, n_overruns, has_ended = "quiet", "", 0.0, 0, False

    def __init__(self, speech: np.ndarray, *steps: Callable[[], object]) -> None:
        self.speech, self.steps = speech, iter(steps)

    def read(self) -> Heard:
        next(self.steps)()
        samples, self.speech = self.speech, np.zeros(320, np.float32)
        return Heard(samples)

    def pause(self, is_paused: bool) -> None:
        pass

    def switch(self) -> str:
        return ""

    def finish(self) -> list[Heard]:
        return []


def test_a_server_s_last_words_are_shown_during_the_pause_after_them() -> None:
    shown: list[str] = []

    def run(url: str) -> None:
        args = Namespace(url=url, api_key=None, **OFF)
        with RemoteStream(args) as live, LiveCaptions() as screen:

            def wait() -> None:
                time.sleep(0.02)
                shown[:] = [final.text for final in session.finals]
                if shown:
                    screen.controls.press("q")

            space, quits = (partial(screen.controls.press, key) for key in " q")
            source = Listening(plant("GIVE ME THE"), lambda: None, space, *[wait] * 200, quits)
            session = LiveSession(args, source, live, screen)
            session.run(lambda: False)

    async def serve() -> None:
        async with serving() as server:
            await asyncio.to_thread(run, server.url)

    asyncio.run(serve())
    assert shown == ["GIVE ME THE"]


def test_a_played_file_waits_while_it_is_paused() -> None:
    """Space in the middle: nothing of it is missed, and its clock stands still."""
    with LiveCaptions() as screen:
        session = live_session(screen)
        pressing = [threading.Timer(after, screen.controls.press, " ") for after in (1.0, 1.8)]
        for timer in pressing:
            timer.start()
        began = time.monotonic()
        session.run(lambda: False)
        took_s = time.monotonic() - began
    assert " ".join(final.text for final in session.finals) == "GIVE ME THE"
    assert session.timeline.audio_s == len(SPEECH) / 16_000 and took_s > len(SPEECH) / 16_000 + 0.7


def test_a_file_of_short_blocks_is_played_without_holes() -> None:
    """As they come from an MP4: the loudspeaker takes 50 ms for each packet, however short."""
    samples = np.arange(3710, dtype=np.float32)
    heard = []
    with PlayedFile("short", iter(samples.reshape(10, 371)), is_audible=False) as played:
        while not played.has_ended:
            heard.append(played.read().samples)
    assert [len(packet) for packet in heard if len(packet)] == [800] * 4 + [510]
    assert np.concatenate(heard).tolist() == samples.tolist()


@pytest.fixture
def closed() -> Iterator[Output]:
    """A terminal whose window has been closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as file, ExitStack() as stack:
        stack.callback(os.dup2, os.open(os.devnull, os.O_WRONLY), writer)  # what is buffered must go somewhere
        yield Output(file=file)


def test_a_screen_that_has_gone_costs_no_words(closed: Output, tmp_path: Path) -> None:
    """Its error ends the session, after all that was said is where it belongs."""
    target, got = tmp_path / "a.txt", tmp_path / "got"
    session = live_session(LiveCaptions(closed), output=str(target), exec=f"cat >> '{got}'")
    with ExitStack() as stack, pytest.raises(BrokenPipeError):
        session.open_outputs(stack)
        session.run(lambda: False)
    assert target.read_text() == got.read_text() == "GIVE ME THE\n"


def test_a_refusal_spares_the_files_of_an_earlier_session(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the displays of Linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    paths = {name: tmp_path / name for name in ("output", "record", "captions_file")}
    for path in paths.values():
        path.write_text("kept")
    written = [f"--{name.replace('_', '-')}={path}" for name, path in paths.items()]
    assert main(["--play", str(sample), "--type", *written]) == 1
    assert "--type needs a desktop" in capsys.readouterr().err
    assert {path.read_text() for path in paths.values()} == {"kept"}


class Relay:
    """Between client and server, and can be cut."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server | None = None

    async def start(self) -> str:
        self.server = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        return f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, to_server[1]]

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(1 << 16):
                    target.write(data)
            except OSError:
                pass
            target.close()

        await asyncio.gather(pump(reader, to_server[1]), pump(to_server[0], writer))

    def cut(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()


def with_server(
    work: Callable[[RemoteStream, Serving, Relay, asyncio.AbstractEventLoop], None], limits: Limits
) -> None:
    """Runs blocking `work` with a session of a real server, beside the loop that serves."""

    async def run() -> None:
        async with serving(limits=limits) as server:
            relay, loop = Relay(server.port), asyncio.get_running_loop()
            url = await relay.start()

            def session() -> None:
                with RemoteStream(Namespace(url=url, api_key=None, **OFF)) as live:
                    work(live, server, relay, loop)

            try:
                await asyncio.to_thread(session)
            finally:
                relay.cut()

    asyncio.run(run())


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_that_stops_gives_its_last_words() -> None:
    """They are there although the server's end is an error, which is told after them."""
    finals: list[str] = []

    def work(live: RemoteStream, server: Serving, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        events = live.push(plant("GIVE ME THE", tail=2))
        until(lambda: live.lag_s() == 0)
        server.server.should_exit = True
        until(live._reader.done)
        for samples in (np.zeros(160, np.float32), np.zeros(0, np.float32)):
            events += live.push(samples)
            finals.extend(event.text for event in events if getattr(event, "is_final", False))

    with pytest.raises(Exception, match="shutting down"):
        with_server(work, Limits())
    assert finals == ["GIVE ME THE"]


def test_audio_that_is_answered_by_nothing_is_acknowledged() -> None:
    """Silence, less of it than the server acknowledges unasked."""

    def work(live: RemoteStream, server: Serving, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        live.push(np.zeros(8_000, np.float32))
        until(lambda: live.lag_s() == 0)

    with_server(work, Limits())


def test_a_server_that_has_gone_is_shown_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.connect.LOST_S", 1.2)
    took: list[float] = []

    def work(live: RemoteStream, server: Serving, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        live.push(SPEECH)
        until(lambda: live.lag_s() == 0)
        assert live.trouble == ""
        loop.call_soon_threadsafe(relay.cut)
        until(lambda: live.trouble)
        assert "no connection to ws://127.0.0.1" in live.trouble
        live.push(SPEECH[:16_000])
        began = time.monotonic()
        live.finish()
        took.append(time.monotonic() - began)

    with pytest.raises(Exception, match="no connection; the last 1.0 s are not transcribed"):
        with_server(work, Limits())
    assert took[0] < 2


def test_a_pause_does_not_end_a_server_s_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gives up after so much time without a message; a client that has no audio still says something."""
    monkeypatch.setattr("clients.websocket.ALIVE_S", 0.1)
    monkeypatch.setattr("clients.websocket.ASK_S", 0.1)
    finals: list[str] = []

    def work(live: RemoteStream, server: Serving, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        first = plant("GIVE ME ~~", tail=2)
        events = live.push(first[: len(first) // HOP * HOP])
        time.sleep(1.5)
        events += [*live.push(plant("THE KEY", tail=2)), *live.finish()]
        finals.extend(event.text for event in events if getattr(event, "is_final", False))

    with_server(work, Limits(idle_s=0.5))
    assert finals == ["GIVE ME", "THE KEY"]


def test_a_client_needs_no_pytorch(tmp_path: Path) -> None:
    """Neither for captions nor for a file: a small machine can show what a large one recognises."""
    path = str(tmp_path / "a.wav")
    soundfile.write(path, SPEECH, 16_000, "FLOAT")

    def run(url: str) -> None:
        for arguments in (["--play", path, "--server", url], ["connect", url, path]):
            done = subprocess.run([sys.executable, "-c", PLAY, *arguments], cwd=ROOT, capture_output=True, text=True)
            code, *modules = done.stdout.splitlines()[-1].split()
            assert code == "0" and not {"torch", "ctc_beam_decoder"} & set(modules), done.stderr

    async def serve() -> None:
        async with serving() as server:
            await asyncio.to_thread(run, server.url)

    asyncio.run(serve())


PLAY = """
import sys
from streamer.cli import main
print(main(sys.argv[1:]), *sys.modules)
"""
HEAVY = {"torch._dynamo", "sympy", "huggingface_hub", "PIL", "matplotlib", "starlette", "uvicorn", "websockets", "av"}


def test_captions_import_only_what_they_need(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Sound and screen included: the first start is short. How short, `streamer bench speed` tells."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 16_000)
    command = [sys.executable, "-c", PLAY, "--play", str(tmp_path / "a.wav"), "--model", str(tiny_model_dir)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0" and {"sounddevice", "rich"} <= set(modules), done.stderr
    assert not {*HEAVY, "pygame", "pynput", "pyperclip"} & set(modules)
