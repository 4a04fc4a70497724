"""Lightning's Trainer drives our optimizers as it drives torch's."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from optimizers import AdamW, Lion, schedules
from tests.integration.processes import identical

pytestmark = pytest.mark.slow  # other people's frameworks take long to start

EPOCH = 4
STEPS = 2 * EPOCH
SCHEDULE = schedules.warmup_cosine(warmup=0.3)


def built_in(params):
    return AdamW(params, lr=0.02, clip_norm=0.5, schedule=SCHEDULE, total_steps=STEPS)


def plain(params):
    return AdamW(params, lr=0.02)


def clipped(params):
    return AdamW(params, lr=0.02, clip_norm=0.5)


def with_scheduler(optimizer, scheduler):
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


def step_decay(params):
    optimizer = Lion(params, lr=0.02, clip_norm=0.5)
    return with_scheduler(optimizer, StepLR(optimizer, step_size=3, gamma=0.1))


def same_as_built_in(params):
    optimizer = clipped(params)
    return with_scheduler(optimizer, schedules.to_lr_scheduler(optimizer, SCHEDULE, STEPS))


class Module(LightningModule):
    """A small regression; ``configure`` makes the optimizer from the parameters."""

    def __init__(self, configure):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        self.configure = configure
        self.rates = []

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.mse_loss(self.network(x), y)

    def on_train_batch_end(self, *_):
        self.rates.append(self.optimizers().current_lr)
        if self.global_step == EPOCH:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir, "middle.ckpt"))

    def configure_optimizers(self):
        return self.configure(self.parameters())


@pytest.fixture
def fit(tmp_path):
    def run(configure, resume_from=None, **arguments):
        module = Module(configure)
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            **{"max_steps": STEPS, **arguments},
        )
        source = torch.Generator().manual_seed(1)
        data = TensorDataset(
            torch.randn(16, 6, generator=source), torch.randn(16, 1, generator=source)
        )
        trainer.fit(module, DataLoader(data, 4), ckpt_path=resume_from, weights_only=True)
        return trainer, module

    return run


@pytest.mark.parametrize("configure", [built_in, step_decay, same_as_built_in])
def test_a_resumed_fit_is_bit_identical(configure, fit, tmp_path):
    _, whole = fit(configure)
    _, resumed = fit(configure, resume_from=tmp_path / "middle.ckpt")
    assert identical(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert resumed.rates == whole.rates[EPOCH:]


def test_both_forms_of_a_schedule_are_the_same(fit):
    _, inside = fit(built_in)
    _, outside = fit(same_as_built_in)
    assert inside.rates == pytest.approx([0.02 * SCHEDULE.factor(s, STEPS) for s in range(STEPS)])
    assert outside.rates == pytest.approx(inside.rates)
    torch.testing.assert_close(outside.state_dict(), inside.state_dict())


def test_a_torch_scheduler_sets_the_learning_rate(fit):
    _, module = fit(step_decay)
    assert module.rates == pytest.approx([0.02] * 3 + [0.002] * 3 + [0.0002] * 2)


def test_lightning_clips_as_we_do(fit):
    _, theirs = fit(plain, gradient_clip_val=0.5)
    _, ours = fit(clipped)
    # torch divides by the norm plus 1e-6
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict(), rtol=1e-4, atol=1e-6)
    _, free = fit(plain)
    assert not torch.allclose(free.network[0].weight, ours.network[0].weight, rtol=1e-4)


def test_accumulated_gradients(fit):
    trainer, module = fit(built_in, max_steps=4, accumulate_grad_batches=2)
    assert trainer.global_step == 4
    assert module.optimizers().param_groups[0]["schedule_step"] == 4
