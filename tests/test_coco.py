"""COCO's annotation files and folders: read as pycocotools reads them, packed, and every fault a line or a count."""

import contextlib
import gc
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import Document, document, drawn, save, save_set
from PIL import Image
from pycocotools.coco import COCO

from tasks.coco.annotations import Annotations, corners, read
from tasks.coco.source import CocoFiles
from tdaf.errors import UnreadableSample, UserError


def test_a_small_file_is_read_to_the_letter(tmp_path: Path) -> None:
    found = read(save(tmp_path / "a.json", document()))
    assert found.image_ids.tolist() == [10, 20, 30] and len(found) == 3
    assert found.sizes.tolist() == [[50, 50], [64, 48], [40, 60]]
    assert found.file_names.tolist() == ["a.jpg", "folder/bb.jpg", "c.jpg"]
    assert found.categories == [(3, "dog"), (7, "cup"), (90, "book")] and found.classes == ["dog", "cup", "book"]
    assert found.keypoint_names == [] and found.notes == {"images without an object": 1}
    first, last = found.objects(0), found.objects(2)
    assert corners(first).tolist() == [[0, 0, 50, 50], [30, 20, 40, 30]] and first["iscrowd"].tolist() == [True, False]
    assert last["bbox"].tolist() == [[10.5, 5, 20, 30.25], [1, 2, 3, 4]] and last["category"].tolist() == [2, 1]
    assert last["area"].tolist() == [300.5, 11] and last["keypoints"].shape == (2, 0, 3)
    assert len(found.objects(1)) == 0 and found.objects(1)["bbox"].shape == (0, 4)
    boxes, labels = found.usable(0)  # without the crowd
    assert boxes.tolist() == [[30, 20, 40, 30]] and labels.tolist() == [1] and labels.dtype == np.int64
    assert found.usable_counts().tolist() == [1, 0, 2]
    assert found.indices(np.array([30, 11, 10, 99])).tolist() == [2, -1, 0, -1]


@pytest.mark.parametrize("joints", [0, 5])
def test_objects_are_those_that_pycocotools_finds(joints: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", drawn(20, 90, joints=joints))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(path))
    ours = read(path)
    assert ours.image_ids.tolist() == sorted(theirs.getImgIds())
    assert [number for number, _ in ours.categories] == sorted(theirs.getCatIds())
    for index, number in enumerate(ours.image_ids):
        objects, expected = ours.objects(index), theirs.loadAnns(theirs.getAnnIds(imgIds=[number]))
        assert np.array_equal(objects["bbox"], np.array([entry["bbox"] for entry in expected]).reshape(-1, 4))
        numbers = [ours.categories[label][0] for label in objects["category"]]
        assert numbers == [entry["category_id"] for entry in expected]
        assert objects["iscrowd"].tolist() == [bool(entry["iscrowd"]) for entry in expected]
        assert np.array_equal(objects["area"], np.array([entry["area"] for entry in expected]))
        if joints:
            points = np.array([entry["keypoints"] for entry in expected]).reshape(-1, joints, 3)
            assert np.array_equal(objects["keypoints"], points) and objects["keypoints"].dtype == np.float32


def reachable(found: Annotations) -> list[Any]:
    seen: dict[int, Any] = {}
    waiting: list[Any] = [found]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, type):
            seen[id(thing)] = thing
            waiting += gc.get_referents(thing)
    return list(seen.values())


def test_python_objects_do_not_grow_with_the_file(tmp_path: Path) -> None:
    small, large = (read(save(tmp_path / f"{n}.json", drawn(n, 5 * n, joints=3))) for n in (10, 300))
    things = reachable(large)
    assert len(things) <= len(reachable(small)) + 2
    arrays = [thing for thing in things if isinstance(thing, np.ndarray)]
    assert len(arrays) >= 5 and not any(array.dtype.hasobject for array in arrays)
    total = sum(array.nbytes for array in arrays)
    assert total < 300 * 120 + 1500 * 120  # bytes an image and, with three key points, an object
    assert len(pickle.dumps(large)) < 1.2 * total + 4000  # what a worker that is not forked gets


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", document())
    first = read(path)
    assert read(path) is first
    content = document()
    content["images"].append({"id": 50, "file_name": "d.jpg", "height": 10, "width": 10})
    assert len(read(save(path, content))) == 4


def entry(kind: str, place: int, **values: Any) -> Callable[[Document], None]:
    """A change of one entry of a document; None takes the key away."""

    def change(content: Document) -> None:
        for key, value in values.items():
            content[kind][place][key] = value
            if value is None:
                del content[kind][place][key]

    return change


