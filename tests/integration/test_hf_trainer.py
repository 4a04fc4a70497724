"""Hugging Face's Trainer drives our optimizers as it drives torch's."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import optimizers
from optimizers import schedules
from tests.integration.processes import identical

pytestmark = pytest.mark.slow  # other people's frameworks take long to start

STEPS = 12
TOKENS = 8
CONFIG = GPT2Config(
    vocab_size=16,
    n_positions=TOKENS,
    n_embd=16,
    n_layer=1,
    n_head=2,
    bos_token_id=0,
    eos_token_id=0,
)


def sequences():
    """Counting modulo 16."""
    rows = [(torch.arange(TOKENS) + start) % 16 for start in range(16)]
    return [{"input_ids": row, "labels": row} for row in rows]


def built_in(model):
    """The schedule inside the optimizer; the Trainer's own is constant."""
    optimizer = optimizers.AdamW(
        optimizers.param_groups(model, weight_decay=0.1),
        lr=0.03,
        clip_norm=1.0,
        schedule=schedules.warmup_cosine(warmup=0.2),
        total_steps=STEPS,
    )
    return {"optimizers": (optimizer, None)}


def torch_scheduler(model):
    optimizer = optimizers.AdamW(model.parameters(), lr=0.03)
    return {"optimizers": (optimizer, LambdaLR(optimizer, lambda step: 1 - step / STEPS))}


def two_points(model):
    """A rule that evaluates elsewhere than it trains."""
    optimizer = optimizers.AdamWScheduleFree(model.parameters(), lr=0.03)
    return {"optimizers": (optimizer, None)}


def class_and_arguments(model):
    """The Trainer makes the groups and the optimizer."""
    return {"optimizer_cls_and_kwargs": (optimizers.Muon, {"lr": 0.03, "adamw_lr": 0.03})}


FORMS = [built_in, torch_scheduler, two_points, class_and_arguments]


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(form, resume_from=None):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(CONFIG)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,  # clipping is the optimizer's
            save_steps=STEPS // 2,
            eval_strategy="steps",
            eval_steps=STEPS // 4,  # before saving, too: at the point where the rule evaluates
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=sequences(),
            eval_dataset=sequences(),
            **form(model),
        )
        trainer.train(resume_from_checkpoint=resume_from)
        return trainer

    return run


@pytest.mark.parametrize("form", FORMS)
def test_a_run_learns_and_resumes_exactly(form, train, tmp_path):
    whole = train(form)
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.1

    middle = tmp_path / f"checkpoint-{STEPS // 2}"
    saved = torch.load(middle / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["schedule_step"] == STEPS // 2

    resumed = train(form, resume_from=str(middle))
    assert identical(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    ends = [run.optimizer.state_dict() for run in (resumed, whole)]
    assert identical(*(end["state"] for end in ends))
    assert ends[0]["param_groups"] == ends[1]["param_groups"]
