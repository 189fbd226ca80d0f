// Gathers the microphone's 128-sample quanta into 50 ms of 16-bit samples, and hands them over with their peak.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Int16Array(Math.round(sampleRate / 20));
    this.reset();
    this.isOver = false;
    this.port.onmessage = () => { // the end: what is left, then null
      this.post();
      this.port.postMessage(null);
      this.isOver = true;
    };
  }

  reset() {
    this.n = 0;
    this.peak = 0;
  }

  post() {
    const part = this.samples.slice(0, this.n);
    this.port.postMessage({ data: part.buffer, peak: this.peak }, [part.buffer]);
    this.reset();
  }

  process([input]) {
    const channels = input.length;
    for (let i = 0; channels && i < input[0].length && !this.isOver; i++) {
      let value = 0;
      for (let c = 0; c < channels; c++) value += input[c][i] / channels;
      this.peak = Math.max(this.peak, Math.abs(value));
      this.samples[this.n++] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
      if (this.n === this.samples.length) this.post();
    }
    return !this.isOver;
  }
}

registerProcessor("capture", Capture);
