"""What `streamer train` can be told: its commands and their options."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from core.beam import LanguageModel
from core.training.corpus import MAX_SECONDS, MIN_SECONDS
from core.training.joint import JointConfig
from core.training.voices import PROGRAMS

DEFAULTS = LanguageModel(Path())
JOINT = JointConfig()
JOINT_HELP = {
    "reading_weight": "of the rescorer's loss beside that of CTC",
    "consistency": "share of the steps in which windows shall read as the whole does",
    "lower_rate": "share of the learning rate of all up to the block that the rescorer reads after; 0 leaves it",
    "rescorer_rate": "the same of the rescorer",
    "dropout": "in the upper blocks, while training",
    "lower_dropout": "up to the block that the rescorer reads after",
    "rescorer_dropout": "in the rescorer",
}


def weighted(text: str) -> tuple[Path, float]:
    """`set.tsv:0.5` -> (set.tsv, 0.5), and without a number 1."""
    found = re.fullmatch(r"(.+?)(?::([0-9.]+))?", text)
    if found is None or (found[2] is not None and not float(found[2]) > 0):
        raise ValueError(text)
    return Path(found[1]), float(found[2] or 1)


def add_manifest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--manifest", action="append", type=Path, required=True, metavar="TSV", help="may be repeated")


def add_weighted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--manifest",
        action="append",
        type=weighted,
        required=True,
        metavar="TSV[:WEIGHT]",
        help="may be repeated; a pass hears each recording WEIGHT times on average",
    )


def add_average(parser: argparse.ArgumentParser, default: float) -> None:
    text = "0.998: take the weights' mean over some 500 steps; default: %(default)s"
    parser.add_argument("--average", type=float, default=default, metavar="SHARE", help=text)


def add_int8(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--int8", action="store_true", help="round the weights on disk: blocks, and a rescorer's to int4"
    )


def add_run(parser: argparse.ArgumentParser, steps: int, rate: float, batch_s: float, warmup: int = 50) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the checkpoint; resumed from there")
    parser.add_argument("--steps", type=int, default=steps, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=rate, help="default: %(default)s")
    parser.add_argument("--warmup", type=int, default=warmup, metavar="STEPS", help="0: none; default: %(default)s")
    parser.add_argument("--batch-s", type=float, default=batch_s, help="seconds of audio a step; default: %(default)s")
    parser.add_argument("--log-every", type=int, default=25, metavar="STEPS", help="0: never; default: %(default)s")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="0: never; default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="default: %(default)s")
    add_machine(parser)


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch")


def add_noise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--noise", type=Path, metavar="TSV", help="background to mix in")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("streamer train", description="Train and adapt models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("prepare", help="recordings of a folder or corpus to a manifest")
    command.add_argument("source", nargs="+", type=Path, help="folder, LibriSpeech tree or Common Voice tsv")
    command.add_argument("--output", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="prepared", help="of the manifest; default: %(default)s")
    command.add_argument("--model", metavar="NAME|DIR", help="whose letters texts are kept in; default: English")
    command.add_argument("--min-s", type=float, default=MIN_SECONDS, help="default: %(default)s")
    command.add_argument("--max-s", type=float, default=MAX_SECONDS, help="default: %(default)s")

    command = commands.add_parser("sentences", help="of texts what teaches the spelling of words seldom recorded")
    command.add_argument("text", nargs="+", type=Path, help="prose, or a tsv with a sentence in the last column")
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="for synthesize")
    command.add_argument("--recorded", action="append", type=Path, default=[], metavar="TSV", help="the set so far")
    command.add_argument("--words", action="append", type=Path, default=[], metavar="LIST", help="more, one a line")
    command.add_argument("--mixed", type=int, default=0, metavar="N", help="lines of words without order besides")
    command.add_argument("--seed", type=int, default=1)

    command = commands.add_parser("synthesize", help="sentences to speech of many voices, and a manifest")
    command.add_argument("sentences", type=Path, help="a sentence a line, or tab-separated with it in the last column")
    command.add_argument("--output", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="synthetic", help="of the manifest; default: %(default)s")
    command.add_argument("--engine", action="append", choices=list(PROGRAMS), help="default: all, or the voices given")
    command.add_argument("--kokoro", nargs=2, type=Path, metavar=("ONNX", "VOICES"), help="files of kokoro-onnx")
    command.add_argument("--piper", action="append", type=Path, default=[], metavar="ONNX", help="a Piper voice's file")
    command.add_argument("--speed", nargs=2, type=float, default=(0.85, 1.2), metavar=("FROM", "TO"))
    command.add_argument("--pitch", nargs=2, type=float, default=(0.85, 1.15), metavar=("FROM", "TO"))
    command.add_argument("--limit", type=int, metavar="N", help="the first sentences only")
    command.add_argument("--seed", type=int, default=1)

    command = commands.add_parser("pretrain", help="self-supervised, on audio without text")
    start = command.add_mutually_exclusive_group()
    start.add_argument(
        "--config", default="small", metavar="small|base|JSON", help="from scratch; default: %(default)s"
    )
    start.add_argument("--model", metavar="NAME|DIR", help="go on from a checkpoint's encoder")
    command.add_argument("--layers", type=int, metavar="N", help="keep the first N blocks of that checkpoint alone")
    command.add_argument(
        "--diversity", type=float, metavar="W", help="weight of the diversity loss; default: the config's"
    )
    command.add_argument(
        "--extractor-gradient", type=float, default=0.1, metavar="SHARE", help="0 freezes it; default: %(default)s"
    )
    command.add_argument("--mask-prob", type=float, default=0.65, help="default: %(default)s")
    command.add_argument("--mask-length", type=int, default=10, metavar="FRAMES", help="default: %(default)s")
    command.add_argument("--max-s", type=float, default=15.6, help="longest crop; default: %(default)s")
    add_manifest(command)
    add_run(command, steps=20_000, rate=5e-4, batch_s=60)

    command = commands.add_parser("distil", help="stage A: a model around a Whisper encoder, still without letters")
    command.add_argument("--teacher", required=True, metavar="BIN", help="CTranslate2 model.bin of a Whisper")
    add_manifest(command)
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="the checkpoint")
    command.add_argument("--steps", type=int, default=20, help="of 40 s of audio; default: %(default)s")
    add_machine(command)
    add_noise(command)

    command = commands.add_parser("branch", help="let a student's upper blocks hear all of its teacher's")
    command.add_argument("--model", required=True, metavar="NAME|DIR", help="its first blocks are the teacher's own")
    command.add_argument("--teacher", required=True, metavar="BIN", help="as of distil")
    command.add_argument("--first", type=int, required=True, metavar="N", help="the block that is its own")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="the checkpoint")

    command = commands.add_parser("finetune", help="stage B, or adapting a model to your own speech")
    command.add_argument("--model", default="streamer-en", metavar="NAME|DIR")
    command.add_argument("--head-steps", type=int, default=0, metavar="N", help="first train the CTC head alone")
    command.add_argument("--validate", type=Path, metavar="TSV", help="log the WER on this set with each checkpoint")
    command.add_argument("--mask-time", type=float, metavar="P", help="share of frames to mask; default: the model's")
    command.add_argument("--mask-feature", type=float, metavar="P", help="share of channels to mask")
    command.add_argument("--teacher", metavar="BIN", help="stage B: the Whisper whose last states are kept at first")
    command.add_argument(
        "--consistency",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the steps in which windows shall read as the whole does, 0 to 1; default: %(default)s",
    )
    command.add_argument("--teach-steps", type=int, default=500, metavar="N", help="how long; default: %(default)s")
    command.add_argument(
        "--encoder-rate", type=float, default=0.7, metavar="SHARE", help="of the learning rate; default: %(default)s"
    )
    command.add_argument(
        "--branch-rate", type=float, default=1.0, metavar="SHARE", help="the same of a branch's map; 5 for a new one"
    )
    command.add_argument(
        "--freeze",
        type=int,
        metavar="N",
        help="keep the extractor and the first N blocks; default: those before a branch ends",
    )
    command.add_argument(
        "--dropout", type=float, metavar="P", help="in the blocks, while training; default: the model's"
    )
    command.add_argument(
        "--states", type=Path, metavar="DIR", help="keep there what the frozen blocks make of the audio"
    )
    command.add_argument(
        "--states-hours", type=float, default=10.0, metavar="H", help="heard again and again; default: %(default)s"
    )
    add_average(command, 0.0)
    add_int8(command)
    command.add_argument("--workers", type=int, default=1, metavar="N", help="threads that make batches ahead")
    add_weighted(command)
    add_run(command, steps=60, rate=5e-5, batch_s=16, warmup=10)  # for a few minutes of one voice
    add_noise(command)

    command = commands.add_parser("rescorer", help="a decoder that ranks the best texts again, out of a Whisper's")
    command.add_argument("text", nargs="+", type=Path, help="whose pieces it knows: prose, or a tsv as of lm")
    command.add_argument("--model", default="streamer-en", metavar="NAME|DIR", help="whose letters the states have")
    command.add_argument("--teacher", type=Path, required=True, metavar="BIN", help="as of distil")
    command.add_argument("--vocabulary", type=Path, required=True, metavar="JSON|TXT", help="of the teacher")
    command.add_argument(
        "--states", action="append", type=Path, required=True, metavar="DIR", help="of finetune; may be repeated"
    )
    command.add_argument(
        "--encoder-blocks", type=int, default=6, metavar="N", help="that were frozen for those; default: %(default)s"
    )
    command.add_argument(
        "--blocks",
        nargs="+",
        type=int,
        metavar="N",
        help="of the teacher's decoder; default: all",
    )
    command.add_argument("--pieces", type=int, default=12_000, metavar="N", help="default: %(default)s")
    command.add_argument("--files", type=int, default=4, metavar="N", help="of states a step; default: %(default)s")
    command.add_argument(
        "--rounded", type=int, default=0, metavar="STEPS", help="so many last ones see the weights as on disk"
    )
    text = "of the trained weights in the result, the rest the teacher's; default: %(default)s"
    command.add_argument("--share", type=float, default=0.6, metavar="X", help=text)
    add_average(command, 0.99)
    add_run(command, steps=800, rate=1e-5, batch_s=0, warmup=30)

    command = commands.add_parser("joint", help="a model and its rescorer at once, with batches made on the GPU")
    command.add_argument("--model", default="streamer-en", metavar="NAME|DIR")
    command.add_argument("--row-s", type=float, default=16.0, help="seconds of a batch's rows; default: %(default)s")
    for name, text in JOINT_HELP.items():
        option, default = f"--{name.replace('_', '-')}", getattr(JOINT, name)
        command.add_argument(option, type=float, default=default, metavar="X", help=f"{text}; default: %(default)s")
    add_average(command, 0.998)
    add_int8(command)
    add_weighted(command)
    add_run(command, steps=2300, rate=2e-4, batch_s=1024, warmup=140)
    add_noise(command)

    command = commands.add_parser("mix", help="the mean of checkpoints' weights, such as before and after a training")
    command.add_argument("model", nargs="+", type=weighted, metavar="DIR[:SHARE]", help="shares are relative")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="the checkpoint")
    add_int8(command)
    command.add_argument(
        "--compensate",
        action="append",
        type=weighted,
        metavar="TSV",
        help="with --int8, make the errors of a rescorer's rounding small on this speech; some 200 recordings do",
    )

    command = commands.add_parser("evaluate", help="word and letter error rate of a checkpoint")
    command.add_argument("--model", default="streamer-en", metavar="NAME|DIR")
    command.add_argument("--manifest", action="append", type=Path, required=True, metavar="TSV")
    command.add_argument("--limit", type=int, metavar="N", help="the first utterances of each set only")
    command.add_argument("--texts", type=Path, metavar="DIR", help="write references and what was heard")
    command.add_argument("--device", default="auto")
    command.add_argument("--threads", type=int, metavar="N", help="of PyTorch")

    command = commands.add_parser("lm", help="text to an n-gram language model for --lm")
    command.add_argument("text", nargs="+", type=Path, help="prose, or a tsv with a sentence in the last column")
    command.add_argument("--output", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--least", nargs="+", type=int, default=[1, 1, 2], metavar="N", help="occurrences of words, pairs, threes …"
    )
    command.add_argument(
        "--words", action="append", type=Path, default=[], metavar="LIST", help="words to know besides, one a line"
    )
    for name in ("alpha", "beta", "acoustic"):
        command.add_argument(f"--{name}", type=float, default=getattr(DEFAULTS, name), help="default: %(default)s")
    command.add_argument("--unknown", type=float, default=DEFAULTS.unknown, help="for a new word; default: %(default)s")

    command = commands.add_parser("plot", help="learning curves of logs (needs matplotlib)")
    command.add_argument("log", nargs="+", type=Path, help="a training.csv, or the folder of a run")
    command.add_argument("--output", type=Path, required=True, metavar="PNG|SVG|PDF")
    return parser
