"""Videos out of telephones, cameras and archives: shown as they are meant, whole or not for all alike, all found."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import videos
from PIL import Image
from torch import Tensor

from tasks.action.data import Windows
from tasks.action.videos import ActionVideos, read_frames
from tdaf.errors import UnreadableSample
from tdaf.media.clip import Video, VideoWriter, read_clip
from tdaf.media.files import Media, is_video
from tdaf.media.video import count_frames, decode_whole

MATRICES = {  # a, b, c, d of ISO/IEC 14496-12, and what shows a frame (H, W, 3) so
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down and mirrored": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "a quarter turn": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "a quarter turn back": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transposed over the other diagonal": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


def hwc(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.write(tmp_path_factory.mktemp("film") / "h264.mp4", videos.pattern(4))


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_is_followed(name: str, film: Path, tmp_path: Path) -> None:
    (a, b, c, d), shown = MATRICES[name]
    data = bytearray(film.read_bytes())
    at = data.index(b"tkhd") + 44  # version 0: eight fields, two reserved, layer, group, volume, reserved
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    expected = shown(videos.decoded(film)[2])
    assert np.array_equal(hwc(Video(path).read(2)), expected)
    assert np.array_equal(hwc(read_clip(path, [2])[0]), expected)


def damaged_files(folder: Path) -> dict[str, str | None]:
    """Names of files, and what is said of each; None of a sound one."""
    h264, mpeg4 = {"codec": "libx264", "bf": "2", "g": "10"}, {"codec": "mpeg4", "bf": "0", "g": "10"}
    mkv, avi = (
        videos.write(folder / f"whole.{kind}", videos.pattern(40), **h) for kind, h in (("mkv", h264), ("avi", mpeg4))
    )
    parts = [videos.write(folder / f"{n}.ts", videos.pattern(n), **h264) for n in (16, 24)]
    data = mkv.read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) * 3 // 4])
    videos.damaged(avi, folder / "damaged.avi", 20)
    promising = bytearray(avi.read_bytes())
    for chunk, at in ((b"avih", 16), (b"strh", 32)):  # frames, by Microsoft's AVIMAINHEADER and AVISTREAMHEADER
        assert struct.unpack_from("<I", promising, promising.index(chunk) + 8 + at) == (40,)
        struct.pack_into("<I", promising, promising.index(chunk) + 8 + at, 55)
    (folder / "promising.avi").write_bytes(promising)
    (folder / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    return {
        "whole.mkv": None,
        "whole.avi": None,
        "cut.mkv": "cut off: ",
        "damaged.avi": "damaged after 20 of 40 frames",
        "promising.avi": None,
        "joined.ts": "damaged after ",
    }


def test_whole_means_the_same_to_training_check_and_predict(tmp_path: Path) -> None:
    for name, said in damaged_files(tmp_path).items():
        path = tmp_path / name
        video = Video(path)
        if said is None:
            assert len(video) == decode_whole(path) == count_frames(path) == 40 and video.survey.fault is None
            assert read_clip(path, lambda total: range(total)).shape[0] == 40
            continue
        assert said in video.survey.fault and 0 < len(video) < 40
        for read in (decode_whole, lambda path: read_clip(path, lambda total: range(total))):
            with pytest.raises(UnreadableSample, match=said):
                read(path)


def test_other_endings_and_sub_folders_are_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    for folder in ("train/a", "val/a", "val/a/2024/may", "val/a/@eaDir", "val/.ipynb_checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("train/a/x.asf", "val/a/y.M2V", "val/a/2024/may/z.vob", "val/a/w.gif", "val/a/@eaDir/no.mp4"):
        (tmp_path / name).touch()
    for name in ("val/a/._y.M2V", "val/a/b.txt", "val/a/2024/c.txt", "val/a/README"):
        (tmp_path / name).touch()
    split = ActionVideos(str(tmp_path)).split("val")
    names = [split.name(index) for index in range(len(split))]
    assert names == ["val/a/w.gif", "val/a/y.M2V", "val/a/2024/may/z.vob"]
    assert split.notes == {"files that are no videos by their endings, left out (2 .txt, 1 without an ending)": 3}
    (tmp_path / "val.csv").write_text("label,youtube_id\na,y\na,z\n")
    split = ActionVideos(str(tmp_path)).split("val")
    assert [split.name(index) for index in range(len(split))] == ["val/a/y.M2V", "val/a/2024/may/z.vob"]


def test_a_gif_that_moves_is_a_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels) for pixels in videos.pattern(3)]
    frames[0].save(tmp_path / "still.gif")
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    assert [is_video(tmp_path / f"{name}.gif") for name in ("still", "moving", "gone")] == [False, True, False]
    assert len(Media([tmp_path / "still.gif", tmp_path / "moving.gif"])) == 4


def test_two_classes_for_one_video_are_named(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for name in "abc":
        (tmp_path / f"val/{name}.mp4").touch()
    (tmp_path / "val.csv").write_text("label,youtube_id\nrun,a\njump,b\nrun,b\njump,c\njump,c\n")
    split = ActionVideos(str(tmp_path)).split("val")
    assert [split.name(index) for index in range(len(split))] == ["val/a.mp4", "val/c.mp4"]
    assert split.notes == {
        "videos have rows of several classes and are left out (val/b.mp4)": 1,
        "rows name a video again, with its class": 1,
    }


def test_a_folder_of_frames_is_one_series(tmp_path: Path) -> None:
    def series(prefix: str, value: int) -> None:
        for number in range(1, 4):
            Image.new("RGB", (8, 6), (value + number,) * 3).save(tmp_path / f"{prefix}{number:05d}.png")

    for prefix, value in (("flow_x_", 100), ("flow_y_", 200), ("img_", 10)):
        series(prefix, value)
    assert read_frames(tmp_path, range(3))[:, 0, 0, 0].tolist() == [11, 12, 13]
    series("depth_", 50)
    with pytest.raises(
        UnreadableSample, match=r"4 series of frames in one folder: depth_\*, flow_x_\*, flow_y_\*, img_\*"
    ):
        read_frames(tmp_path, range(3))


def test_seconds_are_those_of_the_time_stamps(tmp_path: Path) -> None:
    times = [0, 40, 80, 1000, 2000, 2040]  # ms
    path = videos.write(tmp_path / "varying.mp4", videos.pattern(6), 25, times=times)
    video = Video(path)
    assert [video.survey.seconds(frame) for frame in range(6)] == pytest.approx(
        [time / 1000 for time in times], abs=1e-3
    )
    windows = Windows([path], lambda clip: clip, frames=3, stride=1)
    found = [windows[index]["seconds"].tolist() for index in range(2)]
    assert found[0] == pytest.approx([0, 1], abs=1e-3) and found[1][0] == pytest.approx(1, abs=1e-3)
    assert 2.04 < found[1][1] < 2.6 and json.dumps(found)
    with VideoWriter(tmp_path / "drawn.mp4", windows.pictures.fps(path)) as writer:
        for index in range(6):
            writer.write(windows.pictures.read(index), windows.pictures.stamp(index))
    drawn = Video(tmp_path / "drawn.mp4")
    assert [drawn.survey.seconds(frame) for frame in range(6)] == pytest.approx(
        [time / 1000 for time in times], abs=1e-3
    )
    even = Video(videos.write(tmp_path / "even.mp4", videos.pattern(6), 25))
    assert even.survey.times is None and even.survey.seconds(6) == 0.24 and torch.is_tensor(even.read(5))
