"""`streamer bench wer`: accuracy, speed and memory on sets with transcripts, several systems in one run.

Every system runs in a fresh process of its own, so that neither memory nor threads of one count for another, and they
take turns at each utterance, as the speed of many machines changes from minute to minute. Counted is the time in which
utterances are transcribed, without loading and decoding of audio: `CPU s / audio s` is the processor time of the
process with all its threads, `wall s / audio s` the time passed. Peak memory is the process's resident set, Python and
its libraries included. `--condition all` puts every condition onto every set, one after the other, and counts the words
that are heard where nobody speaks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.audio import SAMPLE_RATE, Samples
from core.edit_distance import WordErrors, word_errors
from core.normalise import normalise
from core.training.manifest import Utterance
from streamer.bench.conditions import CONDITIONS, EMPTY_S, empty_audio
from streamer.bench.systems import ModelChoice, Transcribe, load_system
from streamer.bench.task import Task, add_peers_argument, add_set_arguments, peers_of, task_of
from streamer.recognizer import read_hotwords

ALL = "all"  # conditions
SHORT_S = 20  # utterances that a segment may hold whole


@dataclass(frozen=True, slots=True)
class Heard:
    """What a system made of an utterance, and the time it took."""

    text: str
    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One utterance, heard."""

    path: str
    duration_s: float
    reference: str  # normalised
    text: str  # as the system said it
    errors: WordErrors


@dataclass(frozen=True, slots=True)
class SystemReport:
    system: str
    hypotheses: dict[str, list[Hypothesis]]  # by set
    load_s: float
    cpu_s: float
    wall_s: float
    peak_memory_mb: float

    @property
    def duration_s(self) -> float:
        return sum(h.duration_s for of_set in self.hypotheses.values() for h in of_set)

    def errors(self, name: str) -> WordErrors:
        return sum((h.errors for h in self.hypotheses[name]), WordErrors())

    def to_dict(self) -> dict[str, Any]:
        sets = {
            name: {
                "n_utterances": len(self.hypotheses[name]),
                "n_words": errors.n_words,
                "wer": round(errors.change, 5),  # some sets are of audio in which nobody speaks
                "substitutions": errors.substitutions,
                "deletions": errors.deletions,
                "insertions": errors.insertions,
            }
            for name in self.hypotheses
            for errors in [self.errors(name)]
        }
        return {
            "system": self.system,
            "sets": sets,
            "audio_s": round(self.duration_s, 3),
            "load_s": round(self.load_s, 3),
            "cpu_s_per_audio_s": round(self.cpu_s / self.duration_s, 5),
            "wall_s_per_audio_s": round(self.wall_s / self.duration_s, 5),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
        }


class Loaded:
    """A system in this process."""

    def __init__(self, load: Callable[[], Transcribe]) -> None:
        began = time.perf_counter()
        self.transcribe = load()
        self.load_s = time.perf_counter() - began

    def hear(self, samples: Samples) -> Heard:
        cpu, wall = time.process_time(), time.perf_counter()
        text = self.transcribe(samples)
        return Heard(text, time.process_time() - cpu, time.perf_counter() - wall)

    def cost(self) -> tuple[float, float]:
        """Seconds that loading took, and the peak memory so far."""
        return self.load_s, peak_memory_mb()


class Apart:
    """A system in a process of its own, which holds it as `there`."""

    there: Loaded

    def __init__(self, pool: ProcessPoolExecutor, load: Callable[[], Transcribe]) -> None:
        self.pool = pool
        pool.submit(Apart.load, load).result()

    @staticmethod
    def load(load: Callable[[], Transcribe]) -> None:
        Apart.there = Loaded(load)

    @staticmethod
    def hear_there(samples: Samples) -> Heard:
        return Apart.there.hear(samples)

    @staticmethod
    def cost_there() -> tuple[float, float]:
        return Apart.there.cost()

    def hear(self, samples: Samples) -> Heard:
        return self.pool.submit(Apart.hear_there, samples).result()

    def cost(self) -> tuple[float, float]:
        return self.pool.submit(Apart.cost_there).result()


