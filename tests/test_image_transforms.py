"""Augmentation on uint8 against torchvision, against arithmetic written out, and by its distribution."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from tasks.classification import transforms as ours
from tdaf.errors import UserError

RECIPES = {
    "paper": lambda: ours.imagenet_train(lighting=0.1),
    "modern": lambda: ours.imagenet_train(short_side=None, scale=[0.08, 1.0], randaugment=9, erasing=1.0),
    "small": lambda: ours.imagenet_train(size=64, short_side=[64, 80]),
    "val": lambda: ours.imagenet_val(),
    "cifar": lambda: ours.cifar_train(),
    "cifar modern": lambda: ours.cifar_train(randaugment=9, erasing=1.0),
}


def photo(height: int, width: int) -> Tensor:
    """Smooth colours with the memory order of a decoder, (H, W, 3)."""
    coarse = torch.randint(0, 256, (1, 3, 6, 8), generator=torch.Generator().manual_seed(0)).float()
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").byte()[0]
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (32, 32), (1, 1), (2, 300), (999, 40)])
def test_gives_bytes_of_its_size(recipe: str, shape: tuple[int, int]) -> None:
    if "cifar" in recipe:
        shape = (32, 32)
    size = {"small": 64, "cifar": 32, "cifar modern": 32}.get(recipe, 224)
    transform = pickle.loads(pickle.dumps(RECIPES[recipe]()))  # workers that are spawned are sent it
    image = photo(*shape)
    before = image.clone()
    for seed in range(3):
        torch.manual_seed(seed)
        out = transform(image)
        assert out.shape == (3, size, size) and out.dtype == torch.uint8
        torch.manual_seed(seed)
        assert torch.equal(transform(image), out)
    assert torch.equal(image, before)


def test_crop_in_decoders_order_equals_v2() -> None:
    image = photo(375, 500)
    for box in ((10, 20, 300, 310), (0, 0, 375, 500), (3, 400, 50, 60), (100, 100, 1, 1)):
        expected = v2.functional.resized_crop(image.contiguous(), *box, [224, 224], antialias=True)
        assert torch.equal(ours.resized_crop(image, *box, 224), expected)
        assert torch.equal(ours.resized_crop(image.contiguous(), *box, 224), expected)


class Recorded:
    """Stands in for `resized_crop` and keeps the boxes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boxes: list[list[int]] = []
        monkeypatch.setattr(ours, "resized_crop", lambda image, *box: self.boxes.append(list(box[:4])))

    def drawn(self, crop: ours.Transform, image: Tensor, count: int) -> np.ndarray:
        torch.manual_seed(1)
        for _ in range(count):
            crop(image)
        return np.array(self.boxes, float)


def test_scale_jitter_is_uniform_over_scales_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Recorded(monkeypatch).drawn(ours.ScaleJitterCrop((256, 480), 224), torch.zeros(3, 1000, 1500), 4000)
    top, left, height, width = drawn.T
    assert (height == width).all()
    short_side = 224 * 1000 / height  # what the image's short side would be with this crop at 224
    assert short_side.min() > 255 and short_side.max() < 481
    cells = np.histogram(short_side, np.linspace(255.5, 480.5, 10))[0]
    assert abs(cells - 4000 / 9).max() < 4.5 * (4000 / 9) ** 0.5
    for place, room in ((top, 1000 - height), (left, 1500 - width)):
        assert (place >= 0).all() and (place <= room).all()
        cells = np.histogram(place / room, 8, (0, 1))[0]
        assert abs(cells - 500).max() < 4.5 * 500**0.5


