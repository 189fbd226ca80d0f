"""The command line: `streamer FILE...`, `streamer --mic`, and the subcommands.

Nothing but the result goes to standard output. Errors are one line on standard error; the exit code is 1
for failure and 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from streamer import __version__
from streamer.log import FORMATS, LEVELS, log_to_stderr

# Final passes are of any length, and PyTorch keeps what it prepared for each, up to a gigabyte. 256 are as fast; with
# 64, a fifth of all time goes into making them again.
KEPT_KERNELS = "256"
MOST_MS = 60_000

HELP = """\
streamer: speech recognition while the words are spoken

  streamer talk.wav                 the words of a file: WAV, FLAC, Ogg, MP3
  streamer talk.flac --format srt --output talk.srt
  streamer *.ogg --format vtt --output DIR      a file each
  arecord -f S16_LE -r 16000 | streamer -       a WAV file or raw samples
  streamer --mic                    live captions; q quits, s saves, n new line
  streamer --mic --window           in a window above the others
  streamer --system-audio           of what this computer plays; --play FILE
  streamer --mic --output talk.srt --record talk.wav
                                    also --type, --exec CMD, --captions-file
  streamer devices                  the microphones, for --input-device
  streamer serve                    a websocket server on this machine
  streamer connect ws://HOST:PORT talk.wav      or --mic, as above
  streamer models                   the models; those of the hub work by name
  streamer bench wer SET.tsv        accuracy and speed on a set with transcripts
  streamer train ...                prepare, distil, finetune, evaluate, ...

`streamer COMMAND --help` explains a command; `streamer --help-options` lists
all options."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """One line instead of argparse's usage block."""
        print(f"{self.prog}: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def add_model_options(parser: argparse.ArgumentParser, several: bool = False, has_latency: bool = True) -> None:
    group = parser.add_argument_group("model")
    if several:
        text = "repeat for several, of which clients choose; default: streamer-en"
        group.add_argument("--model", action="append", metavar="NAME|DIR", help=text)
    else:
        group.add_argument("--model", default="streamer-en", metavar="NAME|DIR", help="default: %(default)s")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "int8"])
    group.add_argument("--threads", type=count, default=None, metavar="N", help="PyTorch threads")
    text = "n-gram model; none: the model's rescorer alone; letters: the likeliest; default: the model's own, both"
    group.add_argument("--lm", default="auto", metavar="PATH|none|letters", help=text)
    group.add_argument(
        "--hotwords", metavar="FILE", help="names and words to listen for, `word` or `word:weight` a line"
    )
    if has_latency:
        group.add_argument(
            "--latency", default="balanced", choices=["low", "balanced", "accurate"], help="0.5, 1 or 2 s"
        )


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1. Found: {text}")
    return int(text)


