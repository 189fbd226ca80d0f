"""`streamer bench`: measures accuracy, latency, speed and memory, ours and others', in one run on one machine."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs `streamer bench ARGUMENTS`; returns its exit code."""
    from streamer.bench import agreement, capacity, latency, mic, speed, stitch, wer
    from streamer.cli import Parser, add_model_options

    parser = Parser("streamer bench", description="Measure accuracy, latency, speed and memory.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="wer|latency|mic|capacity|stitch|speed|precision"
    )
    accuracy = commands.add_parser("wer", help="word error rate, processor time and memory on sets with transcripts")
    wer.add_arguments(accuracy)
    add_model_options(accuracy)
    pace = commands.add_parser("speed", help="time of the model in every precision, its parts, and all around it")
    speed.add_arguments(pace)
    add_model_options(pace, has_latency=False)
    narrow = commands.add_parser("precision", help="what bfloat16 and int8 change and gain on the CPU")
    agreement.add_arguments(narrow)
    add_model_options(narrow, has_latency=False)
    seams = commands.add_parser("stitch", help="ways of joining windows, against one pass of the same model")
    stitch.add_arguments(seams)
    add_model_options(seams, has_latency=False)
    delay = commands.add_parser("latency", help="when words are shown in real time, and what changes after")
    latency.add_arguments(delay)
    add_model_options(delay, has_latency=False)
    ears = commands.add_parser("mic", help="when words are on the screen after they sounded (PulseAudio or PipeWire)")
    mic.add_arguments(ears)
    add_model_options(ears)
    crowd = commands.add_parser("capacity", help="how many sessions one server holds in real time")
    capacity.add_arguments(crowd)
    add_model_options(crowd)
    args = parser.parse_args(arguments)
    match args.command:
        case "wer":
            return wer.run(args, accuracy)
        case "latency":
            return latency.run(args, delay)
        case "mic":
            return mic.run(args)
        case "capacity":
            return capacity.run(args)
        case "stitch":
            return stitch.run(args, seams)
        case "precision":
            return agreement.run(args, narrow)
    return speed.run(args)
