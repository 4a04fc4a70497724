"""The training loop: repeatable, its ends told apart, its numbers right."""

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from sklearn.metrics import roc_auc_score

from tests.jobs import configuration, go_on, job, numbers, train
from tuner import training, workload
from tuner.errors import UsageError
from tuner.records import Evaluation, Outcome, StopRule
from tuner.training import evaluation_steps, run
from tuner.workload import Workload, total_steps


@pytest.mark.parametrize("task", ["tiny:build", "tiny:noisy", "tiny:regression", "tiny:sentences"])
def test_the_same_job_gives_bit_equal_numbers(task: str) -> None:
    first, second, other = train(task), train(task), train(task, seed=2)
    assert first.state == "completed", first.failure
    assert numbers(first) == numbers(second)
    assert first.value != other.value


def test_training_learns() -> None:
    outcome = train(max_steps=200, metric="acc", direction="maximize")
    first, last = outcome.evaluations[0], outcome.evaluations[-1]
    assert outcome.value == last.metrics["acc"] > 0.9
    assert last.train_loss < first.train_loss
    assert set(last.metrics) == {"loss", "acc"}


def test_evaluations_and_learning_rates_are_recorded() -> None:
    outcome = train(max_steps=40, evaluations=3)
    assert [each.step for each in outcome.evaluations] == [13, 27, 40]
    assert [each.examples for each in outcome.evaluations] == [13 * 16, 27 * 16, 40 * 16]
    assert [each.lr for each in outcome.evaluations] == [outcome.lrs[at] for at in (12, 26, 39)]
    assert len(outcome.lrs) == 40
    assert 0 < outcome.lrs[0] < max(outcome.lrs) == pytest.approx(1e-2)
    assert all(each.grad_norm > 0 for each in outcome.evaluations)
    seconds = [each.seconds for each in outcome.evaluations]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < outcome.wall_seconds
    assert outcome.device == "cpu"
    assert outcome.info["parameters"] == 8 * 16 + 16 + 16 * 2 + 2
    assert outcome.info["environment"]["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [
        (10, 3, {3, 7, 10}),
        (100, 4, {25, 50, 75, 100}),
        (3, 10, {1, 2, 3}),
        (7, 0, {7}),
        (1, 1, {1}),
    ],
)
def test_evaluations_are_spread_evenly(steps: int, evaluations: int, expected: set[int]) -> None:
    assert evaluation_steps(steps, evaluations) == expected


@pytest.mark.parametrize("task", ["tiny:build", "tiny:noisy"])
def test_the_number_of_evaluations_does_not_move_the_training(task: str) -> None:
    often, once = train(task, evaluations=20), train(task, evaluations=1)
    assert often.value == once.value


LENGTHS = [
    ({"max_steps": 7}, 7),
    ({"max_epochs": 2.0}, 25),  # 2 * 203 / 16
    ({"max_epochs": 0.01}, 1),
    ({"max_examples": 160}, 10),
    ({"max_steps": 7, "max_examples": 32}, 2),
]


@pytest.mark.parametrize(("limits", "steps"), LENGTHS)
def test_the_length_of_a_run(limits: dict[str, Any], steps: int) -> None:
    assert total_steps(job(**{"max_steps": None, **limits}), 203, 16) == steps


def test_a_run_without_a_length_is_refused() -> None:
    with pytest.raises(UsageError, match="length of a run"):
        total_steps(job(max_steps=None), 203, 16)


