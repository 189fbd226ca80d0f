"""`streamer train`: the recipe of the embedded model, and adapting a model to one's own speech."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from core.acoustic import AcousticModel, choose_device
from core.audio import from_int16
from core.checkpoint import load_model, resolve, save_model
from core.tokenizer import Wav2Vec2Tokenizer
from core.training.augment import Augment
from core.training.corpus import Corpus, Utterance, load_manifest
from core.training.distil import distil
from core.training.finetune import finetune
from core.training.run import RunConfig
from core.training.student import make_student, make_tokenizer
from core.training.whisper import load_teacher
from core.wav2vec2 import Wav2Vec2ForCTC


def add_common(parser: argparse.ArgumentParser, steps: int, rate: float) -> None:
    parser.add_argument("--manifest", action="append", required=True, metavar="TSV", help="repeat for several")
    parser.add_argument("--noise", metavar="TSV", help="background to mix in")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the checkpoint; resumed from there")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=rate)
    parser.add_argument("--batch-s", type=float, default=24, help="seconds of audio a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("streamer train", description="Train and adapt models.")
    commands = parser.add_subparsers(dest="command", required=True)
    distil_parser = commands.add_parser("distil", help="stage A: an extractor for a Whisper encoder's blocks")
    distil_parser.add_argument("--teacher", required=True, metavar="BIN", help="CTranslate2 model.bin of a Whisper")
    add_common(distil_parser, steps=4000, rate=3e-3)
    tune = commands.add_parser("finetune", help="stage B, or adapting a model to your own speech")
    tune.add_argument("--model", default="streamer-en", metavar="NAME|DIR")
    tune.add_argument("--head-steps", type=int, default=0, metavar="N", help="first train the CTC head alone")
    add_common(tune, steps=300, rate=1e-4)
    score = commands.add_parser("evaluate", help="mean CTC loss on a manifest")
    score.add_argument("--model", default="streamer-en", metavar="NAME|DIR")
    score.add_argument("--manifest", action="append", required=True, metavar="TSV")
    return parser


def load_corpus(args: argparse.Namespace, tokenizer: Wav2Vec2Tokenizer) -> Corpus:
    utterances: list[Utterance] = []
    for manifest in args.manifest:
        utterances += load_manifest(manifest)
    noise = Augment().noise
    if args.noise:
        noise = from_int16(np.concatenate([u.samples for u in load_manifest(args.noise)]))
    corpus = Corpus(utterances, tokenizer, Augment(noise), args.batch_s, args.seed)
    print(f"{len(corpus.utterances)} utterances, {corpus.hours:.2f} hours")
    return corpus


def save(model: Wav2Vec2ForCTC, tokenizer: Wav2Vec2Tokenizer, output: Path) -> None:
    save_model(model, output, dtype=torch.float16)
    tokenizer.save_pretrained(output)
    print(f"saved {output}")


def run_distil(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    torch.manual_seed(args.seed)
    teacher, blocks = load_teacher(args.teacher)
    student = make_student(teacher, blocks).to(device)
    tokenizer = make_tokenizer()
    config = RunConfig(args.output, args.steps, args.learning_rate, warmup=100, clip=1.0, seed=args.seed)
    distil(student, teacher.to(device), load_corpus(args, tokenizer), config)
    save(student, tokenizer, args.output)
    return 0


def run_finetune(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
    model = load_model(Wav2Vec2ForCTC, directory).to(choose_device(args.device))
    config = RunConfig(args.output, args.steps, args.learning_rate, seed=args.seed)
    finetune(model, load_corpus(args, tokenizer), config, args.head_steps)
    save(model, tokenizer, args.output)
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    model = AcousticModel.load(args.model)
    tokenizer = model.tokenizer
    losses = []
    for manifest in args.manifest:
        for utterance in load_manifest(manifest):
            log_probs = torch.from_numpy(model.emit([from_int16(utterance.samples)])[0])
            labels = torch.tensor([tokenizer.encode(utterance.transcript)])
            sizes = torch.tensor([len(log_probs)]), torch.tensor([labels.shape[1]])
            losses.append(float(torch.nn.functional.ctc_loss(log_probs[:, None], labels, *sizes, model.alphabet.blank)))
    print(f"{len(losses)} utterances, mean CTC loss a letter {np.mean(losses):.4f}")
    return 0


def main(arguments: Sequence[str]) -> int:
    args = make_parser().parse_args(arguments)
    run = {"distil": run_distil, "finetune": run_finetune, "evaluate": run_evaluate}
    return run[args.command](args)
