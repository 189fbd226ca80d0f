"""`streamer train`: from recordings to a model. The recipe of the embedded model, and adapting one to own speech."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from core.acoustic import AcousticModel, choose_device
from core.audio import from_int16
from core.beam import FOLDER, LanguageModel
from core.checkpoint import load_config, load_model, read_weights, resolve, save_model
from core.configuration import Wav2Vec2Config
from core.normalise import ENGLISH
from core.pretraining import Wav2Vec2ForPreTraining
from core.rescorer import FOLDER as RESCORER
from core.rescorer import Rescorer
from core.tokenizer import PREPROCESSOR_NAME, VOCAB_NAME, Wav2Vec2Tokenizer, read_json
from core.training.arguments import JOINT_HELP, make_parser
from core.training.augment import Augment
from core.training.compensation import Heard, compensated
from core.training.corpus import Clip, Corpus, Speech, hours, load_manifest
from core.training.distil import distil
from core.training.evaluate import evaluate, write_texts
from core.training.finetune import Teaching, finetune, freeze, set_dropout
from core.training.joint import SCENES, Joint, JointConfig, train_jointly
from core.training.language_model import build_language_model, read_text, read_words
from core.training.manifest import read_manifest, read_set
from core.training.plot import plot
from core.training.prepare import Prepared, prepare
from core.training.pretrain import SIZES, PretrainConfig, pretrain
from core.training.rescoring import choose_pieces, make_rescorer, read_vocabulary, train_rescorer
from core.training.rows import Rows, row_length
from core.training.run import RunConfig
from core.training.sentences import count_words, make_sentences
from core.training.states import StateCorpus, lower_parts
from core.training.student import add_branch, make_student, make_tokenizer
from core.training.synthesize import SynthesisConfig, read_sentences, synthesize
from core.training.voices import find_programs, kokoro, piper
from core.training.whisper import load_teacher
from core.wav2vec2 import PreTrainedModel, Wav2Vec2ForCTC

M = TypeVar("M", bound=nn.Module)


def load_clips(manifests: Sequence[tuple[Path, float]], letters: frozenset[str] = ENGLISH) -> list[Clip]:
    clips = [clip for manifest, weight in manifests for clip in load_manifest(manifest, weight, letters)]
    print(f"{len(clips)} utterances, {hours(clips):.2f} hours")
    return clips


def make_augment(noise: Path | None) -> Augment:
    if noise is None:
        return Augment()
    return Augment(from_int16(np.concatenate([clip.samples for clip in load_manifest(noise)])))


def run_config(args: argparse.Namespace) -> RunConfig:
    return RunConfig(
        args.output,
        args.steps,
        args.learning_rate,
        warmup=args.warmup,
        log_every=args.log_every,
        save_every=args.save_every,
        seed=args.seed,
        is_mixed=args.dtype == "bfloat16",
    )


def begin(args: argparse.Namespace) -> torch.device:
    """Seeds and threads; the device."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return choose_device(args.device)


def save(
    model: PreTrainedModel, tokenizer: Wav2Vec2Tokenizer, output: Path, dtype: torch.dtype = torch.float16
) -> None:
    save_model(model, output, dtype=dtype)
    tokenizer.save_pretrained(output)
    print(f"saved {output}")


def copy_language_model(source: Path, output: Path) -> None:
    """That which comes with a checkpoint."""
    if (source / FOLDER).is_dir() and source.resolve() != output.resolve():
        shutil.copytree(source / FOLDER, output / FOLDER, dirs_exist_ok=True)


def copy_companions(source: Path, output: Path, model: Wav2Vec2ForCTC) -> None:
    """The language model that comes with a checkpoint, and its rescorer, if that reads what `model` makes, too."""
    copy_language_model(source, output)
    if not (source / RESCORER).is_dir() or source.resolve() == output.resolve():
        return
    n_blocks = Rescorer.load(source / RESCORER).config.n_blocks
    if is_alike(load_model(Wav2Vec2ForCTC, source), model, n_blocks):
        shutil.copytree(source / RESCORER, output / RESCORER, dirs_exist_ok=True)
    else:
        print(f"{output} comes without the rescorer of {source}: the first {n_blocks} blocks are others")


def is_alike(model: Wav2Vec2ForCTC, other: Wav2Vec2ForCTC, n_blocks: int) -> bool:
    """Whether two models are the same up to a block."""
    parts = [lower_parts(of, n_blocks) for of in (model, other)]
    ours, theirs = (torch.cat([p.detach().cpu().flatten() for part in of for p in part.parameters()]) for of in parts)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-2, atol=1e-4)


