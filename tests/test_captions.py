from __future__ import annotations

import json
import re

from core.captions import cues, event_object, result_object, to_json, to_srt, to_text, to_vtt, wrap
from core.transcript import Gap, Transcript, Word, make_transcript


def final(text: str, start_s: float = 0.0, step_s: float = 0.5, segment: int = 0) -> Transcript:
    words = tuple(
        Word(word, round(start_s + i * step_s, 3), round(start_s + (i + 0.9) * step_s, 3), 0.9, True)
        for i, word in enumerate(text.split())
    )
    return make_transcript(segment, True, words, start_s, start_s)


def test_srt_is_the_usual_form() -> None:
    assert to_srt([final("HELLO BIG WORLD")]) == "1\n00:00:00,000 --> 00:00:01,450\nHELLO BIG WORLD\n\n"


def test_vtt_escapes_and_has_its_header() -> None:
    assert to_vtt([final("A&B <C> D", 3661.5)]) == ("WEBVTT\n\n01:01:01.500 --> 01:01:02.950\nA&amp;B &lt;C&gt; D\n\n")


def test_long_segments_become_short_cues_that_never_overlap() -> None:
    text = to_srt([final("SEVERAL WORDS THAT FOLLOW EACH OTHER " * 10, step_s=0.31)])
    times = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3})", text)
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
    assert seconds == sorted(seconds)
    assert all(end - start <= 6.001 for start, end in zip(seconds[::2], seconds[1::2], strict=True))
    bodies = [block.split("\n")[2:] for block in text.strip().split("\n\n")]
    assert all(len(lines) <= 2 and max(map(len, lines)) <= 42 for lines in bodies)
    assert " ".join(" ".join(lines) for lines in bodies) == ("SEVERAL WORDS THAT FOLLOW EACH OTHER " * 10).strip()


def test_a_cue_stays_a_second_if_the_next_one_lets_it() -> None:
    found = cues([final("YES"), final("NO", 2.0), final("WELL", 2.6), final("SO BE IT THEN", 3.2), final("OH", 5.0)])
    assert [(cue.start_s, cue.end_s) for cue in found] == [(0.0, 1.0), (2.0, 2.6), (2.6, 3.2), (3.2, 5.0), (5.0, 6.0)]


def test_a_word_longer_than_a_line_stands_alone() -> None:
    assert wrap(final("A " + "B" * 50 + " C").words) == ("A", "B" * 50, "C")


def test_json_has_the_documented_shape() -> None:
    value = json.loads(to_json(result_object([final("HI")], [Gap(1.0, 2.0, "why")], 3.0, "m")))
    assert value == {
        "text": "HI",
        "duration_s": 3.0,
        "model": "m",
        "segments": [
            {
                "start_s": 0.0,
                "end_s": 0.45,
                "text": "HI",
                "words": [{"word": "HI", "start_s": 0.0, "end_s": 0.45, "confidence": 0.9}],
            }
        ],
        "gaps": [{"start_s": 1.0, "end_s": 2.0, "reason": "why"}],
    }


def test_event_lines_carry_their_type() -> None:
    assert event_object(final("HI"), 1.5)["type"] == "final"
    assert event_object(Gap(0, 1, "r"), 1.5) == {"type": "gap", "start_s": 0, "end_s": 1, "reason": "r", "audio_s": 1.5}
    assert to_text([final("A B"), final("C")]) == "A B\nC\n"
