"""Muon: momentum made orthogonal by a Newton-Schulz iteration, for the hidden matrices.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon. Liu et al., "Muon is Scalable for LLM Training", 2025,
https://arxiv.org/abs/2502.16982 (``adjust_lr_fn="match_rms_adamw"``). Bernstein, "Deriving Muon",
2025, https://jeremybernste.in/writing/deriving-muon (``adjust_lr_fn="spectral_unclamped"``).

Tensors with more than two dimensions (convolutions) are flattened to ``(out, everything else)``.
Vectors and scalars go to AdamW with ``adamw_lr`` in the same optimizer; so should embeddings and
the output head, which `create` sees in a model and a group marks with ``"rule": "adamw"``:

    Muon([{"params": body}, {"params": [*embedding, *head], "rule": "adamw"}])

torch's iteration and the author's run in bfloat16, whatever the parameters: its rounding moves
singular values by about a hundredth, which the iteration itself spreads over 0.7..1.2. Here
``ns_precision`` says: "full" is the precision of the arithmetic, "bfloat16" as they do, and "auto"
takes bfloat16 for float32 matrices with at least 128 rows and columns on devices that multiply it
faster (x86 with AMX or AVX512-BF16, GPUs from Ampere on).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from optimizers.core import Hyper, Option, Partner, Rule, Scalar, State, Values, at_least, ema
from optimizers.parts import Core, front
from optimizers.pieces import fit
from optimizers.precision import compute_dtype
from optimizers.rules.ranges import beta, epsilon, learning_rate, weight_decay

LONG = 2  # of the longer side over the shorter: Gram matrices then need fewer operations
WORTH = 128  # of the shorter side: below, products are too small for bfloat16 to matter
# Bytes of the Gram matrices that are iterated together, or of a quarter of X. Threads share one
# product of a few hundred rows badly, of a stack each takes its own; but a stack is in memory.
STACK = 2**19
PART = 2**17  # entries of X that a product makes at least, as many short ones take long
# Rounding leaves Gram matrices of singular matrices slightly indefinite, and each step makes that
# a² times worse. In float32 1e-7 becomes 2e-2 in five, which is harmless; bfloat16 begins with 2e-3
# of entries that are small at first, and has to go back to X after three steps and then every two.
RESTARTS = {torch.bfloat16: (3, 2)}
RESTART = (5, 5)


def is_matrix(param: Tensor) -> bool:
    """Whether a parameter has rows and columns."""
    return param.dim() >= 2


@cache
def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    if device.type == "cpu":
        about = torch.cpu.get_capabilities()
        units = about.get("amx_bf16", False) or about.get("avx512_bf16", False)
        return bool(units) and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def precision(param: Tensor, hyper: Values) -> torch.dtype:
    """The dtype of the iteration; ``param`` is in that of the arithmetic, or half precision."""
    rows, columns = param.shape[0], prod(param.shape[1:])
    if hyper.ns_precision == "auto":
        worth = min(rows, columns) >= WORTH and param.dtype != torch.float64
        narrow = worth and fast_bfloat16(param.device)
    else:
        narrow = hyper.ns_precision == "bfloat16"
    return torch.bfloat16 if narrow else compute_dtype(param.dtype)


def combined(
    base: Tensor,
    a: Tensor,
    b: Tensor,
    beta: Scalar,
    alpha: Scalar = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """``beta·base + alpha·a b``, of matrices or of stacks of them."""
    if isinstance(beta, Tensor) or isinstance(alpha, Tensor):
        scaled: Tensor = beta * base + alpha * (a @ b)
        return scaled
    multiply = torch.addmm if base.dim() == 2 else torch.baddbmm
    return multiply(base, a, b, beta=beta, alpha=alpha, out=out)


def multiplied(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a b``, of matrices or of stacks of them."""
    return (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out=out)


def polynomial(gram: Tensor, hyper: Values, out: Tensor | None = None) -> Tensor:
    """``b·G + c·G²``: the iteration's factor of X, but for ``a``."""
    return combined(gram, gram, gram, hyper.ns_b, hyper.ns_c, out)


