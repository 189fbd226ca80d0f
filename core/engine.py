"""The streaming engine: runs the next windows of streams on the model, and makes words of their frames.

Steps feed the stitcher: partials and endpoints come from them. A segment's final pass says what one offline pass would.
The engine and the model hold no stream's state: it is all in `core.stream.Stream`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from core.acoustic import AcousticModel
from core.audio import (
    FRAMES_PER_SECOND,
    HOP,
    RECEPTIVE_FIELD,
    Samples,
    n_frames,
    n_samples_for,
    to_seconds,
)
from core.commitment import UNSURE_AFTER, after, keep_committed, n_agreed
from core.decoder import Decode, DecodeStates, GreedyDecoder, Path, WordSpan, decode_paths, draft, reads_after
from core.feature_cache import Window, read_features
from core.features import normalize
from core.ring_buffer import RingBuffer
from core.silence import still_value
from core.slots import Resident, Slot, Slots
from core.statistics import Statistics
from core.stitcher import Emission, Joint, LogProbs, StitchedFrames, stitch_all
from core.stream import Pass, Stream, StreamConfig
from core.tail import Memory, Step, emit_steps
from core.transcript import Event, Transcript, Word, make_transcript

LEAD, TRAIL = 1, 2  # frames by which a word is wider than its spikes; against an independent aligner
STEADY_AGE = 18  # stable frames after a word, for it to be shown where partials are steady
SETTLE = 120  # stable frames that are decoded again at each step, where what follows may change the words before
MOST_SHAPES = 4  # of windows that slots are made for; streams with others have none
MOST_CONFIDENCES = 10_001  # numbers of four decimals in [0, 1]
MOST_STILL = 64  # windows without any change whose log-probabilities are kept


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A step's frames, and the words after the settled ones, where the stream decodes greedily and shows partials."""

    frames: StitchedFrames
    spans: list[WordSpan] | None


