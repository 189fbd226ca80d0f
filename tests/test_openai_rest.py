"""OpenAI's own SDK, and curl, against a real server: files in every format, streamed, and what is wrong with them."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from openai import APIError, APIStatusError, AsyncOpenAI, InternalServerError, OpenAI
from planted import PlantedModel, plant
from serving import Serving, serving

from clients.file import Source
from core.audio import SAMPLE_RATE, Samples
from core.transcript import Transcript, Word
from streamer.auth import Access
from streamer.limits import Limits
from streamer.protocols.openai_rest import Deltas, FormError, parse
from streamer.recognizer import Recognizer

TEXT = "FIRST HALF~~SECOND HALF"
SAID = TEXT.replace("~~", " ")
SAMPLE = Path("core/assets/sample.wav")


def recording(text: str = TEXT, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, plant(text, tail=20), SAMPLE_RATE, format=format, subtype="PCM_16")
    return file.getvalue()


def client(server: Serving, key: str = "none", **options: Any) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0, **options)


def with_server(test: Callable[[Serving], None], **options: Any) -> None:
    """Runs a test that blocks beside a server that must not."""

    async def main() -> None:
        async with serving(**options) as server:
            await asyncio.to_thread(test, server)
            assert not server.hub.live

    asyncio.run(main())


def transcribe(api: OpenAI, data: bytes, **options: Any) -> Any:
    return api.audio.transcriptions.create(file=("talk.wav", data), model="whisper-1", **options)


def test_every_format() -> None:
    def test(server: Serving) -> None:
        with client(server) as api:
            plain = transcribe(api, recording())
            assert (plain.text, plain.usage.type, plain.usage.seconds) == (SAID, "duration", 4)
            assert transcribe(api, recording(), response_format="text") == SAID + "\n"
            srt = transcribe(api, recording(), response_format="srt")
            assert srt.startswith("1\n00:00:00,") and "FIRST HALF" in srt
            assert transcribe(api, recording(), response_format="vtt").startswith("WEBVTT\n\n00:00:00.")
            full = transcribe(
                api,
                recording(format="FLAC"),
                response_format="verbose_json",
                timestamp_granularities=["word", "segment"],
                language="en",
                temperature=0,
                prompt="",
            )
            assert (full.text, full.language) == (SAID, "en")
            assert [segment.text for segment in full.segments] == [" FIRST HALF", " SECOND HALF"]
            assert [word.word for word in full.words] == SAID.split()
            assert all(word.start < word.end <= full.duration for word in full.words)
            assert full.segments[0].avg_logprob < 0

    with_server(test)


def test_streamed() -> None:
    def test(server: Serving) -> None:
        with client(server) as api:
            events = list(transcribe(api, recording(), stream=True))
            deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
            assert deltas == ["FIRST HALF", " SECOND HALF"]
            assert (events[-1].type, events[-1].text) == ("transcript.text.done", SAID)

    with_server(test)


def test_models() -> None:
    def test(server: Serving) -> None:
        with client(server) as api:
            assert [model.id for model in api.models.list()] == ["planted", "other"]
            assert api.models.retrieve("other").id == "other"
            with pytest.raises(APIStatusError) as caught:
                api.models.retrieve("nobody")
            assert caught.value.status_code == 404
            assert transcribe(api, recording()).text == SAID
            of_other = api.audio.transcriptions.create(file=("talk.wav", recording()), model="other")
            assert of_other.text == SAID

    with_server(test, others=[PlantedModel(name="other")])


def test_many_at_once() -> None:
    async def main() -> None:
        async with serving() as server:
            api = AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
            async with api:
                texts = [f"NUMBER {name}~~ GOES" for name in ("ONE", "TWO", "THREE", "FOUR")]
                files = [("talk.wav", recording(text)) for text in texts]
                found = await asyncio.gather(*(api.audio.transcriptions.create(file=file, model="m") for file in files))
                assert [one.text for one in found] == [text.replace("~~ ", " ") for text in texts]

    asyncio.run(main())


@pytest.mark.parametrize(
    "options, status, param",
    [
        ({"response_format": "yaml"}, 400, "response_format"),
        ({"response_format": "diarized_json"}, 400, "response_format"),
        ({"timestamp_granularities": ["letter"]}, 400, "timestamp_granularities"),
        ({"timestamp_granularities": ["word"]}, 400, "timestamp_granularities"),
        ({"temperature": 7}, 400, "temperature"),
        ({"extra_body": {"keywords": ["A" * 100]}}, 400, "keywords"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], status: int, param: str) -> None:
    def test(server: Serving) -> None:
        with client(server) as api:
            with pytest.raises(APIStatusError) as caught:
                transcribe(api, recording(), **options)
            assert (caught.value.status_code, caught.value.body["param"]) == (status, param)
            assert transcribe(api, recording()).text == SAID

    with_server(test)


@pytest.mark.parametrize("data", [b"", b"no audio at all", recording()[:44], b"\x1a\x45\xdf\xa3" + bytes(1000)])
@pytest.mark.parametrize("streams", [True, False])
def test_what_is_no_audio_is_refused(data: bytes, streams: bool) -> None:
    def test(server: Serving) -> None:
        with client(server) as api:
            with pytest.raises(APIStatusError) as caught:
                transcribe(api, data, stream=streams)
            assert (caught.value.status_code, caught.value.body["param"]) == (400, "file")
            assert transcribe(api, recording()).text == SAID

    with_server(test)


def test_keys() -> None:
    def test(server: Serving) -> None:
        with client(server, "right") as right, client(server, "wrong") as wrong:
            with pytest.raises(APIStatusError) as caught:
                transcribe(wrong, recording())
            assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
            with pytest.raises(APIStatusError):
                wrong.models.list()
            assert transcribe(right, recording()).text == SAID

    with_server(test, access=Access(keys=("right",)))


def test_too_large_or_too_long() -> None:
    def test(server: Serving) -> None:
        with client(server) as api:
            with pytest.raises(APIStatusError) as caught:
                transcribe(api, recording() + bytes(200_000))
            assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
            with pytest.raises(APIStatusError) as caught:
                transcribe(api, recording("~~~~~~"))
            assert (caught.value.status_code, caught.value.code) == (413, "audio_too_long")
            assert transcribe(api, recording("SHORT")).text == "SHORT"

    limits = Limits(upload_bytes=250_000)
    with_server(test, limits=replace(limits, session=replace(limits.session, audio_s=3.0)))


def test_no_room() -> None:
    def test(server: Serving) -> None:
        server.hub.is_draining = True
        with client(server) as api:
            with pytest.raises(APIStatusError) as caught:
                transcribe(api, recording())
            assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]
        server.hub.is_draining = False

    with_server(test)


def test_an_upload_that_breaks_off_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with serving(limits=Limits(upload_bytes=250_000)) as server:
            head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            head += b"content-type: multipart/form-data; boundary=x\r\n"
            for body in (
                b"content-length: 100000\r\n\r\n--x\r\n",
                b"transfer-encoding: chunked\r\n\r\n5\r\n--x\r\n\r\n",
            ):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(head + body)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            # Chunks that are more than may come: the answer comes before their end.
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
            part = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
            writer.write(
                head + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n" % len(part) + part + b"\r\n" + 4 * chunk
            )
            assert b" 413 " in await reader.readline()
            writer.close()
            api = AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
            async with api:
                found = await api.audio.transcriptions.create(file=("a.wav", recording()), model="m")
                assert found.text == SAID
            assert not server.hub.live

    asyncio.run(main())


def test_a_client_that_leaves_frees_its_place() -> None:
    async def main() -> None:
        async with serving() as server:
            api = AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
            async with api:
                long = recording("LONG TALK~" * 200)
                for streams in (True, False):
                    task = asyncio.create_task(
                        api.audio.transcriptions.create(file=("a.wav", long), model="m", stream=streams)
                    )
                    async with asyncio.timeout(60):
                        while not server.hub.live and not task.done():
                            await asyncio.sleep(0.01)
                    if streams:
                        events = await task
                        await events.close()
                    else:
                        task.cancel()
                    async with asyncio.timeout(60):
                        while server.hub.live:
                            await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("streams", [False, True])
def test_a_recording_that_breaks_the_reader_is_told_and_gives_its_place_back(
    streams: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def blocks() -> Iterator[Samples]:
        yield np.zeros(SAMPLE_RATE, np.float32)
        raise ValueError("secret detail")

    def test(server: Serving) -> None:
        with client(server) as api:
            for _ in range(2):
                with pytest.raises(APIError) as caught:
                    list(transcribe(api, recording(), stream=True)) if streams else transcribe(api, recording())
                assert caught.value.code == "internal" and "secret" not in caught.value.message
                assert streams or isinstance(caught.value, InternalServerError)

    monkeypatch.setattr("streamer.uploads.open_container", lambda *args: Source("x", None, blocks()))
    with_server(test, limits=Limits(sessions=1))
    assert "secret detail" in caplog.text


def test_pages_of_allowed_origins_can_read_the_answers() -> None:
    access = Access(keys=("right",), origins=("https://friend.example",))

    def ask(server: Serving, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}

    def test(server: Serving) -> None:
        wish = {"Access_Control_Request_Method": "POST"}
        wish["Access_Control_Request_Headers"] = "authorization, x-stainless-os"
        for origin in ("https://friend.example", "http://localhost:3000"):
            status, headers = ask(server, "OPTIONS", "/v1/audio/transcriptions", Origin=origin, **wish)
            assert (status, headers["access-control-allow-methods"]) == (204, "GET, POST")
            assert headers["access-control-allow-headers"] == "authorization, x-stainless-os"
            assert (headers["access-control-allow-origin"], headers["vary"]) == (origin, "Origin")
            for method, path, key, wanted in (
                ("GET", "/v1/models", "right", 200),
                ("GET", "/v1/models", "wrong", 401),
                ("GET", "/v1/nothing", "right", 404),
                ("POST", "/v1/audio/transcriptions", "right", 400),
            ):
                status, headers = ask(server, method, path, Origin=origin, Authorization=f"Bearer {key}")
                assert status == wanted
                assert (headers["access-control-allow-origin"], headers["vary"]) == (origin, "Origin")
        for method in ("OPTIONS", "GET"):
            status, headers = ask(server, method, "/v1/models", Origin="https://evil.example", **wish)
            assert status in (403, 405) and "access-control-allow-origin" not in headers
        assert "access-control-allow-origin" not in ask(server, "GET", "/health", Origin="https://friend.example")[1]

    with_server(test, access=access)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(tmp_path: Path) -> None:
    file = tmp_path / "talk.flac"
    file.write_bytes(recording(format="FLAC"))

    def test(server: Serving) -> None:
        url = f"http://127.0.0.1:{server.port}/v1/audio/transcriptions"
        command = ["curl", "-sS", url, "-F", f"file=@{file}", "-F", "model=whisper-1"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["text"] == SAID
        done = subprocess.run([*command[:3], "-d", "{}"], capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["error"]["param"] == "file"

    with_server(test)


@pytest.mark.slow
def test_real_speech_reads_as_the_file_does() -> None:
    recognizer = Recognizer.load()
    text = recognizer.transcribe(SAMPLE).text
    assert text

    def test(server: Serving) -> None:
        with client(server) as api:
            assert transcribe(api, SAMPLE.read_bytes()).text == text

    with_server(test, model=recognizer.model, decode=recognizer.engine.decode, limits=Limits(by_load=False))


@pytest.mark.slow
def test_what_phones_and_browsers_record(tmp_path: Path) -> None:
    """MP3, M4A, WebM and Ogg: the text is that of `streamer FILE`."""
    av = pytest.importorskip("av")
    recognizer = Recognizer.load()
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    paths = []
    for ending, codec in (("m4a", "aac"), ("webm", "libopus"), ("mp3", "libmp3lame"), ("ogg", "libopus")):
        paths.append(tmp_path / f"talk.{ending}")
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream(codec, rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            for part in [*av.AudioResampler(stream.format, "mono", 48_000).resample(frame), None]:
                container.mux(stream.encode(part))

    def test(server: Serving) -> None:
        with client(server) as api:
            for path in paths:
                text = recognizer.transcribe(path).text
                assert len(text.split()) > 8
                assert transcribe(api, path.read_bytes()).text == text, path

    with_server(test, model=recognizer.model, decode=recognizer.engine.decode, limits=Limits(by_load=False))


def test_deltas_add_up_to_the_text() -> None:
    def words(*texts: str) -> tuple[Word, ...]:
        return tuple(Word(text, 0.0, 1.0, 1.0, False) for text in texts)

    deltas = Deltas()
    said = [
        deltas.add(Transcript(0, False, "A B C", 2, 0.0, 1.0, words("A", "B", "C"))),
        deltas.add(Transcript(0, False, "A B X", 2, 0.0, 1.0, words("A", "B", "X"))),
        deltas.add(Transcript(0, True, "A B Y Z", 4, 0.0, 1.0, words("A", "B", "Y", "Z"))),
        deltas.add(Transcript(1, True, "END", 1, 0.0, 1.0, words("END"))),
    ]
    assert said == ["A B", "", " Y Z", " END"] and deltas.text == "A B Y Z END"


def test_forms() -> None:
    form = parse([("model", "b"), ("stream", "True"), ("keywords[]", "Acme"), ("unknown", "x")], ["a", "b"])
    assert (form.model, form.streams, form.hotwords[0][0]) == ("b", True, "Acme")
    assert parse([("model", "whisper-1")], ["a"]).model == ""
    with pytest.raises(FormError, match="true or false"):
        parse([("stream", "maybe")], [])
