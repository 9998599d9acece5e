"""Designs that are not the paper's: off they change nothing, on what they say; folded, computed again, saved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from literal import assert_near, loss_of
from tiny import settle, tiny
from torch import nn

from tdaf.model.flows import TDAF
from tdaf.model.fold import fold
from tdaf.model.maps import attention_maps, mask_eta

torch.set_num_threads(1)


def test_the_defaults_are_the_papers_and_each_design_is_a_switch():
    """Nothing but what a design says changes: names, first weights and, where it starts so, the maps."""
    x = torch.randn(2, 3, 40, 40)

    def built(**design):
        torch.manual_seed(0)
        network = TDAF(tiny(), flows=3, anar=5, anar_width=64, **design)
        return network.state_dict(), network(x)[-1]

    state, maps = built()
    same = built(upsample="deconv", mask="one", learn_eta=False, detach=False, preactivation=False, deeper=0)
    assert all(torch.equal(state[key], same[0][key]) for key in state) and torch.equal(maps, same[1])
    detached, learnt = built(detach=True), built(learn_eta=True)
    assert detached[0].keys() == state.keys() and torch.equal(detached[1], maps)
    assert learnt[0].keys() - state.keys() == {f"gates.{stage}.logit" for stage in (1, 2, 3)}
    torch.testing.assert_close(learnt[1], maps)
    channel, resized = built(mask="channel")[0], built(upsample="resize")[0]
    assert channel["gates.2.mask.weight"].shape[0] == tiny().widths[1] and state["gates.2.mask.weight"].shape[0] == 1
    assert resized["gates.1.last.1.weight"].shape[2:] == (3, 3) and state["gates.1.last.0.weight"].shape[2:] == (4, 4)
    deeper = built(deeper=1)[0]
    assert {key.split(".")[1] for key in deeper.keys() - state.keys() if key.startswith("gates.")} == {"4"}


@pytest.mark.parametrize(
    "design", [{"preactivation": True, "gated": [1, 2]}, {"deeper": 2}, {"deeper": 1, "norm": "shared"}]
)
def test_a_design_folds_is_computed_again_saved_and_starts_as_the_identity(design):
    torch.manual_seed(0)
    plain = settle(tiny())
    network = TDAF(copy.deepcopy(plain), flows=3, anar_width=32, gate_init="identity", **design)
    x = torch.randn(2, 3, 40, 33)
    if "norm" not in design:  # statistics of one's own are the plain network's only as long as they are copies
        for ours, theirs in zip(network.eval()(x), plain.eval()(x), strict=True):
            assert_near(ours, theirs)
    again = TDAF(tiny(), flows=3, anar_width=32, rematerialise=True, **design)
    nn.init.normal_(network.gates["2"].mask.weight)
    again.load_state_dict(network.state_dict())
    for net in (network.train(), again):
        loss_of(net(x)).backward()
    for (name, p), q in zip(network.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p.grad, q[1].grad), name
    for ours, theirs in zip(fold(again)(x), pickle.loads(pickle.dumps(again)).eval()(x), strict=True):
        assert_near(ours, theirs, 1e-5)
    depths = [min(4, 1 + n + design.get("deeper", 0)) for n in (1, 2)]  # S(1) and S(2), whose maps have a gate
    gated = design.get("gated", [1, 2, 3, 4])
    assert {*attention_maps(again, x)} == {
        (n, s) for n, seen in zip((2, 3), depths, strict=True) for s in gated if s <= seen
    }


def test_a_learnt_eta_is_one_number_a_stage_shared_by_all_flows():
    network = TDAF(tiny(), flows=4, anar=3, anar_width=32, learn_eta=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network(torch.randn(2, 3, 48, 48))[-1].square().mean().backward()
    optimizer.step()
    numbers = [gate.logit.item() for gate in network.gates.values()]
    assert len(set(numbers)) == 3 and 0.0 not in numbers
    assert all(
        flow["gates"][key].logit is network.gates[key].logit for flow in network.earlier for key in flow["gates"]
    )
    assert 0 < mask_eta(network) < 1 and mask_eta(network) != 0.5