@pytest.mark.parametrize("task", ["tiny:build", "tiny:sentences"])
@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8])
def test_accumulated_gradients_are_those_of_the_big_batch(task: str, micro_batch: int) -> None:
    whole = Workload.create(job(task))
    pieces = Workload.create(job(task, micro_batch=micro_batch))
    indices = next(whole.batches())
    losses = whole.gradients(indices), pieces.gradients(indices)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for one, other in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_validation_means_are_those_of_the_whole_set() -> None:
    work = Workload.create(job("tiny:sentences"))
    whole = work.evaluate()
    work.val_batch = 7
    assert work.evaluate()["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    tokens = 2 * work.task.batch_size_of(work.fetch_val(torch.arange(20)))
    assert tokens == work.task.batch_size_of(work.fetch_val(torch.arange(40)))


def test_a_batch_larger_than_the_data_becomes_the_data() -> None:
    outcome = train(configuration=configuration(batch_size=1000), max_epochs=3, max_steps=None)
    assert len(outcome.lrs) == 3
    assert outcome.info["batch_size"] == 203
    assert outcome.info["notes"] == ["batch size 1000 is larger than the data set: 203 used"]


def test_data_is_loaded_once_for_many_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "builds"
    monkeypatch.setenv("BUILD_LOG", str(log))
    monkeypatch.setattr(workload, "_tasks", {})
    for seed in range(3):
        assert train("tiny:slow_load", seed=seed, max_steps=2).state == "completed"
    assert log.read_text().split() == [str(os.getpid())]


def test_models_see_the_jobs_seed_and_data_does_not() -> None:
    one, other = Workload.create(job(seed=1)), Workload.create(job(seed=2))
    assert one.task is other.task
    assert not torch.equal(next(one.model.parameters()), next(other.model.parameters()))


class TestEnds:
    """Every way a run can end has its own state and failure."""

    def test_a_nan_loss_is_divergence_at_once(self) -> None:
        outcome = train("faulty:nan_loss", evaluations=40)
        assert outcome.state == "diverged"
        assert outcome.value is None
        assert len(outcome.lrs) == 5
        assert len(outcome.evaluations) == 4
        assert outcome.failure is not None
        assert outcome.failure.kind == "diverged"
        assert outcome.failure.message == (
            f"training loss became nan at step 5, lr {outcome.lrs[-1]:.3g}"
        )

    @pytest.mark.parametrize("part", ["training", "validation"])
    def test_a_loss_that_is_nan_before_the_first_step_is_no_divergence(self, part: str) -> None:
        outcome = train(f"faulty:nan_in_{part}_data")
        assert outcome.state == "failed"
        assert outcome.failure is not None
        assert outcome.failure.kind == "user_error"
        assert f"a {part} loss is nan with the initial weights, too" in failure(outcome)

    def test_an_endless_row_of_skipped_steps_is_divergence(self) -> None:
        outcome = train("faulty:infinite_gradients")
        assert outcome.state == "diverged"
        assert "10 steps in a row had non-finite gradients at step 14" in failure(outcome)
        assert outcome.info["skipped_steps"] == 10

    def test_a_validation_metric_that_is_not_finite_is_divergence(self) -> None:
        outcome = train("faulty:nan_metric", metric="acc")
        assert outcome.state == "diverged"
        assert "validation acc became nan at step 10" in failure(outcome)
        assert train("faulty:nan_metric", metric="loss").state == "completed"

    def test_a_real_explosion_is_divergence(self) -> None:
        wild = configuration(optimizer="sgd", optimizer_args={"lr": 1e4}, schedule="constant")
        outcome = train("tiny:regression", configuration=wild, max_steps=200)
        assert outcome.state == "diverged"

    @pytest.mark.parametrize(
        ("task", "message", "last_line"),
        [
            ("faulty:build_raises", "faulty:build_raises raised FileNotFoundError", "npy"),
            ("faulty:model_raises", "model() raised TypeError", ""),
            ("faulty:loss_raises", "the training step raised KeyError: 'weights'", "'weights'"),
            ("faulty:metrics_raise", "validation raised ZeroDivisionError", "by zero"),
            ("faulty:metric_without_a_name", "the name of a metric must be text, not 1", ""),
            ("faulty:metric_in_words", "metric 'acc' must be one number, not 'high'", ""),
            ("faulty:loss_is_a_vector", "loss must return one number", "(3,)"),
            ("faulty:lazy", "model() raised TypeError: layers without a shape", ""),
            ("faulty:frozen", "model() raised TypeError: the model has no parameter to train", ""),
            ("faulty:batches_without_weight", "must return a number above 0, not 0", ""),
            ("faulty:stops_python", "the training step raised SystemExit", "3"),
        ],
    )
    def test_the_users_errors_carry_the_users_traceback(
        self, task: str, message: str, last_line: str
    ) -> None:
        outcome = train(task)
        assert (outcome.state, outcome.value) == ("failed", None)
        assert outcome.failure is not None
        assert outcome.failure.kind == "user_error"
        assert message in outcome.failure.message
        assert "\n" not in outcome.failure.message
        assert outcome.failure.traceback.rstrip().endswith(last_line)
        assert "tuner/workload.py" not in outcome.failure.traceback

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"metric": "f1"}, "metric 'f1': the task has acc, loss"),
            ({"configuration": configuration(optimizer="adamv")}, "adamv"),
            ({"configuration": configuration(schedule="cosin")}, "cosin"),
            ({"configuration": configuration(optimizer_args={"lr": -1.0})}, "lr=-1.0"),
            ({"task": "tiny:built"}, "did you mean build"),
        ],
    )
    def test_a_wrong_job_is_one_line(self, changes: dict[str, Any], message: str) -> None:
        outcome = run(job(**changes), go_on)
        assert outcome.state == "failed"
        assert outcome.failure is not None
        assert outcome.failure.kind == "usage_error"
        assert message in outcome.failure.message
        assert outcome.failure.traceback == ""

    def test_running_out_of_memory_has_its_own_kind(self) -> None:
        outcome = train("faulty:out_of_memory")
        assert outcome.state == "failed"
        assert outcome.failure is not None
        assert outcome.failure.kind == "out_of_memory"

    def test_our_own_bugs_are_not_the_users(self) -> None:
        def report(step: int, total: int, evaluation: Evaluation | None) -> bool:
            raise AssertionError("a bug")

        outcome = run(job(), report)
        assert outcome.failure is not None
        assert outcome.failure.kind == "internal"
        assert "training.py" in outcome.failure.traceback
        assert len(outcome.evaluations) == 1

    def test_a_report_can_cancel(self) -> None:
        outcome = run(job(), lambda step, total, evaluation: step < 20)
        assert (outcome.state, outcome.value, outcome.failure) == ("cancelled", None, None)
        assert len(outcome.lrs) == 20

    @pytest.mark.parametrize(
        ("direction", "threshold", "state"),
        [
            ("minimize", 0.0, "pruned"),
            ("minimize", 9.0, "completed"),
            ("maximize", 9.0, "pruned"),
            ("maximize", 0.0, "completed"),
        ],
    )
    def test_stop_rules_prune(self, direction: str, threshold: float, state: str) -> None:
        rule = StopRule(evaluation=2, threshold=threshold)
        outcome = train(stop_rules=(rule,), direction=direction)
        assert outcome.state == state
        assert outcome.evaluations[-1].step == (20 if state == "pruned" else 40)
        assert outcome.value == outcome.evaluations[-1].metrics["loss"]
        assert outcome.failure is None


