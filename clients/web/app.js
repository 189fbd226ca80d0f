// Live captions over the native protocol of /v1/stream. Audio is kept until the server acknowledges it, so that a
// broken connection can be resumed without loss.
const WINDOW_S = 10; // audio sent ahead of its acknowledgement
const RETRY_MS = 30_000; // as long as the server keeps a session
const QUIET_MS = 15_000; // without a word about audio that it was sent, the server is out of reach
const LINE = 42, CUE_S = 6; // of a subtitle: characters a line (two lines), seconds

const $ = (id) => document.getElementById(id);

class Session {
  /** `on` receives every server message, `failed` an error that ends the session. */
  constructor({ sampleRate, latency, key, on, failed }) {
    Object.assign(this, { sampleRate, latency, key, on, failed });
    this.chunks = []; // { start, data: Int16Array }, not acknowledged
    this.total = this.sent = this.acked = this.seq = 0; // samples
    this.flushes = []; // positions
    this.nFlushes = 0;
    this.sentAt = []; // [samples, ms] when captured
    this.isEnding = this.hasSentEnd = this.isOver = false;
    this.id = this.brokeAt = null;
    this.watch = setInterval(() => this.look(), 1000);
    this.open();
  }

  open() {
    const url = new URL("v1/stream", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.socket = this.key ? new WebSocket(url, ["bearer", this.key]) : new WebSocket(url);
    this.isOpen = false;
    const { sampleRate, latency } = this;
    const start = { type: "start", sample_rate: sampleRate, encoding: "pcm_s16le", latency, acks: true };
    const resume = { type: "resume", session: this.id, seq: this.seq };
    this.socket.onopen = () => this.socket.send(JSON.stringify(this.id ? resume : start));
    this.socket.onmessage = (event) => this.receive(JSON.parse(event.data));
    this.socket.onclose = (event) => this.closed(event);
  }

  /** A network that is gone closes no connection by itself. */
  look() {
    if (this.isOver) clearInterval(this.watch);
    const isTold = this.sent - this.acked < 2 * this.sampleRate; // each second is
    if (!this.isOpen || isTold || performance.now() - this.heardAt < QUIET_MS) return;
    const { socket } = this;
    socket.onmessage = socket.onclose = null;
    socket.close();
    this.closed({ code: 1006 });
  }

  receive(message) {
    this.heardAt = performance.now();
    if (message.type === "ready") {
      Object.assign(this, { id: message.session, isOpen: true, brokeAt: null, nFlushes: message.flushes });
      this.hasSentEnd = message.is_ended;
      this.seq = Math.max(this.seq, message.seq);
      this.acknowledge(message.samples);
      this.sent = this.acked;
    } else {
      if (message.seq <= this.seq) return;
      this.seq = message.seq;
      this.acknowledge(Math.round(message.audio_s * this.sampleRate));
    }
    if (message.type === "error") this.lastError = message.message;
    if (message.type === "end") this.isOver = true;
    this.on(message);
    this.pump();
  }

  closed(event) {
    this.isOpen = false;
    if (this.isOver) return;
    const now = performance.now();
    this.brokeAt ??= now;
    const isFinal = [1003, 1007, 1008, 1009, 1011, 1013, 4001].includes(event.code);
    if (!isFinal && this.id && now - this.brokeAt < RETRY_MS) {
      this.on({ type: "broken" });
      setTimeout(() => this.open(), 500);
      return;
    }
    this.isOver = true;
    const hint = this.id ? "the connection broke" : "cannot connect: is the API key right, and the server running?";
    this.failed(this.lastError ?? hint);
  }

  push(data) {
    this.chunks.push({ start: this.total, data });
    this.total += data.length;
    this.sentAt.push([this.total, performance.now()]);
    if (this.sentAt.length > 2000) this.sentAt.splice(0, 1000);
    this.pump();
  }

  /** Milliseconds since the sound at this second of the stream was captured. */
  age(second) {
    const at = this.sentAt.find(([samples]) => samples >= second * this.sampleRate);
    return at ? performance.now() - at[1] : null;
  }

  flush() { this.flushes.push(this.total); this.pump(); }

  end() { this.isEnding = true; this.pump(); }

  pump() {
    if (!this.isOpen) return;
    for (;;) {
      const border = this.flushes[this.nFlushes] ?? this.total;
      const until = Math.min(border, this.acked + WINDOW_S * this.sampleRate);
      const chunk = this.sent < until && this.chunks.find(({ start, data }) => start + data.length > this.sent);
      if (chunk) {
        const part = chunk.data.subarray(this.sent - chunk.start, until - chunk.start);
        this.socket.send(part);
        this.sent += part.length;
      } else if (this.nFlushes < this.flushes.length && this.sent === border) {
        this.socket.send('{"type":"flush"}');
        this.nFlushes++;
      } else {
        break;
      }
    }
    if (this.isEnding && !this.hasSentEnd && this.sent === this.total) {
      this.socket.send('{"type":"end"}');
      this.hasSentEnd = true;
    }
  }

  acknowledge(samples) {
    this.acked = Math.max(this.acked, samples);
    while (this.chunks.length && this.chunks[0].start + this.chunks[0].data.length <= this.acked) this.chunks.shift();
  }
}

let session = null, microphone = null, isOpening = false, offset = 0;
let finals = []; // of all sessions since the last clear; times go on

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function show(message) {
  const box = $("captions"), atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 40;
  if (message.type === "final") {
    const line = document.createElement("p");
    line.textContent = message.text;
    $("finals").append(line);
    $("partial").replaceChildren();
    finals.push(message.words.map((w) => ({ ...w, start_s: w.start_s + offset, end_s: w.end_s + offset })));
    for (const id of ["srt", "vtt", "text", "clear"]) $(id).disabled = false;
  } else {
    const words = message.words.map((w) => w.word), n = message.n_committed_words;
    const provisional = document.createElement("span");
    provisional.className = "provisional";
    provisional.textContent = words.slice(n).join(" ");
    $("partial").replaceChildren(words.slice(0, n).join(" ") + (n ? " " : ""), provisional);
    const age = words.length && microphone ? session.age(message.words.at(-1).end_s) : null;
    if (age !== null) $("delay").value = `${(age / 1000).toFixed(1)} s`;
  }
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function receive(message) {
  const seconds = Math.floor(message.audio_s ?? 0);
  if ("audio_s" in message) $("heard").value = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  if (message.type === "ready") say(microphone ? "Listening." : "Transcribing …");
  else if (message.type === "final" || message.type === "partial") show(message);
  else if (message.type === "broken") say("Connection lost; coming back …", true);
  else if (message.type === "lag") {
    const busy = message.widened ? "The server is busy: words come in larger steps." : "Listening.";
    say(message.lag_s ? `The server is ${message.lag_s.toFixed(1)} s behind.` : busy);
  }
  else if (message.type === "gap") say(`Lost ${message.start_s}–${message.end_s} s: ${message.reason}`, true);
  else if (message.type === "error") say(message.message, true);
  else if (message.type === "end") {
    if (!session.hasSentEnd) stop(session.lastError);
    else say("Done.");
    offset += message.audio_s;
    session = null;
    update();
  }
}

function begin(sampleRate) {
  const failed = (text) => {
    offset += session.acked / sampleRate;
    session = null;
    stop(text);
  };
  session = new Session({ sampleRate, latency: $("latency").value, key: $("key").value.trim(), on: receive, failed });
  update();
}

function update() {
  $("microphone").setAttribute("aria-pressed", String(microphone !== null));
  $("microphone").textContent = microphone ? "Stop microphone" : "Start microphone";
  $("microphone").disabled = session !== null && microphone === null;
  $("file").disabled = session !== null;
  $("flush").disabled = microphone === null;
}

async function listen() {
  if (!navigator.mediaDevices) {
    throw new Error("the browser gives the microphone to https pages and localhost only; serve with --tls-cert");
  }
  const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  try {
    await hear(stream);
  } catch (error) {
    for (const track of stream.getTracks()) track.stop();
    throw error;
  }
}

async function hear(stream) {
  let context = new AudioContext({ sampleRate: 16000 }), source;
  try {
    source = context.createMediaStreamSource(stream);
  } catch { // Firefox converts no rates here; the server does
    await context.close();
    context = new AudioContext();
    source = context.createMediaStreamSource(stream);
  }
  await context.audioWorklet.addModule("worklet.js");
  const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  microphone = { stream, context, capture };
  begin(context.sampleRate);
  capture.port.onmessage = ({ data }) => {
    if (data === null) {
      session?.end();
      context.close();
      return;
    }
    session?.push(new Int16Array(data.data));
    $("level").value = data.peak;
  };
  stream.getAudioTracks()[0].onended = () => stop("The microphone was unplugged.");
  source.connect(capture);
  await context.resume();
}

function stop(error) {
  if (microphone) {
    microphone.capture.port.postMessage("end");
    for (const track of microphone.stream.getTracks()) track.stop();
    microphone = null;
  }
  $("level").value = 0;
  if (error) say(error, true);
  else say("Finishing …");
  update();
}

async function transcribeFile(file) {
  if (session || !file) return;
  say(`Reading ${file.name} …`);
  const decoder = new OfflineAudioContext(1, 1, 16000); // decodes to its own rate
  const audio = await decoder.decodeAudioData(await file.arrayBuffer());
  const mixer = new OfflineAudioContext(1, Math.max(1, audio.length), 16000);
  const source = mixer.createBufferSource();
  source.buffer = audio;
  source.connect(mixer.destination);
  source.start();
  const samples = (await mixer.startRendering()).getChannelData(0);
  begin(16000);
  for (let i = 0; i < samples.length; i += 8000) {
    session.push(Int16Array.from(samples.subarray(i, i + 8000), (v) => Math.max(-32768, Math.min(32767, Math.round(v * 32768)))));
  }
  session.end();
}

/** Words to cues of two lines and some seconds. */
function cues() {
  const result = [];
  for (const words of finals) {
    let group = [];
    for (const word of words) {
      const length = [...group, word].map((w) => w.word).join(" ").length;
      if (group.length && (length > 2 * LINE || word.end_s - group[0].start_s > CUE_S)) {
        result.push(group);
        group = [];
      }
      group.push(word);
    }
    if (group.length) result.push(group);
  }
  return result.map((group) => ({ start: group[0].start_s, end: group.at(-1).end_s, text: wrap(group.map((w) => w.word)) }));
}

function wrap(words) {
  const lines = [""];
  for (const word of words) {
    const line = lines.at(-1);
    if (line && line.length + 1 + word.length > LINE) lines.push(word);
    else lines[lines.length - 1] = line ? `${line} ${word}` : word;
  }
  return lines.join("\n");
}

function stamp(seconds, mark) {
  const ms = Math.round(seconds * 1000), two = (n) => String(Math.floor(n)).padStart(2, "0");
  return `${two(ms / 3.6e6)}:${two(ms / 6e4 % 60)}:${two(ms / 1000 % 60)}${mark}${String(ms % 1000).padStart(3, "0")}`;
}

const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const formats = {
  srt: () => cues().map((c, i) => `${i + 1}\n${stamp(c.start, ",")} --> ${stamp(c.end, ",")}\n${c.text}\n\n`).join(""),
  vtt: () => "WEBVTT\n\n" + cues().map((c) => `${stamp(c.start, ".")} --> ${stamp(c.end, ".")}\n${escape(c.text)}\n\n`).join(""),
  text: () => finals.map((words) => words.map((w) => w.word).join(" ") + "\n").join(""),
};

function download(kind) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([formats[kind]()], { type: "text/plain" }));
  link.download = `captions.${kind === "text" ? "txt" : kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** One at a time: a second click, or a file, while the microphone is being opened is left alone. */
async function attempt(action) {
  if (isOpening) return;
  isOpening = true;
  try {
    await action();
  } catch (error) {
    stop();
    say(error.message || String(error), true);
  } finally {
    isOpening = false;
  }
}

$("microphone").onclick = () => (microphone ? stop() : attempt(listen));
$("flush").onclick = () => session?.flush();
$("file").onchange = ({ target }) => attempt(() => transcribeFile(target.files[0])).finally(() => { target.value = ""; });
for (const kind of Object.keys(formats)) $(kind).onclick = () => download(kind);
$("clear").onclick = () => {
  finals = [];
  offset = 0;
  $("finals").replaceChildren();
  for (const id of ["srt", "vtt", "text", "clear"]) $(id).disabled = true;
};
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", () => document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  attempt(() => transcribeFile(event.dataTransfer.files[0]));
});
$("controls").onsubmit = (event) => event.preventDefault();
globalThis.captions = { formats, say, session: () => session }; // for tests