def show(prepared: Prepared, manifest: Path) -> int:
    reasons = "".join(f", {n} left out ({reason})" for reason, n in sorted(prepared.left_out.items()))
    print(f"{prepared.n_kept} utterances, {prepared.hours:.2f} hours in {manifest}{reasons}")
    return 0 if manifest.exists() else 1


def run_prepare(args: argparse.Namespace) -> int:
    letters = Wav2Vec2Tokenizer.from_pretrained(args.model).letters if args.model else ENGLISH
    prepared = prepare(args.source, args.output, args.name, args.min_s, args.max_s, letters)
    return show(prepared, args.output / f"{args.name}.tsv")


def run_sentences(args: argparse.Namespace) -> int:
    texts = [sentence for path in args.text for sentence in read_text(path)]
    recorded = [transcript for path in args.recorded for transcript in read_manifest(path).values()]
    listed = {word for path in args.words for word in read_words(path)}
    lines = make_sentences(texts, recorded, listed, args.mixed, args.seed)
    args.output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} lines, {len(count_words(lines))} different words in {args.output}")
    return 0


def run_synthesize(args: argparse.Namespace) -> int:
    takes_all = not (args.engine or args.kokoro or args.piper)
    engines = [engine for engine in find_programs() if takes_all or engine.name in (args.engine or ())]
    if args.kokoro:
        engines.append(kokoro(*args.kokoro))
    if args.piper:
        engines.append(piper(args.piper))
    print(", ".join(f"{engine.name} ({len(engine.voices)} voices)" for engine in engines))
    config = SynthesisConfig(args.output, args.name, tuple(args.speed), tuple(args.pitch), args.seed)
    prepared = synthesize(read_sentences(args.sentences, args.limit), engines, config)
    return show(prepared, args.output / f"{args.name}.tsv")


def run_pretrain(args: argparse.Namespace) -> int:
    device = begin(args)
    tokenizer, is_new = make_tokenizer(do_normalize=True), True
    if args.model:
        directory = resolve(args.model)
        if (directory / VOCAB_NAME).is_file():
            tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
        else:  # published encoders have no letters yet
            tokenizer.do_normalize = bool(read_json(directory / PREPROCESSOR_NAME).get("do_normalize", True))
        shape = load_config(directory, args.model)
        is_new = not any(name.startswith("quantizer.") for name in read_weights(directory, args.model))
    else:
        shape = SIZES.get(args.config) or Wav2Vec2Config.load(args.config)
    if args.layers is not None:
        shape = replace(shape, num_hidden_layers=args.layers)
    if args.diversity is not None:
        shape = replace(shape, diversity_loss_weight=args.diversity)
    if args.model:
        new = ("quantizer.", "project_hid.", "project_q.")
        model = load_model(Wav2Vec2ForPreTraining, args.model, config=shape, allow_missing=new).to(device)
    else:
        model = Wav2Vec2ForPreTraining(shape).to(device)
    settings = PretrainConfig(
        args.batch_s, args.max_s, args.mask_prob, args.mask_length, args.extractor_gradient, tokenizer.do_normalize
    )
    speech = Speech(load_clips([(m, 1) for m in args.manifest]), Augment(), args.seed, settings.min_s(model.config))
    pretrain(model, speech, run_config(args), settings, is_new)
    save(model, tokenizer, args.output)
    return 0


def run_distil(args: argparse.Namespace) -> int:
    device = begin(args)
    teacher, blocks = load_teacher(args.teacher)
    student = make_student(teacher, blocks).to(device)
    speech = Speech(load_clips([(m, 1) for m in args.manifest]), make_augment(args.noise), args.seed)
    print(distil(student, teacher.to(device), speech, args.steps))
    save(student, make_tokenizer(), args.output)
    return 0


def run_branch(args: argparse.Namespace) -> int:
    directory = resolve(args.model)
    model = add_branch(load_model(Wav2Vec2ForCTC, directory), load_teacher(args.teacher)[0], args.first)
    save(model, Wav2Vec2Tokenizer.from_pretrained(directory), args.output)
    copy_companions(directory, args.output, model)
    return 0


