"""What every store must do; each test runs on SQLite and on PostgreSQL."""

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.store.samples import (
    INF,
    NAN,
    NOW,
    ODD_TEXT,
    make_evaluation,
    make_finished_trial,
    make_lease,
    make_lr_curve,
    make_study,
    make_trial,
)
from tuner.errors import UsageError
from tuner.records import Failure, Record
from tuner.store.base import Store
from tuner.store.models import EvaluationRow, LeaseRow, LrCurveRow, StudyRow, TrialRow
from tuner.store.sql import SqlStore, open_store


def same(first: Any, second: Any) -> bool:
    """Equality in which NaN equals NaN and a dictionary's order counts."""
    if isinstance(first, Record):
        first, second = first.model_dump(), second.model_dump()
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    return type(first) is type(second) and bool(first == second)


@pytest.fixture
def store(store: SqlStore) -> Store:
    """As the protocol sees it, with one study."""
    store.create_study(make_study())
    return store


def test_every_field_has_a_column() -> None:
    """A field added to a record needs a column and a migration."""
    children = {"study", "number"}
    for row, record, keys in [
        (StudyRow, make_study(), set()),
        (TrialRow, make_trial(), {"study"}),
        (EvaluationRow, make_evaluation(), children),
        (LrCurveRow, make_lr_curve(), children),
        (LeaseRow, make_lease(), set()),
    ]:
        assert set(row.__table__.columns.keys()) == set(type(record).model_fields) | keys


def test_a_study_reads_back_exactly(store: Store) -> None:
    study = make_study("other", spec={"z": NAN, "a": [INF, 1e16, 1e300, 3]}, answer=ODD_TEXT)
    store.create_study(study)
    assert same(store.get_study("other"), study)


def test_a_taken_name_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="'digits' exists already"):
        store.create_study(make_study(state="completed"))
    assert store.get_study("digits").state == "running"


def test_an_unknown_study_suggests_near_names(store: Store) -> None:
    with pytest.raises(UsageError, match="no study 'digit'; did you mean digits"):
        store.get_study("digit")


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.get_study("none"),
        lambda s: s.set_study_state("none", "completed"),
        lambda s: s.request_stop("none"),
        lambda s: s.delete_study("none"),
        lambda s: s.save_trial("none", make_trial()),
        lambda s: s.save_outcome("none", make_trial(), [make_evaluation()]),
        lambda s: s.add_evaluations("none", 0, [make_evaluation()]),
        lambda s: s.trials("none"),
        lambda s: s.get_trial("none", 0),
        lambda s: s.acquire_lease(make_lease("none"), NOW),
    ],
)
def test_every_call_names_an_unknown_study(store: Store, call: Callable[[Store], Any]) -> None:
    with pytest.raises(UsageError, match="no study 'none'"):
        call(store)


def test_studies_are_listed_oldest_first(store: Store) -> None:
    store.create_study(make_study("b", created_at=NOW - timedelta(hours=1)))
    store.create_study(make_study("a", created_at=NOW + timedelta(hours=1)))
    assert [study.name for study in store.list_studies()] == ["b", "digits", "a"]


def test_a_state_change_keeps_the_rest(store: Store) -> None:
    before = datetime.now(UTC)
    store.set_study_state("digits", "completed", answer="adamw")
    store.set_study_state("digits", "running")
    study = store.get_study("digits")
    assert (study.state, study.answer, study.spec) == ("running", "adamw", make_study().spec)
    assert before <= study.updated_at <= datetime.now(UTC)


def test_a_stop_is_requested_and_taken_back(store: Store) -> None:
    store.request_stop("digits")
    assert store.get_study("digits").stop_requested
    store.request_stop("digits", stop=False)
    assert not store.get_study("digits").stop_requested


