"""Crops, heat maps, their decoding and the loss against plain transcriptions of the published rules."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tasks.pose.augment import affine, crop, framed, inverse, transform
from tasks.pose.simplepose import decode, encode, flip_merged, heatmap_loss


def published_frame(box, aspect):
    """x y w h of a box to centre and scale, in units of 200 pixels."""
    x, y, w, h = box
    centre = np.array([x + w * 0.5, y + h * 0.5])
    if w > aspect * h:
        h = w * 1.0 / aspect
    elif w < aspect * h:
        w = h * aspect
    return centre, np.array([w, h]) / 200 * 1.25


def published_affine(centre, scale, rotation, width, height):
    """The matrix through three points: the frame's centre, its upper edge's middle, and a right angle."""
    radians = np.pi * rotation / 180
    sin, cos = np.sin(radians), np.cos(radians)
    up = np.array([0, scale[0] * 200 * -0.5])
    up = np.array([up[0] * cos - up[1] * sin, up[0] * sin + up[1] * cos])
    source, target = np.zeros((3, 2)), np.zeros((3, 2))
    source[0], source[1] = centre, centre + up
    target[0], target[1] = [width * 0.5, height * 0.5], [width * 0.5, height * 0.5 - width * 0.5]
    for points in (source, target):
        direct = points[0] - points[1]
        points[2] = points[1] + [-direct[1], direct[0]]
    return np.linalg.solve(np.column_stack([source, np.ones(3)]), target).T


def drawn(count, seed=0):
    generator = np.random.default_rng(seed)
    corner, extent = generator.uniform(-40, 600, (count, 2)), generator.uniform(3, 400, (count, 2))
    boxes = np.concatenate([corner, corner + extent], 1)
    return boxes, generator.uniform(-180, 180, count), generator.random(count) < 0.5


@pytest.mark.parametrize("size", [(256, 192), (384, 288)])
def test_the_geometry_is_the_published_one(size):
    boxes, rotations, flips = drawn(200)
    centres, extents = framed(boxes, size)
    matrices = affine(centres, extents * 1.2, size, rotations, flips)
    assert matrices.shape == (200, 2, 3)
    image_width = 640
    for box, centre, extent, rotation, flip, matrix in zip(
        boxes, centres, extents, rotations, flips, matrices, strict=True
    ):
        theirs, scale = published_frame([*box[:2], *(box[2:] - box[:2])], 0.75)
        np.testing.assert_allclose(centre, theirs)
        np.testing.assert_allclose(extent, scale * 200)
        points = np.random.default_rng(1).uniform(0, 500, (5, 2))
        expected = points.copy()
        if flip:  # there the whole image is mirrored first
            expected[:, 0] = image_width - expected[:, 0] - 1
            theirs[0] = image_width - theirs[0] - 1
        published = published_affine(theirs, scale * 1.2, rotation, size[1], size[0])
        expected = expected @ published[:, :2].T + published[:, 2]
        np.testing.assert_allclose(transform(points, matrix), expected, atol=1e-8)
        np.testing.assert_allclose(affine(centre, extent * 1.2, size, rotation, flip), matrix)


def interpolated(image, matrix, size):
    """Pixel by pixel in float64; the image is 0 outside."""
    matrix = inverse(matrix)
    height, width = image.shape[1:]
    found = np.zeros((image.shape[0], *size))
    for v in range(size[0]):
        for u in range(size[1]):
            x, y = matrix @ [u, v, 1]
            left, top = math.floor(x), math.floor(y)
            for column, across in ((left, left + 1 - x), (left + 1, x - left)):
                for row, down in ((top, top + 1 - y), (top + 1, y - top)):
                    if 0 <= column < width and 0 <= row < height:
                        found[:, v, u] += across * down * image[:, row, column]
    return found


@pytest.mark.parametrize(("rotation", "flip"), [(0, False), (0, True), (33, False), (-75, True)])
@pytest.mark.parametrize("box", [(5, 5, 30, 40), (-9, -12, 14, 9), (30, 25, 60, 90), (10, 10, 12, 12)])
def test_pixels_are_interpolated(rotation, flip, box):
    size = (32, 24)
    image = np.random.default_rng(0).integers(0, 256, (45, 40, 3), dtype=np.uint8).transpose(2, 0, 1)
    matrix = affine(*framed(box, size), size, rotation, flip)
    found = crop(torch.from_numpy(image), matrix, size)
    assert found.shape == (3, *size) and found.dtype == torch.uint8 and found.is_contiguous()
    expected = interpolated(image.astype(float), matrix, size)
    assert expected.max() > 100
    assert np.abs(found.numpy() - expected).max() <= 0.5 + 0.01


def test_the_identity_and_the_mirror_image_are_exact():
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 16, 12), dtype=np.uint8))
    assert torch.equal(crop(image, [[1, 0, 0], [0, 1, 0]], (16, 12)), image)
    assert torch.equal(crop(image, [[-1, 0, 11], [0, 1, 0]], (16, 12)), image.flip(-1))
    shifted = crop(image, [[1, 0, 5], [0, 1, -2]], (16, 12))
    assert torch.equal(shifted[:, :14, 5:], image[:, 2:, :7]) and shifted[:, :, :5].sum() == 0 == shifted[:, 14:].sum()


@pytest.mark.parametrize("box", [(-900, -900, -800, -800), (500, 3, 600, 50), (3, 700, 9, 720)])
def test_a_box_beside_the_image_gives_a_black_crop(box):
    size = (32, 24)
    image = torch.full((3, 40, 50), 255, dtype=torch.uint8)
    found = crop(image, affine(*framed(box, size), size), size)
    assert found.shape == (3, 32, 24) and found.dtype == torch.uint8 and found.sum() == 0


PAIRS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]


def published_target(point, visible, size, stride, sigma):
    """One key point, pixel by pixel."""
    height, width = size
    reach = 3 * sigma
    mu_x, mu_y = int(point[0] / stride + 0.5), int(point[1] / stride + 0.5)
    left, top, right, bottom = mu_x - reach, mu_y - reach, mu_x + reach + 1, mu_y + reach + 1
    target = np.zeros(size)
    if left >= width or top >= height or right < 0 or bottom < 0:
        return target, 0
    if visible > 0.5:
        for y in range(max(0, top), min(bottom, height)):
            for x in range(max(0, left), min(right, width)):
                target[y, x] = math.exp(-((x - mu_x) ** 2 + (y - mu_y) ** 2) / (2 * sigma**2))
    return target, visible


@pytest.mark.parametrize(("size", "sigma"), [((64, 48), 2), ((96, 72), 3)])
def test_targets_are_the_published_ones(size, sigma):
    generator = np.random.default_rng(0)
    height, width = 4 * size[0], 4 * size[1]
    points = generator.uniform(-60, [width + 60, height + 60], (6, 17, 2))
    # centres that just reach the map and just miss it, on every side
    edges = [4 * (s + k) for s in (-3 * sigma, size[1] + 3 * sigma) for k in range(-3, 4)]
    points[0, :14, 0] = edges
    points[0, :14, 1] = 100
    points[1, :14, 1] = [4 * (s + k) for s in (-3 * sigma, size[0] + 3 * sigma) for k in range(-3, 4)]
    points[1, :14, 0] = 100
    visible = (generator.random((6, 17)) < 0.8).astype(float)
    visible[:2] = 1
    targets, weights = encode(torch.tensor(points), torch.tensor(visible), size, sigma=sigma)
    assert targets.shape == (6, 17, *size) and targets.dtype == weights.dtype == torch.float32
    seen = set()
    for person in range(6):
        for joint in range(17):
            target, weight = published_target(points[person, joint], visible[person, joint], size, 4, sigma)
            assert weights[person, joint] == weight
            np.testing.assert_allclose(targets[person, joint].numpy(), target, atol=1e-7)
            seen.add((weight, target.max() > 0))
    assert seen == {(0, False), (1, True), (1, False)}


def published_point(heatmap):
    """One heat map to a point and a score."""
    height, width = heatmap.shape
    place = int(heatmap.argmax())
    score = heatmap.flatten()[place]
    x, y = place % width, place // width
    if score <= 0:
        x = y = 0
    found = [float(x), float(y)]
    if 1 < x < width - 1 and 1 < y < height - 1:
        found[0] += 0.25 * np.sign(heatmap[y, x + 1] - heatmap[y, x - 1])
        found[1] += 0.25 * np.sign(heatmap[y + 1, x] - heatmap[y - 1, x])
    return found, score


def test_decoding_is_the_published_one():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(20, 17, 9, 7)).astype(np.float32)
    maps[0, :4] -= 10
    points, scores = decode(torch.from_numpy(maps))
    inner = 0
    for person, joint in np.ndindex(20, 17):
        point, score = published_point(maps[person, joint])
        assert points[person, joint].tolist() == point and scores[person, joint] == score
        inner += point[0] % 1 != 0
    assert 100 < inner < 340
    assert points[0, :4].abs().sum() == 0 and (scores[0, :4] < 0).all()


def test_any_key_point_inside_the_crop_comes_back_within_half_a_pixel():
    """From the image through crop and heat map and back, over 10,000 boxes, rotations and flips."""
    generator = np.random.default_rng(0)
    count, size, stride = 10_000, (256, 192), 4
    corner, extent = generator.uniform(-50, 600, (count, 2)), generator.uniform(5, 500, (count, 2))
    centre, frame = framed(np.concatenate([corner, corner + extent], 1), size)
    frame *= generator.uniform(0.7, 1.3, (count, 1))
    matrix = affine(centre, frame, size, generator.uniform(-180, 180, count), generator.random(count) < 0.5)
    # The last heat-map column ends half of its pixels before the last two of the input (docstring of heatmaps).
    limits = np.array([size[1] - stride / 2, size[0] - stride / 2]) - 1e-3
    points = transform(generator.uniform(0, limits, (count, 1, 2)), inverse(matrix))
    found = []
    for chunk in range(0, count, 1000):
        part = slice(chunk, chunk + 1000)
        inside = torch.from_numpy(transform(points[part], matrix[part]))
        targets, weights = encode(inside, torch.ones(1000, 1), (64, 48), stride)
        assert (weights == 1).all()
        decoded, scores = decode(targets)
        assert (scores == 1).all()
        found.append(transform(decoded.numpy() * stride, inverse(matrix[part])))
    found = np.concatenate(found)
    pixels = np.abs(transform(found, matrix) - transform(points, matrix)) / stride
    assert pixels.max() <= 0.5 + 1e-6
    assert pixels.max() > 0.49  # and it is not that nothing moved
    # the same in the image, in units of the crop's scale
    scale = np.abs(np.linalg.det(matrix[:, :, :2])) ** 0.5
    distance = np.linalg.norm(found - points, axis=-1)[:, 0] * scale / stride
    assert distance.max() <= math.sqrt(0.5) + 1e-6


def test_the_flip_test_is_the_published_one():
    maps = torch.randn(3, 2, 17, 8, 6)
    straight, turned = maps[:, 0].numpy(), maps[:, 1].numpy()[..., ::-1].copy()
    for left, right in PAIRS:
        turned[:, [left, right]] = turned[:, [right, left]]
    turned[:, :, :, 1:] = turned.copy()[:, :, :, 0:-1]
    before = maps.clone()
    np.testing.assert_allclose(flip_merged(maps, PAIRS).numpy(), (straight + turned) * 0.5, rtol=1e-6)
    assert torch.equal(maps, before)


def test_the_loss_is_the_published_one():
    """JointsMSELoss written down with loops."""
    maps = torch.randn(4, 17, 16, 12, requires_grad=True)
    targets, weights = torch.rand(4, 17, 16, 12), (torch.rand(4, 17) < 0.7).float()
    weights[0, 0] = 0.5
    total, mse = 0.0, nn.MSELoss(reduction="mean")
    for joint in range(17):
        predicted, wanted = maps[:, joint].reshape(4, -1), targets[:, joint].reshape(4, -1)
        weight = weights[:, joint, None]
        total += 0.5 * mse(predicted * weight, wanted * weight)
    expected = total / 17
    ours = heatmap_loss(maps, targets, weights)
    torch.testing.assert_close(ours, expected)
    (grad,), (theirs,) = torch.autograd.grad(ours, maps), torch.autograd.grad(expected, maps)
    torch.testing.assert_close(grad, theirs)
    assert grad[weights == 0].abs().sum() == 0
    assert heatmap_loss(maps.bfloat16(), targets, weights).dtype == torch.float32
