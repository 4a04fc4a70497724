"""torch's optimizers, where they cannot be compared with as they are."""

from unittest import mock

import torch


class ExactMuon(torch.optim.Muon):
    """torch's Muon without its cast of the Newton-Schulz iteration to bfloat16."""

    def step(self, closure=None):
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            return super().step(closure)
