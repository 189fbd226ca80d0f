"""A whole live session against a real server, without a device: a file is played."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

import pytest
from planted import PlantedModel, plant
from serving import serving

from clients.console import LiveCaptions
from clients.live_input import PlayedFile
from core.captions import to_text
from streamer.connect import RemoteStream
from streamer.live import LiveSession
from streamer.recognizer import Recognizer
from streamer.transcribe import LocalStream

SPEECH = plant("GIVE ME THE~~~", tail=2)[: 320 * 200]
KEYS = ("output", "record", "captions_file", "exec", "hotwords", "model", "endpoint_ms", "commit_ms", "steady")
OFF = dict.fromkeys(KEYS)


@pytest.mark.parametrize("is_writable", [True, False])
def test_s_saves_or_says_why_not(is_writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either case the session goes on to its last word."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if not is_writable:
        folder.rmdir()
    args = Namespace(clipboard=False, type=False, **{**OFF, "format": "text", "partials": False, "latency": "low"})
    source = PlayedFile("planted", iter([SPEECH]), is_audible=False)
    with source, LiveCaptions() as screen:
        recognizer = Recognizer(PlantedModel())  # type: ignore[arg-type]
        session = LiveSession(args, source, LocalStream(recognizer.stream(), "planted"), screen)
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
        options = {**OFF, "output": str(target), "format": "text", "partials": False, "latency": "low"}
        args = Namespace(url=url, api_key=None, clipboard=False, type=False, **options)
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
