"""Clips of videos: the frames are those of a plain decode, whatever file they lie in, and every fault has its line."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
import videos
from torch import Tensor

from tdaf.errors import UnreadableSample
from tdaf.media import clip, video
from tdaf.media.clip import IndexMismatch, read_clip
from tdaf.media.video import FrameIndex, count_frames, decode_whole, opened

CLIPS = 200


def film(path: Path, codec: str = "libx264", frames: int = 40, **options: str) -> Path:
    return videos.write(path, videos.pattern(frames), 30, codec=codec, **options)


def shifted(path: Path, target: Path, frames: int) -> Path:
    """The same packets so many frames earlier, those before 0 cut away by an edit list."""
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(path)) as source, av.open(str(target), "w", options=options) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        step = int(1 / (30 * source.streams.video[0].time_base))
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts - frames * step, packet.dts - frames * step
                packet.stream = stream
                container.mux(packet)
    return target


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    vp9 = {"deadline": "realtime", "cpu-used": "8"}
    times = np.random.default_rng(0).integers(1, 90, 50).cumsum().tolist()
    made = [
        film(folder / "one_frame.mp4", frames=1),
        film(folder / "every_key.mp4", g="1", bf="0"),
        film(folder / "no_b.mp4", g="12", bf="0"),
        film(folder / "long_gop.mp4", frames=120, g="250", bf="3"),
        film(folder / "open_gop.mp4", frames=60, g="13", bf="3", **{"x264-params": "open-gop=1:scenecut=0"}),
        videos.write(folder / "odd_size.mp4", videos.pattern(40, 66, 50), 30, codec="libx264", g="12", bf="2", crf="5"),
        film(folder / "b.mkv", frames=60, g="20", bf="4"),
        film(folder / "avi_b.avi", g="13", bf="2"),
        film(folder / "avi_no_b.avi", g="13", bf="0"),
        film(folder / "mpeg4.mp4", "mpeg4", g="12", bf="0"),
        film(folder / "mpeg4_b.mp4", "mpeg4", g="12", bf="2"),
        film(folder / "mpeg4_b.avi", "mpeg4", g="12", bf="2"),
        film(folder / "mpeg4.avi", "mpeg4", g="12", bf="0"),
        film(folder / "vp9.webm", "libvpx-vp9", g="15", **vp9),
        film(folder / "vp9_long.webm", "libvpx-vp9", frames=60, g="250", **vp9),
        film(folder / "ts.ts", g="12", bf="2"),
        videos.write(folder / "uneven.mp4", videos.pattern(50), 30, times=times, codec="libx264", bf="2", g="10"),
    ]
    made += [
        shifted(folder / "open_gop.mp4", folder / "edit_list.mp4", 5),
        shifted(folder / "mpeg4_b.mp4", folder / "edit_list_mpeg4.mov", 15),
        videos.rewritten(folder / "open_gop.mp4", folder / "fragments.mp4", movflags="frag_keyframe+empty_moov"),
    ]
    return {path.name: path for path in made}


@pytest.fixture(scope="module")
def plain(films: dict[str, Path]) -> dict[str, Tensor]:
    """Every frame by PyAV's plain decode, (frames, 3, H, W)."""
    return {name: torch.from_numpy(videos.decoded(path)).permute(0, 3, 1, 2) for name, path in films.items()}


def frames_of(path: Path) -> Tensor:
    return torch.from_numpy(videos.decoded(path)).permute(0, 3, 1, 2)


def test_clips_equal_a_plain_decode(films: dict[str, Path], plain: dict[str, Tensor]) -> None:
    draw = np.random.default_rng(0)
    names = list(films)
    for number in range(CLIPS):
        name = names[number % len(names)]
        total = len(plain[name])
        start, frames, stride = int(draw.integers(total)), int(draw.choice([1, 4, 16])), int(draw.integers(1, 4))
        wanted = [min(start + place * stride, total - 1) for place in range(frames)]
        got = read_clip(films[name], wanted)
        assert got.dtype == torch.uint8 and torch.equal(got, plain[name][wanted]), (name, wanted)


