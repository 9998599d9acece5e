"""A 2D network made 3D."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from tdaf.errors import UserError
from tdaf.model.backbones.mobilenet import mobilenet
from tdaf.model.backbones.resnet import resnet
from tdaf.model.backbones.vgg import vgg
from tdaf.model.inflate import inflate, inflate_weight
from tdaf.model.staged import Staged

torch.set_num_threads(1)


def small() -> Staged:
    """Two stages with every kind of layer whose output at the middle frame does not depend on the clip's ends."""
    first = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False),
            bn=nn.BatchNorm2d(8, eps=1e-3, momentum=0.2),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )
    second = nn.Sequential(
        nn.Conv2d(8, 12, 3, padding="same", groups=2),
        nn.Sequential(nn.BatchNorm2d(12), nn.Dropout2d(0.3)),
        nn.AvgPool2d(2, stride=1, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(12, 4, 1),
    )
    staged = Staged([first, second], [8, 4], [4, 4])
    for tensor in staged.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(-1, 1) if tensor.ndim > 1 else tensor.uniform_(0.5, 1.5)
    return staged.eval()


def test_still_clip_gives_the_images_maps():
    torch.manual_seed(0)
    flat = small()
    solid = inflate(copy.deepcopy(flat), stem=None)
    solid.stages[0].conv.stride = (1, 2, 2)
    x = torch.rand(2, 3, 37, 41)
    clip = x.unsqueeze(2).expand(-1, -1, 31, -1, -1)
    for ours, theirs in zip(solid(clip), flat(x), strict=True):
        torch.testing.assert_close(ours[:, :, ours.shape[2] // 2], theirs, rtol=1e-5, atol=1e-4)
        assert ours.shape[3:] == theirs.shape[2:]
    assert solid.dims == 3 and flat.dims == 2


def test_inflate_weight_is_a_literal_repetition():
    weight = torch.rand(5, 4, 3, 2)
    solid = inflate_weight(weight, (5, 4, 7, 3, 2))
    assert solid.shape == (5, 4, 7, 3, 2)
    for t in range(7):
        torch.testing.assert_close(solid[:, :, t], weight / 7, rtol=0, atol=0)
    solid[:, :, 0] = 0  # memory of its own, not one frame seen seven times
    assert solid[:, :, 1].any()


def test_batch_norm_and_settings_are_kept():
    flat = small()
    for parameter in flat.stages[0].parameters():
        parameter.requires_grad_(False)
    flat.stages[1].train()
    reference = copy.deepcopy(flat)
    solid = inflate(flat)
    bn, old = solid.stages[0].bn, reference.stages[0].bn
    assert type(bn) is nn.BatchNorm3d and (bn.eps, bn.momentum) == (1e-3, 0.2)
    for name, tensor in old.state_dict().items():
        assert torch.equal(bn.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in solid.stages[0].parameters())
    assert all(p.requires_grad for p in solid.stages[1].parameters())
    assert not solid.stages[0].conv.training and solid.stages[1][0].training and solid.stages[1][1][1].training
    assert solid.stages[1][1][1].p == 0.3 and type(solid.stages[1][1][1]) is nn.Dropout3d
    assert solid.stages[1][0].groups == 2
    assert torch.equal(solid.stages[1][0].bias, reference.stages[1][0].bias)
    pool = solid.stages[1][2]
    assert pool.ceil_mode and not pool.count_include_pad


def test_resnet_has_haras_layout():
    """Hara et al. 2018, Table 1: all kernels cubes, conv1 7x7x7 with stride (1, 2, 2), the pool strides in time."""
    with torch.device("meta"):
        stages = resnet(50, dims=3).stages
        maps = resnet(50, dims=3)(torch.rand(2, 3, 16, 112, 112))
    assert stages[0].conv1.kernel_size == (7, 7, 7) and stages[0].conv1.stride == (1, 2, 2)
    assert stages[0].conv1.padding == (3, 3, 3)
    assert stages[0].maxpool.kernel_size == (3, 3, 3) and stages[0].maxpool.stride == (2, 2, 2)
    assert stages[1].layer2[0].conv2.stride == (2, 2, 2)
    assert stages[1].layer2[0].downsample[0].stride == (2, 2, 2)
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 28, 28), (4, 14, 14), (2, 7, 7), (1, 4, 4)]


def test_vgg_has_c3ds_first_pool_and_mobilenet_spares_time_first():
    with torch.device("meta"):
        clip = torch.rand(2, 3, 16, 64, 64)
        assert [m.shape[2] for m in vgg(11, dims=3)(clip)] == [16, 8, 4, 2, 1]
        assert [m.shape[2] for m in mobilenet(dims=3)(clip)] == [16, 8, 4, 2, 1]
        assert [m.shape[2] for m in resnet(18, stem="cifar", dims=3)(clip)] == [16, 8, 4, 2]


def test_a_layer_without_twin_is_named():
    staged = Staged([nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4))], [4], [1])
    with pytest.raises(UserError, match="dims=3: InstanceNorm2d"):
        inflate(staged)


def test_new_3d_network_starts_at_3d_scale():
    """From scratch the 3D kernels are drawn as such, and differ from frame to frame."""
    torch.manual_seed(0)
    weight = resnet(18, dims=3).stages[3].layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 27)) ** 0.5, rel=0.02)
    assert not torch.equal(weight[:, :, 0], weight[:, :, 1])
