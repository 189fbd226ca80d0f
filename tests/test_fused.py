"""The extractor's norm and GELU in one kernel say what PyTorch's kernels say.

Without a GPU the kernels run in Triton's interpreter, which must be asked for before they are imported: in a process
of their own. That they compile needs no GPU either.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.acoustic import AcousticModel
from core.checkpoint import load_model
from core.configuration import Wav2Vec2Config
from core.layout import FirstConv, FrameConv, lay_out
from core.wav2vec2 import Wav2Vec2ForCTC

pytest.importorskip("triton", minversion="3.4")  # an older one's interpreter fails with NumPy 2
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default, which warns

from core import fused  # noqa: E402

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = """
import torch, torch.nn.functional as F
from torch import nn
from core.fused import TOLERANCES, norm_gelu

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for C, T in ((20, 7), (512, 17), (32, 410)):
        x = (2 * torch.randn(2, T, C) + 1).to(dtype)
        norm = nn.LayerNorm(C)
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        norm.to(dtype).requires_grad_(False)
        plain = F.gelu(norm(x))
        for rows in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
            found = norm_gelu(rows, norm)
            assert found.dtype == dtype and found.shape == x.shape
            error = ((found - plain).float().abs() / (1 + plain.float().abs())).max()
            assert error < TOLERANCES[dtype], (dtype, C, T, error)
print("equal")
"""
FIRST = """
from dataclasses import replace
import torch
from torch import nn
from core.configuration import Wav2Vec2Config
from core.extractor import ConvLayer
from core.fused import TOLERANCES, convolve_gelu
from core.layout import FirstConv

torch.manual_seed(0)
for norm in ("layer", "group", "none"):
    for channels, n in ((20, 999), (512, 180)):
        config = Wav2Vec2Config(conv_dim=(channels,) * 7, feat_extract_norm=norm, conv_bias=norm != "group")
        layer = ConvLayer(config, 0).requires_grad_(False)
        if layer.layer_norm is not None:
            nn.init.normal_(layer.layer_norm.weight), nn.init.normal_(layer.layer_norm.bias)
        samples = torch.randn(3, n) * torch.tensor([[0.01], [0.1], [1.0]]) + 0.02
        norms = torch.rand(3, 2, channels) if norm == "group" else None
        for given in (None, norms):
            plain = layer(samples[:, None], given).transpose(1, 2)
            for dtype in (torch.float32, torch.bfloat16):
                first = FirstConv(layer, dtype)
                first.fused = convolve_gelu
                found = first(samples, given)
                assert found.dtype == dtype and found.shape == plain.shape
                error = ((found - plain).float().abs() / (1 + plain.abs())).max()
                assert error < TOLERANCES[dtype], (norm, channels, dtype, error)
print("equal")
"""
MODEL = """
import sys
import torch
from core.checkpoint import load_model
from core.fused import fuse
from core.layout import lay_out
from core.wav2vec2 import Wav2Vec2ForCTC

torch.manual_seed(0)
samples = torch.randn(2, 1200) / 10
for directory in sys.argv[1:]:
    model = load_model(Wav2Vec2ForCTC, directory).eval()
    plain, n_taps = model.log_probs(samples), model.config.conv_kernel[0]
    lay_out(model, torch.float32)
    n = fuse(model)
    assert n == {"layer": len(model.config.conv_dim) - 1, "group": 1}[model.config.feat_extract_norm], n
    layers = [layer for layer in model.modules() if getattr(layer, "fused", None)]
    assert len(layers) == n
    torch.testing.assert_close(model.log_probs(samples), plain, atol=1e-4, rtol=0)
    fused = layers[0].fused
    layers[0].fused = lambda *given: 0 * fused(*given)
    assert not torch.allclose(model.log_probs(samples), plain)  # it is the kernels that were run
print("equal")
"""


@pytest.fixture
def group_model_dir(tmp_path: Path) -> Path:
    """A model whose first convolution is normed over time."""
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(32,) * 7
    )
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    return tmp_path


def interpret(script: str, *arguments: Path) -> str:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_kernels_say_what_pytorch_says() -> None:
    assert interpret(SHAPES) == "equal"


def test_first_convolutions_say_what_pytorch_says() -> None:
    assert interpret(FIRST) == "equal"


def test_models_say_what_they_say_without(tiny_model_dir: Path, group_model_dir: Path) -> None:
    assert interpret(MODEL, tiny_model_dir, group_model_dir) == "equal"


@pytest.mark.parametrize("capability", [70, 80, 90, 100])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_kernels_compile_for_gpus(kind: str, capability: int) -> None:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = dict.fromkeys(("x", "y", "factor", "summand"), f"*{kind}")
    tile = {"CHANNELS": 512, "FRAMES": 16}
    of_first = {"x": "*fp32", "y": f"*{kind}"} | dict.fromkeys(("weight", "bias", "factor", "summand"), "*fp32")
    kernels = [
        (fused.norm_channels, pointers, ("T", "C"), tile),
        *(
            (
                fused.convolve,
                of_first,
                ("S", "T", "C", "of_weight", "of_bias"),
                tile | {"TAPS": 10, "STRIDE": 5} | normed,
            )
            for normed in ({"IS_NORMED": True}, {"IS_NORMED": False})
        ),
    ]
    for kernel, arrays, numbers, constants in kernels:
        signature = arrays | dict.fromkeys(numbers, "i32") | {"eps": "fp32"} | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        assert compiled.asm["cubin"]


@pytest.mark.parametrize("found", ["wrong", "impossible"])
def test_kernels_that_are_not_true_are_left(
    found: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kernel(x: Tensor, norm: nn.Module) -> Tensor:
        if found == "impossible":
            raise RuntimeError("no compiler")
        return x

    monkeypatch.setattr(fused, "norm_gelu", kernel)
    model = lay_out(load_model(Wav2Vec2ForCTC, tiny_model_dir).eval(), torch.float32)
    with caplog.at_level(logging.WARNING):
        assert fused.fuse(model) == 0
    assert "norms and GELU are run by PyTorch" in caplog.text
    assert not any(layer.fused for layer in model.modules() if isinstance(layer, FirstConv | FrameConv))


@pytest.mark.gpu
@NEEDS_CUDA
def test_on_a_gpu_a_model_is_given_them(tiny_model_dir: Path) -> None:
    model = AcousticModel.load(tiny_model_dir, "cuda", "float32")
    layers = [layer for layer in model.model.modules() if isinstance(layer, FirstConv | FrameConv)]
    assert layers and all(bool(layer.fused) == fused.is_fit(layer) for layer in layers)
    plain = AcousticModel.load(tiny_model_dir, "cpu", "float32")
    windows = [torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy() / 10]
    torch.testing.assert_close(model.emit(windows)[0], plain.emit(windows)[0], atol=1e-3, rtol=0)