FAULTS = [
    (entry("images", 1, file_name=None), "image 10 has no file_name"),
    (entry("images", 0, width=-1), "image 30: width=-1: give a whole number of 0 or more"),
    (entry("images", 0, id=1.5), "image 1.5: id=1.5: give a whole number"),
    (entry("images", 0, id=20), "image id 20 is used more than once"),
    (lambda content: content["images"].append(5), "image number 4 of the file is no JSON object, but '5'"),
    (lambda content: content["images"].clear(), "its list 'images' is empty"),
    (entry("annotations", 2, image_id=31), "annotation 103: image_id=31 is not among the file's images"),
    (entry("annotations", 1, bbox=None), "annotation 101 has no bbox"),
    (entry("annotations", 1, bbox=[1, 2, float("nan"), 4]), r"annotation 101: bbox=\[1, 2, nan, 4\]: give 4 finite"),
    (entry("annotations", 3, area="big"), "annotation 102: area='big': give a finite number"),
    (entry("categories", 2, keypoints=["nose", 2]), "categories with different key points"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_what_has_no_remedy_is_one_line(change: Callable[[Document], None], message: str, tmp_path: Path) -> None:
    content = document()
    change(content)
    with pytest.raises(UserError, match=message) as raised:
        read(save(tmp_path / "wrong.json", content))
    assert "wrong.json" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(document())[:-70], "damaged or no JSON .*unpack or copy it again"),
        ("[{}]", "no COCO annotation file: it holds a list"),
        ('{"a": 1}', "no COCO annotation file: it has no list 'images'"),
        ("[" * 100000, "damaged or no JSON"),
        (b"\x80\x81\x82" * 9, "damaged or no JSON"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_annotations(text: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_boxes_without_area_or_outside_are_counted_and_not_learnt(tmp_path: Path) -> None:
    content = document()  # the image is 60 x 40
    boxes = [[5, 5, 0, 9], [5, 5, 9, -1], [60, 0, 5, 5], [-20, 3, 15, 3], [-5, 30, 20, 30], [59.7, 0, 0.6, 40.3]]
    content["annotations"] = [{"image_id": 30, "category_id": 3, "bbox": box, "area": 10.0} for box in boxes]
    found = read(save(tmp_path / "a.json", content))
    assert found.notes == {
        "boxes without area, not learnt": 2,
        "boxes outside their image, not learnt": 2,
        "boxes partly outside their image, clipped to learn": 1,
        "boxes of less than a pixel": 1,
        "images without an object": 2,
    }
    assert found.objects(2)["bbox"].tolist() == boxes and not found.objects(2)["iscrowd"].any()
    assert np.array_equal(found.usable(2)[0], np.array([[0, 30, 15, 40], [59.7, 0, 60, 40]], np.float32))


@pytest.mark.parametrize("missing", [None, "", [], "no key"])
def test_what_may_be_left_out_may_be_empty(missing: Any, tmp_path: Path) -> None:
    content = document()
    content["categories"][0] |= {"keypoints": ["nose", "ear"], "skeleton": missing}
    content["annotations"][0] |= dict.fromkeys(("id", "iscrowd", "area", "keypoints", "num_keypoints"), missing)
    if missing == "no key":
        for key in ("id", "iscrowd", "area", "keypoints", "num_keypoints"):
            del content["annotations"][0][key]
    found = read(save(tmp_path / "a.json", content))
    assert not found.objects(2)["iscrowd"].any() and found.objects(2)["area"].tolist() == [20 * 30.25, 11]
    assert not found.objects(2)["keypoints"].any() and found.objects(2)["num_keypoints"].tolist() == [0, 0]
    assert found.notes["objects without an area, the box's taken"] == 1


@pytest.mark.parametrize("annotations", [[], None, "no key"])
def test_no_annotation_at_all(annotations: Any, tmp_path: Path) -> None:
    content: dict[str, Any] = {**document(), "annotations": annotations}
    if annotations == "no key":  # as in image_info_test-dev2017.json
        del content["annotations"]
    found = read(save(tmp_path / "a.json", content))
    assert len(found) == 3 and found.notes == {"images without an object": 3}
    assert all(len(found.objects(i)) == 0 == len(found.usable(i)[0]) for i in range(3))


@pytest.mark.parametrize("kind", [str, float])
def test_ids_as_text_or_with_a_decimal_point(kind: type, tmp_path: Path) -> None:
    content = document()
    for image in content["images"]:
        image["id"] = kind(image["id"])
    for annotation in content["annotations"][:3]:  # and one as it was
        annotation.update(image_id=kind(annotation["image_id"]), category_id=kind(annotation["category_id"]))
    found, plain = (read(save(tmp_path / f"{n}.json", part)) for n, part in enumerate((content, document())))
    assert found.image_ids.dtype == np.int64 and found.image_ids.tolist() == plain.image_ids.tolist()
    assert np.array_equal(found.all_objects["category"], plain.all_objects["category"])
    assert found.notes.get("numbers written as text, read", 0) == (9 if kind is str else 0)


def test_key_points(tmp_path: Path) -> None:
    content = document()
    content["categories"][0] |= {"keypoints": ["nose", "ear"], "skeleton": [[2, 1]]}
    content["annotations"][3] |= {"keypoints": [31, 21, 2, 0, 0, 0], "num_keypoints": 1}
    path = save(tmp_path / "a.json", content)
    found = read(path)
    assert found.keypoint_names == ["nose", "ear"]
    assert found.objects(0)["keypoints"].tolist() == [[[0, 0, 0], [0, 0, 0]], [[31, 21, 2], [0, 0, 0]]]
    assert found.all_objects["keypoints"].dtype == np.float32
    assert found.all_objects["num_keypoints"].tolist() == [0, 1, 0, 0]
    content["annotations"][3]["keypoints"][0] = 31.1
    assert read(save(path, content)).all_objects["keypoints"].dtype == np.float64
    content["annotations"][3]["keypoints"].append(1)
    with pytest.raises(UserError, match=r"annotation 102: keypoints=.*give 6 finite numbers"):
        read(save(path, content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    val = document()
    val["images"] = val["images"][1:]
    val["annotations"] = val["annotations"][1::2]
    return save_set(tmp_path / "coco", document(), val)


def test_images_that_cannot_be_read(root: Path) -> None:
    folder = root / "train2017"
    (folder / "a.jpg").unlink()
    (folder / "c.jpg").write_bytes((folder / "c.jpg").read_bytes()[:200])
    Image.new("RGB", (64, 48)).save(folder / "folder/bb.jpg")
    split = CocoFiles(str(root)).split("train")
    said = "the image has 64 x 48 pixels, its annotation says 48 x 64 \\(.*bb.jpg"
    for index, message in enumerate(("No such file.*a.jpg", said, "c.jpg")):
        with pytest.raises(UnreadableSample, match=message):
            split.read(index)
    Image.new("RGB", (60, 41)).save(folder / "c.jpg")
    with pytest.raises(UnreadableSample, match=r"has 60 x 41 pixels, its annotation says 60 x 40 \("):
        split.read(2)


def test_file_names_of_other_systems(root: Path) -> None:
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "./a.jpg", "folder\\bb.jpg"
    split = CocoFiles(str(save(path, content).parent.parent)).split("val")
    assert [split.name(i) for i in range(2)] == ["val2017/a.jpg", "val2017/folder/bb.jpg"]
    assert split.read(1).shape == (3, 64, 48)
    assert split.annotations.notes["file names with \\ or ./, read with /"] == 2


@pytest.mark.parametrize("name", ["/etc/x.jpg", "../../x.jpg", "..\\..\\x.jpg", "a/../../../x.jpg"])
def test_a_file_name_that_leads_out_of_the_data_set_is_refused(root: Path, name: str) -> None:
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "../train2017/a.jpg"  # of the data set
    assert CocoFiles(str(save(path, content).parent.parent)).split("val").read(0).shape == (3, 50, 50)
    content["images"][0]["file_name"] = name
    save(path, content)
    with pytest.raises(UserError, match=r"image 10: file_name=.*x.jpg lies outside root="):
        CocoFiles(str(root)).split("val")


def test_sizes_are_the_files_where_the_annotations_have_none(root: Path) -> None:
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    del content["images"][0]["height"], content["images"][1]["width"]
    content["images"][2] |= {"height": None, "width": 0}
    save(path, content)
    (root / "train2017/a.jpg").write_bytes(b"no image")
    split = CocoFiles(str(root)).split("train")
    assert split.annotations.sizes.tolist() == [[50, 0], [64, 48], [40, 60]]
    assert split.annotations.notes["images without width and height, the file's taken"] == 3
    assert split.annotations.usable_counts().tolist() == [0, 0, 2] and split.read(2).shape == (3, 40, 60)
    with pytest.raises(UnreadableSample, match="a.jpg"):
        split.read(0)


def test_skip_list(root: Path, tmp_path: Path) -> None:
    skip = tmp_path / "skip.txt"
    skip.write_text("train2017/a.jpg\nval2017/folder/bb.jpg\n\n")
    source = CocoFiles(str(root), skip_list=str(skip))
    train, val = source.split("train"), source.split("val")
    assert (len(train), train.skipped, len(val), val.skipped) == (2, 1, 1, 1)
    assert train.name(0) == "train2017/folder/bb.jpg" and train.annotations.objects(1)["area"].tolist() == [300.5, 11]
    assert val.annotations.image_ids.tolist() == [10]
    skip.write_text("val2017/a.jpg\nval2017/folder/bb.jpg")
    with pytest.raises(UserError, match="skip_list leaves no image in .*val2017"):
        CocoFiles(str(root), skip_list=str(skip)).split("val")


def test_folders_that_cannot_be(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no annotations/instances_val2017.json in it; expected .*val2017/"):
        CocoFiles(str(tmp_path))
    (root / "train2017").rename(root / "elsewhere")
    source = CocoFiles(str(root))
    with pytest.raises(UserError, match="there is no train2017/ in it; expected .*recipe=demo"):
        source.split("train")
    (root / "val2017").rename(root / "train2017")
    with pytest.raises(UserError, match="there is no val2017/ in it"):
        CocoFiles(str(root))


def test_splits_with_different_categories(root: Path) -> None:
    content = document()
    content["categories"][0]["name"] = "mug"
    save(root / "annotations/instances_train2017.json", content)
    with pytest.raises(UserError, match="same categories; only in the train file: 7 mug"):
        CocoFiles(str(root)).split("train")
