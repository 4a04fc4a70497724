"""The shapes of the parameters that the benchmark steps: whole models, without their code."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Shapes = list[tuple[str, Shape]]  # embeddings and output heads say so in their name
Named = list[tuple[str, nn.Parameter]]


def block(name: str, width: int) -> Shapes:
    """A transformer block with biases."""
    return [
        (f"{name}.norm1.weight", (width,)), (f"{name}.norm1.bias", (width,)),
        (f"{name}.qkv.weight", (3 * width, width)), (f"{name}.qkv.bias", (3 * width,)),
        (f"{name}.proj.weight", (width, width)), (f"{name}.proj.bias", (width,)),
        (f"{name}.norm2.weight", (width,)), (f"{name}.norm2.bias", (width,)),
        (f"{name}.up.weight", (4 * width, width)), (f"{name}.up.bias", (4 * width,)),
        (f"{name}.down.weight", (width, 4 * width)), (f"{name}.down.bias", (width,)),
    ]  # fmt: skip


def gpt(layers: int = 12, width: int = 384, vocabulary: int = 20_000) -> Shapes:
    """A GPT with tied embeddings: 29.4 M parameters in 148 tensors."""
    blocks = [shape for index in range(layers) for shape in block(f"block{index}", width)]
    return [
        ("tokens.embedding", (vocabulary, width)), ("positions.embedding", (1024, width)),
        *blocks, ("norm.weight", (width,)), ("norm.bias", (width,)),
    ]  # fmt: skip


def vit(layers: int = 12, width: int = 384) -> Shapes:
    """ViT-S/16: 22.1 M parameters in 152 tensors."""
    blocks = [shape for index in range(layers) for shape in block(f"block{index}", width)]
    return [
        ("class.embedding", (1, 1, width)), ("positions.embedding", (1, 197, width)),
        ("patches.weight", (width, 3, 16, 16)), ("patches.bias", (width,)),
        *blocks, ("norm.weight", (width,)), ("norm.bias", (width,)),
        ("head.weight", (1000, width)), ("head.bias", (1000,)),
    ]  # fmt: skip


def resnet() -> Shapes:
    """ResNet-50: 25.6 M parameters in 161 tensors, most of them convolutions."""
    shapes: Shapes = []

    def convolution(name: str, out: int, into: int, size: int) -> None:
        shapes.append((f"{name}.weight", (out, into, size, size)))
        shapes.extend((f"{name}.norm.{part}", (out,)) for part in ("weight", "bias"))

    convolution("stem", 64, 3, 7)
    into = 64
    for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(depth):
            name = f"stage{stage}.{index}"
            convolution(f"{name}.conv1", width, into, 1)
            convolution(f"{name}.conv2", width, width, 3)
            convolution(f"{name}.conv3", 4 * width, width, 1)
            if index == 0:
                convolution(f"{name}.shortcut", 4 * width, into, 1)
            into = 4 * width
    return [*shapes, ("head.weight", (1000, 2048)), ("head.bias", (1000,))]


def embedding(tables: int = 8, rows: int = 50_000, width: int = 64) -> Shapes:
    """A recommender: 26.4 M parameters in 14 tensors, nearly all of them in embedding tables."""
    sizes = (tables * width, 1024, 256, 1)
    shapes: Shapes = [(f"table{index}.embedding", (rows, width)) for index in range(tables)]
    for index, (into, out) in enumerate(itertools.pairwise(sizes)):
        shapes += [(f"layer{index}.weight", (out, into)), (f"layer{index}.bias", (out,))]
    return shapes


def many_small(tensors: int = 2000, size: int = 512) -> Shapes:
    """Vectors so short that the cost per tensor is all there is."""
    return [(f"small{index}", (size,)) for index in range(tensors)]


def tiny() -> Shapes:
    """A few tensors of every kind, for trying the benchmark itself."""
    return [("words.embedding", (40, 16)), *block("block0", 16), ("conv.weight", (8, 4, 3, 3))]


MODELS: Mapping[str, Callable[[], Shapes]] = MappingProxyType(
    {
        "gpt": gpt, "vit": vit, "resnet": resnet, "embedding": embedding,
        "many-small": many_small, "tiny": tiny,
    }
)  # fmt: skip


def count(shapes: Shapes) -> int:
    """How many parameters the shapes hold."""
    return sum(torch.Size(shape).numel() for _, shape in shapes)


def gradients(shapes: Shapes, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of the usual size; their global norm is far above 1, so that clipping clips."""
    source = torch.Generator(device).manual_seed(1)
    size = max(1e-2, 10 / count(shapes) ** 0.5)
    return [
        torch.randn(shape, generator=source, device=device, dtype=dtype).mul_(size)
        for _, shape in shapes
    ]


def parameters(shapes: Shapes, device: str, dtype: torch.dtype) -> Named:
    """Fresh parameters; every optimizer that is measured has its own."""
    source = torch.Generator(device).manual_seed(0)
    return [
        (
            name,
            nn.Parameter(torch.randn(shape, generator=source, device=device, dtype=dtype) * 0.02),
        )
        for name, shape in shapes
    ]


def is_hidden(name: str, param: nn.Parameter) -> bool:
    """Whether Muon is meant for a parameter: a matrix that is neither embedding nor head."""
    return param.dim() >= 2 and not name.endswith("embedding") and not name.startswith("head")