def gram_of(x: Tensor, tall: bool, out: Tensor | None = None) -> Tensor:
    """The smaller of the two Gram matrices."""
    return multiplied(x.mT, x, out) if tall else multiplied(x, x.mT, out)


def times(factor: Tensor, x: Tensor, tall: bool, out: Tensor | None = None) -> Tensor:
    """A symmetric factor on the shorter side of X, which needs no transposed copy."""
    return multiplied(x, factor, out) if tall else multiplied(factor, x, out)


class Work(NamedTuple):
    """Memory for what an iteration makes; None is new memory every time.

    Four squares like Gram matrices. ``rest`` is all behind the first.
    """

    squares: Sequence[Tensor | None] = (None,) * 4
    rest: Tensor | None = None

    @staticmethod
    def entries(shape: Sequence[int]) -> int:
        """How many a matrix of this shape needs."""
        short, long = sorted((shape[0], prod(shape[1:])))
        return short * short + max(3 * short * short, min(short * long, PART))

    @classmethod
    def on(cls, memory: Tensor | None, x: Tensor) -> Work:
        """The work of a matrix, or of a stack of them, laid out in memory if there is any."""
        if memory is None:
            return cls()
        *stack, rows, columns = x.shape
        short = min(rows, columns)
        size = prod(stack) * short * short
        parts = torch.split(memory[: 4 * size], size)
        squares = [part.view(*stack, short, short) for part in parts]
        return cls(squares, memory[size : prod(stack) * cls.entries((rows, columns))])


NEW = Work()


def by_products(
    x: Tensor,
    hyper: Values,
    steps: int,
    tall: bool = False,
    work: Work = NEW,
    other: Tensor | None = None,
) -> Tensor:
    """The iteration as it is written; by turns in ``other`` and where ``x`` was, if it is there."""
    own = None if other is None else x
    for _ in range(steps):
        factor = polynomial(gram_of(x, tall, work.squares[0]), hyper, work.squares[1])
        x = combined(x, *((x, factor) if tall else (factor, x)), hyper.ns_a, out=other)
        own, other = other, own
    return x


def by_grams(
    x: Tensor, hyper: Values, steps: int, tall: bool, *, normed: bool, work: Work
) -> Tensor:
    """The same iteration on the Gram matrix alone, which is small if X is long.

    X enters only at both ends: with ``P = a + b·G + c·G²``, ``P X`` has the Gram matrix ``P G P``,
    and all these matrices commute.
    """
    factor = composed(x, hyper, steps, tall, normed=normed, work=work)
    if work.rest is None:
        return times(factor, x, tall)
    one_by_one = x.dim() > 2 and x[0].numel() <= len(work.rest)  # torch copies other parts
    along = 0 if one_by_one else x.dim() - (2 if tall else 1)
    size = fit(x.shape, along, len(work.rest))
    for number, part in enumerate(torch.split(x, size, along)):
        own = factor[number * size : (number + 1) * size] if one_by_one else factor
        part.copy_(times(own, part, tall, front(work.rest, part.shape)))
    return x


def composed(
    x: Tensor, hyper: Values, steps: int, tall: bool, *, normed: bool, work: Work
) -> Tensor:
    """The factor of X that some steps amount to, in the first of the work's squares.

    The trace of the Gram matrix is the square of X's norm, which both are divided by if X is not
    ``normed``.
    """
    first, second, third, spare = work.squares
    if steps == 1:
        first, second = second, first
    gram = gram_of(x, tall, first)
    norm = None if normed else divided(gram, hyper)
    product = gram
    for step in range(steps):
        factor = polynomial(gram, hyper, third if step else second)
        factor.diagonal(dim1=-2, dim2=-1).add_(hyper.ns_a)
        last = step + 1 == steps
        if not step:
            product = factor
        else:
            product = times(factor, product, tall, first if last else spare)
            second, spare = spare, second
        if not last:
            gram = multiplied(factor, gram, spare)
            gram = multiplied(gram, factor, first)  # rounds both sides alike
    return product if norm is None else product.div_(norm)


