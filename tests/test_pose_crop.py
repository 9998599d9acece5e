"""The crop's geometry against the published construction, and its pixels against interpolation written down."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tasks.pose.augment import affine, crop, framed, inverse, transform

torch.set_num_threads(1)


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