def milliseconds(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_MS:
        raise argparse.ArgumentTypeError(f"expected milliseconds from 0 to {MOST_MS}. Found: {text}")
    return int(text)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    kinds = ["text", "json", "jsonl", "srt", "vtt"]
    group.add_argument("--format", choices=kinds, help="default: as the output's name ends, else text")
    group.add_argument("--output", metavar="PATH", help="write there; a directory gets a file for each recording")
    group.add_argument("--partials", action="store_true", help="show words before their segment has ended")
    group.add_argument("--steady", action="store_true", help="show words later, when few of them still change")
    group.add_argument(
        "--commit-ms",
        type=milliseconds,
        metavar="MS",
        help="words are for good this long after their end, if two looks agree, and not with their segment alone",
    )


def add_input_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument("--mic", action="store_true", help="live captions of the microphone")
    group.add_argument("--input-device", metavar="N|NAME", help="which microphone (see `streamer devices`)")
    group.add_argument("--system-audio", action="store_true", help="live captions of what this computer plays")
    group.add_argument("--play", metavar="FILE", help="live captions of a file while it is played")
    group.add_argument("--sample-rate", type=int, default=16_000, metavar="HZ", help="of raw samples in a pipe")
    group.add_argument("--channels", type=count, default=1, metavar="N", help="of raw samples, which are interleaved")
    group.add_argument("--encoding", default="pcm_s16le", choices=["pcm_s16le", "pcm_f32le", "mulaw", "alaw"])
    group.add_argument("--realtime", action="store_true", help="feed a file no faster than it plays")


def add_live_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("live captions, with --mic, --system-audio or --play")
    group.add_argument("--window", action="store_true", help="in a window above the others, in big type")
    group.add_argument("--theme", default="dark", choices=["dark", "light"], help="of the window")
    group.add_argument("--record", metavar="WAV", help="keep the sound")
    group.add_argument("--captions-file", metavar="PATH", help="the last two lines, for OBS")
    group.add_argument("--type", action="store_true", help="type committed words into the focused window")
    group.add_argument("--clipboard", action="store_true", help="copy the transcript after each final")
    group.add_argument("--exec", metavar="CMD", help="give each final to a shell command's standard input")


def check_live_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Adds `is_live`; ends with a usage error where the options do not go together."""
    sources = [name for name in ("--mic", "--system-audio", "--play") if getattr(args, attribute(name))]
    args.is_live = bool(sources)
    if args.play and len(sources) > 1:
        parser.error(f"expected one of {' and '.join(sources)}. Found: both")
    if args.system_audio and args.input_device:
        parser.error("--system-audio chooses the device: it does not go with --input-device")
    alone = ("--window", "--record", "--captions-file", "--type", "--clipboard", "--exec")
    wrong = [name for name in alone if getattr(args, attribute(name))]
    if wrong and not args.is_live:
        parser.error(f"{wrong[0]} goes with --mic, --system-audio or --play")


def check_files(parser: argparse.ArgumentParser, args: argparse.Namespace, recording: str | None) -> None:
    """Ends with a usage error where an output would replace another, or the recording that is read."""
    from streamer.output import check_targets

    written = {option: getattr(args, attribute(option)) for option in ("--output", "--record", "--captions-file")}
    for option, path in written.items():
        if args.is_live and path is not None and os.path.isdir(path):
            parser.error(f"{option} {path} is a folder; expected a file")
    try:
        check_targets(written, recording)
    except ValueError as e:
        parser.error(str(e))


def attribute(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def transcribe_parser() -> Parser:
    parser = Parser("streamer", description="Transcribe files, standard input or the microphone.")
    parser.add_argument("files", nargs="*", metavar="FILE", help="audio files; - is standard input")
    parser.add_argument("--version", action="version", version=f"streamer {__version__}")
    add_input_options(parser)
    add_output_options(parser)
    add_live_options(parser)
    parser.add_argument("--offline", action="store_true", help="one pass over the whole file, no streaming")
    parser.add_argument("--server", metavar="URL", help="as `streamer connect URL`, whose options these are then")
    add_model_options(parser)
    return parser


def transcribe(arguments: Sequence[str]) -> int:
    remote = Parser("streamer", add_help=False, allow_abbrev=False)
    remote.add_argument("--server")
    found, others = remote.parse_known_args(arguments)
    if found.server is not None:
        return connect([found.server, *others])
    parser = transcribe_parser()
    args = parser.parse_args(arguments)
    check_live_options(parser, args)
    if args.is_live and args.files:
        parser.error("expected --mic or files. Found: both")
    if not args.is_live and not args.files:
        parser.error("expected audio files, - for standard input, or --mic")
    if args.offline and (args.partials or args.realtime or args.is_live):
        parser.error("--offline is one pass over a whole file: it goes with neither --partials, --realtime nor --mic")
    from streamer.output import format_of, plan_outputs

    args.format = format_of(args.format, args.output)
    try:
        args.targets = plan_outputs(args.files, args.format, args.output)
    except ValueError as e:
        parser.error(str(e))
    check_files(parser, args, args.play)
    if args.is_live:
        from streamer.live import run_microphone

        return run_microphone(args)
    from streamer.transcribe import run_files

    return run_files(args)


def devices(arguments: Sequence[str]) -> int:
    Parser("streamer devices", description="List the microphones.").parse_args(arguments)
    from clients.devices import list_devices

    for line in list_devices():
        print(line)
    return 0


def models(arguments: Sequence[str]) -> int:
    parser = Parser("streamer models", description="List, download or describe models.")
    parser.add_argument("action", nargs="?", default="list", choices=["list", "download", "info"])
    parser.add_argument("name", nargs="?")
    args = parser.parse_args(arguments)
    if args.action != "list" and not args.name:
        parser.error(f"expected a model's name after {args.action}")
    from streamer.models import download, info, list_models

    actions: dict[str, Callable[[], str]] = {
        "list": list_models,
        "download": lambda: download(args.name),
        "info": lambda: info(args.name),
    }
    print(actions[args.action]())
    return 0


def serve(arguments: Sequence[str]) -> int:
    parser = Parser("streamer serve", description="Serve live sessions over websockets.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--wyoming-port", type=int, metavar="P", help="for Home Assistant, which expects 10300")
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="repeat for several; also $STREAMER_API_KEY"
    )
    access.add_argument("--api-key-file", metavar="PATH", help="a key a line; # begins a comment")
    access.add_argument("--allow-public", action="store_true", help="bind a public address without keys")
    access.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="pages of https://HOST may connect, too"
    )
    access.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that clients reach this server by"
    )
    access.add_argument("--tls-cert", metavar="PEM")
    access.add_argument("--tls-key", metavar="PEM")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-sessions", type=count, default=32, metavar="N", help="fewer where more would make steps late"
    )
    limits.add_argument("--no-load-limit", action="store_true", help="take --max-sessions even where steps get late")
    limits.add_argument(
        "--refresh-ms",
        type=int,
        metavar="MS",
        help="of what was heard before is computed again by each step; less: more sessions, rougher partials",
    )
    limits.add_argument(
        "--sessions-per-client", type=count, metavar="N", help="of one key or, without keys, one address"
    )
    limits.add_argument(
        "--resume-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="a session whose connection broke waits this long",
    )
    logs = parser.add_argument_group("log")
    logs.add_argument("--log-format", default="text", choices=FORMATS)
    logs.add_argument(
        "--log-level", default="warning", choices=LEVELS, help="info tells of each session, not its words"
    )
    add_model_options(parser, several=True)
    args = parser.parse_args(arguments)
    args.model = args.model or ["streamer-en"]
    if args.tls_key and not args.tls_cert:
        parser.error("--tls-key needs --tls-cert, the certificate that belongs to it")
    log_to_stderr(args.log_format, args.log_level)
    from streamer.protocols.native import REFRESH_MS
    from streamer.serve import run_server

    if args.refresh_ms is not None and not REFRESH_MS[0] <= args.refresh_ms <= REFRESH_MS[1]:
        parser.error(f"--refresh-ms must be from {REFRESH_MS[0]} to {REFRESH_MS[1]}. Found: {args.refresh_ms}")

    return run_server(args)


def connect(arguments: Sequence[str]) -> int:
    parser = Parser("streamer connect", description="Transcribe with a running server.")
    parser.add_argument("url", metavar="ws://HOST:PORT")
    parser.add_argument("file", nargs="?", metavar="FILE")
    parser.add_argument("--api-key", metavar="KEY")
    add_input_options(parser)
    add_output_options(parser)
    add_live_options(parser)
    session = parser.add_argument_group("session")
    session.add_argument("--latency", default="balanced", choices=["low", "balanced", "accurate"])
    session.add_argument("--model", metavar="NAME", help="of those that the server has loaded")
    session.add_argument("--endpoint-ms", type=int, metavar="MS", help="a pause of this length ends a segment")
    session.add_argument("--hotwords", metavar="FILE", help="`word` or `word:weight` a line")
    session.add_argument("--split", action="store_true", help="transcribe both channels of a file, each by itself")
    args = parser.parse_intermixed_args(arguments)  # the file may come after options
    check_live_options(parser, args)
    if bool(args.file) == args.is_live:
        parser.error("expected one file, - for standard input, or --mic")
    if args.split and (args.is_live or args.realtime):
        parser.error("--split goes with a file, and not with --realtime")
    check_files(parser, args, args.file or args.play)
    from streamer.connect import run_connect
    from streamer.output import format_of

    args.format = format_of(args.format, args.output)
    if args.split and args.format in ("srt", "vtt"):
        parser.error(f"--format {args.format} describes one channel: --split goes with text, json or jsonl")
    return run_connect(args)


def bench(arguments: Sequence[str]) -> int:
    from streamer.bench import main as bench_main

    return bench_main(arguments)


def train(arguments: Sequence[str]) -> int:
    from core.training.command import main as train_main

    return train_main(arguments)


COMMANDS = {"devices": devices, "models": models, "serve": serve, "connect": connect, "bench": bench, "train": train}


def dispatch(arguments: list[str]) -> int:
    if not arguments or arguments in (["--help"], ["-h"]):
        print(HELP, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments == ["--help-options"]:
        transcribe_parser().print_help()
        return 0
    command = COMMANDS.get(arguments[0])  # a file of that name is reached as ./serve
    return transcribe(arguments) if command is None else command(arguments[1:])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    # All before PyTorch is loaded. Threads that spin while they wait take the cores of whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, KEPT_KERNELS)
    if not logging.getLogger().handlers:
        log_to_stderr()
    try:
        return dispatch(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:
        if not is_expected(e):
            raise
        print(f"streamer: error: {' '.join(str(e).split())}", file=sys.stderr)
        return 1


def is_expected(error: Exception) -> bool:
    """Whether the message was written for the user: bad input, a missing model or device, a closed port."""
    return isinstance(error, (ValueError, OSError)) or type(error).__name__ in (
        "AudioError",
        "CheckpointError",
        "DesktopError",
        "MicrophoneError",
        "ServerError",
        "WindowError",
    )