def test_scale_jitter_equals_resize_then_crop_but_for_rounding() -> None:
    image = photo(400, 600)
    torch.manual_seed(3)
    target = int(torch.randint(256, 481, ()))
    side = round(224 * 400 / target)
    top, left = int(torch.randint(400 - side + 1, ())), int(torch.randint(600 - side + 1, ()))
    whole = v2.functional.resize(image, [target])
    scale = target / 400
    y, x = round(top * scale), round(left * scale)
    torch.manual_seed(3)
    got = ours.ScaleJitterCrop((256, 480), 224)(image)
    difference = got.float() - whole[:, y : y + 224, x : x + 224].float()
    assert difference.abs().mean() < 1.0


def test_random_resized_crop_draws_as_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(3, 300, 400)
    got = Recorded(monkeypatch).drawn(ours.RandomResizedCrop((0.08, 1.0), 224), image, 4000)
    torch.manual_seed(2)
    box = v1.RandomResizedCrop.get_params
    expected = np.array([box(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], float)
    for ours_, theirs in zip(got.T, expected.T, strict=True):
        # two-sample Kolmogorov-Smirnov at 1e-4
        grid = np.unique(np.concatenate([ours_, theirs]))
        ranks = [np.searchsorted(np.sort(values), grid, side="right") / 4000 for values in (ours_, theirs)]
        assert abs(ranks[0] - ranks[1]).max() < 2.23 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (100, 90)])
def test_evaluation_crops_are_torchvisions_and_nearly_pils(shape: tuple[int, int]) -> None:
    image = photo(*shape)
    views = v1.TenCrop(224)(v2.functional.resize(image, [256], antialias=True))
    got = ours.imagenet_val(crops=10)(image)
    assert got.shape == (10, 3, 224, 224) and torch.equal(got, torch.stack(views))
    centre = ours.imagenet_val()(image)
    assert torch.equal(got[4], centre)
    pil = v1.Compose([v1.ToPILImage(), v1.Resize(256), v1.CenterCrop(224), v1.PILToTensor()])(image.contiguous())
    assert abs(centre.int() - pil.int()).max() <= 2


def test_the_draws_of_cifar_stay() -> None:
    """Runs of today go on with the same samples: where, then whether mirrored, from torch's generator."""
    image = torch.arange(3 * 32 * 32).view(3, 32, 32).to(torch.uint8)
    for seed in range(8):
        torch.manual_seed(seed)
        top, left, mirrored = torch.randint(9, ()), torch.randint(9, ()), torch.rand(()) < 0.5
        expected = torch.nn.functional.pad(image, (4,) * 4)[:, top : top + 32, left : left + 32]
        torch.manual_seed(seed)
        assert torch.equal(ours.cifar_train()(image), expected.flip(-1) if mirrored else expected)
    assert torch.equal(ours.cifar_train(pad=0, flip=0.0)(image), image) and torch.equal(ours.cifar_val()(image), image)


def test_lighting_shifts_along_the_principal_components() -> None:
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    for deviation in (0.1, 5.0):
        torch.manual_seed(4)
        weights = deviation * torch.randn(3)
        shift = [sum(ours.DIRECTIONS[c, k] * ours.DEVIATIONS[k] * weights[k] for k in range(3)) for c in range(3)]
        torch.manual_seed(4)
        got = ours.Lighting(deviation)(image).float()
        for c in range(3):
            expected = (image[c].float() + 255 * shift[c]).clamp(0, 255)
            assert (got[c] - expected).abs().max() <= 0.5 + 1e-3
    identity = ours.DIRECTIONS.T @ ours.DIRECTIONS
    assert torch.allclose(identity, torch.eye(3), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.imagenet_train(short_side=None), "not both"),
        (lambda: ours.imagenet_train(short_side=[200, 300]), "size=224 <= first"),
        (lambda: ours.imagenet_train(short_side=None, scale=[0, 1]), "two parts of the area"),
        (lambda: ours.imagenet_val(size=300), "size=300 must be between 1 and short_side=256"),
        (lambda: ours.imagenet_val(crops=5), "crops=5: give 1 or 10"),
        (lambda: ours.cifar_train(size=64), "size=64"),
    ],
)
def test_settings_that_cannot_be(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
