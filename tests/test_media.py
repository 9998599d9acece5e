"""Videos read and written, as people have them, files as one row of pictures, and what is drawn on them."""

import json
import pickle
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import videos
from PIL import Image
from torch import Tensor

from tasks.action.data import Windows
from tasks.action.videos import ActionVideos, read_frames
from tdaf.errors import UnreadableSample
from tdaf.media import drawing
from tdaf.media.clip import Video, VideoWriter, read_clip
from tdaf.media.files import Media, is_video
from tdaf.media.video import count_frames, decode_whole


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {name: videos.write(folder / name) for name in videos.KINDS}


def hwc(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", videos.KINDS)
def test_frames_are_those_of_a_plain_decode_in_any_order(name: str, films: dict[str, Path]) -> None:
    expected = videos.decoded(films[name])
    assert expected.shape == (30, 48, 64, 3) and np.abs(expected.astype(int) - videos.pattern()).mean() < 20
    video = Video(films[name])
    assert len(video) == 30 and video.survey.fault is None and video.survey.fps == 12
    for index in [*range(30), *np.random.default_rng(1).integers(0, 30, 25).tolist(), 29, 29, 0, 0]:
        frame = video.read(index)
        assert frame.dtype == torch.uint8 and np.array_equal(hwc(frame), expected[index]), index
    moved = pickle.loads(pickle.dumps(video))
    assert np.array_equal(hwc(moved.read(7)), expected[7]) and np.array_equal(hwc(video.read(1)), expected[1])
    with pytest.raises(UnreadableSample, match="30 frames, and so no frame 30"):
        video.read(30)
    video.close()
    assert np.array_equal(hwc(video.read(3)), expected[3])


def test_a_damaged_video_has_the_frames_before_the_damage(films: dict[str, Path], tmp_path: Path) -> None:
    """One whose index lies in front is cut off in its pictures; one has a hole in its pictures."""
    expected = videos.decoded(films["h264.mp4"])
    fast = videos.rewritten(films["h264.mp4"], tmp_path / "fast.mp4", movflags="faststart")
    whole = fast.read_bytes()
    for name, data in (
        ("cut.mp4", whole[: len(whole) * 2 // 3]),
        ("hole.mp4", whole[: len(whole) * 2 // 3] + bytes([255]) * 300 + whole[len(whole) * 2 // 3 + 300 :]),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        video = Video(path)
        count = len(video)
        assert 0 < count < 30 and f"after {count}" in video.survey.fault and str(path) in video.survey.fault
        assert all(np.array_equal(hwc(video.read(index)), expected[index]) for index in range(count))
        with pytest.raises(UnreadableSample, match=f"after {count}"):
            video.read(count)
    for name, left, said in (("mpeg4.avi", -1500, "of 30 frames"), ("vp9.webm", -700, "cut off: 700 bytes")):
        cut = tmp_path / name
        cut.write_bytes(films[name].read_bytes()[:left])
        assert said in Video(cut).survey.fault and 0 < len(Video(cut)) < 30
    smeared = tmp_path / "smeared.avi"  # its decoder goes on after damage, and only marks the frame
    smeared.write_bytes(films["mpeg4.avi"].read_bytes()[120:])
    with av.open(str(smeared)) as container:
        marks = [frame.is_corrupt for frame in container.decode(video=0)]
    assert 0 < marks.index(True) == len(Video(smeared)) < len(marks) and "damaged after" in Video(smeared).survey.fault


@pytest.mark.parametrize(("size", "fps"), [((48, 64), Fraction(30000, 1001)), ((47, 63), 12.5), ((200, 31), 25)])
def test_what_is_written_is_read_again(size: tuple[int, int], fps: float, tmp_path: Path) -> None:
    frames = videos.pattern(20, width=size[1], height=size[0])
    with VideoWriter(tmp_path / "out.mp4", fps) as writer:
        for frame in frames:
            writer.write(torch.from_numpy(frame).permute(2, 0, 1))
        assert not (tmp_path / "out.mp4").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    video = Video(tmp_path / "out.mp4")
    assert len(video) == 20 and float(video.survey.fps) == pytest.approx(float(fps), rel=1e-4)
    got = np.stack([hwc(video.read(index)) for index in range(20)])
    assert got.shape == (20, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(got[:, : size[0], : size[1]].astype(int) - frames).mean() < 20
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")


def test_a_broken_off_video_leaves_no_file(tmp_path: Path) -> None:
    black = torch.zeros(3, 20, 20, dtype=torch.uint8)
    with pytest.raises(KeyError), VideoWriter(tmp_path / "out.mp4", 25) as writer:
        writer.write(black)
        raise KeyError
    with VideoWriter(tmp_path / "none.mp4", 25):
        pass
    with pytest.raises(OSError, match="No such file"), VideoWriter(tmp_path / "no folder" / "out.mp4", 25) as writer:
        writer.write(black)
    assert not list(tmp_path.iterdir())
    with VideoWriter(tmp_path / "two sizes.mp4", 25) as writer:
        writer.write(black)
        writer.write(torch.zeros(3, 40, 60, dtype=torch.uint8))
    assert Video(tmp_path / "two sizes.mp4").read(1).shape == (3, 20, 20)


def test_images_and_videos_are_one_row_of_pictures(films: dict[str, Path], tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(videos.pattern(1)[0]).save(image)
    sound, missing = videos.sound(tmp_path / "b.mp4"), tmp_path / "missing.jpg"
    pictures = Media([image, sound, films["h264.mp4"], missing, films["vp9.webm"]])
    assert len(pictures) == 62 and pictures.videos and list(pictures.faults) == [sound]
    assert not Media([image]).videos and len(Media([])) == len(Media([sound])) == 0
    places = [(pictures.file(index), pictures.frame(index)) for index in (0, 1, 30, 31, 32, 61)]
    first, second = films["h264.mp4"], films["vp9.webm"]
    assert places == [(image, None), (first, 0), (first, 29), (missing, None), (second, 0), (second, 29)]
    assert pictures.fps(first) == 12 and pictures.name(30) == f"{first}, frame 29" and pictures.name(0) == str(image)
    expected = [*videos.pattern(1), *videos.decoded(first), None, *videos.decoded(second)]
    pictures.read(0).zero_()
    for index in (0, 0, 1, 2, 2, 45, 33, 1, 0):
        assert np.array_equal(hwc(pictures.read(index)), expected[index]), index
    moved = pickle.loads(pickle.dumps(pictures))
    assert np.array_equal(hwc(moved.read(45)), expected[45])
    with pytest.raises(UnreadableSample, match="No such file"):
        pictures.read(31)


RED, GREEN = (255, 0, 0), (0, 255, 0)


def at(picture: Tensor, x: float, y: float) -> tuple[int, ...]:
    return tuple(picture[:, int(y), int(x)].tolist())


@pytest.mark.parametrize(("side", "factor"), [(400, 1), (60, 4)])
def test_boxes_lie_where_they_should(side: int, factor: int) -> None:
    grey = torch.full((3, side, side + 20), 128, dtype=torch.uint8)
    x1, y1, x2, y2 = (side * part for part in (0.25, 0.3, 0.75, 0.8))
    drawn = drawing.boxes(grey, torch.tensor([[x1, y1, x2, y2]]), [""], [RED])
    assert drawn.shape == (3, factor * side, factor * (side + 20)) and (grey == 128).all()
    for x, y in ((x1, y1), (x2 - 0.5, y1), (x1, y2 - 0.5), (x2 - 0.5, y2 - 0.5), (side / 2, y1), (x1, side / 2)):
        assert at(drawn, x * factor, y * factor) == RED
    for x, y in ((x1 - 1, y1), (x1, y1 - 1), (x2, side / 2), (side / 2, y2), (side / 2, side / 2)):
        assert at(drawn, x * factor, y * factor) == (128, 128, 128)


def test_labels_stay_inside_and_the_first_box_on_top() -> None:
    grey = torch.full((3, 240, 300), 128, dtype=torch.uint8)
    corners = torch.tensor([[0, 0, 20, 20], [280, 0, 300, 20], [285, 230, 300, 240], [-50, 100, 900, 230]]).float()
    for box in corners:
        drawn = drawing.boxes(grey, box[None], ["traffic light 97%"], [RED])
        inked = (drawn == torch.tensor(RED).view(3, 1, 1)).all(0)
        assert inked.sum() > 700  # the label's ground whole, letters apart
        assert (drawn.int().sum(0) > 700).sum() + (drawn.int().sum(0) < 60).sum() > 60  # black or white letters
    both = drawing.boxes(grey, torch.tensor([[50.0, 50, 150, 150]] * 2), ["", ""], [RED, GREEN])
    assert at(both, 50, 100) == RED
    outside = torch.tensor([[310.0, 10, 350, 50], [10, 10, 10, 60], [40, 30, 20, 10], [5, -20, 60, 0]])
    assert torch.equal(drawing.boxes(grey, outside, ["far"] * 4), grey)
    assert torch.equal(drawing.boxes(grey, torch.zeros(0, 4), []), grey)
    with pytest.raises(ValueError, match="zip"):
        drawing.boxes(grey, corners, ["one"])


def ink(text: str) -> Tensor:
    """The strip at the foot, where a text is drawn."""
    return drawing.labelled(torch.full((3, 200, 400), 90, dtype=torch.uint8), text)[:, -24:]


@pytest.mark.parametrize("text", ["чашка", "γάτα", "猫と犬", "고양이", "قطة سوداء", "חתול", "แมวดำ", "बिल्ली"])
def test_class_names_beyond_ascii_are_drawn(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Not as the box that stands for what a font lacks."""
    drawn = ink(text)
    assert not capfd.readouterr().err and not torch.equal(drawn, ink("\ufffe" * len(text)))
    runs = list(drawing.Lettering(20)._runs(f"{text} 80%"))
    assert [run for run, _ in runs] == [text, " 80%"] and all(drawing._has(runs[0][1], letter) for letter in text)


def test_letters_that_no_font_has_are_named_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, "_font_files", list)
    drawing._font_with.cache_clear()
    for _ in range(2):
        assert [run for run, _ in drawing.Lettering(20)._runs("猫 cat")] == ["猫", " cat"]
    said = "no font here has all of '\\u732b', boxes stand for the rest: pip install 'tdaf[fonts]'\n"
    assert capfd.readouterr().err == said
    drawing._font_with.cache_clear()


def test_skeletons_join_what_is_seen() -> None:
    grey = torch.full((3, 300, 300), 128, dtype=torch.uint8)
    persons = torch.tensor([[[50, 50, 0.9], [150, 50, 0.8], [150, 150, 0.1], [-40, 20, 0.9]],
                            [[50, 250, 1.0], [250, 250, 1.0], [250, 200, 0.0], [250, 100, 1.0]]])  # fmt: skip
    drawn = drawing.skeletons(grey, persons, [(0, 1), (1, 2), (2, 3)], [RED, GREEN], least=0.2)
    assert at(drawn, 50, 50) == at(drawn, 100, 50) == at(drawn, 150, 50) == RED
    assert at(drawn, 150, 150) == at(drawn, 150, 100) == (128, 128, 128)
    assert at(drawn, 150, 250) == at(drawn, 250, 100) == GREEN and at(drawn, 250, 225) == (128, 128, 128)
    assert torch.equal(drawing.skeletons(grey, torch.zeros(0, 17, 3), []), grey)
    small = drawing.skeletons(grey[:, :64, :48], torch.tensor([[[24.0, 32, 1]]]), [], [RED])
    assert small.shape == (3, 256, 192) and at(small, 24.5 * 4, 32.5 * 4) == RED


MATRICES = {  # a, b, c, d of ISO/IEC 14496-12, and what shows a frame (H, W, 3) so
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down and mirrored": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "a quarter turn": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "a quarter turn back": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transposed over the other diagonal": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


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
        "videos have rows of several classes and are left out (b.mp4)": 1,
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
