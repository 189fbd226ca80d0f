"""Checkpoints in hub layout: `config.json` and weights, from a directory or by name.

Reads `model.safetensors`, `pytorch_model.bin` (tensors only, nothing is executed) and the sharded form of both,
with either spelling of the weight-normalised positional convolution. huggingface_hub is imported only when a name
has to be fetched. Left out: TensorFlow and Flax weights, fairseq `.pt` files.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from core.configuration import CONFIG_NAME, Wav2Vec2Config
from core.rounding import SUFFIX, from_integers, is_rounded, to_int8

if TYPE_CHECKING:
    from core.wav2vec2 import PreTrainedModel

SAFETENSORS_NAME = "model.safetensors"
SAFETENSORS_INDEX_NAME = "model.safetensors.index.json"
BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"
SAFETENSORS_PATTERNS = [SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME, "model-*.safetensors"]
BIN_PATTERNS = [BIN_NAME, BIN_INDEX_NAME, "pytorch_model-*.bin"]
ADAPTER_NAME = "adapter.{}.safetensors"  # of MMS: the adapters and the head of one language
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SETTINGS_PATTERNS = [
    CONFIG_NAME,
    "vocab.json",
    "added_tokens.json",
    TOKENIZER_CONFIG_NAME,
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "language_model/*",
    "rescorer/*",
]

EMBEDDED_NAMES = ("streamer-en",)
ASSETS = Path(__file__).parent / "assets"

PREFIX = "wav2vec2."  # of the encoder's keys in a checkpoint with a head
# The spelling of torch.nn.utils.weight_norm, on disk, and that of its parametrization, in memory.
WEIGHT_NORM_SPELLINGS = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}
# Parts of a checkpoint that another head of the same encoder leaves behind.
HEADS = ("lm_head.", "quantizer.", "project_q.", "project_hid.", "classifier.", "projector.")
BLOCKS = "encoder.layers."
OPTIONAL_KEYS = ("masked_spec_embed",)  # of use only while training

logger = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound="PreTrainedModel")


class CheckpointError(Exception):
    """A model that cannot be had: its name, what was tried, and what would be right."""

    def __init__(self, name: str, tried: str, remedy: str) -> None:
        super().__init__(f"Cannot load model {name!r} (tried: {tried}): {remedy}")
        self.name, self.tried, self.remedy = name, tried, remedy


class Undrawn(TorchFunctionMode):
    """While a model is built: its weights stay as the memory was, and no random number is drawn.

    The meta device would do it too, but takes a second to import PyTorch's compiler for the norm of a weight.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn_like:
            return torch.empty_like(*args, **kwargs)
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def resolve(name_or_dir: str | Path) -> Path:
    """The directory that holds a checkpoint: an embedded model's, the given one, or a fetched one.

    The name of an embedded model means that model even where a directory of that name exists (`./NAME` means the
    directory). Fetching shows a progress bar on stderr; with `HF_HUB_OFFLINE=1` only the local cache is asked.

    Raises:
        CheckpointError: no such directory, or the hub cannot give such a model.
    """
    name = str(name_or_dir)
    if name_or_dir in EMBEDDED_NAMES:
        directory = ASSETS / name
        if not directory.is_dir():
            raise CheckpointError(name, f"the embedded model in {directory}", "this installation came without it")
        return directory
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(name, "a directory of that name", f"it is a file; give the directory: {path.parent}")
    if isinstance(name_or_dir, Path) or path.is_absolute() or name[:1] in ".~" or name.count("/") > 1:
        raise CheckpointError(
            name,
            "a directory of that name",
            f"there is none; give a directory with {CONFIG_NAME}, a hub name such as facebook/wav2vec2-base-960h, "
            f"or {EMBEDDED_NAMES[0]}",
        )
    return fetch(name)


def fetch(name: str) -> Path:
    """Downloads settings and weights of a hub name, weights as safetensors if it has them."""
    tried = "a directory of that name, then huggingface.co"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise CheckpointError(name, tried, "fetching by name needs huggingface_hub: pip install huggingface_hub") from e
    try:
        directory = Path(snapshot_download(name, allow_patterns=SETTINGS_PATTERNS + SAFETENSORS_PATTERNS))
        if not has_safetensors(directory):
            directory = Path(snapshot_download(name, allow_patterns=SETTINGS_PATTERNS + BIN_PATTERNS))
        if language := target_language(directory):
            directory = Path(snapshot_download(name, allow_patterns=[ADAPTER_NAME.format(language)]))
    except Exception as e:  # the families of the hub's HTTP stack change with its version
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            remedy = "it is not in the local cache and HF_HUB_OFFLINE is set; unset it to download"
        else:
            remedy = "check the name and the network"
        why = str(e).strip().split("\n", 1)[0]
        raise CheckpointError(
            name,
            tried,
            f"{remedy}, give a checkpoint directory, or use {EMBEDDED_NAMES[0]} ({type(e).__name__}: {why})",
        ) from e
    return directory


