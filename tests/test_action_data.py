"""Layouts of video data sets, windows in time, and the data set that the engine sees."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import videos
from commands import call
from PIL import Image
from torch import Tensor

from tasks.action.data import Clips, Timing
from tasks.action.videos import COUNTS_FILE, ActionVideos
from tdaf.errors import UnreadableSample, UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def annotate(path: Path, *rows: str, head: str = "label,youtube_id,time_start,time_end,split") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows]) + "\n")


def listed(data: ActionVideos, split: str = "val") -> list[tuple[str, str]]:
    found = data.split(split)
    return [(found.name(i), data.classes[found.label(i)]) for i in range(len(found))]


def test_class_folders_alone(tmp_path: Path) -> None:
    touch(tmp_path, "val/air_drumming/b.mp4", "val/air_drumming/a.webm", "val/abseiling/c.MKV", "val/abseiling/c.txt")
    touch(tmp_path, "train/air_drumming/d.avi", "train/abseiling/e.mp4", "train/abseiling/f_000010_000020.mp4")
    (tmp_path / "skip.txt").write_text("train/abseiling/e.mp4\nval/b c/gone.mp4\n")
    found = ActionVideos(str(tmp_path), num_classes=2, skip_list=str(tmp_path / "skip.txt"))
    assert found.classes == ["abseiling", "air drumming"]
    names = ["val/abseiling/c.MKV", "val/air_drumming/a.webm", "val/air_drumming/b.mp4"]
    assert listed(found) == list(zip(names, ["abseiling", "air drumming", "air drumming"], strict=True))
    assert len(found.split("train")) == 2 and found.split("train").skipped == 1
    assert found.split("val").notes == {"files that are no videos by their endings, left out (1 .txt)": 1}
    assert found.split("val").skipped == 0
    assert found.split("val").path(0) == tmp_path / "val/abseiling/c.MKV"


@pytest.mark.parametrize("place", ["annotations/val.csv", "val.csv", "kinetics-400_val.csv", "validate.csv"])
def test_official_annotations(place: str, tmp_path: Path) -> None:
    """Both kinds of file names, class folders with and without spaces, files without a folder, and what is missing."""
    annotate(
        tmp_path / place,
        "air drumming,-aaaaaaaaaa,10,20,val",
        '"playing ""it, all""",b_bbbbbbbbb,3,13,val',
        "air drumming,ccccccccccc,0,10,val",
        "air drumming,ddddddddddd,0,10,val",
        "abseiling,eeeeeeeeeee,1,11,val",
    )
    touch(tmp_path, "val/Air_drumming/-aaaaaaaaaa_000010_000020.mp4", 'val/playing "it, all"/b_bbbbbbbbb.mp4')
    touch(tmp_path, "val/ccccccccccc.webm", "val/air drumming/eeeeeeeeeee.mp4", "val/abseiling/unlisted.mp4")
    touch(tmp_path, "val/air drumming/-aaaaaaaaaa_000099_000109.mp4")
    found = ActionVideos(str(tmp_path))
    assert found.classes == ["abseiling", "air drumming", 'playing "it, all"']
    assert listed(found) == [
        ("val/Air_drumming/-aaaaaaaaaa_000010_000020.mp4", "air drumming"),
        ('val/playing "it, all"/b_bbbbbbbbb.mp4', 'playing "it, all"'),
        ("val/ccccccccccc.webm", "air drumming"),
        ("val/air drumming/eeeeeeeeeee.mp4", "abseiling"),
    ]
    assert found.split("val").notes == {
        "of the 5 annotated videos are missing and left out, 4 are there": 1,
        "videos lie in the folder of another class than annotated, which counts": 1,
        "videos are there without an annotation and left out": 2,
    }


def test_ucf101_and_hmdb51(tmp_path: Path) -> None:
    ucf, hmdb = tmp_path / "ucf", tmp_path / "hmdb"
    touch(ucf, "UCF-101/Archery/v_1.avi", "UCF-101/Archery/v_2.avi", "UCF-101/Basketball/v_3.avi")
    lists = {"classInd.txt": "1 Basketball\n2 Archery\n"}
    lists["trainlist02.txt"] = "Archery/v_1.avi 2\nBasketball/v_3.avi 1\n"
    lists["testlist02.txt"] = "Archery/v_2.avi\nArchery/v_gone.avi\n"
    for name, text in lists.items():
        touch(ucf, f"ucfTrainTestlist/{name}").joinpath(f"ucfTrainTestlist/{name}").write_text(text)
    found = ActionVideos(str(ucf), layout="ucf101", fold=2)
    assert found.classes == ["Basketball", "Archery"]
    assert listed(found) == [("UCF-101/Archery/v_2.avi", "Archery")]
    assert list(found.split("val").notes) == ["of the 2 annotated videos are missing and left out, 1 are there"]
    assert [label for _, label in listed(found, "train")] == ["Archery", "Basketball"]
    touch(hmdb, "wave/a b.avi", "wave/c.avi", "wave/d.avi", "clap/e.avi")
    splits = {"wave": "a b.avi 1 \nc.avi 2 \nd.avi 0\n", "clap": "e.avi 2\n"}
    for name, text in splits.items():
        (hmdb / f"{name}_test_split1.txt").write_text(text)
    found = ActionVideos(str(hmdb), layout="hmdb51")
    assert found.classes == ["clap", "wave"] and listed(found, "train") == [("wave/a b.avi", "wave")]
    assert listed(found) == [("clap/e.avi", "clap"), ("wave/c.avi", "wave")]
    with pytest.raises(UserError, match=r"fold=3: not in .*ucfTrainTestlist; there are folds 2"):
        ActionVideos(str(ucf), layout="ucf101", fold=3)


