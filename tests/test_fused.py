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
from core.extractor import ConvLayer
from core.wav2vec2 import Wav2Vec2ForCTC

pytest.importorskip("triton", minversion="3.4")  # an older one's interpreter fails with NumPy 2
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default, which warns

from core import fused  # noqa: E402

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = """
import sys
import torch, torch.nn.functional as F
from torch import nn
from core.fused import TOLERANCES, norm_gelu

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for C, T in ((20, 7), (512, 17), (32, 4100)):
        x = (2 * torch.randn(2, C, T) + 1).to(dtype)
        for norm in (nn.LayerNorm(C), nn.GroupNorm(C, C)):
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
            norm.to(dtype).requires_grad_(False)
            if T > 1000 and isinstance(norm, nn.LayerNorm):
                continue
            plain = F.gelu(norm(x.transpose(1, 2)).transpose(1, 2) if isinstance(norm, nn.LayerNorm) else norm(x))
            hole = torch.zeros(2, C, T + 1, dtype=dtype)[:, :, :T].copy_(x)
            for rows in (x, x.transpose(1, 2).contiguous().transpose(1, 2), hole):
                found = norm_gelu(rows, norm)
                assert found.dtype == dtype and found.shape == x.shape
                assert rows is hole or found.stride() == rows.stride()
                error = ((found - plain).float().abs() / (1 + plain.float().abs())).max()
                assert error < TOLERANCES[dtype], (dtype, C, T, norm, error)
print("equal")
"""
MODEL = """
import sys
import torch
from core.checkpoint import load_model
from core.fused import fuse
from core.wav2vec2 import Wav2Vec2ForCTC

torch.manual_seed(0)
samples = torch.randn(2, 1200) / 10
for directory in sys.argv[1:]:
    model = load_model(Wav2Vec2ForCTC, directory).eval()
    plain = model.log_probs(samples)
    n = fuse(model)
    assert n == {"layer": len(model.config.conv_dim), "group": 1}[model.config.feat_extract_norm], n
    layers = [layer for layer in model.wav2vec2.feature_extractor.conv_layers if layer.fused]
    assert len(layers) == n
    with torch.inference_mode():
        found = model.log_probs(samples)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)
    layers[0].fused = lambda x, norm: 0 * x
    with torch.inference_mode():
        assert not torch.allclose(model.log_probs(samples), plain)  # it is the kernels that were run
    model(samples, labels=torch.ones(2, 1, dtype=torch.long)).loss.backward()  # not for training
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


def test_models_say_what_they_say_without(tiny_model_dir: Path, group_model_dir: Path) -> None:
    assert interpret(MODEL, tiny_model_dir, group_model_dir) == "equal"


@pytest.mark.parametrize("capability", [70, 80, 90, 100])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_kernels_compile_for_gpus(kind: str, capability: int) -> None:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = dict.fromkeys(("x", "y", "weight", "bias"), f"*{kind}")
    numbers = dict.fromkeys(("C", "T", "stride_b", "stride_c", "stride_t"), "i32") | {"eps": "fp32"}
    sizes = {fused.norm_channels: {"CHANNELS": 512, "FRAMES": 16}, fused.norm_time: {"FRAMES": 4096}}
    for kernel, constants in sizes.items():
        signature = pointers | numbers | dict.fromkeys(constants, "constexpr")
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
    model = load_model(Wav2Vec2ForCTC, tiny_model_dir).eval()
    with caplog.at_level(logging.WARNING):
        assert fused.fuse(model) == 0
    assert "norms and GELU are run by PyTorch" in caplog.text
    layers = model.wav2vec2.feature_extractor.conv_layers
    assert not any(isinstance(layer, ConvLayer) and layer.fused for layer in layers)


@pytest.mark.gpu
@NEEDS_CUDA
def test_on_a_gpu_a_model_is_given_them(tiny_model_dir: Path) -> None:
    model = AcousticModel.load(tiny_model_dir, "cuda", "float32")
    layers = model.model.wav2vec2.feature_extractor.conv_layers
    assert all(isinstance(layer, ConvLayer) and layer.fused for layer in layers)
    plain = AcousticModel.load(tiny_model_dir, "cpu", "float32")
    windows = [torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy() / 10]
    torch.testing.assert_close(model.emit(windows)[0], plain.emit(windows)[0], atol=1e-3, rtol=0)
