"""Data sets as they are delivered: each task finds in archives the samples, names and classes of unpacked folders."""

import csv
import io
import itertools
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import videos
from coco_files import document, save, save_set
from packing import META, PACKERS, WNIDS, contents, deflated, nested, tar, zipped
from PIL import Image
from tiny import tiny

from scripts.check_data import check
from scripts.pack import pack
from tasks.action.videos import ActionVideos
from tasks.classification.cifar import Cifar10
from tasks.classification.folder import ImageFolder
from tasks.classification.task import Classification
from tasks.classification.transforms import imagenet_train, imagenet_val
from tasks.coco.source import CocoFiles
from tdaf.cli.compose import compose
from tdaf.cli.script import main
from tdaf.demo.classification import write_cifar10
from tdaf.engine.settings import LoaderSettings, Settings
from tdaf.engine.trained import build_task
from tdaf.engine.trainer import Trainer
from tdaf.errors import RunError, UnreadableSample, UserError
from tdaf.media import archive
from tdaf.model.flows import TDAF

TRUTH = [2, 3, 1, 2, 2]
FLAT = {f"ILSVRC2012_val_{n:08d}": WNIDS[label - 1] for n, label in enumerate(TRUTH, 1)}
KAGGLE = "ILSVRC/Data/CLS-LOC"
Files = Mapping[str, bytes]


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((40, 36)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet in miniature, unpacked and sorted, with a damaged image."""
    root = tmp_path_factory.mktemp("imagenet")
    names = [f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS for n in (1, 10, 2, 7)]
    names += [f"val/{wnid}/{name}.JPEG" for name, wnid in FLAT.items()]
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(seed))
    (root / f"train/{WNIDS[1]}/{WNIDS[1]}_7.JPEG").write_bytes(jpeg(0)[:99])
    return root


def split(files: Files, name: str, flat: bool = False) -> dict[str, bytes]:
    own = {path.removeprefix(f"{name}/"): content for path, content in files.items() if path.startswith(f"{name}/")}
    return {Path(path).name: content for path, content in own.items()} if flat else own


def own(kind: str) -> Callable[[Path, Files], None]:
    def pack(root: Path, files: Files) -> None:
        ending, write = PACKERS[kind]
        for name in ("train", "val"):
            write(root / f"{name}.{ending}", split(files, name))

    return pack


def mixed(root: Path, files: Files) -> None:
    for name, content in split(files, "train").items():
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).write_bytes(content)
    zipped(root / "val.zip", {f"val/{name}": content for name, content in split(files, "val").items()})


def official(root: Path, files: Files) -> None:
    nested(root / "ILSVRC2012_img_train.tar", split(files, "train"))
    tar(root / "ILSVRC2012_img_val.tar", split(files, "val", flat=True))
    truth = "".join(f"{label}\n" for label in TRUTH).encode()
    kit = {"data/ILSVRC2012_validation_ground_truth.txt": truth, "data/meta.mat": META}
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as target:
        for name, content in kit.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))


def kaggle(files: Files) -> dict[str, bytes]:
    """What Kaggle's archive holds; its annotations do not matter."""
    table = io.StringIO()
    rows = [("ImageId", "PredictionString"), *((name, f"{wnid} 1 2 30 40 ") for name, wnid in reversed(FLAT.items()))]
    csv.writer(table).writerows(rows)
    train = {f"{KAGGLE}/train/{name}": content for name, content in split(files, "train").items()}
    val = {f"{KAGGLE}/val/{name}": content for name, content in split(files, "val", flat=True).items()}
    other = {f"{KAGGLE}/test/x.JPEG": b"", "ILSVRC/Annotations/CLS-LOC/val/x.xml": b"", "LOC_synset_mapping.txt": b"n"}
    return {**other, **train, **val, "LOC_val_solution.csv": table.getvalue().encode()}


def kaggle_zip(root: Path, files: Files) -> None:
    deflated(root / "imagenet-object-localization-challenge.zip", kaggle(files))


def kaggle_tree(root: Path, files: Files) -> None:
    for name, content in kaggle(files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


FORMS = {
    **{kind: own(kind) for kind in PACKERS},
    "mixed": mixed,
    "official": official,
    "kaggle zip": kaggle_zip,
    "kaggle tree": kaggle_tree,
}


@pytest.mark.parametrize("form", FORMS)
def test_imagenet_in_every_form(form: str, folder: Path, tmp_path: Path) -> None:
    FORMS[form](tmp_path, contents(folder))
    skip = tmp_path / "skip.txt"
    skip.write_text(f"train/{WNIDS[1]}/{WNIDS[1]}_7.JPEG\n")
    plain, packed = (ImageFolder(str(root), skip_list=str(skip)) for root in (folder, tmp_path))
    assert packed.classes == plain.classes == sorted(WNIDS)
    for name, count in (("train", 11), ("val", 5)):
        one, other = plain.split(name), packed.split(name)
        assert len(one) == len(other) == count and one.skipped == other.skipped == (name == "train")
        for index in range(count):
            assert one.name(index) == other.name(index)
            (image, label), (pixels, number) = one.read(index), other.read(index)
            assert torch.equal(image, pixels) and label == number


def test_validation_images_need_their_classes(folder: Path, tmp_path: Path) -> None:
    official(tmp_path, contents(folder))
    kit = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    good = kit.read_bytes()
    kit.unlink()
    with pytest.raises(UserError, match="no class folders.* put the devkit .* or Kaggle's LOC_val_solution.csv beside"):
        ImageFolder(str(tmp_path))
    kit.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="devkit_t12.tar.gz is damaged, cut off or no archive .*; bring it again"):
        ImageFolder(str(tmp_path))
    kit.write_bytes(good)
    flat = split(contents(folder), "val", flat=True)
    for files, message in (
        ({**flat, "x.JPEG": b""}, "nothing says the class of x"),
        (dict([*flat.items()][1:]), "lacks 1"),
    ):
        tar(tmp_path / "ILSVRC2012_img_val.tar", files)
        with pytest.raises(UserError, match=message):
            ImageFolder(str(tmp_path)).split("val")


def test_an_archive_that_is_cut_off_or_compressed(folder: Path, tmp_path: Path) -> None:
    FORMS["gnu"](tmp_path, contents(folder))
    train = tmp_path / "train.tar"
    data = train.read_bytes()
    train.write_bytes(data[: len(data.rstrip(b"\0")) - 300])
    with pytest.raises(UserError, match=r"train\.tar is cut off in n00000003/n00000003_7.JPEG; bring it again, or"):
        ImageFolder(str(tmp_path))
    settings = compose(["task=imagenet", f"data.root={tmp_path}", "data.max_bad=2"])
    assert len(build_task(settings).dataset("train")) == 12
    with pytest.raises(UserError, match="is cut off"):
        build_task({**settings, "data": {**settings["data"], "max_bad": 0}})
    trained(tmp_path, max_bad=2)
    with pytest.raises(RunError, match="train/n00000003/n00000003_7.JPEG|train/n00000001/n00000001_7.JPEG"):
        trained(tmp_path, max_bad=1)
    train.rename(tmp_path / "train.tar.gz")
    with pytest.raises(UserError, match=f"no train/ in it; .* gzip -dc {train}.gz > {train}; expected"):
        ImageFolder(str(tmp_path)).split("train")


def task(root: Path, max_bad: int) -> Classification:
    transforms = imagenet_train(32, short_side=[32, 40]), {"1crop": imagenet_val(32, 36)}
    return Classification(ImageFolder(str(root), max_bad=max_bad), *transforms, [0.5] * 3, [0.2] * 3)


def trained(root: Path, workers: int = 0, max_bad: int = 1, run: Path | None = None, **settings: int) -> dict:
    """The weights after two epochs on the data in `root`."""
    torch.manual_seed(0)
    own = task(root, max_bad)
    network = own.network(tiny(), lambda body: TDAF(body, flows=2, anar=2))
    settings = {"epochs": 2, "batch": 4, **settings}
    loader = LoaderSettings(workers=workers, max_bad=max_bad)
    Trainer(own, network, Settings(**settings), run_dir=run or root / "run", loader=loader, seed=3).fit()
    shutil.rmtree(run or root / "run")
    return network.state_dict()


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict:
    return trained(folder)


def test_training_from_an_archive_is_training_from_the_folder(folder: Path, weights: dict, tmp_path: Path) -> None:
    FORMS["deflated"](tmp_path, contents(folder))
    for workers in (0, 2):
        found = trained(tmp_path, workers)
        assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_killed_in_the_middle_it_goes_on_from_another_form(folder: Path, weights: dict, tmp_path: Path) -> None:
    """What began with the folder and was killed ends with the tar as if nothing had been."""
    FORMS["official"](tmp_path, contents(folder))
    child = os.fork()
    if not child:
        read = archive.read
        calls = itertools.count()

        def dying(path: str) -> np.ndarray:
            if next(calls) == 26:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(path)

        archive.read = dying
        try:
            trained(folder, run=tmp_path / "run", checkpoint_every=1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    lines = (tmp_path / "run/metrics.jsonl").read_text().count('"train"')
    found = trained(tmp_path, run=tmp_path / "run", checkpoint_every=1)
    assert lines and all(torch.equal(found[name], weights[name]) for name in weights)


def test_check_data_and_pack(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A damaged image has the same name in a packed set, and what is packed is what was there."""
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain/train/n00000001/empty").mkdir()
    (tmp_path / "packed").mkdir()
    zipped(tmp_path / "x.zip", contents(tmp_path / "plain/val"))
    for source, name in (("plain/train", "train"), ("x.zip", "val")):
        monkeypatch.setattr("sys.argv", ["pack.py", str(tmp_path / source), f"out={tmp_path}/packed/{name}.tar"])
        assert main(pack, "") == 0
        assert main(pack, "") == 2 and f"{name}.tar is there already" in capsys.readouterr().err
    with tarfile.open(tmp_path / "packed/train.tar") as target:
        target.extractall(tmp_path / "again", filter="data")
    assert contents(tmp_path / "again") == contents(tmp_path / "plain/train")
    assert "n00000001/empty/" in contents(tmp_path / "again")
    lists = []
    for root in ("plain", "packed"):
        words = ["task=imagenet", f"data.root={tmp_path / root}", "loader.workers=0", f"out={tmp_path}/{root}.txt"]
        monkeypatch.setattr("sys.argv", ["check_data.py", *words])
        assert main(check, "") == 1
        lists.append(((tmp_path / f"{root}.txt").read_text(), capsys.readouterr().out.count("n00000001_7.JPEG")))
    assert lists[0] == lists[1] == ("train/n00000001/n00000001_7.JPEG\n", 1)
    for message, words in {"give one": ["out=x.tar"], "lies in": [str(folder), f"out={folder}/x.tar"]}.items():
        monkeypatch.setattr("sys.argv", ["pack.py", *words])
        assert main(pack, "") == 2 and message in capsys.readouterr().err


def test_cifar_from_its_archive(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "plain", seed=0, train=20, val=4)
    plain = Cifar10(str(tmp_path / "plain"))
    (tmp_path / "packed").mkdir()
    path = tmp_path / "packed/cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as target:
        target.add(tmp_path / "plain/cifar-10-batches-py", "cifar-10-batches-py")
    packed = Cifar10(str(tmp_path / "packed"))
    assert packed.classes == plain.classes
    for name in ("train", "val"):
        one, other = plain.split(name), packed.split(name)
        assert torch.equal(one.images, other.images) and (one.labels == other.labels).all() and one.rows == other.rows
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cifar-10-python.tar.gz is damaged, cut off or no archive .*; bring it again"):
        Cifar10(str(tmp_path / "packed"))


COCO_FORMS = {
    "official": {
        "train2017": ("train2017.zip", "train2017/"),
        "annotations": ("annotations_trainval2017.zip", "annotations/"),
    },
    "own": {"train2017": ("train2017.tar", ""), "val2017": ("val2017.zip", ""), "annotations": ("annotations.tar", "")},
}


@pytest.mark.parametrize("form", COCO_FORMS)
def test_coco_in_archives(form: str, tmp_path: Path) -> None:
    train, val = document(), document()
    train["images"][0]["file_name"] = "train2017/c.jpg"  # read without its folder, in an archive as well
    for image in val["images"]:
        del image["height"]  # taken from the images
    save_set(tmp_path / "plain", document(), document())
    save(tmp_path / "plain/annotations/instances_val2017.json", val)
    save(tmp_path / "plain/annotations/instances_train2017.json", train)
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    for folder, (name, prefix) in COCO_FORMS[form].items():
        files = {prefix + file: content for file, content in contents(tmp_path / "packed" / folder).items()}
        (tar if name.endswith(".tar") else deflated if "annotations" in name else zipped)(
            tmp_path / "packed" / name, files
        )
        shutil.rmtree(tmp_path / "packed" / folder)
    skip = tmp_path / "skip.txt"
    skip.write_text("train2017/a.jpg\n")
    plain, packed = (CocoFiles(str(tmp_path / name), skip_list=str(skip)) for name in ("plain", "packed"))
    assert plain.classes == packed.classes
    for name, count in (("train", 2), ("val", 3)):
        one, other = plain.split(name), packed.split(name)
        assert len(one) == len(other) == count and one.skipped == other.skipped
        assert one.annotations.notes == other.annotations.notes and (one.annotations.sizes > 0).all()
        assert np.array_equal(one.annotations.sizes, other.annotations.sizes)
        for index in range(count):
            assert one.name(index) == other.name(index) and torch.equal(one.read(index), other.read(index))


@pytest.mark.parametrize("kind", ["gnu", "stored", "deflated"])
@pytest.mark.parametrize("annotated", [False, True])
def test_videos_in_archives(kind: str, annotated: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/a b/one.mp4", "train/c/two.mp4", "val/a_b/three.avi", "val/c/four.webm", "val/c/five.mp4"):
        path = tmp_path / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {".avi": "mpeg4", ".webm": "vp9"}.get(path.suffix, "h264") + path.suffix
        videos.write(path.with_name(own)).rename(path)
    (tmp_path / "plain/val/c/five.mp4").write_bytes((tmp_path / "plain/train/c/two.mp4").read_bytes()[:-99])
    if annotated:
        lines = ["label,youtube_id", "a b,three", "c,four", "c,five", "c,gone"]
        (tmp_path / "plain/val.csv").write_text("\n".join(lines))
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    ending, pack = PACKERS[kind]
    for name in ("train", "val"):
        pack(tmp_path / f"packed/{name}.{ending}", contents(tmp_path / "packed" / name))
        shutil.rmtree(tmp_path / "packed" / name)
    plain, packed = (ActionVideos(str(tmp_path / name)) for name in ("plain", "packed"))
    assert plain.classes == packed.classes == ["a b", "c"]
    for name, count in (("train", 2), ("val", 3)):
        one, other = plain.split(name), packed.split(name)
        assert len(one) == len(other) == count and one.notes == other.notes
        assert bool(one.notes) == (annotated and name == "val")
        assert one.counts().tolist() == other.counts().tolist() and (one.counts() == 0).sum() == (name == "val")
        for index in range(count):
            assert one.name(index) == other.name(index) and one.label(index) == other.label(index)
            if one.name(index).endswith("five.mp4"):
                for source in (one, other):
                    with pytest.raises(UnreadableSample, match="five.mp4"):
                        source.read(index, [0])
                continue
            assert torch.equal(one.read(index, [3, 17, 8]), other.read(index, [3, 17, 8]))
            other.check(index, "full")


def test_folders_of_frames_in_an_archive(tmp_path: Path) -> None:
    files = {f"{name}/c/video/image_{n:05d}.jpg": jpeg(n) for name in ("train", "val") for n in range(1, 6)}
    for name in ("train", "val"):
        tar(tmp_path / f"{name}.tar", {path: content for path, content in files.items() if path.startswith(name)})
    clips = ActionVideos(str(tmp_path), frames=True).split("val")
    assert clips.name(0) == "val/c/video" and clips.counts().tolist() == [5]
    with Image.open(io.BytesIO(jpeg(4))) as image:
        assert torch.equal(clips.read(0, [3])[0], torch.from_numpy(np.array(image)).permute(2, 0, 1))
