"""What a benchmark runs on: sets of recordings with transcripts, and what is done to their audio."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from core.training.manifest import Utterance, read_manifest, read_set
from streamer.bench.conditions import CONDITIONS, apply_condition
from streamer.bench.systems import PEERS


@dataclass(frozen=True, slots=True)
class Task:
    """What a run is about, the same for each system."""

    manifests: tuple[Path, ...]
    audio: Path | None = None
    limit: int | None = None
    condition: str = "clean"

    def utterances(self, manifest: Path, label: str) -> Iterator[Utterance]:
        """The recordings of one of the sets, as every system hears them, with a progress bar on a terminal.

        Raises:
            ValueError: the manifest is not one, or audio of it is missing or cannot be read.
        """
        stderr = Console(stderr=True)
        utterances = read_set(manifest, self.audio, self.limit)
        total = len(read_manifest(manifest, self.limit))
        bar = track(utterances, f"{label}: {manifest.stem}", total, console=stderr, disable=not stderr.is_terminal)
        for seed, utterance in enumerate(bar):
            yield replace(utterance, samples=apply_condition(self.condition, utterance.samples, seed))


def add_set_arguments(parser: argparse.ArgumentParser, conditions: Sequence[str] = CONDITIONS) -> None:
    parser.add_argument("sets", nargs="*", type=Path, metavar="SET.tsv", help="manifests: path, transcript, …")
    parser.add_argument("--manifest", action="append", default=[], type=Path, metavar="SET.tsv", help="the same, named")
    parser.add_argument("--audio", type=Path, metavar="DIR", help="where files or tar shards are; default: beside it")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N lines of each set")
    parser.add_argument("--condition", default="clean", choices=conditions, help="put onto the audio of all systems")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def add_peers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", default="", metavar="NAME,…", help=f"also: {', '.join(PEERS)}")


def task_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Task:
    """The sets that the arguments name; exits with 2 where they are wrong, fails where a manifest is."""
    manifests = (*args.sets, *args.manifest)
    if not manifests:
        parser.error("expected at least one set: SET.tsv")
    if args.limit is not None and args.limit < 1:
        parser.error(f"expected a limit of at least 1. Found: {args.limit}")
    if len({manifest.stem for manifest in manifests}) < len(manifests):
        parser.error("expected sets of different names")
    for manifest in manifests:
        read_manifest(manifest)  # before minutes of work
    return Task(manifests, args.audio, args.limit, args.condition)


def peers_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[str, ...]:
    peers = tuple(name for name in args.peers.split(",") if name)
    if unknown := set(peers) - set(PEERS):
        parser.error(f"expected peers of {', '.join(PEERS)}. Found: {', '.join(sorted(unknown))}")
    return peers
