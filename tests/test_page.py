"""The browser page: what it loads, and in a real headless Chromium, where there is one, what it shows."""

import asyncio
import contextlib
import itertools
import json
import re
import shutil
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from planted import TOKENS, PlantedModel
from serving import serving
from websockets.asyncio.client import ClientConnection, connect

from core.audio import HOP, Samples, n_frames
from streamer.server import PAGE, PAGE_FILES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TONES = {"A": 500.0, "B": 1000.0, "C": 2000.0}  # Hz


class ToneModel(PlantedModel):
    """Hears tones as words of one letter: it survives whatever a browser does to the samples."""

    def read(self, window: Samples) -> np.ndarray:
        n = max(1, n_frames(len(window)))
        padded = np.pad(window, (0, max(0, n * HOP - len(window))))[: n * HOP].reshape(n, HOP)
        spectrum = np.abs(np.fft.rfft(padded * np.hanning(HOP), axis=1))
        hertz = spectrum.argmax(1) * 16000 / HOP
        loud = np.sqrt((padded**2).mean(1)) > 0.01
        ids = np.zeros(n, int)
        for letter, tone in TONES.items():
            ids[loud & (np.abs(hertz - tone) < 60)] = TOKENS.index(letter)
        quiet = ~loud
        ids[1:][quiet[1:] & loud[:-1]] = 1  # a word ends where its tone does
        log_probs = np.full((n, len(TOKENS)), np.log(0.02 / (len(TOKENS) - 1)), np.float32)
        log_probs[np.arange(n), ids] = np.log(0.98)
        return log_probs


def tones(text: str, rate: int) -> np.ndarray:
    """A second of silence, then each letter for 0.3 s with 0.3 s of silence after it, and silence at the end."""
    t = np.arange(round(0.3 * rate)) / rate
    parts = [np.zeros(rate)]
    for letter in text:
        parts += [0.4 * np.sin(2 * np.pi * TONES[letter] * t), np.zeros(len(t))]
    return np.concatenate([*parts, np.zeros(2 * rate)])


def test_the_page_asks_nothing_of_other_hosts() -> None:
    for name in set(PAGE_FILES.values()):
        text = (PAGE / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.[a-z]", text), name


def test_everything_on_the_page_has_its_element() -> None:
    html, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "app.js"))
    ids = set(re.findall(r'id="(\w+)"', html))
    assert set(re.findall(r'\$\("(\w+)"\)', script)) <= ids
    for name in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert f"/{name}" in PAGE_FILES


def test_the_page_is_served_with_a_tight_policy() -> None:
    async def test() -> None:
        async with serving() as server:
            for path in PAGE_FILES:
                url = f"http://127.0.0.1:{server.port}{path}"
                with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
                    assert answer.headers["content-security-policy"].startswith("default-src 'self'")

    asyncio.run(test())


class Tab:
    """A page driven over the DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.ids = itertools.count(1)
        self.session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self.ids)
        message = {"id": number, "method": method, "params": params}
        await self.connection.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(await self.connection.recv())
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            elif answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"]))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def run(self, script: str, gesture: bool = True) -> Any:
        result = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=gesture
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait(self, condition: str) -> None:
        """Until the page says so itself: it looks after each change of its document."""
        watch = f"""new Promise((done) => {{
            const look = () => {{ if ({condition}) {{ watcher.disconnect(); done(); }} }};
            const watcher = new MutationObserver(look);
            watcher.observe(document, {{subtree: true, childList: true, characterData: true, attributes: true}});
            look();
        }})"""
        await self.run(watch)


@contextlib.asynccontextmanager
async def tab(url: str, profile: Path, *flags: str) -> AsyncIterator[Tab]:
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        *flags,
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async for line in process.stderr:
            if match := re.search(rb"DevTools listening on (ws://\S+)", line):
                break
        else:
            pytest.fail("Chromium ended without a DevTools address")
        drained = asyncio.create_task(process.stderr.read())
        async with connect(match[1].decode(), max_size=None, compression=None) as connection:
            driver = Tab(connection)
            target = await driver.call("Target.createTarget", url="about:blank")
            attached = await driver.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            driver.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                await driver.call(f"{domain}.enable")
            await driver.call("Page.navigate", url=url)
            while await driver.run("document.readyState + typeof globalThis.captions") != "completeobject":
                pass
            yield driver
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
    await drained


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")
def test_captions_in_a_real_browser(tmp_path: Path) -> None:
    heard = tmp_path / "heard.wav"
    soundfile.write(heard, tones("ABCA", 48000), 48000)
    dropped = tmp_path / "dropped.wav"
    soundfile.write(dropped, tones("CAB", 44100), 44100)
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags.append(f"--use-file-for-fake-audio-capture={heard}%noloop")

    async def test() -> None:
        async with asyncio.timeout(120), serving(model=ToneModel()) as server:
            url = f"http://127.0.0.1:{server.port}/"
            async with tab(url, tmp_path / "profile", *flags) as page:
                await page.run("document.getElementById('microphone').click()")
                await page.wait("document.querySelector('#microphone[aria-pressed=true]')")
                await page.wait("document.querySelector('#partial .provisional')?.textContent")
                await page.wait("document.querySelectorAll('#finals p').length === 1")
                assert await page.run("document.querySelector('#finals p').textContent") == "A B C A"
                assert re.fullmatch(r"\d+\.\d s", await page.run("document.getElementById('delay').value"))
                await page.run("document.getElementById('microphone').click()")
                await page.wait("document.getElementById('status').textContent === 'Done.'")

                document = await page.call("DOM.getDocument")
                root = document["root"]["nodeId"]
                node = await page.call("DOM.querySelector", nodeId=root, selector="#file")
                await page.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(dropped)])
                await page.wait("document.querySelectorAll('#finals p').length === 2")
                await page.wait("document.getElementById('status').textContent === 'Done.'")
                assert await page.run("document.querySelectorAll('#finals p')[1].textContent") == "C A B"
                srt, vtt, text = [await page.run(f"captions.formats.{kind}()") for kind in ("srt", "vtt", "text")]
                assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\nA B C A\n\n2\n", srt)
                assert vtt.startswith("WEBVTT\n\n00:00:0")
                assert text == "A B C A\nC A B\n"
                assert page.complaints == []
                assert all(request.startswith((url, "blob:", "data:")) for request in page.requests), page.requests

    asyncio.run(test())


NO_WORKLET = "globalThis.add = AudioWorklet.prototype.addModule;" + (
    "AudioWorklet.prototype.addModule = () => Promise.reject(new Error('no worklet'))"
)
COUNTED = """
    globalThis.streams = [];
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (asked) => {
        const stream = await ask(asked);
        streams.push(stream);
        return stream;
    };
