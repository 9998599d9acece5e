"""Videos read and written, files as one row of pictures, and what is drawn on them."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import videos
from PIL import Image
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media import drawing
from tdaf.media.clip import Video, VideoWriter
from tdaf.media.files import Media


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
