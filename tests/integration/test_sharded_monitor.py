"""The monitor over sharded parameters reports what it reports over whole ones."""

from pathlib import Path

import pytest
from torch.distributed.fsdp import fully_shard

import optimizers
from optimizers import Monitor
from tests.integration.processes import network, together, train

pytestmark = pytest.mark.slow


def reports(model, rank=None):
    optimizer = optimizers.create("adamw", model)
    monitor = Monitor(model, every=2)
    monitor.attach(optimizer)
    train(model, optimizer, rank)
    return [
        [report.step, name, stats.grad_norm, stats.weight_norm, stats.update_norm]
        for report in monitor.reports
        for name, stats in report.layers.items()
    ]


def sharded(rank):
    model = network()
    for module in (*model, model):
        fully_shard(module)
    return reports(model, rank)


def test_shards_report_whole_layers(tmp_path: Path) -> None:
    expected = reports(network())
    assert len(expected) == 6
    for told in together(sharded, tmp_path):
        assert [line[:2] for line in told] == [line[:2] for line in expected]
        for line, whole in zip(told, expected, strict=True):
            assert line[2:] == pytest.approx(whole[2:], rel=1e-6)