"""
BROKEN = """
    globalThis.working = WebSocket;
    globalThis.WebSocket = class { // says one word of the first second, and breaks for good
        constructor() { setTimeout(() => this.onopen()); }
        send(data) {
            if (!data.includes?.("start")) return;
            const say = (message) => this.onmessage({ data: JSON.stringify(message) });
            say({ type: "ready", session: "s", seq: 0, samples: 0, flushes: 0, is_ended: false });
            const words = [{ word: "A", start_s: 0.25, end_s: 0.75 }];
            say({ type: "final", seq: 1, audio_s: 1.0, text: "A", words });
            this.onclose({ code: 1011 });
        }
    };
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")
def test_what_goes_wrong_on_the_page(tmp_path: Path) -> None:
    """Times go on after a session that broke, a microphone that fails is let go of, two clicks open one, and a server
    out of reach is looked for."""
    heard = tmp_path / "heard.wav"
    soundfile.write(heard, tones("AB", 16000), 16000)
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    status = "document.getElementById('status').textContent"

    async def test() -> None:
        async with asyncio.timeout(120), serving(model=ToneModel()) as server:
            async with tab(f"http://127.0.0.1:{server.port}/", tmp_path / "profile", *flags) as page:
                await page.run(BROKEN)
                root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
                node = await page.call("DOM.querySelector", nodeId=root, selector="#file")
                for n in (1, 2):
                    await page.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(heard)])
                    await page.wait(f"document.querySelectorAll('#finals p').length === {n}")
                    await page.wait(f"{status} === 'the connection broke'")
                srt = await page.run("captions.formats.srt()")
                assert re.findall(r"(\S+) -->", srt) == ["00:00:00,250", "00:00:01,250"]
                await page.run("WebSocket = working")

                await page.run(COUNTED + NO_WORKLET)
                await page.run("document.getElementById('microphone').click()")
                await page.wait(f"{status} === 'no worklet'")
                assert await page.run("streams.map((stream) => stream.getTracks()[0].readyState)") == ["ended"]

                await page.run("AudioWorklet.prototype.addModule = add; streams.length = 0")
                await page.run("for (let i = 0; i < 2; i++) document.getElementById('microphone').click()")
                await page.wait(f"{status} === 'Listening.'")
                await page.run("document.getElementById('microphone').click()")
                await page.wait(f"{status} === 'Done.'")
                assert await page.run("streams.length") == 1

                await page.run("document.getElementById('microphone').click()")
                await page.wait(f"{status} === 'Listening.' && captions.session().acked > 0")
                # From here on nothing comes through, and nobody closes the connection.
                await page.run("s = captions.session(); id = s.id; seen = []; on = s.on")
                await page.run("s.on = (message) => { seen.push(message.type); on(message); }")
                await page.run("s.socket.onmessage = null; s.heardAt -= 20000")
                await page.wait("seen.includes('broken') && seen.includes('ready')")
                assert await page.run("captions.session() === s && s.id === id")
                await page.run("document.getElementById('microphone').click()")
                await page.wait(f"{status} === 'Done.'")

    asyncio.run(test())