@pytest.mark.parametrize("make", [make_trial, make_finished_trial])
def test_a_trial_reads_back_exactly(store: Store, make: Callable[..., Any]) -> None:
    store.save_trial("digits", make(3))
    assert same(store.get_trial("digits", 3), make(3))


def test_times_come_back_in_utc(store: Store) -> None:
    store.save_trial("digits", make_finished_trial(0))
    finished_at = store.get_trial("digits", 0).finished_at
    assert finished_at is not None
    assert finished_at.tzinfo is UTC


def test_a_trial_is_replaced_and_keeps_its_evaluations(store: Store) -> None:
    store.save_trial("digits", make_trial(0))
    store.add_evaluations("digits", 0, [make_evaluation(10)])
    store.save_trial("digits", make_trial(0, state="interrupted", attempts=2))
    assert [(t.state, t.attempts) for t in store.trials("digits")] == [("interrupted", 2)]
    assert len(store.evaluations("digits", 0)) == 1


def test_trials_come_by_number(store: Store) -> None:
    for number in (10, 2, 0):
        store.save_trial("digits", make_trial(number))
    assert [trial.number for trial in store.trials("digits")] == [0, 2, 10]


def test_an_unknown_trial_is_named(store: Store) -> None:
    with pytest.raises(UsageError, match="'digits' has no trial 7"):
        store.get_trial("digits", 7)
    with pytest.raises(UsageError, match="'digits' has no such trial"):
        store.add_evaluations("digits", 7, [make_evaluation()])


def test_evaluations_are_added_and_replaced_by_step(store: Store) -> None:
    store.save_trial("digits", make_trial(0))
    store.add_evaluations("digits", 0, [make_evaluation(20), make_evaluation(10)])
    newer = make_evaluation(20, train_loss=NAN, grad_norm=INF, metrics={"loss": -INF})
    store.add_evaluations("digits", 0, [make_evaluation(20), newer])
    store.add_evaluations("digits", 0, [])
    assert same(store.evaluations("digits", 0), [make_evaluation(10), newer])


def test_an_outcome_replaces_what_was_known(store: Store) -> None:
    store.save_trial("digits", make_trial(0))
    store.add_evaluations("digits", 0, [make_evaluation(5)])  # of an attempt that was killed
    trial, evaluations = make_finished_trial(0), [make_evaluation(s) for s in (10, 20)]
    for lrs in ([0.1, NAN, 0.3], [1 / 3, 1e-300]):
        store.save_outcome("digits", trial, evaluations, lrs, make_lr_curve())
    assert same(store.get_trial("digits", 0), trial)
    assert store.evaluations("digits", 0) == evaluations
    assert store.step_lrs("digits", 0) == [1 / 3, 1e-300]
    assert same(store.lr_curves("digits"), {0: make_lr_curve()})
    store.save_outcome("digits", trial, [])
    assert store.evaluations("digits", 0) == store.step_lrs("digits", 0) == []
    assert store.lr_curves("digits") == {}


def test_a_refused_lr_curve_reads_back(store: Store) -> None:
    nothing = dict.fromkeys(("suggested_lr", "low", "high", "diverges_at"))
    curve = make_lr_curve(points=[], flags=["boundary"], **nothing)
    store.save_outcome("digits", make_trial(4), [], lr_curve=curve)
    assert store.lr_curves("digits") == {4: curve}


def test_an_outcome_is_saved_whole_or_not_at_all(store: Store) -> None:
    store.save_trial("digits", make_trial(0))
    bad = make_evaluation(20).model_copy(update={"lr": None})
    with pytest.raises(Exception, match=r"(?i)not.null"):
        store.save_outcome("digits", make_finished_trial(0), [make_evaluation(10), bad])
    assert store.get_trial("digits", 0).state == "running"
    assert store.evaluations("digits", 0) == []


