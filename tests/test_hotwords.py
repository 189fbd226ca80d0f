"""Hot words of one session, in every protocol: what is heard either way is written as its client says."""

import asyncio
import json
import warnings
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from planted import ALPHABET, TOKENS, PlantedModel, plant
from serving import Serving, serving
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from core.audio import Samples, encode_pcm16
from core.beam import HOTWORD_WEIGHT, BeamDecoder
from streamer.hotwords import LETTERS, MOST, STRONGEST, bounded, session_decoder
from streamer.protocols.deepgram import QueryError, parse
from streamer.protocols.native import ProtocolError, Start, parse_start

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from wyoming.asr import Transcribe, Transcript
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncTcpClient

pytest.importorskip("ctc_beam_decoder")

SPEECH = encode_pcm16(plant("CAT AND CAR~")[:-80])
HEARD, HOT = "CAT AND CAR", "KAT AND CAR"  # without and with the hot word


class Unsure(PlantedModel):
    """A C may be a K."""

    def emit(self, windows: Sequence[Samples]) -> list[np.ndarray]:
        c, k = TOKENS.index("C"), TOKENS.index("K")
        emitted = super().emit(windows)
        for log_probs in emitted:
            log_probs[log_probs.argmax(1) == c, k] = np.log(0.3)
        return emitted


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bound() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(bound())


async def rest(connection: ClientConnection) -> list[dict[str, Any]]:
    messages = []
    try:
        async for text in connection:
            messages.append(json.loads(text))
    except ConnectionClosed:
        pass
    return messages


async def native(server: Serving, hotwords: list[str]) -> tuple[str, list[str]]:
    """Text, and the codes of errors."""
    async with connect(server.url) as connection:
        await connection.send(json.dumps({"type": "start", "hotwords": hotwords}))
        await connection.send(SPEECH)
        await connection.send('{"type": "end"}')
        messages = await rest(connection)
    return (
        " ".join(m["text"] for m in messages if m["type"] == "final"),
        [m["code"] for m in messages if m["type"] == "error"],
    )


async def deepgram(server: Serving, query: str) -> str:
    url = f"ws://127.0.0.1:{server.port}/v1/listen?encoding=linear16&sample_rate=16000&{query}"
    async with connect(url) as connection:
        await connection.send(SPEECH)
        await connection.send('{"type": "CloseStream"}')
        messages = await rest(connection)
    texts = [m["channel"]["alternatives"][0]["transcript"] for m in messages if m["type"] == "Results"]
    return " ".join(text for text in texts if text)


async def vosk(server: Serving, phrases: object) -> str:
    async with connect(f"ws://127.0.0.1:{server.port}/") as connection:
        await connection.send(json.dumps({"config": {"sample_rate": 16000, "phrase_list": phrases}}))
        await connection.send(SPEECH)
        await connection.send('{"eof" : 1}')
        messages = await rest(connection)
    return " ".join(m["text"] for m in messages if m.get("text"))


async def wyoming(server: Serving, transcribe: Transcribe) -> str:
    async with AsyncTcpClient("127.0.0.1", server.wyoming_port) as client:
        await client.write_event(transcribe.event())
        await client.write_event(AudioStart(16000, 2, 1).event())
        await client.write_event(AudioChunk(16000, 2, 1, SPEECH).event())
        await client.write_event(AudioStop().event())
        while (event := await client.read_event()) is not None:
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text
    raise AssertionError("no transcript")


def test_every_protocol_has_them_and_sessions_do_not_mix() -> None:
    async def test() -> None:
        async with serving(model=Unsure(), decode=BeamDecoder(ALPHABET)) as server:
            said = await asyncio.gather(
                native(server, ["kat"]),
                native(server, []),
                native(server, ["kat:0.1"]),
                deepgram(server, "keyterm=Kat"),
                deepgram(server, "keyterm=zebra&keywords=kat:2"),
                deepgram(server, "keywords=kat:-5"),
                vosk(server, ["kat", "[unk]", 7, "x" * 100]),
                vosk(server, "kat"),
                wyoming(server, Transcribe(transcript_terms=["kat"])),
                wyoming(server, Transcribe(transcript_names=["kat"])),
                wyoming(server, Transcribe()),
            )
        assert list(said) == [(HOT, []), (HEARD, []), (HEARD, []), HOT, HOT, HEARD, HOT, HEARD, HOT, HOT, HEARD]

    run(test())


def test_without_a_beam_they_are_ignored_and_the_native_protocol_says_so() -> None:
    async def test() -> None:
        async with serving(model=Unsure()) as server:
            assert await native(server, ["kat"]) == (HEARD, ["hotwords_ignored"])
            assert await deepgram(server, "keyterm=kat") == HEARD
            assert await vosk(server, ["kat"]) == HEARD
            assert await wyoming(server, Transcribe(transcript_terms=["kat"])) == HEARD

    run(test())


def test_words_that_cannot_be_written_are_told_and_the_others_count() -> None:
    async def test() -> None:
        async with serving(model=Unsure(), decode=BeamDecoder(ALPHABET)) as server:
            assert await native(server, ["kat", "catch-22"]) == (HOT, ["hotwords_ignored"])
            with pytest.raises(InvalidStatus, match="400"):
                await deepgram(server, "&".join(f"keyterm=word{i}" for i in range(MOST + 1)))
            assert await native(server, ["x" * (LETTERS + 1)]) == ("", ["bad_option"])
            assert await native(server, ["kat"]) == (HOT, [])

    run(test())


def test_the_server_s_own_stay() -> None:
    decoder = BeamDecoder(ALPHABET, hotwords={"KAT": 5.0})
    decode, ignored = session_decoder(decoder, {"kar": 3.0, "4": 1.0})
    assert isinstance(decode, BeamDecoder)
    assert (decode.hotwords, ignored) == ({"KAT": 5.0, "KAR": 3.0}, ["4"])
    assert decode.engine is decoder.engine
    assert session_decoder(decoder, {}) == (None, [])


def test_bounds() -> None:
    assert bounded([("a  b", 1e9), ("a b", 2.0), ("", 8.0), ("c", -1.0), ("d", float("nan"))]) == (("a b", 2.0),)
    assert bounded([("a", 1e9)]) == (("a", STRONGEST),)
    with pytest.raises(ValueError, match="100"):
        bounded((str(i), 1.0) for i in range(MOST + 1))


@pytest.mark.parametrize("value", [7, {"a": 1}, ["a", 1], "kat:x", ["y" * 99]])
def test_what_is_no_list_of_hot_words(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse_start({"hotwords": value}, Start())


def test_spellings() -> None:
    usual = HOTWORD_WEIGHT
    assert parse_start({"hotwords": "kat,red panda:3"}, Start()).hotwords == (("kat", usual), ("red panda", 3.0))
    assert "kat" not in str(parse_start({"hotwords": ["kat"]}, Start()))  # which is logged
    pairs = [("encoding", "linear16"), ("sample_rate", "8000"), ("keywords", "a:b:2"), ("KEYTERM", "x y")]
    assert parse(pairs, Start()).start.hotwords == (("a:b", usual + 1), ("x y", usual))
    with pytest.raises(QueryError, match="BOOST"):
        parse([*pairs, ("keywords", "a:nan")], Start())