def has_safetensors(directory: Path) -> bool:
    return (directory / SAFETENSORS_NAME).is_file() or (directory / SAFETENSORS_INDEX_NAME).is_file()


def target_language(directory: Path) -> str | None:
    """The language of several that the checkpoint's tokenizer is set to; None where it has one alone.

    A file that cannot be read is for `core.tokenizer` to tell of.
    """
    try:
        language = json.loads((directory / TOKENIZER_CONFIG_NAME).read_text(encoding="utf-8"))["target_lang"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # It becomes part of a file's name, which must not lead out of the checkpoint.
    return language if isinstance(language, str) and re.fullmatch(r"[\w-]+", language) else None


def read_adapter(directory: Path, name: str) -> dict[str, Tensor]:
    """Adapters and head of the target language; none where the weights themselves are the only ones.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = directory / ADAPTER_NAME.format(target_language(directory))
    return read_file(path, name) if path.is_file() else {}


def load_model(
    cls: type[ModelT],
    name_or_dir: str | Path,
    *,
    config: Wav2Vec2Config | None = None,
    allow_missing: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> ModelT:
    """A model of class `cls` with a checkpoint's weights, in eval mode, on the CPU.

    One with adapters (MMS) is of the language that `tokenizer_config.json` names as `target_lang`, where there is a
    file of that language's adapters.

    Keys with and without the `wav2vec2.` prefix both fit, so that any head loads any encoder. Weights that the model
    has no place for are logged; where they are of a block, the model would not be what was trained.

    Args:
        config: replaces the checkpoint's `config.json` (other dropouts, another vocabulary).
        allow_missing: prefixes of keys, such as `("lm_head.",)`, that keep their random values where the checkpoint
            lacks them or has them in another shape.
        dtype: of all weights in memory, whatever they are on disk.

    Raises:
        CheckpointError: no such checkpoint, files that cannot be read, or keys missing, of another shape, or of a
            block that has no place for them; the message lists them all.
    """
    directory = resolve(name_or_dir)
    name = str(name_or_dir)
    if config is None:
        config = load_config(directory, name)
    stored = read_weights(directory, name)
    found = from_integers(stored)
    if config.adapter_attn_dim is not None:
        found |= read_adapter(directory, name)
    with Undrawn():
        model = cls(config)
    expected = model.state_dict()
    weights, leftover = fit_keys(found, expected.keys())
    wrong = {k for k, w in weights.items() if w.shape != expected[k].shape or not w.is_floating_point()}
    missing = expected.keys() - weights.keys()
    allowed = {k for k in wrong | missing if k.startswith(allow_missing)}
    allowed |= {k for k in missing if k.endswith(OPTIONAL_KEYS)}
    homeless = {k for k in leftover if k.removeprefix(PREFIX).startswith(BLOCKS)}
    report_leftover(name, [k for k in leftover if k not in homeless])
    if allowed:
        logger.warning("%s: new random weights for %s", name, ", ".join(sorted(allowed)))
    if problems := describe_problems(missing - allowed, wrong - allowed, homeless, weights, expected):
        raise CheckpointError(name, f"the weights in {directory}", "; ".join(problems))
    if allowed:
        model = cls(config)  # draws the weights that the checkpoint does not give
    model = model.to(dtype)
    model.load_state_dict({k: w for k, w in weights.items() if k not in allowed}, strict=False)
    model.is_rounded = len(found) < len(stored)
    return model.eval()


def load_config(directory: Path, name: str) -> Wav2Vec2Config:
    """The checkpoint's config, with the vocabulary size of its target language.

    Raises:
        CheckpointError: no `config.json`, or it describes something that this implementation cannot run.
    """
    tried = f"read {directory / CONFIG_NAME}"
    try:
        config = Wav2Vec2Config.load(directory / CONFIG_NAME)
    except FileNotFoundError as e:
        raise CheckpointError(name, tried, f"a checkpoint directory holds {CONFIG_NAME}") from e
    except (ValueError, TypeError) as e:
        raise CheckpointError(name, tried, str(e)) from e
    kind = config.extra.get("model_type", "wav2vec2")
    if kind != "wav2vec2":
        raise CheckpointError(name, tried, f"expected model_type wav2vec2, found {kind}")
    if config.extra.get("add_adapter"):
        raise CheckpointError(name, tried, "checkpoints with add_adapter are not supported")
    if config.adapter_attn_dim is not None:
        head = read_adapter(directory, name).get("lm_head.bias")
        config = config if head is None else replace(config, vocab_size=len(head))
    return config


def read_weights(directory: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory, on the CPU, under the keys they have on disk, and as they are there.

    Raises:
        CheckpointError: no weights, a shard missing, or a file that is damaged or holds more than tensors.
    """
    for file_name in (SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME, BIN_NAME, BIN_INDEX_NAME):
        path = directory / file_name
        if path.is_file():
            break
    else:
        raise CheckpointError(
            name, f"weights in {directory}", f"a checkpoint directory holds {SAFETENSORS_NAME} or {BIN_NAME}"
        )
    weights: dict[str, Tensor] = {}
    for part in shards(path, name) if path.suffix == ".json" else [path]:
        weights |= read_file(part, name)
    return weights


def shards(index: Path, name: str) -> list[Path]:
    """The files that an index names."""
    tried = f"read {index}"
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(name, tried, "expected a JSON object with weight_map, tensor to file") from e
    paths = [index.parent / str(n) for n in names]
    # A file name with a folder in it could lead out of the checkpoint.
    absent = [str(n) for n, p in zip(names, paths, strict=True) if Path(n).name != n or not p.is_file()]
    if absent:
        raise CheckpointError(name, tried, f"these of its {len(names)} parts are absent: {', '.join(absent)}")
    return paths


def read_file(path: Path, name: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # bytes that are no pickle make the unpickler raise anything
        why = str(e).strip().split("\n", 1)[0]
        raise CheckpointError(name, f"read {path}", f"damaged, or more than tensors in it ({why})") from e
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(name, f"read {path}", "expected a dictionary of tensors")
    return weights


def fit_keys(found: dict[str, Tensor], expected: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under the keys that the model expects, and the keys on disk that fit none."""
    wanted = set(expected)
    weights: dict[str, Tensor] = {}
    leftover = []
    for key, weight in found.items():
        spelled = key
        for old, new in WEIGHT_NORM_SPELLINGS.items():
            if key.endswith(old):
                spelled = key.removesuffix(old) + new
        for candidate in (spelled, PREFIX + spelled, spelled.removeprefix(PREFIX)):
            if candidate in wanted:
                weights[candidate] = weight
                break
        else:
            leftover.append(key)
    return weights, leftover


def report_leftover(name: str, leftover: list[str]) -> None:
    heads = sorted(k for k in leftover if k.startswith(HEADS))
    others = sorted(set(leftover) - set(heads))
    if heads:
        logger.info("%s: weights of another head are not used: %s", name, ", ".join(heads))
    if others:
        logger.warning("%s: weights with no place in the model are not used: %s", name, ", ".join(others))


def describe_problems(
    missing: set[str], wrong: set[str], homeless: set[str], weights: dict[str, Tensor], expected: dict[str, Tensor]
) -> list[str]:
    problems = []
    if missing:
        keys = ", ".join(f"{k} {list(expected[k].shape)}" for k in sorted(missing))
        problems.append(f"{len(missing)} missing: {keys}")
    if wrong:
        keys = ", ".join(
            f"{k} {list(weights[k].shape)} {str(weights[k].dtype).removeprefix('torch.')}, "
            f"expected {list(expected[k].shape)} float"
            for k in sorted(wrong)
        )
        problems.append(f"{len(wrong)} of another shape or kind: {keys}")
    if homeless:
        problems.append(f"{len(homeless)} that the blocks have no place for: {', '.join(sorted(homeless))}")
    return problems


def save_model(model: PreTrainedModel, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers reads too.

    Args:
        dtype: of the floats on disk, such as `torch.float16`; the model's own if None. With `torch.int8` the matrices
            of the blocks are rounded (`core.rounding`), which other programs do not read, and the rest is float16.

    Raises:
        ValueError: a weight is not finite in that dtype; nothing is written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {}
    is_int8 = dtype == torch.int8
    dtype = torch.float16 if is_int8 else dtype
    for key, weight in model.state_dict().items():
        for old, new in WEIGHT_NORM_SPELLINGS.items():
            if key.endswith(new):
                key = key.removesuffix(new) + old
        if is_int8 and is_rounded(key, weight) and weight.isfinite().all():
            weights[key], weights[key + SUFFIX] = to_int8(weight.detach().cpu())
            continue
        saved = weight.detach().to("cpu", dtype if weight.is_floating_point() else None).contiguous()
        if not saved.isfinite().all():
            raise ValueError(f"{key} is not finite in {saved.dtype}")
        weights[key] = saved
    written = str(dtype or model.dtype).removeprefix("torch.")
    # transformers before 5 reads torch_dtype, later ones dtype.
    extra = {**model.config.extra, "architectures": [type(model).__name__], "dtype": written, "torch_dtype": written}
    # A reader never sees half a file.
    part = directory / f"{SAFETENSORS_NAME}.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.replace(directory / SAFETENSORS_NAME)
    replace(model.config, extra=extra).save(directory)
