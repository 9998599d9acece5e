"""Images with boxes: resized, mirrored, cut, padded into batches of bytes, and scored."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import document, save, save_images, save_set
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from tasks.coco.annotations import read
from tasks.coco.source import CocoFiles, CocoSplit
from tasks.detection.data import Detections, padded
from tasks.detection.evaluator import CocoBoxes
from tasks.detection.transforms import cropped, resized_size, train_transform, val_transform
from tdaf.engine.data import EvaluationOrder, Loader, TrainingOrder
from tdaf.errors import UserError


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((480, 640), 800, (800, 1066)),  # 1066.7, rounded down as FCOS does
        ((640, 427), 800, (1199, 800)),
        ((640, 1800), 800, (474, 1333)),
        ((90, 120), 96, (96, 128)),
        ((2, 4000), 800, (1, 2000)),
    ],
)
def test_sizes(size: tuple[int, int], short_side: int, expected: tuple[int, int]) -> None:
    assert resized_size(*size, short_side, 2000 if 4000 in size else 1333) == expected


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_evaluation_sees_the_whole_image_as_pil_resizes_it() -> None:
    image, boxes = picture(90, 120), torch.tensor([[0.0, 0, 120, 90], [12, 9, 60.5, 33]])
    view = val_transform(60, 100)(image, boxes)
    assert view.image.shape == (3, 60, 80) and view.scale == (80 / 120, 60 / 90) and view.kept.tolist() == [True, True]
    theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((80, 60), Image.Resampling.BILINEAR)
    theirs = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()
    assert (view.image.int() - theirs).abs().max() <= 1 and view.image.dtype == torch.uint8
    assert torch.allclose(view.boxes, torch.tensor([[0.0, 0, 80, 60], [8, 6, 60.5 * 80 / 120, 22]]))
    assert val_transform(90, 120)(image, boxes).image.equal(image)


def test_scales_are_exact_where_whole_pixels_change_the_aspect() -> None:
    view = val_transform(50, 90)(picture(61, 97), torch.tensor([[0.0, 0, 97, 61]]))
    height, width = view.image.shape[1:]
    assert (height, width) == (50, 79) and view.scale == (79 / 97, 50 / 61)
    assert torch.allclose(view.boxes, torch.tensor([[0.0, 0, width, height]]))


def white(height: int, width: int, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A black image with a white box, and the box."""
    image = torch.zeros(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    return image, torch.tensor([box], dtype=torch.float32)


def seen(image: Tensor) -> Tensor:
    """The box around what is bright."""
    rows, columns = (image[0] > 127).nonzero().unbind(1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_boxes_stay_on_their_pixels() -> None:
    image, box = white(80, 100, (22, 17, 52, 71))
    transform = train_transform([60, 120], 150, flip=0.5, crop=0.5)
    torch.manual_seed(0)
    views = [transform(image, box) for _ in range(60)]
    for view in views:
        if view.kept.item():
            assert (seen(view.image) - view.boxes[0]).abs().max() <= 1
    kept = [view.kept.item() for view in views]
    assert not all(kept) and sum(kept) > 40 and len({view.image.shape for view in views}) > 30
    mirrored = [view for view in views if view.kept.item() and view.boxes[0, 0] > view.image.shape[2] * 0.4]
    assert mirrored


def test_short_sides_are_drawn_evenly_with_both_ends() -> None:
    image, boxes = picture(30, 30), torch.zeros(0, 4)
    torch.manual_seed(0)
    shorts = {tuple(sizes): [0] * 60 for sizes in ([20, 24], [20, 30, 50], [25])}
    for sizes, counts in shorts.items():
        transform = train_transform(list(sizes), 60, flip=0)
        for _ in range(200):
            counts[min(transform(image, boxes).image.shape[1:])] += 1
    drawn = {sizes: {n for n, count in enumerate(counts) if count} for sizes, counts in shorts.items()}
    assert drawn == {(20, 24): {20, 21, 22, 23, 24}, (20, 30, 50): {20, 30, 50}, (25,): {25}}
    assert min(count for counts in shorts.values() for count in counts if count) > 20


def test_a_window_keeps_the_objects_whose_centre_it_has() -> None:
    image = picture(40, 60)
    boxes = torch.tensor([[x, y, x + 9.0, y + 7] for x in range(0, 50, 10) for y in range(0, 30, 8)])
    torch.manual_seed(0)
    numbered = torch.arange(40 * 60).view(40, 60)
    for _ in range(30):
        state = torch.get_rng_state()
        part, found, kept = cropped(image, boxes)
        torch.set_rng_state(state)
        window = cropped(numbered[None], boxes)[0][0]
        top, left = divmod(int(window[0, 0]), 60)
        h, w = part.shape[1:]
        assert 20 <= h <= 40 and 30 <= w <= 60 and part.equal(image[:, top : top + h, left : left + w])
        x, y = (boxes[:, 0] + 4.5 - left), (boxes[:, 1] + 3.5 - top)
        assert kept.tolist() == ((x > 0) & (x < w) & (y > 0) & (y < h)).tolist() and len(found) == kept.sum()
        assert (found[:, 2:] > found[:, :2]).all() and found.min() >= 0 and (found[:, 2:] <= torch.tensor([w, h])).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_sides": []}, r"short_sides=\[\]"),
        ({"short_sides": [800, 640]}, r"short_sides=\[800, 640\].*rising"),
        ({"short_sides": [640, 1400]}, "max_size=1333.*1400"),
        ({"max_size": 700}, "max_size=700.*800"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        (train_transform if "short_sides" in settings else val_transform)(**settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = document()
    content["images"] += [{"id": 40 + n, "file_name": f"{n}.jpg", "height": 30 + n, "width": 40} for n in range(6)]
    content["annotations"] += [
        {"id": 200 + n, "image_id": 40 + n, "category_id": 3, "bbox": [n, 2, 20, 10 + n], "area": 100, "iscrowd": 0}
        for n in range(5)
    ]
    content["annotations"][-1]["bbox"] = [50, 2, 20, 10]  # outside its image
    return save_set(tmp_path_factory.mktemp("coco"), content, content)


@pytest.fixture
def train(root: Path) -> CocoSplit:
    return CocoFiles(str(root)).split("train")


def test_training_leaves_out_what_has_no_object_to_learn(train: CocoSplit) -> None:
    found = Detections(train, val_transform(64, 96), keep_empty=False)
    names = ["a.jpg", "c.jpg", "0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [found.name(i) for i in range(len(found))] == [f"train2017/{name}" for name in names]
    assert found.notes["images without an object to learn, left out"] == 3
    assert found.notes["boxes outside their image, not learnt"] == 1 and found.skipped == 0
    whole = Detections(train, val_transform(64, 96), keep_empty=True)
    assert len(whole) == 9 and "images without an object to learn, left out" not in whole.notes
    assert whole[1]["boxes"].shape == (0, 4) and whole[1]["labels"].shape == (0,)


def test_groups_are_wide_and_tall_in_training_alone(train: CocoSplit) -> None:
    every = Detections(train, val_transform(64, 96))
    assert len(every) == 9 and every.groups is None and every.notes == train.annotations.notes
    found = Detections(train, val_transform(64, 96), keep_empty=True)
    assert found.groups.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]  # a square counts as tall
    assert Detections(train, val_transform(64, 96), keep_empty=False).groups.tolist() == [1, 0, 0, 0, 0, 0]
    order = iter(TrainingOrder(len(found), 2, seed=0, groups=found.groups))
    pairs = [next(order) for _ in range(4)]
    assert sum(len({found.groups[i] for _, i in pair}) > 1 for pair in pairs) == 0


def test_a_sample(train: CocoSplit) -> None:
    sample = Detections(train, val_transform(64, 96), keep_empty=False)[1]
    assert sample["input"].shape == (3, 64, 96) and sample["input"].dtype == torch.uint8
    assert (sample["size"], sample["scale"], sample["image_id"]) == ((64, 96), (96 / 60, 64 / 40), 30)
    boxes = torch.tensor([[10.5, 5, 30.5, 35.25], [1, 2, 4, 6]]) * 1.6
    assert torch.allclose(sample["boxes"], boxes) and sample["labels"].tolist() == [2, 1]
    crowd = Detections(train, val_transform(64, 96), keep_empty=False)[0]  # the first of its two objects is a crowd
    assert torch.allclose(crowd["boxes"], torch.tensor([[30, 20, 40, 30]]) * 1.28) and crowd["labels"].tolist() == [1]


def test_labels_go_with_the_boxes_that_a_window_keeps(train: CocoSplit) -> None:
    dataset = Detections(train, train_transform([40], 60, flip=0, crop=1.0), keep_empty=False)
    torch.manual_seed(0)
    found = set()
    for _ in range(60):
        sample = dataset[1]
        sides = (sample["boxes"][:, 2:] - sample["boxes"][:, :2]).amin(1)
        assert sample["labels"].tolist() == [2 if side > 8 else 1 for side in sides]  # 20 x 30 and 3 x 4 pixels
        found.add(tuple(sample["labels"].tolist()))
    assert found == {(), (2,), (2, 1)}  # a window with the small one has the large one too


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    content = document()
    content["annotations"] = content["annotations"][1:2]  # a crowd
    save_images(tmp_path / "val2017", content)
    split = CocoSplit(tmp_path, "val2017", read(save(tmp_path / "a.json", content)))
    with pytest.raises(UserError, match="a.json: none of its images has an object to learn .*1 crowds, not learnt"):
        Detections(split, val_transform(), keep_empty=False)
    assert len(Detections(split, val_transform(), keep_empty=True)) == 3


def test_a_batch(train: CocoSplit) -> None:
    dataset = Detections(train, val_transform(64, 96), keep_empty=True, pad_value=(1, 2, 3))
    samples = [dataset[i] for i in (0, 1, 2)]  # 64 x 64, 85 x 64 and without a box, 64 x 96
    batch = dataset.collate(samples)
    assert batch["input"].shape == (3, 3, 96, 96) and batch["input"].dtype == torch.uint8
    assert batch["input"].is_contiguous(memory_format=torch.channels_last)
    assert batch["size"].tolist() == [[64, 64], [85, 64], [64, 96]] and batch["size"].dtype == torch.int64
    assert batch["scale"].dtype == torch.float32 and batch["scale"].tolist()[2] == pytest.approx([1.6, 1.6])
    assert batch["image_id"].tolist() == [10, 20, 30] and set(batch) == {*samples[0]}
    assert [len(boxes) for boxes in batch["boxes"]] == [1, 0, 2] and batch["boxes"][1].shape == (0, 4)
    for place, sample in enumerate(samples):
        h, w = sample["size"]
        assert batch["input"][place, :, :h, :w].equal(sample["input"])
        rest = torch.cat([batch["input"][place, :, h:].flatten(1), batch["input"][place, :, :h, w:].flatten(1)], 1)
        assert rest.shape[1] == 96 * 96 - h * w and (rest == torch.tensor([[1], [2], [3]])).all()
        assert batch["boxes"][place].equal(sample["boxes"]) and batch["labels"][place].equal(sample["labels"])


def test_sides_of_a_batch() -> None:
    images = [torch.zeros(3, 33, 64, dtype=torch.uint8), torch.zeros(3, 20, 65, dtype=torch.uint8)]
    assert padded(images, (0, 0, 0)).shape == (2, 3, 64, 96)
    assert padded(images, (0, 0, 0), multiple=5).shape == (2, 3, 35, 65)


def evaluated(split: CocoSplit, shake: float) -> tuple[CocoBoxes, list[dict[str, Any]]]:
    """Records of a detector that finds every object, moved by about `shake` pixels of the input."""
    dataset = Detections(split, val_transform(64, 96))
    noise = torch.Generator().manual_seed(0)

    def decode(outputs: dict[str, Any], sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        assert sizes.shape == (len(outputs["boxes"]), 2)
        moved = [boxes + shake * torch.randn(boxes.shape, generator=noise) for boxes in outputs["boxes"]]
        scores = [torch.rand(len(boxes), generator=noise) for boxes in moved]
        return list(zip(moved, scores, outputs["labels"], strict=True))

    evaluator = CocoBoxes(split.annotations, decode)
    records = []
    for batch in Loader(dataset, EvaluationOrder(len(dataset), 4), seed=0):
        records += evaluator.update(batch, batch)
    return evaluator, records


def test_every_object_found(train: CocoSplit) -> None:
    evaluator, records = evaluated(train, 0.0)
    assert [record["image_id"] for record in records] == train.annotations.image_ids.tolist()
    numbers, _ = evaluator.compute(records)
    assert evaluator.protocol == "coco" and len(numbers) == 12
    # one box in nine lies outside its image and cannot be found: a recall of 4/5, 81 of the dogs' 101 recalls
    assert numbers["AP"] == pytest.approx((81 / 101 + 1 + 1) / 3) and numbers["APl"] == -1


def test_the_results_file_given_to_pycocotools_by_hand(root: Path, train: CocoSplit, tmp_path: Path) -> None:
    evaluator, records = evaluated(train, 1.5)
    numbers, files = evaluator.compute(records)
    results = tmp_path / "detections.json"
    results.write_text(files["detections.json"])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations/instances_train2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(numbers.values()) == pytest.approx(evaluation.stats.tolist(), rel=0, abs=1e-12)
    assert 0.05 < numbers["AP"] < 0.7
    assert set(json.loads(files["detections.json"])[0]) == {"image_id", "category_id", "bbox", "score"}
    lines = files["categories.md"].splitlines()
    assert lines[0] == "| category | AP | AP50 | APs | APm | APl | objects |" and len(lines) == 6
    assert lines[2].startswith("| dog | ") and lines[2].endswith(" | - | 5 |")
    assert lines[-1].startswith(f"| all | {100 * numbers['AP']:.1f} | ") and lines[-1].endswith(" | 8 |")