def test_key_frames_are_used(films: dict[str, Path], plain: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file allows it, nothing is decoded from the start."""

    def never(*_: object) -> None:
        raise AssertionError("decoded from the start")

    sure = [name for name in films if not name.startswith(("avi", "mpeg4_b.avi", "ts"))]
    assert len(sure) >= 14
    monkeypatch.setattr(video, "decode", never)
    for name in sure:
        last = len(plain[name]) - 1
        assert torch.equal(read_clip(films[name], [last]), plain[name][[last]]), name
        assert count_frames(films[name]) == len(plain[name])
    with pytest.raises(AssertionError, match="from the start"):
        read_clip(films["avi_b.avi"], [30])


def test_an_index_that_is_wrong_costs_time_and_not_frames(
    films: dict[str, Path], plain: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = video.frame_index
    for wrong in ({"stamps": [7, 8, 9, 10, 11, 12]}, {"before": [], "stamps": []}):
        monkeypatch.setattr(video, "frame_index", lambda *a, wrong=wrong: FrameIndex(**{**vars(true(*a)), **wrong}))
        for name in ("no_b.mp4", "open_gop.mp4", "vp9.webm"):
            with opened(films[name]) as (container, stream), pytest.raises(IndexMismatch):
                list(clip._from_key_frame(container, stream, video.frame_index(container, stream), [30, 31]))
            assert torch.equal(read_clip(films[name], [30, 31]), plain[name][[30, 31]]), name


def test_frames_in_any_order_and_chosen_by_length(films: dict[str, Path], plain: dict[str, Tensor]) -> None:
    wanted = [7, 7, 30, 2, 7]
    assert torch.equal(read_clip(films["no_b.mp4"], wanted), plain["no_b.mp4"][wanted])
    for name in ("no_b.mp4", "avi_b.avi"):
        last_two = Mock(side_effect=lambda total: [total - 2, total - 1])
        assert torch.equal(read_clip(films[name], last_two), plain[name][[-2, -1]])
        last_two.assert_called_once_with(40)
        with pytest.raises(UnreadableSample, match="40 frames, and so no frame 40|ends before frame 40"):
            read_clip(films[name], [39, 40])


def test_short_side(films: dict[str, Path]) -> None:
    with av.open(str(films["no_b.mp4"])) as container:
        frames = list(container.decode(video=0))
    small = np.stack([frames[place].to_ndarray(format="rgb24", width=32, height=24) for place in (5, 9)])
    assert np.array_equal(read_clip(films["no_b.mp4"], [5, 9], short_side=24).permute(0, 2, 3, 1), small)


def test_what_a_header_says_is_not_taken_for_granted(films: dict[str, Path], tmp_path: Path) -> None:
    """mp4 files are opened without a look at their first frame, and one may lie of the size of its pictures."""
    data, path = bytearray(films["open_gop.mp4"].read_bytes()), tmp_path / "wide.mp4"
    entry = data.find(b"avc1", data.find(b"stsd"))
    assert int.from_bytes(data[entry + 28 : entry + 30], "big") == 64  # ISO/IEC 14496-12, VisualSampleEntry
    data[entry + 28 : entry + 30] = (80).to_bytes(2, "big")
    path.write_bytes(data)
    for file, width in ((films["open_gop.mp4"], 64), (path, 80)):
        with opened(file, probe=False) as (_, stream):
            assert (stream.codec_context.width, stream.codec_context.pix_fmt) == (width, None)
    assert frames_of(path).shape[-1] == 64 and torch.equal(read_clip(path, [5, 40]), frames_of(path)[[5, 40]])
    with opened(films["fragments.mp4"], probe=False) as (_, stream):
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_sound_between_the_pictures_is_not_read(tmp_path: Path) -> None:
    path = videos.with_sound(tmp_path / "sound.mp4")
    for wanted in ([0], [29], range(7, 23)):
        assert torch.equal(read_clip(path, wanted), frames_of(path)[list(wanted)])
    with opened(path, probe=False) as (container, _):
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert {packet.stream.type for packet in container.demux() if packet.size} == {"video"}


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("gone.mp4", lambda path: None, "No such file"),
        ("folder.mp4", Path.mkdir, "not a file"),
        ("pipe.mp4", os.mkfifo, "not a file"),
        ("empty.mp4", Path.touch, "the file is empty"),
        ("text.mp4", lambda path: path.write_text("not a video\n" * 50), "no video"),
        ("list.mp4", lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n"), "no video"),
        ("sound.mp4", videos.sound, "no pictures, only sound"),
        ("none.mp4", lambda path: film(path, frames=0), "no pictures, only a header"),
    ],
)
def test_files_that_are_no_videos(name: str, make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    for read in (lambda path: read_clip(path, lambda total: [0]), count_frames, decode_whole):
        with pytest.raises(UnreadableSample, match=reason) as raised:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["front.mp4", "no_b.mp4", "avi_no_b.avi", "mpeg4.avi", "vp9_long.webm", "b.mkv"])
def test_a_file_that_is_cut_off_is_refused(name: str, films: dict[str, Path], tmp_path: Path) -> None:
    """All of it, also where the frames asked for are there: a random window would meet the cut only now and then."""
    if name == "front.mp4":  # its table lies at its beginning
        films = {name: videos.rewritten(films["long_gop.mp4"], tmp_path / "whole.mp4", movflags="faststart")}
    data = films[name].read_bytes()
    assert count_frames(films[name]) > 0
    path = tmp_path / name
    left = len(data) * (95 if name == "mpeg4.avi" else 60) // 100
    path.write_bytes(data[:left])
    reason = "header is cut off" if name == "no_b.mp4" else r"cut off: \d+ bytes are missing"
    for read in (lambda path: read_clip(path, [0]), count_frames, decode_whole):
        with pytest.raises(UnreadableSample, match=reason):
            read(path)


def test_damage_within_is_found(films: dict[str, Path], plain: dict[str, Tensor], tmp_path: Path) -> None:
    """In the clip or on the way to it; other clips of the file stay readable, and right."""
    path = videos.damaged(films["no_b.mp4"], tmp_path / "damaged.mp4", packet=14)
    assert count_frames(path) == 40
    for read in (decode_whole, lambda path: read_clip(path, [14]), lambda path: read_clip(path, [16, 17])):
        with pytest.raises(UnreadableSample, match="damaged after 1[2-4] of 40 frames"):
            read(path)
    for start in (0, 24, 30):
        assert torch.equal(read_clip(path, range(start, start + 8)), plain["no_b.mp4"][start : start + 8])


def test_a_stream_that_pyav_loses_is_no_crash(films: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in a transport stream can bring another stream into being, at which PyAV raises an IndexError."""
    monkeypatch.setattr(video, "frame_index", Mock(side_effect=IndexError("list index out of range")))
    for read in (lambda path: read_clip(path, [0]), count_frames, decode_whole):
        with pytest.raises(UnreadableSample, match="damaged: list index out of range"):
            read(films["ts.ts"])


def test_nothing_stays_open(films: dict[str, Path]) -> None:
    for _ in range(3):
        for path in films.values():
            read_clip(path, [0])
    before, memory = len(os.listdir("/proc/self/fd")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        for path in films.values():
            read_clip(path, [0])
    assert len(os.listdir("/proc/self/fd")) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 8 * 1024  # KB