def measure(systems: Mapping[str, Loaded | Apart], task: Task) -> list[SystemReport]:
    """Runs systems over all sets, in turns. With all conditions, each makes a set of its own."""
    hypotheses: dict[str, dict[str, list[Hypothesis]]] = {name: {} for name in systems}
    cpu_s, wall_s = dict.fromkeys(systems, 0.0), dict.fromkeys(systems, 0.0)
    for label, utterance in heard_utterances(task):
        reference, duration_s = normalise(utterance.transcript), len(utterance.samples) / SAMPLE_RATE
        for name, system in systems.items():
            heard = system.hear(utterance.samples)
            cpu_s[name], wall_s[name] = cpu_s[name] + heard.cpu_s, wall_s[name] + heard.wall_s
            errors = word_errors(reference.split(), normalise(heard.text).split())
            of_set = hypotheses[name].setdefault(label, [])
            of_set.append(Hypothesis(utterance.path, duration_s, reference, heard.text, errors))
    reports = []
    for name, system in systems.items():
        load_s, peak_mb = system.cost()
        reports.append(SystemReport(name, hypotheses[name], load_s, cpu_s[name], wall_s[name], peak_mb))
    return reports


def heard_utterances(task: Task) -> Iterator[tuple[str, Utterance]]:
    """What systems hear, with the name of the set that it counts for."""
    for condition in CONDITIONS if task.condition == ALL else (task.condition,):
        for manifest in task.manifests:
            label = f"{manifest.stem} {condition}" if task.condition == ALL else manifest.stem
            for utterance in replace(task, condition=condition).utterances(manifest, condition):
                yield label, utterance
    if task.condition == ALL:
        for kind, samples in empty_audio().items():
            yield f"{EMPTY_S} s of {kind}", Utterance(kind, "", samples)


def peak_memory_mb() -> float:
    """The largest resident set of this process so far, in 10^6 bytes.

    Linux's `ru_maxrss` starts from the parent's, so its own count of this program is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure_apart(names: Sequence[str], choice: ModelChoice, task: Task) -> list[SystemReport]:
    """Each system in a new process."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        systems = {}
        for name in names:
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
            systems[name] = Apart(pool, partial(load_system, name, choice))
        return measure(systems, task)


def equal_to_offline(streaming: SystemReport, offline: SystemReport) -> tuple[int, int]:
    """How many utterances of at most `SHORT_S` have the very same text through both paths, and how many there are."""
    pairs = [
        (ours.text, whole.text)
        for name, of_set in streaming.hypotheses.items()
        for ours, whole in zip(of_set, offline.hypotheses[name], strict=True)
        if ours.duration_s <= SHORT_S
    ]
    return sum(ours == whole for ours, whole in pairs), len(pairs)


@dataclass(frozen=True, slots=True)
class HotWordCount:
    """What became of the words of a list, counted within each utterance, and of all other words."""

    heard: int  # of those said
    said: int
    made_up: int  # heard, not said
    others: WordErrors


def count_hotwords(report: SystemReport, words: Set[str]) -> HotWordCount:
    heard = said = made_up = 0
    others = WordErrors()
    for hypothesis in (h for of_set in report.hypotheses.values() for h in of_set):
        reference, text = hypothesis.reference.split(), normalise(hypothesis.text).split()
        hot, found = (Counter(word for word in texts if word in words) for texts in (reference, text))
        heard, said, made_up = heard + (hot & found).total(), said + hot.total(), made_up + (found - hot).total()
        others += word_errors([w for w in reference if w not in words], [w for w in text if w not in words])
    return HotWordCount(heard, said, made_up, others)


def summary(reports: Sequence[SystemReport], choice: ModelChoice, task: Task) -> dict[str, Any]:
    """The object that `--json` prints."""
    result: dict[str, Any] = {
        "model": choice.model,
        "latency": choice.latency,
        "threads": choice.threads,
        "condition": task.condition,
        "systems": [report.to_dict() for report in reports],
    }
    by_name = {report.system: report for report in reports}
    if {"streaming", "offline"} <= by_name.keys():
        n, of = equal_to_offline(by_name["streaming"], by_name["offline"])
        result["equal_to_offline"] = {"n": n, "of": of, "at_most_s": SHORT_S}
    if choice.hotwords is not None:
        words = {word for phrase in read_hotwords(choice.hotwords) for word in normalise(phrase).split()}
        for system, report in zip(result["systems"], reports, strict=True):
            count = count_hotwords(report, words)
            system["hotwords"] = {"heard": count.heard, "said": count.said, "made_up": count.made_up}
            system["wer_of_other_words"] = round(count.others.change, 5)
    return result