def divided(gram: Tensor, hyper: Values) -> Tensor:
    """Divide a Gram matrix by its trace; returns the norm of the matrix that it is of."""
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    square = at_least(square, hyper.eps**2).clamp(min=torch.finfo(gram.dtype).tiny)
    gram.div_(square).nan_to_num_(nan=0.0)  # where squares overflow, X over its norm is zero
    return square.sqrt()


def runs(steps: int, dtype: torch.dtype) -> Iterator[int]:
    """The steps in runs, each of which begins with the Gram matrix of X itself."""
    most, later = RESTARTS.get(dtype, RESTART)
    while steps > 0:
        yield min(most, steps)
        steps, most = steps - most, later


def orthogonalized(matrix: Tensor, hyper: Values, memory: Tensor | None = None) -> Tensor:
    """A matrix with the singular vectors of ``matrix``, which is overwritten, and singular values
    near 1; of a stack of matrices, each.

    ``memory`` may hold what is needed: `Work.entries` for every matrix. The result then lies where
    the matrix did.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    short, long = sorted(matrix.shape[-2:])
    work = Work.on(memory, matrix)
    if long < LONG * short:
        own = other = None
        if work.rest is not None:  # which has room for a matrix behind a square
            own, other = matrix, work.rest[-matrix.numel() :].view(matrix.shape)
            if hyper.ns_steps % 2:  # so that it ends where it was
                own, other = other, own
        norm = at_least(matrix.norm(dim=(-2, -1), keepdim=True), hyper.eps)
        x = torch.div(matrix, norm, out=own)
        return by_products(x, hyper, hyper.ns_steps, tall, work, other)
    for number, steps in enumerate(runs(hyper.ns_steps, matrix.dtype)):
        matrix = by_grams(matrix, hyper, steps, tall, normed=number > 0, work=work)
    return matrix


def scale(rows: int, columns: int, adjust_lr_fn: str | None) -> float:
    """What keeps the size of the update alike for matrices of all shapes."""
    if adjust_lr_fn == "match_rms_adamw":
        return float(0.2 * max(rows, columns) ** 0.5)
    least = 0.0 if adjust_lr_fn == "spectral_unclamped" else 1.0
    return float(max(least, rows / columns) ** 0.5)


def momentum(
    grad: Tensor, param: Tensor, state: State, hyper: Values, t: Scalar
) -> tuple[Tensor, State]:
    """What is orthogonalized: the momentum, a step ahead with ``nesterov``."""
    buffer = ema(state["momentum_buffer"], grad, hyper.momentum)
    ahead = ema(grad, buffer, 1 - hyper.momentum) if hyper.nesterov else buffer
    return ahead, {"momentum_buffer": buffer}


def together(shape: Sequence[int], dtype: torch.dtype) -> int:
    """How many matrices of a shape to iterate together in a dtype."""
    short, long = sorted((shape[0], prod(shape[1:])))
    entries = max(1, short * max(short, long / 4))
    return max(1, round(STACK / dtype.itemsize / entries))


def direction(values: Tensor, hyper: Values, memory: Tensor | None = None) -> Tensor:
    """The orthogonalized momentum, scaled by the shape of the matrix; of a stack."""
    count, rows, columns = values.shape[0], values.shape[1], prod(values.shape[2:])
    matrices = values.reshape(count, rows, columns)
    found = orthogonalized(matrices if count > 1 else matrices.squeeze(0), hyper, memory)
    return found.mul_(scale(rows, columns, hyper.adjust_lr_fn)).reshape(values.shape)


CORE = Core(
    before=momentum, whole=direction, storage=precision, together=together, work=Work.entries
)


def init(param: Tensor, hyper: Values) -> State:
    """One momentum buffer, zero."""
    return {"momentum_buffer": torch.zeros_like(param)}


MUON = Rule(
    name="muon",
    class_name="Muon",
    update=CORE.update,
    core=CORE,
    state=init,
    partner=Partner(
        "adamw",
        is_matrix,
        {
            "lr": "adamw_lr",
            "betas": "adamw_betas",
            "eps": "adamw_eps",
            "weight_decay": "weight_decay",
        },
    ),
    hypers={
        "lr": learning_rate(1e-3, 1e-3, 0.128, "author: 0.02; marin 8e-3..0.128, best to 0.016"),
        "weight_decay": weight_decay(0.1, 1e-2, 0.3, "author: 0.01; marin 0, 0.1, 0.2"),
        "momentum": beta(
            0.95, 0.8, 0.98, "marin 0.8..0.98", "decay of the gradient's mean", priority=2
        ),
        "ns_a": Hyper(3.4445, 2.0, 4.0, doc="Newton-Schulz: factor of X"),
        "ns_b": Hyper(-4.7750, -6.0, -1.0, doc="Newton-Schulz: factor of X X' X"),
        "ns_c": Hyper(2.0315, 0.3, 3.0, doc="Newton-Schulz: factor of (X X')² X"),
        "eps": epsilon(1e-7, 1e-12, 1e-6, "no effect", doc="least norm of the momentum"),
        "adamw_lr": Hyper(
            3e-4, 1e-4, 1e-2, log=True, priority=1, at_least=0.0,
            doc="learning rate of the parameters that AdamW gets",
            source="author: 3e-4; marin 8e-4..3.2e-3",
        ),
        "adamw_beta1": beta(0.9, 0.5, 0.98, "as AdamW", "decay of AdamW's mean"),
        "adamw_beta2": beta(0.95, 0.9, 0.999, "author: 0.95", "decay of AdamW's square"),
        "adamw_eps": epsilon(1e-10, 1e-12, 1e-6, "author: 1e-10", doc="AdamW's eps"),
    },
    options={
        "nesterov": Option(True, (False, True), "interpolate the momentum with the gradient"),
        "ns_steps": Option(5, range(1, 100), "Newton-Schulz iterations"),
        "ns_precision": Option(
            "auto", ("auto", "full", "bfloat16"),
            "of the iteration: that of the arithmetic, or bfloat16; auto takes bfloat16 for large "
            "float32 matrices where it is faster",
        ),
        "adjust_lr_fn": Option(
            None,
            (None, "original", "match_rms_adamw", "spectral_unclamped"),
            "scale by shape: sqrt(max(1, rows/columns)), AdamW's 0.2·sqrt(max(rows, columns)) to"
            " use its learning rate, or sqrt(rows/columns); None is the first",
        ),
    },
    packs={
        "ns_coefficients": ("ns_a", "ns_b", "ns_c"),
        "adamw_betas": ("adamw_beta1", "adamw_beta2"),
    },
    scope="tensor",
    weight_decay_mode="decoupled",
    batch_scaling="sqrt",
    paper="Jordan et al., 2024, https://kellerjordan.github.io/posts/muon",
    summary="Momentum with all singular values made equal; AdamW for what is no matrix.",
    when="Hidden layers of transformers and convolutional networks, trained from scratch.",
    equations=r"""
b_t = \text{momentum} \cdot b_{t-1} + (1 - \text{momentum}) g_t, \quad
u_t = (1 - \text{momentum}) g_t + \text{momentum} \cdot b_t \\
X_0 = u_t / \|u_t\|_F, \quad X_{i+1} = a X_i + (b X_i X_i^T + c (X_i X_i^T)^2) X_i,
    \quad i < \text{ns\_steps} \\
p_t = p_{t-1} - \text{lr} \cdot (\sqrt{\max(1, \text{rows} / \text{columns})} \, X_\text{ns\_steps}
    + \text{weight\_decay} \cdot p_{t-1})
""",
)  # fmt: skip

RULES = (MUON,)
