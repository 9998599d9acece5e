"""Counts: against hand-made ones, and the bars of the design for ResNet-50 and 101."""

import pytest
import torch
from tiny import tiny
from torch import Tensor, nn

from tdaf.measure import gflops, parameters, saved_bytes
from tdaf.model.backbones.resnet import resnet
from tdaf.model.flows import TDAF, MultiScale
from tdaf.model.staged import Staged


class Network(nn.Module):
    def __init__(self, body: Staged | TDAF | MultiScale) -> None:
        super().__init__()
        self.body = body
        self.fc = nn.Linear(body.widths[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x)[-1].flatten(2).mean(2))


def test_parameters():
    plain = TDAF(tiny(), flows=1)
    network = TDAF(tiny(), flows=3, anar=3, anar_width=64)
    gates = sum(p.numel() for p in network.gates.parameters())
    whole = sum(p.numel() for p in plain.parameters()) + gates
    assert parameters(network) == (whole, whole, 0)
    frozen = sum(p.numel() for p in network.stages[0].requires_grad_(False).parameters())
    assert parameters(network) == (whole, whole - frozen, frozen) and frozen > 0
    assert parameters(nn.Sequential(plain, plain)).total == whole - gates


def test_gflops_of_one_layer():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert gflops(conv, torch.randn(2, 3, 10, 12)).total == pytest.approx(2 * 10 * 12 * 8 * 27 / 1e9)
    deconv = nn.ConvTranspose2d(4, 6, 4, 2, 1)
    assert gflops(deconv, torch.randn(1, 4, 5, 5)).total == pytest.approx(5 * 5 * 4 * 6 * 16 / 1e9)


def test_gflops_parts_sum_up():
    network = Network(TDAF(tiny(), flows=3, anar=2, anar_width=64)).train()
    before = network.body.stages[0].norm.running_mean.clone()
    count = gflops(network, torch.randn(2, 3, 64, 64))
    assert torch.equal(network.body.stages[0].norm.running_mean, before) and network.body.training
    assert count.rest == pytest.approx(2 * 64 * 1000 / 1e9)
    # Gates of ANAR-2 at flows 2 (stages 1, 2) and 3 (stages 1, 2, 3), on maps of half the size: 1x1 A->8, 1x1 8->1.
    sizes = {(2, 1): 8, (2, 2): 4, (3, 1): 16, (3, 2): 8, (3, 3): 4}
    widths = {1: 32, 2: 64, 3: 32}
    gates = sum(2 * size**2 * (widths[stage] * 8 + 8) for (_, stage), size in sizes.items())
    assert count.gates == pytest.approx(gates / 1e9)
    assert count.total == pytest.approx(count.flows + count.gates + count.rest)
    alone = gflops(Network(MultiScale(tiny(), flows=3)), torch.randn(2, 3, 64, 64))
    assert alone.gates == 0 and alone.flows == pytest.approx(count.flows)
    assert gflops(Network(tiny()), torch.randn(2, 3, 64, 64)).flows < alone.flows
    shared = gflops(Network(TDAF(tiny(), flows=3, anar=2, anar_width=64, norm="shared")), torch.randn(2, 3, 64, 64))
    assert tuple(shared) == pytest.approx(tuple(count))


@pytest.mark.parametrize(("depth", "expected"), [(50, 1.236), (101, 1.243)])
def test_gflops_of_tdaf_over_plain(depth, expected):
    with torch.device("meta"):
        x = torch.empty(1, 3, 224, 224)
        plain, tdaf = gflops(Network(resnet(depth)), x), gflops(Network(TDAF(resnet(depth), flows=3, anar=3)), x)
    assert plain.total == pytest.approx({50: 4.089, 101: 7.801}[depth], abs=5e-4)  # torchvision's own figures
    assert tdaf.total / plain.total == pytest.approx(expected, abs=0.005)
    assert tdaf.gates < 0.02 * plain.total


def test_saved_bytes_of_one_layer():
    x = torch.randn(4, 3, 8, 8)
    assert saved_bytes(nn.Conv2d(3, 5, 3), x) == x.nbytes
    # Input of the convolution; input of the norm with its mean and deviation; output of the ReLU.
    block = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
    assert saved_bytes(block, x) == x.nbytes + 2 * (4 * 5 * 6 * 6 * 4) + 2 * 5 * 4
    assert saved_bytes(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), x) == x.nbytes


def per_sample(build, size: int) -> int:
    """What one more sample adds: statistics of batch norm, kept once a batch, are not counted."""
    with torch.device("meta"):
        network = build().train()
        one, two = (saved_bytes(network, torch.empty(batch, 3, size, size)) for batch in (1, 2))
    return two - one


def test_saved_activations_of_tdaf_over_plain():
    plain = per_sample(lambda: Network(resnet(50)), 224)
    tdaf = per_sample(lambda: Network(TDAF(resnet(50), flows=3, anar=3)), 224)
    assert tdaf / plain <= 1.30
    less = per_sample(lambda: Network(TDAF(resnet(50), flows=3, anar=3, rematerialise=True)), 224)
    assert less < plain / 4


def test_meta_device_counts_as_the_cpu_does():
    network = TDAF(resnet(18), flows=3, anar=3, anar_width=64).train()
    x = torch.randn(2, 3, 64, 64)
    assert saved_bytes(network, x) == saved_bytes(network.to("meta"), x.to("meta"))