def run_finetune(args: argparse.Namespace) -> int:
    device = begin(args)
    directory = resolve(args.model)
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
    config = replace(load_config(directory, args.model), ctc_zero_infinity=True)  # texts longer than their audio
    # The config of a pre-trained encoder does not know the letters that it is given; a head may have more of them.
    n_vocab = max(config.vocab_size, tokenizer.vocab_size)
    config = replace(config, vocab_size=n_vocab, pad_token_id=tokenizer.blank_id)
    if args.mask_time is not None:
        config = replace(config, mask_time_prob=args.mask_time)
    if args.mask_feature is not None:
        config = replace(config, mask_feature_prob=args.mask_feature)
    # A pre-trained encoder comes without a head.
    model = load_model(Wav2Vec2ForCTC, directory, config=config, allow_missing=("lm_head.",)).to(device)
    if args.freeze is None and config.branch:
        args.freeze = config.branch[1]  # what a branch tells is worth more than it could learn of little audio
    if args.freeze is not None:
        if not 0 <= args.freeze <= config.num_hidden_layers:
            raise ValueError(f"--freeze must be from 0 to {config.num_hidden_layers} blocks. Found: {args.freeze}")
        freeze(model, args.freeze)
    if not 0 <= args.consistency <= 1:
        raise ValueError(f"--consistency must be from 0 to 1. Found: {args.consistency}")
    clips = load_clips(args.manifest, tokenizer.letters)
    corpus = Corpus(clips, tokenizer, make_augment(args.noise), args.batch_s, args.seed)
    if args.dropout is not None:
        set_dropout(model, args.dropout)
    batches: Corpus | StateCorpus = corpus
    if args.states is not None:
        if args.freeze is None or args.head_steps or args.teacher:
            raise ValueError("--states needs --freeze, and goes with neither --head-steps nor --teacher")
        n_kept = max(1, round(args.states_hours * 3600 / args.batch_s))
        is_mixed = args.dtype == "bfloat16"
        batches = StateCorpus(model, corpus, args.states, n_kept, args.freeze, args.consistency, is_mixed)
    word_error_rate = None
    if args.validate:
        acoustic, validation = AcousticModel(model, tokenizer), list(read_set(args.validate))

        def word_error_rate() -> float:
            model.eval()
            return evaluate(acoustic, validation).word_error_rate

        print(f"before: WER {100 * word_error_rate():.2f} %")
    teaching = Teaching(load_teacher(args.teacher)[0].to(device), args.teach_steps) if args.teacher else None
    run = replace(run_config(args), encoder_rate=args.encoder_rate, branch_rate=args.branch_rate, average=args.average)
    finetune(model, batches, run, args.head_steps, word_error_rate, teaching, args.workers, args.consistency)
    save(model, tokenizer, args.output, stored(args))
    copy_companions(directory, args.output, model)
    return 0


def run_rescorer(args: argparse.Namespace) -> int:
    if not 0 <= args.share <= 1:
        raise ValueError(f"--share must be from 0 to 1. Found: {args.share}")
    config = replace(run_config(args), average=args.average)
    device = begin(args)
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(args.model)
    texts = [sentence for path in args.text for sentence in read_text(path)]
    vocabulary = read_vocabulary(args.vocabulary)
    pieces = choose_pieces(texts, vocabulary, sorted(tokenizer.letters), args.pieces)
    rescorer = make_rescorer(args.teacher, vocabulary, pieces, args.blocks, args.encoder_blocks).to(device)
    files = [file for folder in args.states for file in sorted(folder.glob("*.pt"))]
    print(f"{len(pieces)} pieces, {len(files)} files of states")
    train_rescorer(rescorer, files, tokenizer, config, args.files, args.rounded, args.share)
    rescorer.save(args.output)
    print(f"saved {args.output}")
    return 0


def run_joint(args: argparse.Namespace) -> int:
    device = begin(args)
    directory = resolve(args.model)
    if not (directory / RESCORER).is_dir():
        raise ValueError(f"Expected a folder {RESCORER}, as `train rescorer` makes it, in {directory}. Found: none")
    tokenizer = Wav2Vec2Tokenizer.from_pretrained(directory)
    # The mean, which does not hang on the number of rows; and texts may be longer than their audio.
    config = replace(load_config(directory, args.model), ctc_loss_reduction="mean", ctc_zero_infinity=True)
    model = load_model(Wav2Vec2ForCTC, directory, config=config)
    rescorer = Rescorer.load(directory / RESCORER)
    settings = JointConfig(**{name: getattr(args, name) for name in JOINT_HELP})
    joint = Joint(model, rescorer, settings).to(device)
    augment = replace(SCENES, noise=make_augment(args.noise).noise)
    n_rows, n_samples = max(1, round(args.batch_s / args.row_s)), row_length(config, args.row_s)
    rows = Rows(load_clips(args.manifest, tokenizer.letters), tokenizer, augment, n_rows, n_samples, args.seed)
    print(f"{len(rows.clips)} of them have a text and fit into a row, {hours(rows.clips):.2f} hours")
    rates = settings.rates(rescorer.config.n_blocks)
    train_jointly(joint, rows, replace(run_config(args), rates=rates, encoder_rate=1, average=args.average, clip=1))
    save(model, tokenizer, args.output, stored(args))
    rescorer.save(args.output / RESCORER, is_rough=args.int8)
    copy_language_model(directory, args.output)
    return 0


