"""A new study of the team's database starts from an older one there."""

from tests.study.specs import CURVE, WHOLE, simulate, study_spec
from tests.study.test_bounds import optimum_at
from tests.study.test_warm import save
from tuner import service
from tuner.stages import History, warm_arms
from tuner.store.base import Store


def test_a_study_starts_from_one_of_the_database(store: Store) -> None:
    older = study_spec(**WHOLE)
    trials = simulate(older, optimum_at(1e-2))
    history = History(trials, {n: CURVE for n, t in trials.items() if t.stage == "lr-range"})
    save(store, older, history)
    spec = study_spec(**WHOLE, study={"name": "next", "warm_start": ["small"]})
    warm = service.warm_started(spec, store)
    assert warm.warm == warm_arms(spec, [(older, history)])
    assert service.warm_started(warm, store) == warm
    store.create_study(service.new_study(warm, {}))
    assert store.get_study("next").spec == warm.model_dump(mode="json")
