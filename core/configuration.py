"""The settings of a Wav2Vec2 model, as hub checkpoints write them in `config.json`.

Field names, defaults and meaning follow the published checkpoints (Baevski et al. 2020,
https://arxiv.org/abs/2006.11477), so that a hub file loads without renaming. Fields that this
implementation does not know are kept in `extra` and written back by `save`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

ACTIVATIONS = ("gelu", "relu", "silu", "gelu_new")
CONV_ACTIVATIONS = (*ACTIVATIONS, "square", "log")
EXTENSIONS = ("adapter_attn_dim", "conv_padding", "conv_activation", "add_sinusoids", "branch")
TUPLES = ("conv_dim", "conv_stride", "conv_kernel", "conv_padding", "conv_activation", "branch")
CTC_REDUCTIONS = ("mean", "sum", "none")
CONFIG_NAME = "config.json"


@dataclass(frozen=True, slots=True)
class Wav2Vec2Config:
    """Settings of the network. All sizes are counts, all dropouts probabilities.

    Raises:
        ValueError: a setting is impossible; the message holds the numbers.
    """

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    feat_quantizer_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    # The convolutional feature extractor: one entry of each tuple a layer.
    feat_extract_norm: str = "group"
    feat_extract_dropout: float = 0.0
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    adapter_attn_dim: int | None = None  # width of the adapters of MMS, which blocks with stable layer norm may have
    # Beyond the paper, each left out of the file where a model has none of it. Convolutions may be padded with zeros
    # and have activations of their own, so that they can begin as a spectrum; Whisper's blocks need sinusoids. Blocks
    # from the first number of `branch` up to the second only advise: a linear map of what they say is added to what
    # the first of them was given.
    conv_padding: tuple[int, ...] = ()
    conv_activation: tuple[str, ...] = ()
    add_sinusoids: bool = False
    branch: tuple[int, ...] = ()
    # SpecAugment-style masks on the projected features, while training.
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    # The product quantizer and the contrastive loss of pre-training.
    num_codevectors_per_group: int = 320
    num_codevector_groups: int = 2
    contrastive_logits_temperature: float = 0.1
    num_negatives: int = 100
    codevector_dim: int = 256
    proj_codevector_dim: int = 256
    diversity_loss_weight: float = 0.1
    # The CTC loss.
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    pad_token_id: int = 0  # also the CTC blank
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    # What a hub file holds beyond the fields above; kept, never read.
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in TUPLES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_kinds()
        self._check_sizes()
        self._check_choices()

    def _check_kinds(self) -> None:
        for setting in fields(self):
            value, default = getattr(self, setting.name), setting.default
            if isinstance(default, str) and not isinstance(value, str):
                raise ValueError(f"{setting.name} must be a text. Found: {value!r}")
            if isinstance(default, (int, float)) and not isinstance(value, (int, float, type(None))):
                raise ValueError(f"{setting.name} must be a number. Found: {value!r}")

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "num_conv_pos_embeddings",
            "num_conv_pos_embedding_groups",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Found: {value}")
        if self.adapter_attn_dim is not None and self.adapter_attn_dim < 1:
            raise ValueError(f"adapter_attn_dim must be at least 1. Found: {self.adapter_attn_dim}")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must not be negative. Found: {self.num_hidden_layers}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads. "
                f"Found: {self.hidden_size} and {self.num_attention_heads}"
            )
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise ValueError(
                f"hidden_size must be a multiple of num_conv_pos_embedding_groups. "
                f"Found: {self.hidden_size} and {self.num_conv_pos_embedding_groups}"
            )
        lengths = (len(self.conv_dim), len(self.conv_stride), len(self.conv_kernel))
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise ValueError(
                "conv_dim, conv_stride and conv_kernel must have one entry for each layer. "
                f"Found lengths: {lengths[0]}, {lengths[1]}, {lengths[2]}"
            )
        for name in ("conv_dim", "conv_stride", "conv_kernel"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must hold numbers of at least 1. Found: {getattr(self, name)}")
        for name in ("conv_padding", "conv_activation"):
            if len(getattr(self, name)) not in (0, lengths[0]):
                raise ValueError(f"{name} must have one entry for each layer, or none. Found: {getattr(self, name)}")
        if min(self.conv_padding, default=0) < 0:
            raise ValueError(f"conv_padding must not be negative. Found: {self.conv_padding}")
        if any(self.conv_padding) and self.feat_extract_norm == "group":
            raise ValueError("conv_padding needs a feat_extract_norm of layer or none. Found: group")
        if self.branch and not (
            len(self.branch) == 2 and 0 <= self.branch[0] < self.branch[1] < self.num_hidden_layers
        ):
            raise ValueError(
                f"branch must be two numbers of blocks, the second below num_hidden_layers. Found: {self.branch}"
            )
        if not 0 <= self.pad_token_id:
            raise ValueError(f"pad_token_id must not be negative. Found: {self.pad_token_id}")

    def _check_choices(self) -> None:
        for name, allowed in (
            ("hidden_act", ACTIVATIONS),
            ("feat_extract_activation", ACTIVATIONS),
            ("feat_extract_norm", ("group", "layer", "none")),
            ("ctc_loss_reduction", CTC_REDUCTIONS),
            ("conv_activation", CONV_ACTIVATIONS),
        ):
            value = getattr(self, name)
            if not set(value if isinstance(value, tuple) else (value,)) <= set(allowed):
                raise ValueError(f"{name} must be one of {', '.join(allowed)}. Found: {value!r}")
        for name in (
            "hidden_dropout",
            "activation_dropout",
            "attention_dropout",
            "feat_proj_dropout",
            "feat_extract_dropout",
            "feat_quantizer_dropout",
            "final_dropout",
            "layerdrop",
            "mask_time_prob",
            "mask_feature_prob",
        ):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1]. Found: {value}")

    @property
    def hop(self) -> int:
        """Samples between two frames: the product of the strides."""
        hop = 1
        for stride in self.conv_stride:
            hop *= stride
        return hop

    @property
    def paddings(self) -> tuple[int, ...]:
        """Zeros on either side of each convolution's input."""
        return self.conv_padding or (0,) * len(self.conv_dim)

    @property
    def receptive_field(self) -> int:
        """Fewest samples that make a frame: those that it sees, without padding."""
        n = 1
        layers = zip(self.conv_kernel, self.conv_stride, self.paddings, strict=True)
        for kernel, stride, padding in reversed(list(layers)):
            n = max(1, (n - 1) * stride + kernel - 2 * padding)
        return n

    @property
    def halo(self) -> int:
        """Frames at each end of a window that see padding instead of what lies beyond."""
        n_samples, step = 0, 1
        for stride, padding in zip(self.conv_stride, self.paddings, strict=True):
            n_samples += padding * step
            step *= stride
        return -(-n_samples // step)

    def n_frames(self, n_samples: int) -> int:
        """Frames that the extractor makes of `n_samples` samples (0 where they are too few)."""
        for kernel, stride, padding in zip(self.conv_kernel, self.conv_stride, self.paddings, strict=True):
            n_samples = max(0, (n_samples + 2 * padding - kernel) // stride + 1) if n_samples else 0
        return n_samples

    def to_dict(self) -> dict[str, Any]:
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        # The files of ordinary models stay those that other programs write.
        known = {name: value for name, value in known.items() if value or name not in EXTENSIONS}
        lists = {name: list(known[name]) for name in TUPLES if name in known}
        return {"model_type": "wav2vec2", **self.extra, **known, **lists}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Wav2Vec2Config:
        """The config that a hub `config.json` describes; `null` fields take their defaults."""
        names = {f.name for f in fields(cls)} - {"extra"}
        nullable = {"bos_token_id", "eos_token_id"}
        known = {k: v for k, v in values.items() if k in names and (v is not None or k in nullable)}
        extra = {k: v for k, v in values.items() if k not in known}
        return cls(**known, extra=extra)

    def save(self, path: str | Path) -> None:
        """Writes JSON to `path`, or to `path/config.json` if it is a directory."""
        path = Path(path)
        path = path / CONFIG_NAME if path.is_dir() else path
        path.write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Wav2Vec2Config:
        path = Path(path)
        path = path / CONFIG_NAME if path.is_dir() else path
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"Expected a JSON object in {path}. Found: {type(values).__name__}")
        return cls.from_dict(values)