class TestEvaluate:
    """Numbers over the whole of the validation data, whatever the batches are."""

    def test_they_do_not_depend_on_the_batches(self) -> None:
        work = Workload.create(job("tiny:ranked"))
        scores = work.model(work.task.val.tensors[0]).diff(dim=1).ravel().detach().numpy()
        labels = work.task.val.tensors[1].numpy()
        expected = roc_auc_score(labels, scores)
        for size in (5, 57):
            work.val_batch = size
            assert work.evaluate()["auc"] == pytest.approx(expected, abs=1e-12)

    def test_a_run_is_judged_by_them(self) -> None:
        outcome = train("tiny:ranked", max_steps=200, metric="auc", direction="maximize")
        assert outcome.state == "completed", outcome.failure
        assert outcome.value == outcome.evaluations[-1].metrics["auc"] > 0.9
        assert set(outcome.evaluations[-1].metrics) == {"loss", "acc", "auc"}

    def test_no_dict_is_an_error_that_names_it(self) -> None:
        outcome = train("faulty:evaluate_returns_a_number")
        assert failure(outcome) == (
            "evaluate raised TypeError: evaluate must return a dict, not float"
        )


def failure(outcome: Outcome) -> str:
    assert outcome.failure is not None
    return outcome.failure.message


def test_a_range_test_is_a_job() -> None:
    seen: list[tuple[int, int]] = []

    def report(step: int, total: int, evaluation: Evaluation | None) -> bool:
        seen.append((step, total))
        return True

    outcome = run(job(kind="lr_range", max_steps=90), report)
    assert outcome.state == "completed"
    assert outcome.lr_curve is not None
    assert outcome.value == outcome.lr_curve.suggested_lr is not None
    [steps] = {total for _, total in seen}
    done = [step for step, _ in seen]
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] <= steps <= 1.5 * 90
    cancelled = run(job(kind="lr_range", max_steps=90), lambda step, *_: step < 30)
    assert cancelled.state == "cancelled"


