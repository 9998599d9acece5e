"""Neither activation checkpointing nor a compiler changes outputs, gradients or statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from literal import assert_near, loss_of
from tiny import tiny
from torch import nn

from tdaf.model.flows import TDAF, MultiScale

torch.set_num_threads(1)


@pytest.mark.parametrize(("flows", "momentum"), [(1, 0.1), (3, 0.1), (3, None)])
@pytest.mark.parametrize("kind", [TDAF, MultiScale])
def test_rematerialise_changes_nothing(kind, flows, momentum):
    torch.manual_seed(0)
    network = kind(tiny(), flows=flows)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    again = copy.deepcopy(network)
    again.rematerialise = True
    x = torch.randn(2, 3, 40, 33)
    for _ in range(2):
        for net in (network, again):
            loss_of(net(x)).backward()
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(network.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(p, q), name
    assert again.stages[0].norm.num_batches_tracked == 2


@pytest.mark.parametrize("rematerialise", [False, True])
def test_compiles_in_one_graph(rematerialise):
    torch.manual_seed(0)
    network = TDAF(tiny(), flows=2, anar_width=64, rematerialise=rematerialise)
    again = copy.deepcopy(network)
    x = torch.randn(2, 3, 33, 40)
    eager, compiled = network(x), torch.compile(again, backend="aot_eager", fullgraph=True)(x)
    for ours, theirs in zip(compiled, eager, strict=True):
        assert_near(ours, theirs)
    for maps in (eager, compiled):
        loss_of(maps).backward()
    for (name, p), q in zip(network.named_parameters(), again.parameters(), strict=True):
        assert p.grad is not None, name
        assert_near(q.grad, p.grad, 1e-5)
    for p, q in zip(network.buffers(), again.buffers(), strict=True):
        assert_near(q.double(), p.double(), 1e-6)
