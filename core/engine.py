"""The streaming engine: runs the next windows of streams on the model, and makes words of their frames.

Steps feed the stitcher: partials and endpoints come from them. A segment's final pass says what one offline pass would.
The engine and the model hold no stream's state: it is all in `core.stream.Stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from core.acoustic import AcousticModel
from core.audio import FRAMES_PER_SECOND, HOP, n_samples_for, to_seconds
from core.commitment import UNSURE_AFTER, after, keep_committed, n_agreed
from core.decoder import Alphabet, Decode, DecodeStates, GreedyDecoder, Path, WordSpan, decode_path, draft
from core.emitter import Emitter
from core.endpoint import NEVER, Lull, find_lull, find_lulls
from core.partials import Draft, Unsettled, count_settled, draft_all
from core.seam import FEW
from core.stitcher import Emission, Joint, LogProbs, StitchedFrames, stitch_all
from core.stream import Stream
from core.transcript import Event, Transcript, Word, make_transcript, make_words
from core.windows import Heard, Pass, StreamConfig

STEADY_AGE = 18  # stable frames after a word, for it to be shown where partials are steady
SETTLE = 120  # stable frames that are decoded again at each step, where what follows may change the words before
MOST_CONFIDENCES = 10_001  # numbers of four decimals in [0, 1]


@dataclass(slots=True, eq=False)
class Joined:
    """What a step makes of its stream."""

    frames: StitchedFrames
    lull: Lull
    draft: Draft | None  # where the stream shows partials, and decodes them greedily


class Engine(Emitter):
    """Runs ready streams in batches on one model. Holds no stream's state."""

    def __init__(self, model: AcousticModel, decode: Decode | None = None) -> None:
        super().__init__(model)
        self.alphabet = model.alphabet
        self.is_letter = self.alphabet.is_letter()
        self.a_letter = int(self.is_letter.argmax())
        self.decode: Decode = decode or GreedyDecoder(self.alphabet)
        self.confidence = lru_cache(MOST_CONFIDENCES)(self.confidence_of)

    def new_stream(self, config: StreamConfig | None = None, decode: Decode | None = None) -> Stream:
        """A stream; `decode` instead of the engine's way from frames to words, for its own hot words say."""
        config = config or StreamConfig.preset("balanced")
        n_features = 0 if self.model.n_slots else self.model.n_features
        statistics = self.model.statistics(self.is_running(config))
        decode = decode or self.decode
        is_greedy = isinstance(draft(decode), GreedyDecoder)
        n_vocab = 0 if is_greedy else len(self.alphabet.tokens)  # rows are kept where partials are decoded of them
        stream = Stream(config, n_vocab, statistics, decode, n_features, self.model.halo)
        stream.is_plain = is_greedy and not config.steady and config.commit_after >= config.endpoint.max_length
        return stream

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

    def join(self, work: Sequence[tuple[Stream, Pass]], emitted: Sequence[LogProbs]) -> list[Joined | None]:
        """What the window of each step makes of its stream; None of final passes. Changes no stream."""
        return self.look(work, self.stitch(work, emitted))

    def stitch(self, work: Sequence[tuple[Stream, Pass]], emitted: Sequence[LogProbs]) -> list[StitchedFrames | None]:
        """The frames of each stream, continued by the window of its step; None of final passes."""
        joints: dict[int, Joint] = {}
        for i, (stream, task) in enumerate(work):
            if task.cut is None:
                frames, start = stream.shown if task.only_shows else stream.frames, task.start_sample // HOP
                if start > frames.end_frame:
                    frames = frames.unheard_until(start, self.a_letter)
                joints[i] = (frames, Emission(emitted[i], start), stream.stable_after(task))
        joined = dict(zip(joints, stitch_all(list(joints.values()), self.alphabet.silent), strict=True))
        return [joined.get(i) for i in range(len(work))]

    def look(
        self, work: Sequence[tuple[Stream, Pass]], stitched: Sequence[StitchedFrames | None]
    ) -> list[Joined | None]:
        """The same, with what there is to say of them."""
        steps = [
            (stream, task, frames) for (stream, task), frames in zip(work, stitched, strict=True) if frames is not None
        ]
        found = zip(self.lulls(steps), self.drafts(steps), strict=True)
        return [None if frames is None else Joined(frames, *next(found)) for frames in stitched]

    def lulls(self, steps: Sequence[tuple[Stream, Pass, StitchedFrames]]) -> list[Lull]:
        """Where the letters of each segment are."""
        if len(steps) < FEW:
            return [find_lull(self.is_letter[of.ids], stream.config.endpoint) for stream, _, of in steps]
        marks, least = [of.marks for _, _, of in steps], [stream.config.endpoint.least_run for stream, _, _ in steps]
        return find_lulls(marks, least, self.is_letter, self.alphabet.blank)

    def drafts(self, steps: Sequence[tuple[Stream, Pass, StitchedFrames]]) -> list[Draft | None]:
        """The words after the settled ones, of streams whose partials need no more than the greedy decoder."""
        unsettled: dict[int, Unsettled] = {}
        for i, (stream, task, frames) in enumerate(steps):
            if stream.is_plain and stream.shows_partials:
                shown = frames if frames.stable_frame >= stream.shown.stable_frame else stream.shown
                stable = (stream.frames if task.only_shows else frames).stable_frame
                first, end = stream.settled_frame, shown.end_frame
                unsettled[i] = Unsettled(
                    shown.marks[first - shown.start_frame :], first, stream.settled_end, end, stable
                )
        drafts = dict(zip(unsettled, draft_all(list(unsettled.values()), self.alphabet, self.confidence), strict=True))
        return [drafts.get(i) for i in range(len(steps))]

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

    def advance(self, stream: Stream, task: Pass, joined: Joined) -> list[Event]:
        """Takes over the frames of a step; perhaps a partial, perhaps an endpoint."""
        frames = joined.frames
        if self.lacks_letter(stream, task, frames):
            stream.search.reach *= 2  # the last one is further back
            return []
        if frames.stable_frame >= stream.shown.stable_frame:
            stream.shown = frames
        if task.only_shows:
            return self.partial(stream, joined.draft)
        stream.frames = frames
        lull = joined.lull
        stream.aim(lull)
        endpoint = None
        if lull.may_end(frames.n_stable, stream.config.endpoint):
            endpoint = stream.endpoint(self.is_letter[frames.ids], frames.n_stable)
        events: list[Event] = []
        if endpoint is None or endpoint.has_speech:
            events = self.partial(stream, joined.draft)
        if endpoint is None:
            if lull.first < NEVER:
                stream.pending = stream.review_pass()
        else:
            if endpoint.has_speech:
                stream.pending = stream.final_pass(endpoint)
            else:
                stream.begin_segment(frames.start_frame + endpoint.cut, self.is_letter, is_silent=True)
                stream.search.reach = stream.config.endpoint.before_speech  # as silence that lasted so long goes on
        self.release(stream)
        return events

    def lacks_letter(self, stream: Stream, task: Pass, frames: StitchedFrames) -> bool:
        """Whether a step that has left out some frames heard no letter behind those.

        Where silence goes on, it must come before that would be let go of.
        """
        before, start = stream.frames, task.start_sample // HOP
        if start <= before.end_frame:
            return False
        is_silent = stream.search.is_silent and not self.is_letter[before.ids].any()
        end = min(frames.n_stable, stream.config.endpoint.before_speech) if is_silent else frames.n_stable
        return not self.is_letter[frames.ids[start - frames.start_frame : end]].any()

    def partial(self, stream: Stream, new: Draft | None) -> list[Event]:
        """The words so far, if they have changed."""
        if not stream.shows_partials:
            return []
        if new is not None:
            return self.tell_draft(stream, new)
        settled, frames = stream.settled, stream.shown
        decode = draft(stream.decode)
        if isinstance(decode, GreedyDecoder):
            words = [*settled, *self.read(stream, decode.alphabet)]
        else:
            settled = self.settle(stream, decode)
            words = [*settled, *decode(frames.rows(stream.settled_frame - frames.start_frame), stream.settled_frame)]
        if stream.committed:
            words = [*stream.committed, *after(words, stream.committed)]
        return self.tell(stream, words, frames.end_frame)

    def read(self, stream: Stream, alphabet: Alphabet) -> list[WordSpan]:
        """The words after the settled ones, greedily. Those that a letter of a stable frame follows are settled."""
        first = stream.settled_frame
        new = decode_path(Path.of(stream.shown.marks[first - stream.shown.start_frame :], first), alphabet)
        if n_settled := count_settled(new, stream.frames.stable_frame):
            stream.settled, stream.settled_frame = (*stream.settled, *new[:n_settled]), new[n_settled].start_frame
        return new

    def tell_draft(self, stream: Stream, new: Draft) -> list[Event]:
        """A partial of settled words, which are known, and new ones."""
        text = " ".join([*stream.settled_text, new.text]) if new.text else " ".join(stream.settled_text)
        words = (*stream.settled_words, *new.words)
        if new.n_settled:
            n = len(stream.settled_words) + new.n_settled
            stream.settled_words = words[:n]
            stream.settled_text = (" ".join([word.text for word in words[:n]]),)
            stream.settled_frame, stream.settled_end = new.settled_frame, new.settled_end
        if (text, 0) == stream.last_partial:
            return []
        stream.last_partial = (text, 0)
        return [self.transcript(stream, words, stream.shown.end_frame, False, text, 0)]

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
        heard_s, new = to_seconds(n_samples_for(end_frame)), words[len(known) :]
        made = (*known, *make_words(new, self.confidence, first, n - len(known), end_frame, heard_s))
        n_settled = min(len(stream.settled), len(words))
        stream.told = (words[:n_settled], made[: max(0, n_settled - 1)], n)
        return [self.transcript(stream, made, end_frame, False, text)]

    def transcript(
        self,
        stream: Stream,
        words: tuple[Word, ...],
        end_frame: int,
        is_final: bool,
        text: str | None = None,
        n_committed: int | None = None,
    ) -> Transcript:
        """What is told of the segment, which has been heard up to `end_frame`."""
        start_s, end_s = stream.frames.start_frame / FRAMES_PER_SECOND, end_frame / FRAMES_PER_SECOND
        return make_transcript(stream.segment, is_final, words, start_s, end_s, text, n_committed)

    def confidence_of(self, heard: float) -> float:
        """How likely a word is right, in [0, 1], by how likely its letters are."""
        return round(float(heard**self.model.confidence_exponent), 4)

    def settle(self, stream: Stream, decode: Decode) -> tuple[WordSpan, ...]:
        """The settled words: long stable stretches are decoded once, up to the surest delimiter but for the newest."""
        frames = stream.frames
        first = stream.settled_frame - frames.start_frame
        if frames.n_stable - first > SETTLE:
            stable = frames.rows(first)[: frames.n_stable - SETTLE // 2 - first]
            ends = stable[:, self.alphabet.delimiter]
            n = 1 + int(ends.argmax())
            if ends[n - 1] > np.log(0.5):
                stream.settled = (*stream.settled, *decode(stable[:n], stream.settled_frame))
                stream.settled_frame += n
        return stream.settled

    def finalize(self, stream: Stream, task: Pass, log_probs: LogProbs) -> list[Event]:
        """Ends the segment with the words of its final pass, and begins the next; unless the pass finds that it ends
        elsewhere."""
        stream.pending = None
        first = stream.frames.start_frame
        rows = Emission(log_probs, task.start_sample // HOP).since(first).log_probs
        has_letter = self.is_letter[rows.argmax(1)]
        if silence := stream.silence(has_letter):
            stream.begin_segment(first + silence, self.is_letter, is_silent=True)
            return []
        cut = stream.cut(task, has_letter)
        if cut is None:
            if not task.is_pause:
                stream.heard = Heard(task.start_sample, task.end_sample, log_probs, stream.states)
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
            heard_s = to_seconds(task.end_sample)
            words = tuple(make_words(spans, self.confidence, 0, len(spans), cut, heard_s))
            events = [self.transcript(stream, words, cut, bool(words))]
        if spans:
            stream.segment += 1
        stream.begin_segment(cut, self.is_letter)
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

    def release(self, stream: Stream) -> None:
        """Gives up the samples that no later window reads."""
        config, frames = stream.config, stream.frames
        first = min(frames.start_frame - config.context, frames.stable_frame - config.left)
        stream.buffer.release(HOP * max(0, first - self.model.halo))
        if stream.features is not None:
            stream.features.release(max(0, first))