def jpegs(folder: Path, frames: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    folder.mkdir(parents=True)
    pixels = videos.pattern(frames, *size)
    for number, frame in enumerate(pixels, 1):
        Image.fromarray(frame).save(folder / f"image_{number:05d}.jpg", quality=95)
    return pixels


def test_folders_of_frames(tmp_path: Path) -> None:
    """With class folders and without, with annotations and without."""
    pixels = jpegs(tmp_path / "val/jumping/abc", 12)
    jpegs(tmp_path / "val/abd_000001_000011", 3)
    assert listed(ActionVideos(str(tmp_path), frames=True))[-1] == ("val/jumping/abc", "jumping")
    annotate(tmp_path / "val.csv", "jumping,abc,1,11,val", "running,abd,1,11,val")
    data = ActionVideos(str(tmp_path), frames=True)
    found = data.split("val")
    assert listed(data) == [("val/jumping/abc", "jumping"), ("val/abd_000001_000011", "running")]
    assert found.counts().tolist() == [12, 3]
    clip = found.read(0, [3, 11, 3])
    assert clip.shape == (3, 3, 48, 64) and torch.equal(clip[0], clip[2])
    assert (clip[1].permute(1, 2, 0).numpy().astype(int) - pixels[11]).__abs__().mean() < 8
    small = ActionVideos(str(tmp_path), frames=True, short_side=24).split("val")
    assert small.read(0, [0]).shape == (1, 3, 24, 32)
    (tmp_path / "val/jumping/abc/image_00005.jpg").unlink()
    with pytest.raises(UnreadableSample, match="1 frames are missing, number 5 first"):
        found.read(0, [0])


@pytest.mark.parametrize(
    ("files", "csv", "settings", "message"),
    [
        ([], None, {}, r"there is no val/ in .*expected train/<class>/<id>.mp4.*recipe=demo"),
        (["val/a/x.txt"], None, {}, "no video in the class folders"),
        (["val/a/x.mp4"], ["a,x,0,nine,val"], {}, "line 2: .* are 'a', 'x', '0', 'nine': give names and seconds"),
        (["val/a_b/x.mp4", "val/a b/y.mp4"], None, {}, "one class under two names"),
        (["val/a/x.mp4"], None, {"num_classes": 3}, "num_classes=3, but .* has 1 classes"),
        (["val/a/x.mp4"], None, {"layout": "ucf101"}, "no classInd.txt in .*ucfTrainTestlist/ with"),
        (["val/a/x.mp4"], None, {"layout": "hmdb51"}, r"no \*_test_split\*.txt in"),
        (["val/a/x.mp4", "kinetics-400_val.csv", "kinetics-600_val.csv"], None, {}, "rename the one to use to val.csv"),
        (["val/a/x.mp4"], None, {"root": "nowhere"}, "root=nowhere: no such folder.*recipe=demo"),
    ],
)
def test_faults_in_one_line(files: list, csv: list | None, settings: dict, message: str, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    if csv is not None:
        annotate(tmp_path / "val.csv", *csv)
    with pytest.raises(UserError, match=message) as raised:
        ActionVideos(**{"root": str(tmp_path), **settings}).split("val")
    assert "\n" not in str(raised.value)


def test_windows_in_time() -> None:
    def starts(timing: Timing, total: int, places: int) -> list[int]:
        return [timing.window(total, place)[0] for place in range(places)]

    assert Timing(4, 2).window(5, 0) == [0, 2, 4, 0] and Timing(7).window(3, 0) == [0, 1, 2, 0, 1, 2, 0]
    torch.manual_seed(0)
    drawn = {Timing(16, random=True).window(20, 0)[0] for _ in range(200)}
    assert drawn == {0, 1, 2, 3, 4}  # 4 is the last that leaves 16 frames, which Hara's crop never takes
    assert {Timing(4, 3, random=True).window(11, 0)[0] for _ in range(50)} == {0, 1}
    assert starts(Timing(16, windows=3), 300, 3) == [0, 142, 284] and starts(Timing(4), 9, 1) == [2]
    assert starts(Timing(16, windows=3), 5, 3) == [0, 0, 0]
    assert Timing(16, windows=10).window(160, 9) == list(range(144, 160))


def haras_windows(frames: list[int], size: int) -> list[list[int]]:
    """TemporalSlidingWindow and LoopPadding of kenshohara/3D-ResNets-PyTorch, word by word: every `size` frames one,
    the last one padded with its own frames from the beginning."""
    found = []
    for begin in frames[::size]:
        sample = frames[begin : begin + size]
        for frame in list(sample) * size:
            if len(sample) >= size:
                break
            sample.append(frame)
        found.append(sample)
    return found


@pytest.mark.parametrize("total", [1, 15, 16, 17, 31, 32, 33, 300])
def test_all_windows_are_haras(total: int) -> None:
    timing = Timing(16, windows=None)
    windows = int(timing.count(np.array([total]))[0])
    expected = haras_windows(list(range(total)), 16)
    assert [timing.window(total, place) for place in range(windows)] == expected


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Videos of 1, 7 and 20 frames in two classes, and one that is none."""
    for name, frames in {"a/one": 1, "a/seven": 7, "b/twenty": 20}.items():
        path = tmp_path / f"set/val/{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        videos.write(path, videos.pattern(frames))
    touch(tmp_path, "set/val/b/broken.mp4")
    return tmp_path / "set"


def over_time(frames: Tensor) -> Tensor:
    return frames.transpose(0, 1).contiguous()


def test_training_takes_one_random_window_a_video(films: Path) -> None:
    clips = Clips(ActionVideos(str(films)).split("val"), Timing(4, stride=2, random=True), over_time)
    assert len(clips) == 4 and clips.groups is None and not (films / COUNTS_FILE).exists()
    assert [clips.name(i) for i in range(4)] == [f"val/{x}.mp4" for x in ("a/one", "a/seven", "b/broken", "b/twenty")]
    whole = torch.from_numpy(videos.decoded(films / "val/b/twenty.mp4")).permute(3, 0, 1, 2)
    starts = set()
    for seed in range(60):
        torch.manual_seed(seed)
        sample = clips[3]
        start = next(s for s in range(14) if torch.equal(sample["input"], whole[:, s : s + 7 : 2]))
        starts.add(start)
        assert sample["label"] == 1 and sample["video"] == 3
    assert {0, 13} <= starts
    torch.manual_seed(seed)
    assert torch.equal(clips[3]["input"], sample["input"])
    with pytest.raises(UnreadableSample, match="no video.*broken.mp4"):
        clips[2]
    batch = clips.collate([clips[0], clips[1]])
    assert batch["input"].shape == (2, 3, 4, 48, 64) and batch["label"].tolist() == [0, 0]


def test_frame_counts_are_kept_until_a_file_changes(films: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    found = ActionVideos(str(films)).split("val")
    counted: list[str] = []
    true = found._count
    monkeypatch.setattr(found, "_count", lambda path: counted.append(path.name) or true(path))
    assert found.counts().tolist() == [1, 7, 0, 20] and len(counted) == 4
    assert "counting the frames of 4 videos" in capsys.readouterr().err
    counted.clear()
    assert found.counts().tolist() == [1, 7, 0, 20] and counted == []
    videos.write(films / "val/a/one.mp4", videos.pattern(5))
    (films / "val/b/twenty.mp4").unlink()
    assert found.counts().tolist() == [5, 7, 0, 0] and counted == ["one.mp4"]
    counted.clear()
    (films / COUNTS_FILE).write_text((films / COUNTS_FILE).read_text()[:40])  # as no write of ours leaves it
    assert found.counts().tolist() == [5, 7, 0, 0] and len(counted) == 3
    assert {path.name for path in films.iterdir()} == {"val", COUNTS_FILE}
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    (films / COUNTS_FILE).unlink()
    assert found.counts().tolist() == [5, 7, 0, 0]
    assert "cannot be written (Read-only file system)" in capsys.readouterr().err
    assert [path.name for path in films.iterdir()] == ["val"]


def test_check_data_lists_videos(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Each once, however many windows it has; all of it, or with scan=quick its packets only."""
    (films / "train").symlink_to("val")
    whole = films / "val/b/twenty.mp4"
    videos.damaged(whole, whole, packet=8)

    def check(*arguments: str) -> int:
        settings = ["task=kinetics", f"data.root={films}", "task.protocol=30view", "loader.workers=0", *arguments]
        return call(monkeypatch, settings, lambda: runpy.run_path("scripts/check_data.py", run_name="__main__"))

    for scan, bad in (("full", ["broken", "twenty"]), ("quick", ["broken"])):
        out = tmp_path / f"{scan}.txt"
        assert check(f"scan={scan}", f"out={out}") == 1
        assert out.read_text().split() == [f"{split}/b/{name}.mp4" for split in ("train", "val") for name in bad]
        said = capsys.readouterr().out
        assert f"{len(bad):8d}{len(bad):8d}  refused, of which" in said and f"{len(bad)} in val/b, of 2" in said
    skipping = ActionVideos(str(films), skip_list=str(tmp_path / "full.txt")).split("val")
    assert len(skipping) == 2 and skipping.skipped == 2
    assert check("scan=fast") == 2 and "scan=fast: give full" in capsys.readouterr().err