class Engine:
    """Runs ready streams in batches on one model. Holds no stream's state."""

    def __init__(self, model: AcousticModel, decode: Decode | None = None) -> None:
        if (model.hop, model.receptive_field) != (HOP, RECEPTIVE_FIELD):
            raise ValueError(
                f"Expected a model with a hop of {HOP} and a receptive field of {RECEPTIVE_FIELD} samples. "
                f"Found: {model.hop} and {model.receptive_field}"
            )
        self.model = model
        self.alphabet = model.alphabet
        self.is_letter = self.alphabet.is_letter()
        self.decode: Decode = decode or GreedyDecoder(self.alphabet)
        self.confidence = lru_cache(MOST_CONFIDENCES)(self.confidence_of)
        self.slots: dict[tuple[int, ...], Slots] = {}  # by window and hop; apart where statistics run
        self.lock = threading.Lock()  # of who takes one
        self.still = lru_cache(MOST_STILL)(self.emit_still)

    def new_stream(self, config: StreamConfig | None = None, decode: Decode | None = None) -> Stream:
        """A stream; `decode` instead of the engine's way from frames to words, for its own hot words say."""
        n_vocab = len(self.alphabet.tokens)
        config = config or StreamConfig.preset("balanced")
        n_features = 0 if self.model.n_slots else self.model.n_features
        statistics = self.model.statistics(self.is_running(config))
        return Stream(config, n_vocab, statistics, decode or self.decode, n_features, self.model.halo)

    @property
    def is_whole(self) -> bool:
        """Whether steps compute all of their windows: no features are kept for `core.tail`, here or in slots."""
        if self.model.n_slots:
            return not self.model.n_local_features and bool(self.model.halo)
        return not self.model.n_features

    def is_running(self, config: StreamConfig) -> bool:
        """Whether slots keep features of streams that are cut so, by the statistics of each."""
        model = self.model
        return bool(model.n_slots) and config.refresh < config.window and not model.n_local_features and not model.halo

    def step(self, streams: Sequence[Stream]) -> list[list[Event]]:
        """Runs one window of every stream that is ready, as one batch.

        Returns:
            The events of each stream, in the order of `streams`; empty where it was not ready.
        """
        work = [(i, task) for i, stream in enumerate(streams) if (task := stream.next_pass()) is not None]
        passes = [(streams[i], task) for i, task in work]
        events: list[list[Event]] = [[] for _ in streams]
        for (i, _), new in zip(work, self.apply_all(passes, self.emit(passes)), strict=True):
            events[i] = new
        return events

    def emit(self, work: Sequence[tuple[Stream, Pass]]) -> list[LogProbs]:
        """What the model makes of the window of each pass, which are the next ones of different streams."""
        results: dict[int, LogProbs] = {}
        plain: dict[int, Samples] = {}
        cached: dict[int, Window] = {}
        resident: dict[Slots, dict[int, Resident]] = defaultdict(dict)
        for i, (stream, task) in enumerate(work):
            n = task.end_sample - task.start_sample
            value = None if stream.statistics else still_value(stream.buffer, task.start_sample, task.end_sample)
            stream.is_still = value is not None
            if task.cut is not None:
                stream.states = None
            if value is not None:
                results[i] = self.still(value, n)
                stream.remember(task, Memory())
            elif (slot := self.slot(stream, task)) is not None:
                running = stream.statistics if slot.slots.is_running else None
                statistics = self.statistics(stream, task) if running is None else None
                moments = (0.0, 1.0) if statistics is None else statistics.moments
                is_tail = slot.slots.keeps_past and stream.refresh < stream.config.window
                memory = replace(stream.memory) if is_tail else None
                of_tail = memory, stream.refresh, not task.only_shows
                resident[slot.slots][i] = Resident(slot, stream.buffer, task.start_sample, moments, *of_tail, running)
            elif task.cut is not None or n < RECEPTIVE_FIELD or (stream.features is None and not self.model.halo):
                plain[i] = self.window(stream, task)  # of final passes: to the bit what an offline pass gives
            else:
                place = task.start_sample, task.end_sample
                features = stream.features
                if features is None:
                    features = RingBuffer(n_frames(n), 32, self.model.n_features)
                cached[i] = Window(stream.buffer, features, *place, stream.statistics, stream.config.hop)
        if plain:
            finals = [work[i][0] if work[i][1].cut is not None else None for i in plain]
            results |= zip(plain, self.hear(finals, list(plain.values())), strict=True)
        if cached:
            heard = dict(zip(cached, read_features(self.model, list(cached.values())), strict=True))
            steps = {}
            for i in cached:
                stream, task = work[i]
                is_step = task.cut is None and stream.features is not None
                if is_step and stream.refresh < stream.config.window:
                    memory = stream.memory_for(task)
                    steps[i] = Step(heard.pop(i), task.start_sample // HOP, memory, stream.refresh)
            results |= zip(heard, self.model.emit_features(list(heard.values())), strict=True)
            results |= zip(steps, emit_steps(self.model, list(steps.values())), strict=True)
            for i, step in steps.items():
                work[i][0].remember(work[i][1], step.memory)
        for slots, windows in resident.items():
            results |= zip(windows, slots.emit(list(windows.values())), strict=True)
            for i, window in windows.items():
                if window.memory is not None and window.writes:
                    work[i][0].remember(work[i][1], window.memory)
        return [results[i] for i in range(len(work))]

    def hear(self, finals: Sequence[Stream | None], windows: Sequence[Samples]) -> list[LogProbs]:
        """What the model makes of whole windows; the streams that this is a final pass of keep what decoders read."""
        n_blocks = [reads_after(stream.decode) if stream is not None else 0 for stream in finals]
        if not any(n_blocks):
            return self.model.emit(windows)
        heard = self.model.emit_with_states(windows, max(n_blocks))
        for stream, n, (_, states) in zip(finals, n_blocks, heard, strict=True):
            if stream is not None and n:
                stream.states = states
        return [log_probs for log_probs, _ in heard]

    def emit_still(self, value: float, n: int) -> LogProbs:
        """What the model makes of a window of `n` samples that are all the same."""
        log_probs = self.model.emit([np.full(n, value, np.float32)])[0]
        log_probs.flags.writeable = False  # many streams are given it
        return log_probs

    def slot(self, stream: Stream, task: Pass) -> Slot | None:
        """The stream's place on the device; None for windows of other lengths than a slot's, or where all are taken."""
        is_whole = task.end_sample - task.start_sample == n_samples_for(stream.config.window)
        if not self.model.n_slots or task.cut is not None or not is_whole:
            return None
        if stream.slot is None:
            with self.lock:  # several threads may emit
                slots = self.slots_for(stream.config)
                if slots is not None and slots.free:
                    stream.slot = slots.take(stream)
        return stream.slot

    def shape(self, config: StreamConfig) -> tuple[int, ...]:
        """What streams have in common that share slots."""
        return (config.window, config.hop, *([1] if self.is_running(config) else []))

    def slots_for(self, config: StreamConfig) -> Slots | None:
        """The slots of all streams that are cut so; None where there are none, or too many kinds of windows."""
        shape, is_running = self.shape(config), self.is_running(config)
        if shape not in self.slots and self.model.n_slots and len(self.slots) < MOST_SHAPES:
            self.slots[shape] = Slots(self.model, self.model.n_slots, config.window, config.hop, is_running=is_running)
        return self.slots.get(shape)

    def join(self, work: Sequence[tuple[Stream, Pass]], emitted: Sequence[LogProbs]) -> list[Joined | None]:
        """What the window of each step makes of its stream; None of final passes. Changes no stream."""
        return self.spell(work, self.stitch(work, emitted))

    def stitch(self, work: Sequence[tuple[Stream, Pass]], emitted: Sequence[LogProbs]) -> list[StitchedFrames | None]:
        """The frames of each stream, continued by the window of its step; None of final passes."""
        joints: dict[int, Joint] = {}
        for i, (stream, task) in enumerate(work):
            if task.cut is None:
                frames = stream.shown if task.only_shows else stream.frames
                joints[i] = (frames, Emission(emitted[i], task.start_sample // HOP), stream.stable_after(task))
        joined = dict(zip(joints, stitch_all(list(joints.values()), self.alphabet.silent), strict=True))
        return [joined.get(i) for i in range(len(work))]

    def spell(
        self, work: Sequence[tuple[Stream, Pass]], stitched: Sequence[StitchedFrames | None]
    ) -> list[Joined | None]:
        """The same, with the words that the greedy decoder finds in them for partials."""
        paths: dict[int, Path] = {}
        for i, ((stream, _), frames) in enumerate(zip(work, stitched, strict=True)):
            if frames is not None and stream.shows_partials and self.is_greedy(stream.decode):
                shown = frames if frames.stable_frame >= stream.shown.stable_frame else stream.shown
                first = stream.settled_frame - shown.start_frame
                paths[i] = Path(shown.ids[first:], shown.scores[first:], stream.settled_frame)
        spans = dict(zip(paths, decode_paths(list(paths.values()), self.alphabet), strict=True))
        return [None if frames is None else Joined(frames, spans.get(i)) for i, frames in enumerate(stitched)]

    def is_greedy(self, decode: Decode) -> bool:
        """Whether its partials are as those of the engine's own decoder, of many streams at once."""
        partials = draft(decode)
        return isinstance(partials, GreedyDecoder) and partials.alphabet is self.alphabet

    def apply_all(self, work: Sequence[tuple[Stream, Pass]], emitted: Sequence[LogProbs]) -> list[list[Event]]:
        """`apply` of many streams at once."""
        joined = self.join(work, emitted)
        return [self.apply(*of, rows, step) for of, rows, step in zip(work, emitted, joined, strict=True)]

    def apply(self, stream: Stream, task: Pass, log_probs: LogProbs, joined: Joined | None = None) -> list[Event]:
        """Takes in what the model made of the window of `task`, which is the stream's next pass.

        Args:
            joined: what `join` made of it, where that has been asked.
        """
        if task.is_review:
            events = self.review(stream, task, log_probs)
        elif task.cut is not None:
            events = self.finalize(stream, task, log_probs)
        else:
            joined = joined or self.join([(stream, task)], [log_probs])[0]
            assert joined is not None
            events = self.advance(stream, task, joined)
        if stream.slot is not None and stream.is_finished and not stream.is_ready:
            stream.slot.release()
            stream.slot = None
        return events

    def drain(self, stream: Stream) -> list[Event]:
        """Steps until the stream is not ready."""
        events: list[Event] = []
        while stream.is_ready:
            events += self.step([stream])[0]
        return events

    def window(self, stream: Stream, task: Pass) -> Samples:
        """The samples of a pass, normalised where the model wants it: a final pass by itself, as an offline pass is."""
        samples = stream.buffer.read(task.start_sample, task.end_sample)
        statistics = self.statistics(stream, task) if len(samples) else None
        if statistics is None or not self.model.normalises:
            return samples
        return statistics.normalise(samples) if task.cut is None else normalize(samples)

    def statistics(self, stream: Stream, task: Pass) -> Statistics | None:
        """Of all that was heard up to the end of a pass, where the model wants them."""
        statistics = stream.statistics
        if statistics is None:
            return None
        if task.only_shows:
            statistics = replace(statistics)  # a step that may be left out leaves no trace
        statistics.hear(stream.buffer, task.end_sample)
        return statistics

    def advance(self, stream: Stream, task: Pass, joined: Joined) -> list[Event]:
        """Takes over the frames of a step; perhaps a partial, perhaps an endpoint."""
        frames = joined.frames
        if frames.stable_frame >= stream.shown.stable_frame:
            stream.shown = frames
        if task.only_shows:
            return self.partial(stream, joined.spans)
        stream.frames = frames
        has_letter = self.is_letter[frames.ids]
        stream.aim(has_letter)
        endpoint = stream.endpoint(has_letter, frames.n_stable)
        events: list[Event] = []
        if endpoint is None or endpoint.has_speech:
            events = self.partial(stream, joined.spans)
        if endpoint is None:
            stream.pending = stream.review_pass()
            if stream.pending is not None and not has_letter.any():
                stream.pending = None
        else:
            if endpoint.has_speech:
                stream.pending = stream.final_pass(endpoint)
            else:
                self.begin_segment(stream, frames.start_frame + endpoint.cut)
        self.release(stream)
        return events

    def partial(self, stream: Stream, new: list[WordSpan] | None) -> list[Event]:
        """The words so far, if they have changed; `new` are those after the settled ones, where they are known."""
        if not stream.shows_partials:
            return []
        frames, settled = stream.shown, stream.settled
        if new is not None:
            stable = stream.frames.stable_frame
            if (n_settled := sum([span.start_frame < stable for span in new]) - 1) > 0:
                # Words that a letter of a stable frame follows: nothing changes them.
                stream.settled, stream.settled_frame = (*settled, *new[:n_settled]), new[n_settled].start_frame
        else:
            self.settle(stream)
            settled = stream.settled
            rows = frames.rows(stream.settled_frame - frames.start_frame)
            new = draft(stream.decode)(rows, stream.settled_frame)
        if not stream.committed and not stream.config.steady:
            return self.tell_on(stream, [*settled[len(stream.settled_words) :], *new], frames.end_frame)
        words = list(stream.committed) + after([*settled, *new], stream.committed)
        return self.tell(stream, words, frames.end_frame)

    def tell_on(self, stream: Stream, new: list[WordSpan], end_frame: int) -> list[Event]:
        """A partial of settled words that are known and new ones, of which none is committed."""
        n_known = len(stream.settled_words)
        text = " ".join([*stream.settled_text, *[span.text for span in new]])
        if (text, 0) == stream.last_partial:
            return []
        stream.last_partial = (text, 0)
        first = stream.settled[n_known - 1].end_frame if n_known else 0
        words = (*stream.settled_words, *self.widened(new, first, 0, end_frame, n_samples_for(end_frame)))
        if (n_fixed := len(stream.settled) - 1) > n_known:  # the end of the last hangs on the word that follows
            stream.settled_words = words[:n_fixed]
            stream.settled_text = (" ".join([*stream.settled_text, *[span.text for span in new[: n_fixed - n_known]]]),)
        return [self.transcript(stream, words, end_frame, False, text)]

    def review(self, stream: Stream, task: Pass, log_probs: LogProbs) -> list[Event]:
        """Commits words of a pass over the segment so far on which those before it agree."""
        assert task.cut is not None
        stream.pending = None
        first = stream.frames.start_frame
        rows = Emission(log_probs, task.start_sample // HOP).since(first).log_probs
        spans = self.words(stream, task, rows)
        words = keep_committed(spans, stream.committed)
        n = n_agreed(words, stream.reviews, len(stream.committed), task.cut - stream.config.commit_after)
        stream.reviews = (tuple(spans), *stream.reviews[: UNSURE_AFTER - 2])
        stream.reviewed_frame = stream.frames.stable_frame
        if n == len(stream.committed):
            return []
        stream.committed = tuple(words[:n])
        return self.tell(stream, words, task.cut)

    def tell(self, stream: Stream, words: list[WordSpan], end_frame: int) -> list[Event]:
        """A partial, unless it is the last one again."""
        n = len(stream.committed)
        if stream.config.steady:
            last = stream.shown.stable_frame - STEADY_AGE
            words = words[:n] + [word for word in words[n:] if word.end_frame <= last]
        text = " ".join([word.text for word in words])
        if (text, n) == stream.last_partial:
            return []
        stream.last_partial = (text, n)
        before, told, n_before = stream.told
        known = told if n_before == n and words[: len(before)] == before else ()
        first = words[len(known) - 1].end_frame if known else 0
        made = (*known, *self.widened(words[len(known) :], first, n - len(known), end_frame, n_samples_for(end_frame)))
        n_settled = min(len(stream.settled), len(words))
        stream.told = (words[:n_settled], made[: max(0, n_settled - 1)], n)
        return [self.transcript(stream, made, end_frame, False, text)]

    def widened(
        self, spans: Sequence[WordSpan], first: int, n_committed: int, end_frame: int, end_sample: int
    ) -> list[Word]:
        """Frames become seconds here, once.

        A spike of CTC begins after its sound and ends before it, so words are widened, up to their neighbours and to
        `end_sample`, the first that was not heard.

        Args:
            first: frame in which the first word may begin.
        """
        heard_s, words = to_seconds(end_sample), list[Word]()
        limits = [*[span.start_frame - LEAD for span in spans[1:]], end_frame + TRAIL]
        for i, (span, limit) in enumerate(zip(spans, limits, strict=False), 1):
            start, last = span.start_frame - LEAD, span.end_frame
            end = last + TRAIL
            if limit < end:
                end = limit if limit > last or i == len(spans) else last
            start_s, end_s = (start if start > first else first) / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND
            confidence = self.confidence(span.confidence)
            words.append(Word(span.text, start_s, end_s if end_s < heard_s else heard_s, confidence, i <= n_committed))
            first = last
        return words

    def transcript(
        self, stream: Stream, words: tuple[Word, ...], end_frame: int, is_final: bool, text: str | None = None
    ) -> Transcript:
        """What is told of the segment, which has been heard up to `end_frame`."""
        start_s, end_s = stream.frames.start_frame / FRAMES_PER_SECOND, end_frame / FRAMES_PER_SECOND
        return make_transcript(stream.segment, is_final, words, start_s, end_s, text)

    def confidence_of(self, heard: float) -> float:
        """How likely a word is right, in [0, 1], by how likely its letters are."""
        return round(float(heard**self.model.confidence_exponent), 4)

    def settle(self, stream: Stream) -> None:
        """Decodes long stable stretches once, up to the surest delimiter but for the newest."""
        frames = stream.frames
        first = stream.settled_frame - frames.start_frame
        if frames.n_stable - first <= SETTLE:
            return
        stable = frames.rows(first)[: frames.n_stable - SETTLE // 2 - first]
        ends = stable[:, self.alphabet.delimiter]
        n = 1 + int(ends.argmax())
        if ends[n - 1] > np.log(0.5):
            stream.settled = (*stream.settled, *draft(stream.decode)(stable[:n], stream.settled_frame))
            stream.settled_frame += n

    def finalize(self, stream: Stream, task: Pass, log_probs: LogProbs) -> list[Event]:
        """Ends the segment with the words of its final pass, and begins the next; unless the pass finds that it ends
        elsewhere."""
        stream.pending = None
        first = stream.frames.start_frame
        rows = Emission(log_probs, task.start_sample // HOP).since(first).log_probs
        cut = stream.cut(task, self.is_letter[rows.argmax(1)])
        if cut is None:
            return []
        if task.is_barrier:
            stream.barriers.popleft()
            if stream.features is not None and stream.statistics is not None:
                stream.features.restart(0)  # the steps that follow end elsewhere, and each hears by what it had heard
            if stream.slot is not None and stream.slot.slots.is_running:
                stream.slot.end = 0
        spans = keep_committed(self.words(stream, task, rows[: cut - first]), stream.committed)
        events: list[Event] = []
        if spans or stream.last_partial[0]:  # without words it takes the partial back
            words = tuple(self.widened(spans, 0, len(spans), cut, task.end_sample))
            events = [self.transcript(stream, words, cut, bool(words))]
        if spans:
            stream.segment += 1
        self.begin_segment(stream, cut)
        self.release(stream)
        return events

    def words(self, stream: Stream, task: Pass, rows: LogProbs) -> list[WordSpan]:
        """Of the segment's first rows, as a pass over all of it has heard them."""
        first, states = stream.frames.start_frame, stream.states
        stream.states = None
        if states is None or not isinstance(stream.decode, DecodeStates):
            return stream.decode(rows, first)
        offset = first - task.start_sample // HOP
        return stream.decode(rows, first, states[offset : offset + len(rows)])

    def begin_segment(self, stream: Stream, frame: int) -> None:
        frames, config = stream.frames.since(frame), stream.config
        stream.processed_frame = stream.n_processed // HOP
        is_ahead = stream.shown.stable_frame > stream.frames.stable_frame
        # The next window ends here: rows beyond would have nothing to replace them.
        n = frames.n_stable + config.hop + config.right
        stream.frames = frames.until(n)
        stream.shown = stream.shown.since(frame) if is_ahead else stream.frames
        stream.committed = stream.settled = ()
        stream.reviews = ()
        stream.reviewed_frame = stream.pause_frame = frame
        stream.told = ([], (), 0)
        stream.settled_words, stream.settled_text = (), ()
        stream.settled_frame = frame
        stream.last_partial = ("", 0)
        stream.begin_segment(self.is_letter[stream.frames.ids])

    def release(self, stream: Stream) -> None:
        """Gives up the samples that no later window reads."""
        config, frames = stream.config, stream.frames
        first = min(frames.start_frame - config.context, frames.stable_frame - config.left)
        stream.buffer.release(HOP * max(0, first - self.model.halo))
        if stream.features is not None:
            stream.features.release(max(0, first))
