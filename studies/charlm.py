"""A language model of characters on Python's own help texts, with a small transformer."""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from tuner import Task

CONTEXT = 64
WIDTH, HEADS, LAYERS = 64, 4, 2

Batch = list[Tensor]


class Transformer(nn.Module):
    """Predicts each next character: (batch, time) -> (batch, time, symbols)."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(symbols, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, symbols)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(hidden))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Nats per character."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def build() -> Task:
    text = "".join(topics[name] for name in sorted(topics))
    alphabet = {symbol: index for index, symbol in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[symbol] for symbol in text])
    windows = codes[: (len(codes) - 1) // CONTEXT * CONTEXT + 1]
    inputs, targets = windows[:-1].view(-1, CONTEXT), windows[1:].view(-1, CONTEXT)
    held_out = len(inputs) // 20  # the end of the text: neighbouring windows would leak
    return Task(
        model=lambda: Transformer(len(alphabet)),
        train=TensorDataset(inputs[:-held_out], targets[:-held_out]),
        val=TensorDataset(inputs[-held_out:], targets[-held_out:]),
        loss=loss,
        val_batch_size=128,
    )
