"""Deepgram's clients that cannot live in this environment: the Python SDK 3.11, and the one for Node.

`STREAMER_SDKS` names a folder with `deepgram-3` (pip install --target …/deepgram-3 deepgram-sdk==3.11.0) and
`node_modules` (npm install --prefix … @deepgram/sdk@5). Without it, or without Node, these tests are skipped.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from planted import plant
from serving import serving

from core.audio import encode_pcm16
from streamer.auth import Access

SPEECH = encode_pcm16(plant("HELLO WORLD~~GOOD DAY~")[:-80])
SDKS = Path(os.environ.get("STREAMER_SDKS", "/nonexistent"))
PYTHON = """
import json, sys, threading
from deepgram import DeepgramClient, DeepgramClientOptions, LiveOptions, LiveTranscriptionEvents

url, key, path = sys.argv[1:]
results, errors, heard, done = [], [], threading.Event(), threading.Event()
connection = DeepgramClient(key, DeepgramClientOptions(url=url)).listen.websocket.v("1")

def on_result(self, result, **kwargs):
    results.append([result.is_final, result.channel.alternatives[0].transcript])
    heard.set()

connection.on(LiveTranscriptionEvents.Transcript, on_result)
connection.on(LiveTranscriptionEvents.Metadata, lambda self, metadata, **kwargs: done.set())
connection.on(LiveTranscriptionEvents.Error, lambda self, error, **kwargs: errors.append(str(error)))
opened = connection.start(LiveOptions(model="nova-3", encoding="linear16", sample_rate=16000, interim_results=True))
if opened:
    data = open(path, "rb").read()
    for start in range(0, len(data), 3200):
        connection.send(data[start : start + 3200])
        if start == 12 * 3200:
            heard.wait(30)  # an interim result of the first words: all at once may be final at once
    connection.finalize()
    connection.send('{"type": "CloseStream"}')
    done.wait(30)
    connection.finish()
print(json.dumps({"opened": opened, "results": results, "errors": errors, "done": done.is_set()}))
"""
NODE = """
const { DeepgramClient } = require("@deepgram/sdk");
const { readFileSync } = require("fs");
const [url, apiKey, path] = process.argv.slice(2);
const ws = url.replace("http", "ws");

async function main() {
  let hear;
  const heard = new Promise((resolve) => { hear = resolve; });
  const client = new DeepgramClient({ apiKey, environment: { base: url, production: ws, agent: ws, agentRest: url } });
  const options = { model: "nova-3", encoding: "linear16", sample_rate: 16000, interim_results: "true" };
  const connection = await client.listen.v1.connect({ ...options, reconnectAttempts: 0 });
  const told = { opened: false, results: [], errors: [], done: false };
  const ended = new Promise((resolve) => {
    connection.on("message", (message) => {
      if (message.type === "Results") {
        told.results.push([message.is_final, message.channel.alternatives[0].transcript]);
        hear();
      } else if (message.type === "Metadata") {
        told.done = true;
      }
    });
    connection.on("error", (error) => { told.errors.push(String(error.message)); resolve(); });
    connection.on("close", () => resolve());
  });
  connection.connect();
  const open = connection.waitForOpen().then(async () => {
    told.opened = true;
    const data = readFileSync(path);
    for (let start = 0; start < data.length; start += 3200) {
      connection.sendMedia(data.subarray(start, start + 3200));
      if (start === 12 * 3200) await heard; // as above
    }
    connection.sendFinalize({ type: "Finalize" });
    connection.sendCloseStream({ type: "CloseStream" });
  }, () => {});
  await Promise.race([ended, open.then(() => ended)]);
  console.log(JSON.stringify(told));
  process.exit(0);
}

main();
"""


def client(kind: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment; skips the test where it is not there."""
    if kind == "python":
        if not (SDKS / "deepgram-3").is_dir():
            pytest.skip("STREAMER_SDKS has no deepgram-3")
        return [sys.executable, "-c", PYTHON], {"PYTHONPATH": str(SDKS / "deepgram-3")}
    node = shutil.which("node")
    if node is None or not (SDKS / "node_modules").is_dir():
        pytest.skip("no Node, or STREAMER_SDKS has no node_modules")
    script = folder / "client.js"
    script.write_text(NODE)
    return [node, str(script)], {"NODE_PATH": str(SDKS / "node_modules")}


@pytest.mark.parametrize("kind", ["python", "node"])
def test_it_works_unchanged(kind: str, tmp_path: Path) -> None:
    command, environment = client(kind, tmp_path)
    audio = tmp_path / "speech.raw"
    audio.write_bytes(SPEECH)

    def talk(port: int, key: str) -> dict[str, Any]:
        arguments = [*command, f"http://127.0.0.1:{port}", key, str(audio)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=90, env=os.environ | environment)
        assert done.stdout, done.stderr
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    async def test() -> None:
        async with serving(access=Access(("right",))) as server:
            told = await asyncio.to_thread(talk, server.port, "right")
            assert (told["opened"], told["errors"], told["done"]) == (True, [], True)
            finals = [text for is_final, text in told["results"] if is_final and text]
            assert " ".join(finals) == "HELLO WORLD GOOD DAY"
            assert any(not is_final for is_final, _ in told["results"])
            assert not (await asyncio.to_thread(talk, server.port, "wrong"))["opened"]
            assert (await asyncio.to_thread(talk, server.port, "right"))["done"]

    asyncio.run(test())
