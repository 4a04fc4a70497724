"""Accelerate prepares, accumulates, saves and loads our optimizers."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from optimizers import AdamW
from tests.integration.processes import SCHEDULE, STEPS, batches, identical, network, train

pytestmark = pytest.mark.slow  # other people's frameworks take long to start

MICRO_BATCHES = 2


def prepared():
    """An accelerator, a model and its optimizer, whose schedule is built in."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO_BATCHES)
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.02, clip_norm=0.2, **SCHEDULE)
    return accelerator, *accelerator.prepare(model, optimizer)


def accumulate(accelerator, model, optimizer, steps=range(STEPS)):
    """The training loop of Accelerate's documentation, in micro-batches."""
    for x, y in batches(steps):
        for part_x, part_y in zip(x.chunk(MICRO_BATCHES), y.chunk(MICRO_BATCHES), strict=True):
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.mse_loss(model(part_x), part_y))
                optimizer.step()
                optimizer.zero_grad()
    return [param.detach().clone() for param in model.parameters()]


def test_accumulated_micro_batches_are_the_whole_batch():
    found = accumulate(*prepared())
    model = network()
    train(model, AdamW(model.parameters(), lr=0.02, clip_norm=0.2, **SCHEDULE))
    torch.testing.assert_close(found, [param.detach() for param in model.parameters()])


def test_a_saved_run_resumes_exactly(tmp_path):
    accelerator, model, optimizer = prepared()
    accumulate(accelerator, model, optimizer, range(3))
    accelerator.save_state(tmp_path)
    whole = accumulate(accelerator, model, optimizer, range(3, STEPS))

    accelerator, model, optimizer = prepared()
    accelerator.load_state(tmp_path)
    assert optimizer.param_groups[0]["schedule_step"] == 3
    assert identical(accumulate(accelerator, model, optimizer, range(3, STEPS)), whole)
