"""The benchmark of the step runs, with torch as the only peer, and its tables are complete."""

import argparse
import json

import pytest

from benchmarks import optimizer_step, peers, tables, targets
from benchmarks.models import MODELS, count
from optimizers import names


@pytest.fixture
def results(tmp_path, capsys):
    """Runs the benchmark on a tiny model; gives back its results and what it printed."""

    def run(*arguments):
        path = tmp_path / "results.json"
        fixed = ["--json", str(path), "--rounds", "2", "--seconds", "0", "--threads", "1"]
        optimizer_step.main([*arguments, *fixed])
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


def test_a_rule_beside_its_peers(results):
    arguments = ["--model", "tiny", "--library", "torch", "--engine", "eager", "--rule"]
    results(*arguments, "muon")
    document, text = results(*arguments, "adamw")
    assert [row["rule"] for row in document["steps"]] == ["muon", "adamw"]
    row = document["steps"][1]
    assert row["arrays"] == 3  # parameter and two moments
    assert {peer["variant"] for peer in row["peers"]} == {"for-loop", "foreach", "fused"}
    assert all(peer["median"] > 0 for peer in row["peers"])
    assert "| adamw " in text
    assert "torch's Muon takes no convolutions" in text


def test_each_of_several_steps_has_gradients():
    """HeavyBall's optimizers drop them in a step, after which there is nothing to do."""
    args = argparse.Namespace(device="cpu", dtype="float32", no_peers=True)
    bench = optimizer_step.Bench("soap", [("weight", (2, 3))], args, "eager")
    seen = []

    def build(named):
        param = named[0][1]

        def step():
            seen.append(param.grad is not None)
            param.grad = None

        return step

    bench.enter("dropping", build)
    seen.clear()
    bench.calls["dropping"]()
    assert seen == [True] * 10


def test_growth_needs_no_peers(results, monkeypatch):
    monkeypatch.setattr(optimizer_step, "SIZES", ((2, 10), (4, 10)))
    document, text = results("--growth", "--rule", "sgd", "--engine", "eager")
    assert [row["tensors"] for row in document["growth"]] == [2, 4]
    assert "µs per tensor" in text


def test_every_rule_has_a_peer_and_a_target():
    assert set(peers.PEERS) == set(names())
    assert set(targets.WHOLE_TENSORS) | set(targets.FUSED_BY_TORCH) < set(names())


def test_a_verdict_names_what_is_missed():
    peer = {"library": "torch", "variant": "fused", "kind": "fused", "median": 10.0}
    row = {"rule": "adamw", "model": "gpt", "engine": "auto", "ms": 9.0, "peers": [peer]}
    assert tables.verdict(row) == "≤ 0.78 torch fused: **missed** (0.90)"
    assert tables.verdict({**row, "ms": 7.0}) == "≤ 0.78 torch fused: met"


def test_models_have_the_sizes_they_say():
    sizes = {name: round(count(shapes()) / 1e6, 1) for name, shapes in MODELS.items()}
    assert sizes == {
        "gpt": 29.4, "vit": 22.1, "resnet": 25.6, "embedding": 26.4, "many-small": 1.0, "tiny": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "warp"], "engine='warp' is not valid; allowed: "),
        (["--show"], "--show needs the --json FILE of an earlier run"),
    ],
)
def test_a_bad_argument_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit):
        optimizer_step.main(arguments)
    assert message in capsys.readouterr().err
