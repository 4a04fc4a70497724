"""Where to start: a recipe for each kind of problem, with its reasons and arms for a study file.

`start` is what to train with when there is no budget for a study. The arms search around it; the
first is the recommendation, the others are what it has to beat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Optimizer, schedule and settings for one kind of problem, and why."""

    problem: str
    title: str
    start: Mapping[str, float]
    reasons: tuple[str, ...]
    arms: tuple[Mapping[str, Any], ...]

    @property
    def optimizer(self) -> str:
        """The recommended optimizer's name."""
        return str(self.arms[0]["optimizer"])

    @property
    def schedule(self) -> str:
        """The recommended schedule's name."""
        return str(self.arms[0]["schedule"])

    @property
    def toml(self) -> str:
        """The arms as they stand in a study file."""
        return "\n".join(map(arm_toml, self.arms))


def arm_toml(arm: Mapping[str, Any]) -> str:
    """One `[[arms]]` table."""
    return "[[arms]]\n" + "".join(f"{key} = {literal(value)}\n" for key, value in arm.items())


def literal(value: Any) -> str:
    """A string, number, bool, list or dict of them in TOML, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {literal(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(literal, value)) + "]"
    return json.dumps(value)


RECIPES: dict[str, Recipe] = {
    recipe.problem: recipe
    for recipe in (
        Recipe(
            problem="transformer",
            title="A transformer, or anything with attention, from scratch",
            start={"lr": 3e-4, "weight_decay": 0.1, "beta2": 0.95, "warmup": 0.05, "clip_norm": 1},
            reasons=(
                "The gradients of attention models are heavy-tailed, which Adam withstands and SGD "
                "does not (Zhang et al., NeurIPS 2020).",
                "Weight decay is decoupled (AdamW): as L2 it would be divided by Adam's "
                "denominator. 0.01 to 0.1; the upper end for long runs.",
                "A warm-up, because the first updates rest on few gradients (Xiong et al., ICML "
                "2020); then a cosine to zero.",
                "beta2 of 0.95 forgets outliers sooner, 0.999 averages more noise away: the second "
                "arm asks which of them matters here.",
                "Clipping to norm 1.0 contains single bad batches.",
            ),
            arms=(
                {
                    "optimizer": "adamw",
                    "schedule": "warmup_cosine",
                    "clip_norm": 1.0,
                    "optimizer_args": {"betas": [0.9, 0.95]},
                    "schedule_args": {"warmup": 0.05},
                    "weight_decay": [0.01, 0.1],
                },
                {
                    "name": "adamw-slow-beta2",
                    "optimizer": "adamw",
                    "schedule": "warmup_cosine",
                    "clip_norm": 1.0,
                    "optimizer_args": {"betas": [0.9, 0.999]},
                    "schedule_args": {"warmup": 0.05},
                    "weight_decay": [0.01, 0.1],
                },
            ),
        ),
        Recipe(
            problem="vision",
            title="A convolutional network from scratch",
            start={"lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "batch_size": 256},
            reasons=(
                "SGD with momentum generalises at least as well as adaptive rules here, with half "
                "of their memory (He et al., 2016; Wilson et al., NeurIPS 2017).",
                "A cosine needs no milestones; drops by 10 at set times are the older alternative.",
                "0.1 and 1e-4 at batch 256 are ImageNet's values: on a small data set search both; "
                "5e-4 is common there.",
                "The learning rate grows with the batch size in proportion (Goyal et al., 2017); "
                "a study does that by itself.",
            ),
            arms=(
                {
                    "optimizer": "sgd",
                    "schedule": "cosine",
                    "optimizer_args": {"momentum": 0.9, "nesterov": True},
                    "lr": [0.01, 1.0],
                    "weight_decay": [1e-5, 1e-3],
                },
                {
                    "optimizer": "sgd",
                    "schedule": "step",
                    "optimizer_args": {"momentum": 0.9, "nesterov": True},
                    "schedule_args": {"every": 0.3, "gamma": 0.1},
                    "lr": [0.01, 1.0],
                    "weight_decay": [1e-5, 1e-3],
                },
            ),
        ),
        Recipe(
            problem="rnn",
            title="A recurrent network",
            start={"lr": 1e-3, "clip_norm": 1},
            reasons=(
                "Gradients through time vanish and explode; RMSprop and Adam even out their size.",
                "Clipping is not optional: one exploding batch undoes many steps (Pascanu et al., "
                "ICML 2013).",
                "Watch the recurrent layers with optimizers.Monitor, which names those that "
                "vanish or explode.",
            ),
            arms=(
                {"optimizer": "adam", "schedule": "cosine", "clip_norm": 1.0},
                {"optimizer": "rmsprop", "schedule": "cosine", "clip_norm": 1.0},
            ),
        ),
        Recipe(
            problem="rl",
            title="Reinforcement learning",
            start={"lr": 3e-4, "eps": 1e-5, "clip_norm": 0.5, "weight_decay": 0},
            reasons=(
                "The data changes with the policy, so that the size of gradients drifts; RMSprop "
                "and Adam follow it (Mnih et al., 2016; Schulman et al., 2017).",
                "eps of 1e-5 keeps updates small while the second moment is tiny (Huang et al., "
                "ICLR Blog 2022).",
                "Clipping to norm 0.5, because returns have outliers; no weight decay.",
                "Seeds differ as much as methods do (Henderson et al., AAAI 2018): decide with 20.",
            ),
            arms=(
                {
                    "optimizer": "adam",
                    "schedule": "linear",
                    "clip_norm": 0.5,
                    "optimizer_args": {"eps": 1e-5},
                    "lr": [1e-4, 1e-3],
                    "weight_decay": 0.0,
                },
                {
                    "optimizer": "rmsprop",
                    "schedule": "linear",
                    "clip_norm": 0.5,
                    "optimizer_args": {"alpha": 0.99, "eps": 1e-5},
                    "lr": [1e-4, 3e-3],
                    "weight_decay": 0.0,
                },
            ),
        ),
        Recipe(
            problem="finetune",
            title="Fine-tuning a pretrained transformer",
            start={"lr": 2e-5, "weight_decay": 0.01, "warmup": 0.1, "clip_norm": 1},
            reasons=(
                "The weights are good already: 1e-5 to 5e-5, far below what trains from scratch "
                "(Devlin et al., 2019). A range test would suggest more, so the box is given.",
                "AdamW, with a warm-up over a tenth of the steps and a line to zero; few epochs.",
                "Layer-wise decay of the learning rate (layer_decay=0.9 in optimizers.create) "
                "keeps the lower layers where they were.",
                "Runs differ much between seeds (Mosbach et al., ICLR 2021): never judge by one.",
            ),
            arms=(
                {
                    "optimizer": "adamw",
                    "schedule": "linear",
                    "clip_norm": 1.0,
                    "schedule_args": {"warmup": 0.1},
                    "lr": [1e-5, 5e-5],
                    "batch_size": [16, 32],
                    "weight_decay": [0.01, 0.1],
                },
            ),
        ),
        Recipe(
            problem="large-batch",
            title="Batches of thousands of examples",
            start={"lr": 10, "weight_decay": 5e-5, "momentum": 0.9, "warmup": 0.1},
            reasons=(
                "With a learning rate raised for a large batch some layers' updates outgrow their "
                "weights; LARS and LAMB bound them per layer by a trust ratio (You et al., 2017; "
                "You et al., ICLR 2020).",
                "LARS, the first arm, is SGD's form, for convolutional networks; LAMB is Adam's, "
                "for transformers: about 2e-3 and weight decay 0.01.",
                "A long warm-up, a tenth of the run, then a polynomial to zero.",
                "Below a few thousand examples SGD or AdamW with a scaled learning rate do as well "
                "(Nado et al., 2021).",
            ),
            arms=(
                {
                    "optimizer": "lars",
                    "schedule": "polynomial",
                    "optimizer_args": {"momentum": 0.9},
                    "schedule_args": {"warmup": 0.1, "power": 2.0},
                    "lr": [1.0, 30.0],
                    "batch_size": [1024, 8192],
                    "weight_decay": [1e-5, 1e-3],
                },
                {
                    "optimizer": "lamb",
                    "schedule": "linear",
                    "schedule_args": {"warmup": 0.1},
                    "lr": [5e-4, 1e-2],
                    "batch_size": [1024, 8192],
                    "weight_decay": [1e-3, 0.1],
                },
            ),
        ),
        Recipe(
            problem="sparse",
            title="Sparse features: large embeddings, recommendation, bag of words",
            start={"lr": 0.01, "weight_decay": 0},
            reasons=(
                "AdaGrad gives each entry its own rate, which falls with what that entry has seen: "
                "rare features keep large steps (Duchi et al., JMLR 2011).",
                "It takes nn.Embedding(sparse=True) gradients and touches the seen rows only.",
                "No weight decay: it would shrink every row at every step, seen or not, and sparse "
                "gradients refuse it.",
                "The rate falls by itself, as one over the root of time: no schedule is needed.",
            ),
            arms=(
                {
                    "optimizer": "adagrad",
                    "schedule": "constant",
                    "lr": [1e-3, 0.3],
                    "weight_decay": 0.0,
                },
            ),
        ),
        Recipe(
            problem="memory",
            title="Optimizer state does not fit: models above a billion parameters",
            start={"lr": 1e-4, "weight_decay": 0.5, "warmup": 0.05, "clip_norm": 1},
            reasons=(
                "Lion, the first arm, keeps one array per parameter where AdamW keeps two; its "
                "learning rate is a third to a tenth of AdamW's, its decay 3 to 10 times as large "
                "(Chen et al., 2023). It wants batches of 64 or more.",
                "Adafactor keeps a row and a column per matrix, next to nothing, at some cost in "
                "speed of convergence (Shazeer and Stern, ICML 2018): about 1e-2.",
                "bfloat16 parameters halve the rest; the optimizers here keep what rounding would "
                'lose (low_precision="kahan", or "stochastic" without the extra array).',
            ),
            arms=(
                {
                    "optimizer": "lion",
                    "schedule": "warmup_cosine",
                    "clip_norm": 1.0,
                    "lr": [1e-5, 1e-3],
                    "weight_decay": [0.1, 1.0],
                },
                {
                    "optimizer": "adafactor",
                    "schedule": "warmup_cosine",
                    "clip_norm": 1.0,
                    "lr": [1e-3, 3e-2],
                    "weight_decay": [1e-3, 0.1],
                },
            ),
        ),
        Recipe(
            problem="unsure",
            title="Anything else, or a first run",
            start={"lr": 1e-3, "weight_decay": 0.01, "warmup": 0.05, "clip_norm": 1},
            reasons=(
                "AdamW at 1e-3 trains nearly everything somewhat, so that the first result comes "
                "from the model and not from the optimizer.",
                "A warm-up, a cosine and clipping cost little and protect against most accidents.",
                "SGD with momentum is the second opinion: a study says in numbers whether it is "
                "better here.",
            ),
            arms=(
                {
                    "optimizer": "adamw",
                    "schedule": "warmup_cosine",
                    "clip_norm": 1.0,
                    "weight_decay": [1e-3, 0.1],
                },
                {
                    "optimizer": "sgd",
                    "schedule": "warmup_cosine",
                    "clip_norm": 1.0,
                    "optimizer_args": {"momentum": 0.9},
                },
            ),
        ),
    )
}