def table(result: dict[str, Any]) -> str:
    """`summary`, for reading."""
    lines = [f"model {result['model']}, latency {result['latency']}, condition {result['condition']}", ""]
    width = max(len(name) for system in result["systems"] for name in system["sets"])
    lines.append(f"{'system':20} {'set':{width}} {'WER %':>6} {'sub':>5} {'del':>5} {'ins':>5} {'words':>6} utts")
    for system in result["systems"]:
        for name, of in system["sets"].items():
            counts = f"{of['substitutions']:5} {of['deletions']:5} {of['insertions']:5} {of['n_words']:6}"
            rate = f"{100 * of['wer']:6.2f}" if of["n_words"] else f"{'-':>6}"
            lines.append(f"{system['system']:20} {name:{width}} {rate} {counts} {of['n_utterances']:4}")
    lines += [
        "",
        f"{'system':20} {'audio s':>8} {'load s':>7} {'CPU s / audio s':>16} {'wall s / audio s':>17} {'MB':>5}",
    ]
    for system in result["systems"]:
        speed = f"{system['cpu_s_per_audio_s']:16.4f} {system['wall_s_per_audio_s']:17.4f}"
        lines.append(
            f"{system['system']:20} {system['audio_s']:8.1f} {system['load_s']:7.2f} {speed} "
            f"{system['peak_memory_mb']:5.0f}"
        )
    if any("hotwords" in system for system in result["systems"]):
        lines += ["", f"{'system':22} {'hot words heard':>15} {'of':>5} {'made up':>8} {'WER % of other words':>21}"]
        for system in result["systems"]:
            hot, others = system["hotwords"], 100 * system["wer_of_other_words"]
            lines.append(f"{system['system']:22} {hot['heard']:15} {hot['said']:5} {hot['made_up']:8} {others:21.2f}")
    if "equal_to_offline" in result:
        equal = result["equal_to_offline"]
        lines += ["", f"equal to offline: {equal['n']} of {equal['of']} (utterances of at most {SHORT_S:.0f} s)"]
    return "\n".join(lines)


def write_details(reports: Sequence[SystemReport], path: Path) -> None:
    """One line for each utterance and system: what was said and what was heard."""
    lines = ["system\tset\tpath\terrors\twords\treference\theard"]
    for report in reports:
        for name, of_set in report.hypotheses.items():
            for h in of_set:
                texts = f"{h.reference}\t{normalise(h.text)}"
                lines.append(f"{report.system}\t{name}\t{h.path}\t{h.errors.total}\t{h.errors.n_words}\t{texts}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_set_arguments(parser, (*CONDITIONS, ALL))
    add_peers_argument(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--offline", action="store_true", help="one pass over each utterance instead of streaming")
    which.add_argument("--both", action="store_true", help="both paths, and how often they say the same")
    parser.add_argument("--greedy", action="store_true", help="streaming with --lm none and letters, too")
    parser.add_argument("--details", type=Path, metavar="PATH", help="write a line for every utterance there")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    peers, task = peers_of(args, parser), task_of(args, parser)
    own = ("streaming", "offline") if args.both else ("offline",) if args.offline else ("streaming",)
    choice = ModelChoice(args.model, args.device, args.dtype, args.threads, args.latency, args.lm, args.hotwords)
    greedy = ("streaming-no-lm", "streaming-letters") if args.greedy else ()
    plain = ("streaming-no-hotwords",) if args.hotwords else ()
    reports = measure_apart([*own, *plain, *greedy, *peers], choice, task)
    result = summary(reports, choice, task)
    print(json.dumps(result) if args.json else table(result))
    if args.details is not None:
        write_details(reports, args.details)
    return 0
