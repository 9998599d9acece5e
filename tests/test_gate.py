"""The fused ReLU and gate: its gradients, against autograd of the plain formula."""

from __future__ import annotations

import pytest
import torch
from literal import assert_near
from tiny import tiny

from tdaf.model.flows import TDAF
from tdaf.model.flows import relu_gate

torch.set_num_threads(1)


@pytest.mark.parametrize("inplace", [False, True])
def test_fused_gate_gradients(inplace):
    torch.manual_seed(0)
    h = torch.randn(2, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    m = torch.rand(2, 1, 4, 3, dtype=torch.float64).mul(1.4).add(0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, m: relu_gate(h * 1, m, inplace), (h, m))
    weight = torch.randn_like(h)
    ours = torch.autograd.grad((relu_gate(h * 1, m, inplace) * weight).sum(), (h, m))
    theirs = torch.autograd.grad((torch.relu(h) * m * weight).sum(), (h, m))
    for a, b in zip(ours, theirs, strict=True):
        assert_near(a, b, 1e-12)
    with torch.no_grad():
        assert torch.equal(relu_gate(h.clone(), m, inplace), torch.relu(h) * m)


def test_fused_gate_where_the_mask_is_zero():
    torch.manual_seed(0)
    h = torch.randn(1, 4, 1, 3, dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([-2000.0, 0.3, 900.0], dtype=torch.float64).reshape(1, 1, 1, 3).requires_grad_()
    ours = torch.autograd.grad(relu_gate(h * 1, torch.sigmoid(logits)).square().sum(), (h, logits))
    theirs = torch.autograd.grad((torch.relu(h) * torch.sigmoid(logits)).square().sum(), (h, logits))
    assert torch.sigmoid(logits)[0, 0, 0, 0] == 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        assert_near(a, b, 1e-12)


def test_fused_gate_sums_half_precision_in_float32():
    torch.manual_seed(0)
    h = torch.rand(1, 4096, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    m = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    (grad,) = torch.autograd.grad(relu_gate(h * 1, m).sum(), m)
    assert grad.dtype == torch.bfloat16
    assert abs(grad.item() - h.float().sum().item()) <= 2**-8 * h.float().sum().item()


def test_channels_last_stays():
    network = TDAF(tiny(), flows=3, anar=7, anar_width=64).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 48, 48).to(memory_format=torch.channels_last)
    for mode in (True, False):
        for m in network.train(mode)(x):
            assert m.is_contiguous(memory_format=torch.channels_last)
