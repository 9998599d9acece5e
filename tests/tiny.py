"""A small staged network with every kind of stage that TDAF meets, for tests."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from tdaf.model.staged import Staged

KINDS = {
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
}


class Residual(nn.Module):
    """A stage that is no Sequential."""

    def __init__(self, inputs: int, width: int, dims: int) -> None:
        super().__init__()
        conv, norm, _ = KINDS[dims]
        self.conv = conv(inputs, width, 3, stride=2, padding=1, bias=False)
        self.norm = norm(width)
        self.project = conv(inputs, width, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + self.project(x))


def tiny(dims: int = 2, last: int = 64) -> Staged:
    """Four stages: ending in an in-place ReLU, in a ReLU, in a max-pool, and in a class of its own."""
    conv, norm, pool = KINDS[dims]

    def layers(inputs: int, width: int, **rest: nn.Module) -> nn.Sequential:
        stride = 1 if "pool" in rest else 2
        first = OrderedDict(conv=conv(inputs, width, 3, stride=stride, padding=1), norm=norm(width))
        return nn.Sequential(OrderedDict(**first, **rest))

    stages = [
        layers(3, 32, relu=nn.ReLU(inplace=True)),
        layers(32, 64, relu=nn.ReLU()),
        layers(64, 32, relu=nn.ReLU(inplace=True), pool=pool(2, ceil_mode=True)),
        Residual(32, last, dims),
    ]
    return Staged(stages, [32, 64, 32, last], [2, 4, 8, 16], dims)


def settle(network: nn.Module, dims: int = 2, size: int = 40) -> nn.Module:
    """The network with statistics and affine values that are not those of a fresh one."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(4, 3, *[size] * dims, dtype=dtype))
    return network
