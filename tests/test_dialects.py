"""Real speech and the real model: every protocol gives the text of the native one."""

import asyncio
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from serving import Serving, serving
from websockets.asyncio.client import connect

from clients.container import ContainerReader
from core.acoustic import AcousticModel
from core.audio import encode_pcm16

av = pytest.importorskip("av")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # old clients of websockets, audioop
    from deepgram import AsyncDeepgramClient
    from deepgram.core.events import EventType
    from deepgram.environment import DeepgramClientEnvironment
    from wyoming.asr import Transcript
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncClient

pytestmark = pytest.mark.filterwarnings("ignore:.*websockets:DeprecationWarning")


def media_recorder(samples: np.ndarray, rate: int) -> bytes:
    """WebM with Opus at 48 kHz in clusters, as a browser records it."""
    out = io.BytesIO()
    with av.open(out, "w", format="webm", options={"live": "1", "cluster_time_limit": "250"}) as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for resampled in av.AudioResampler(stream.format.name, "mono", 48000, 960).resample(frame):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return out.getvalue()


async def native(server: Serving, data: bytes) -> str:
    async with connect(server.url) as connection:
        await connection.send('{"type": "start"}')
        await connection.send(data)
        await connection.send('{"type": "end"}')
        messages = [json.loads(text) async for text in connection]
    return " ".join(m["text"] for m in messages if m["type"] == "final")


async def vosk(server: Serving, data: bytes) -> str:
    async with connect(f"ws://127.0.0.1:{server.port}") as connection:
        await connection.send('{"config" : {"sample_rate" : 16000}}')
        said = []
        for message in [*(data[i : i + 8000] for i in range(0, len(data), 8000)), '{"eof" : 1}']:
            await connection.send(message)
            said.append(json.loads(await connection.recv()).get("text", ""))
    return " ".join(text for text in said if text)


async def wyoming(server: Serving, data: bytes) -> str:
    audio = {"rate": 16000, "width": 2, "channels": 1}
    async with AsyncClient.from_uri(f"tcp://127.0.0.1:{server.wyoming_port}") as client:
        await client.write_event(AudioStart(**audio).event())
        await client.write_event(AudioChunk(audio=data, **audio).event())
        await client.write_event(AudioStop().event())
        while (event := await client.read_event()) is not None:
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text
    raise AssertionError("no transcript")


async def deepgram(server: Serving, data: bytes, **options: Any) -> str:
    http, ws = f"http://127.0.0.1:{server.port}", f"ws://127.0.0.1:{server.port}"
    environment = DeepgramClientEnvironment(base=http, production=ws, agent=ws, agent_rest=http)
    heard: list[Any] = []
    client = AsyncDeepgramClient(api_key="x", environment=environment)
    async with client.listen.v1.connect(model="nova-3", interim_results=True, **options) as connection:
        connection.on(EventType.MESSAGE, heard.append)
        listening = asyncio.create_task(connection.start_listening())
        for start in range(0, len(data), 3000):
            await connection.send_media(data[start : start + 3000])
        await connection.send_close_stream()
        await listening
    assert heard[-1].type == "Metadata"
    texts = [m.channel.alternatives[0].transcript for m in heard if m.type == "Results" and m.is_final]
    return " ".join(text for text in texts if text)


def test_every_protocol_gives_the_text_of_the_native_one(sample: Path) -> None:
    samples, rate = soundfile.read(sample, dtype="float32")
    assert rate == 16000
    pcm, webm = encode_pcm16(samples), media_recorder(samples, rate)
    reader = ContainerReader()
    decoded = encode_pcm16(np.concatenate([reader.push(webm)[0], reader.finish()]))

    async def test() -> None:
        async with asyncio.timeout(200), serving(model=AcousticModel.load("streamer-en", device="cpu")) as server:  # type: ignore[arg-type]
            text = await native(server, pcm)
            assert len(text.split()) > 5
            assert await deepgram(server, pcm, encoding="linear16", sample_rate=16000) == text
            assert await vosk(server, pcm) == text
            assert await wyoming(server, pcm) == text
            assert await deepgram(server, webm) == await native(server, decoded)

    asyncio.run(test())