def test_progress_comes_at_evaluations_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    seen = []
    run(job(max_steps=8, evaluations=2), lambda step, total, e: seen.append((step, e)) or True)
    assert sorted({step for step, _ in seen}) == list(range(1, 9))
    assert [step for step, e in seen if e is not None] == [4, 8]


def test_pytorchs_settings_are_put_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    train(max_steps=1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_task_may_bring_its_own_parameter_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    def groups(model: torch.nn.Module) -> list[dict[str, Any]]:
        first, *rest = model.parameters()
        return [{"params": [first], "lr": 0.5}, {"params": rest}]

    task = tiny.build(param_groups=groups)
    key = ("grouped", job().search_path)
    monkeypatch.setitem(workload._tasks, key, task)
    work = Workload.create(job("grouped"))
    assert [group["lr"] for group in work.optimizer.param_groups] == [0.5, 1e-2]


def test_a_schedule_that_waits_for_a_metric_hears_the_validation_loss() -> None:
    waiting = configuration(
        schedule="plateau", schedule_args={"patience": 1, "gamma": 0.5, "threshold": 0.9}
    )
    outcome = train(configuration=waiting, evaluations=4)
    # The first of four evaluations is the best; two in vain halve the rate after the third.
    assert set(outcome.lrs[:30]) == {1e-2}
    assert set(outcome.lrs[30:]) == {5e-3}


def test_schedule_free_optimizers_are_judged_at_their_average() -> None:
    chosen = configuration(optimizer="schedulefree_adamw", schedule="constant")
    outcome = train(configuration=chosen, metric="acc", max_steps=200)
    assert outcome.state == "completed", outcome.failure
    work = Workload.create(job(configuration=chosen))
    for _, indices in zip(range(50), work.batches(), strict=False):
        work.step(indices)
    training_point = [p.detach().clone() for p in work.model.parameters()]
    at_average = work.evaluate()["loss"]
    assert all(map(torch.equal, training_point, work.model.parameters()))
    work.optimizer.eval = work.optimizer.train = lambda: None
    assert at_average != work.evaluate()["loss"]


@pytest.mark.parametrize("wrapper", ["sam", "asam", "lookahead"])
def test_a_wrapper_goes_around_any_optimizer(wrapper: str) -> None:
    plain = run(job("tiny:noisy"), go_on)
    wrapped = run(job("tiny:noisy", configuration=configuration(wrapper=wrapper)), go_on)
    again = run(job("tiny:noisy", configuration=configuration(wrapper=wrapper)), go_on)
    assert wrapped.state == "completed"
    assert wrapped.value == again.value != plain.value
    assert wrapped.lrs == plain.lrs
