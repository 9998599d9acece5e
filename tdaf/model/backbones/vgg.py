"""VGG (Simonyan and Zisserman 2015): torchvision's network cut after each of its five max-pools."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from tdaf.errors import UserError
from tdaf.model import attention as mechanisms
from tdaf.model.attention import Attention
from tdaf.model.inflate import inflate
from tdaf.model.staged import Staged, initialise

_LETTERS = {11: "A", 13: "B", 16: "D", 19: "E"}  # the columns of the publication's Table 1


def vgg(depth: int = 16, batch_norm: bool = False, attention: Attention | str | None = None, dims: int = 2) -> Staged:
    """VGG with the publication's three fully connected layers as `classifier`. L = 5, strides 2, 4, 8, 16, 32.

    Args:
        depth: 11, 13, 16 or 19.
        batch_norm: the published network, and the one of the paper's 138.4M parameters, has none.
        attention: None or "none"; or an object that places itself in stages without blocks (an attention branch).
        dims: 3: all kernels cubes, pool1 1x2x2 (C3D, Tran et al. 2015), so that 16 frames reach the last stage.

    Raises:
        UserError: a setting that has no network.
    """
    attention = mechanisms.resolve(attention)
    if attention is not None and not mechanisms.is_placement(attention):
        name = mechanisms.name_of(attention)
        raise UserError(f"attention: {name} is not defined for VGG, which has no residual branches to put it at")
    if depth not in _LETTERS:
        raise UserError(f"depth={depth}: VGG has the depths {', '.join(map(str, _LETTERS))}")
    if dims not in (2, 3):
        raise UserError(f"dims={dims}: choose 2 (images) or 3 (clips)")
    stages: list[nn.Module] = []
    features: OrderedDict[str, nn.Module] = OrderedDict()
    pools: list[nn.Module] = []
    for index, layer in enumerate(make_layers(cfgs[_LETTERS[depth]], batch_norm)):
        features[str(index)] = layer
        if isinstance(layer, nn.MaxPool2d):
            stages.append(nn.Sequential(OrderedDict(features=nn.Sequential(features))))
            pools.append(layer)
            features = OrderedDict()
    classifier = partial(vgg_classifier, dims=dims)
    staged = Staged(stages, [64, 128, 256, 512, 512], [2, 4, 8, 16, 32], classifier=classifier)
    if attention is not None:
        attention.place(staged)
    if dims == 3:
        inflate(staged, stem=pools[0])
    return initialise(staged)


def vgg_classifier(width: int, classes: int, dims: int = 2) -> nn.Module:
    """(B, width, [T,] H, W) -> (B, classes): pooled to 7x7 (one frame of it), then 4096, 4096 and `classes`."""
    pool = nn.AdaptiveAvgPool2d(7) if dims == 2 else nn.AdaptiveAvgPool3d((1, 7, 7))
    layers = nn.Sequential(
        nn.Linear(width * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, classes),
    )
    return initialise(nn.Sequential(OrderedDict(avgpool=pool, flatten=nn.Flatten(), classifier=layers)))