def run_mix(args: argparse.Namespace) -> int:
    """Keeps what was known before, and gets most of what was learned (Wortsman et al. 2022, "WiSE-FT")."""
    first, *_ = directories = [path if path.is_dir() else resolve(str(path)) for path, _ in args.model]
    shares = [share for _, share in args.model]
    models = [load_model(Wav2Vec2ForCTC, directory) for directory in directories]
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in models]
    for directory, found in zip(directories, shapes, strict=True):
        if found != shapes[0]:
            raise ValueError(f"Expected checkpoints of one model. Found: {first} and {directory}")
    rescorers = [Rescorer.load(path / RESCORER) for path in directories if (path / RESCORER).is_dir()]
    are_alike = len(rescorers) == len(models) and all(rescorer.config == rescorers[0].config for rescorer in rescorers)
    if args.compensate and not (args.int8 and are_alike):
        raise ValueError(
            "Expected --int8, and rescorers of one configuration, with --compensate. Found: others, or none"
        )
    model = mix(models, shares)
    save(model, Wav2Vec2Tokenizer.from_pretrained(first), args.output, stored(args))
    if are_alike:
        rescorer = mix(rescorers, shares)
        rounded = compensated(rescorer, hear(args.output, rescorer, args.compensate)) if args.compensate else None
        rescorer.save(args.output / RESCORER, args.int8, rounded)
        copy_language_model(first, args.output)
    else:
        copy_companions(first, args.output, model)
    return 0


def hear(directory: Path, rescorer: Rescorer, manifests: Sequence[tuple[Path, float]]) -> list[Heard]:
    """What the rescorer is given of the recordings of manifests, and what was said in them."""
    model = AcousticModel.load(directory, "cpu")
    heard: list[Heard] = []
    for clip in load_clips(manifests, model.tokenizer.letters):
        if clip.transcript:
            (_, states), *_ = model.emit_with_states([from_int16(clip.samples)], rescorer.config.n_blocks)
            heard.append((torch.from_numpy(states), clip.transcript))
    return heard


def mix(modules: Sequence[M], shares: Sequence[float]) -> M:
    """The first, with the mean of the weights of all."""
    states = [module.state_dict() for module in modules]
    parts = [share / sum(shares) for share in shares]
    first = modules[0]
    first.load_state_dict({key: sum(p * s[key] for p, s in zip(parts, states, strict=True)) for key in states[0]})
    return first


def stored(args: argparse.Namespace) -> torch.dtype:
    """How weights lie on disk."""
    return torch.int8 if args.int8 else torch.float16


def run_evaluate(args: argparse.Namespace) -> int:
    model = AcousticModel.load(args.model, args.device, threads=args.threads)
    for manifest in args.manifest:
        score = evaluate(model, read_set(manifest, limit=args.limit))
        print(f"{manifest.stem}: {score}")
        if args.texts:
            args.texts.mkdir(parents=True, exist_ok=True)
            write_texts(score, args.texts / manifest.name)
    return 0


def run_lm(args: argparse.Namespace) -> int:
    settings = LanguageModel(args.output, None, args.alpha, args.beta, args.acoustic, args.unknown)
    model = build_language_model(args.text, args.output, args.least, settings, args.words)
    sizes = ", ".join(f"{len(level)} {n}-grams" for n, level in enumerate(model.log_probs, 1))
    print(f"{sizes} in {args.output}")
    return 0


def run_plot(args: argparse.Namespace) -> int:
    plot(args.log, args.output)
    print(f"saved {args.output}")
    return 0


RUNS = {
    "prepare": run_prepare,
    "sentences": run_sentences,
    "synthesize": run_synthesize,
    "pretrain": run_pretrain,
    "distil": run_distil,
    "branch": run_branch,
    "finetune": run_finetune,
    "rescorer": run_rescorer,
    "joint": run_joint,
    "mix": run_mix,
    "evaluate": run_evaluate,
    "lm": run_lm,
    "plot": run_plot,
}


def main(arguments: Sequence[str]) -> int:
    args = make_parser().parse_args(arguments)
    return RUNS[args.command](args)
