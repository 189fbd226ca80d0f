"""`streamer bench`: measures accuracy, speed and memory, ours and others', in one run on one machine."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs `streamer bench ARGUMENTS`; returns its exit code."""
    from streamer.bench import speed, wer
    from streamer.cli import Parser, add_model_options

    parser = Parser("streamer bench", description="Measure accuracy, speed and memory.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="wer|speed")
    accuracy = commands.add_parser("wer", help="word error rate, processor time and memory on sets with transcripts")
    wer.add_arguments(accuracy)
    add_model_options(accuracy)
    pace = commands.add_parser("speed", help="how long one recording takes, and in which part of the model")
    speed.add_arguments(pace)
    add_model_options(pace)
    args = parser.parse_args(arguments)
    return wer.run(args, accuracy) if args.command == "wer" else speed.run(args)
