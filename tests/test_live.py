"""A whole live session against a real server, without a device: a file is played."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

import pytest
from planted import plant
from serving import serving

from clients.console import LiveCaptions
from clients.live_input import PlayedFile
from core.captions import to_text
from streamer.connect import RemoteStream
from streamer.live import LiveSession

SPEECH = plant("GIVE ME THE~~~", tail=2)[: 320 * 200]
OFF = dict.fromkeys(("output", "record", "captions_file", "exec", "hotwords", "model", "endpoint_ms", "commit_ms"))


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