def test_text_that_a_database_refuses_is_made_storable(store: Store) -> None:
    failure = Failure(kind="user_error", message="nul \0 and \udc80 surrogate")
    store.save_trial("digits", make_trial(0, failure=failure, device="\0", params={"\0": "\0"}))
    trial = store.get_trial("digits", 0)
    assert trial.failure is not None
    assert trial.failure.message == "nul \ufffd and ? surrogate"
    assert (trial.device, trial.params) == ("\ufffd", {"\ufffd": "\ufffd"})


def test_a_deleted_study_leaves_nothing(store: Store) -> None:
    store.create_study(make_study("other"))
    for study in ("digits", "other"):
        store.save_outcome(study, make_trial(0), [make_evaluation()], [0.1], make_lr_curve())
        store.acquire_lease(make_lease(study), NOW)
    store.delete_study("digits")
    assert [study.name for study in store.list_studies()] == ["other"]
    assert store.get_lease("digits") is None
    assert store.evaluations("digits", 0) == store.step_lrs("digits", 0) == []
    assert store.lr_curves("digits") == {}
    assert len(store.evaluations("other", 0)) == len(store.step_lrs("other", 0)) == 1
    store.create_study(make_study())
    assert store.trials("digits") == []


def test_a_lease_is_taken_renewed_and_handed_over(store: Store) -> None:
    first, second = make_lease(owner="first"), make_lease(owner="second", seconds=90)
    assert store.get_lease("digits") is None
    assert store.acquire_lease(first, NOW) is None
    assert store.acquire_lease(second, NOW) == first
    assert store.acquire_lease(make_lease(owner="first", seconds=60), NOW) is None
    assert store.acquire_lease(second, NOW + timedelta(seconds=59)) is not None
    assert store.acquire_lease(second, NOW + timedelta(seconds=60)) is None
    assert store.get_lease("digits") == second


def test_only_the_owner_releases_a_lease(store: Store) -> None:
    store.acquire_lease(make_lease(), NOW)
    store.release_lease("digits", "somebody else")
    assert store.get_lease("digits") == make_lease()
    store.release_lease("digits", "first")
    store.release_lease("digits", "first")
    assert store.get_lease("digits") is None


def test_threads_share_a_store(store: Store) -> None:
    def save(number: int) -> None:
        store.save_outcome("digits", make_trial(number), [make_evaluation(s) for s in (1, 2)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(24)))
    assert len(store.trials("digits")) == 24


def test_of_racing_threads_one_gets_the_lease(store: Store) -> None:
    with ThreadPoolExecutor(6) as pool:
        for round_number in range(5):
            now = NOW + timedelta(hours=round_number)
            leases = [make_lease(owner=f"{n}", seconds=3600 * round_number + 60) for n in range(6)]
            answers = list(pool.map(store.acquire_lease, leases, [now] * 6))
            winners = [lease for lease, answer in zip(leases, answers, strict=True) if not answer]
            assert [store.get_lease("digits")] == winners


def open_and_race(url: str, owner: str, barrier: Any, results: Any) -> None:
    """A process that opens an empty database together with others, then asks for the lease."""
    barrier.wait()
    store = open_store(url)
    try:
        store.create_study(make_study())
    except UsageError:
        results.put((owner, "exists"))
    else:
        results.put((owner, "created"))
    if store.acquire_lease(make_lease(owner=owner), NOW) is None:
        results.put((owner, "leads"))
    store.close()


def test_processes_start_at_once_on_an_empty_database(url: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tuner.store.sql", "alembic.command"])
    barrier, results = context.Barrier(6), context.Queue()
    owners = [f"process-{number}" for number in range(6)]
    processes = [
        context.Process(target=open_and_race, args=(url, owner, barrier, results))
        for owner in owners
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    events = [results.get(timeout=5) for _ in range(7)]
    assert sorted(event for _, event in events) == ["created", *["exists"] * 5, "leads"]
    leader = next(owner for owner, event in events if event == "leads")
    store = open_store(url)
    assert store.get_lease("digits") == make_lease(owner=leader)
    store.close()
