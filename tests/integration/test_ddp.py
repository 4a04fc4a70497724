"""Every rule under DistributedDataParallel equals one process that sees the joined batch."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import optimizers
from tests.integration.processes import SCHEDULE, identical, network, together, train
from tests.optimizers.table import ROWS

LIMIT = 0.2  # every step is clipped


def optimizer(row, model):
    arguments = {**row.settings[-1], **SCHEDULE, "clip_norm": LIMIT}
    return optimizers.create(row.rule, model.named_parameters(), **arguments)


def replica(rank):
    """Per rule: gradient norms, and parameters and optimizer state at the end."""
    ends = {}
    for row in ROWS:
        model = network()
        opt = optimizer(row, model)
        norms = train(DistributedDataParallel(model), opt, rank)
        ends[row.rule] = {
            "norms": norms,
            "params": list(model.parameters()),
            "state": opt.state_dict()["state"],
        }
    return ends


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    return together(replica, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
def test_two_processes_are_one(row, replicas):
    first, second = (ends[row.rule] for ends in replicas)
    assert identical(first, second)

    model = network()
    norms = train(model, optimizer(row, model))
    assert min(norms) > LIMIT
    torch.testing.assert_close(first["norms"], norms, rtol=1e-10, atol=0)
    torch.testing.assert_close(first["params"], list(model.parameters()), rtol=1e-8, atol=1e-12)
