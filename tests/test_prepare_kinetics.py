"""scripts/prepare_kinetics.py: the same videos, smaller, with short groups of pictures; and it can be stopped."""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import videos
from fragile_encoder import fragile
from packing import contents, tar_gz, zipped

from scripts import prepare_kinetics
from scripts.prepare_kinetics import Job, encode, prepare
from tdaf.cli.script import parse
from tdaf.errors import RunError, UserError


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinetics") / "set"
    for name in ("train/a b/large.mp4", "train/a b/small.avi", "val/c/turned.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    large = videos.pattern(30, 161, 121)[:, :120, :160]
    videos.write(root / "train/a b/large.mp4", large)
    videos.write(root / "train/a b/mpeg4.avi", videos.pattern(9))
    videos.write(root / "val/c/turned.mp4", videos.pattern(5, 96, 64), turned=90)
    (root / "val/c/sound.mp4").write_bytes(videos.sound(root / "sound.mp4").read_bytes())
    (root / "sound.mp4").unlink()
    whole = videos.rewritten(root / "train/a b/large.mp4", root / "front.mp4", movflags="faststart")
    (root / "train/a b/cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    whole.unlink()
    (root / "train.csv").write_text("label\n")
    return root


def called(*arguments: object) -> int:
    return prepare(**parse([*map(str, arguments)], prepare)[1])


def test_it_goes_on_where_it_was_stopped(taken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    assert called("--root", taken, "--out", out, "--short-side", "48", "--gop=6", "--workers", "1") == 1
    said = capsys.readouterr().out
    assert f"left out: {taken}/val/c/sound.mp4: it has no pictures, only sound\n" in said
    assert f"left out: {taken}/train/a b/cut.mp4: " in said and "3 videos in" in said
    made = contents(out)
    assert set(made) == {"train/a b/large.mp4", "train/a b/mpeg4.mp4", "val/c/turned.mp4", "train.csv"}
    (out / "val/c/turned.mp4").unlink()
    (out / "val/c/.turned.mp4.part").write_bytes(made["val/c/turned.mp4"][:100])  # as a killed run leaves it
    same = (f"root={taken}", f"out={out}", "short_side=48", "gop=6", "workers=1")
    assert called(*same) == 1 and "5 videos, 2 of them done before" in capsys.readouterr().out
    assert contents(out) == made


def test_archives_become_what_their_folders_would(taken: Path, tmp_path: Path, capsys) -> None:
    """Kinetics' parts as streams, tar and zip files in place: the same files at the same places, none unpacked."""
    how = ("short_side=48", "gop=6", "workers=1")
    assert called(f"root={taken}", f"out={tmp_path / 'plain'}", *how) == 1
    packed = {}
    for name, content in contents(taken).items():
        packed.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = content
    root, out = tmp_path / "packed", tmp_path / "small"
    for split, pack, name in (("train", tar_gz, "part_0.tar.gz"), ("val", zipped, "part_0.zip")):
        (root / split).mkdir(parents=True)
        pack(root / split / name, packed[split])
    (root / "train.csv").write_text("label\n")
    assert called(f"root={root}", f"out={out}", *how) == 1
    said = capsys.readouterr().out
    plain, made = contents(tmp_path / "plain"), contents(out)
    assert made.keys() == plain.keys() and "3 videos in" in said and "2 left out" in said
    for name in plain:  # neither x264 nor MPEG-4's decoder gives the same bits every time
        if name.endswith(".mp4"):
            ours, theirs = (videos.decoded(folder / name).astype(int) for folder in (out, tmp_path / "plain"))
            assert ours.shape == theirs.shape and abs(ours - theirs).mean() < 2
        else:
            assert made[name] == plain[name]
    assert f"left out: {root}/train/part_0.tar.gz: cut: cut off" in said
    assert f"left out: {root}/val/part_0.zip/c/sound.mp4: it has no pictures" in said
    (out / "train/a b/mpeg4.mp4").unlink()
    (root / "val/part_0.zip").unlink()
    assert called(f"root={root}", f"out={out}", *how) == 1
    assert contents(out).keys() == plain.keys() and "1 videos in" in capsys.readouterr().out
    whole = root / "train/part_0.tar.gz"
    whole.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(RunError, match="part_0.tar.gz is damaged, cut off or no archive .*bring it again, then go on"):
        called(f"root={root}", f"out={tmp_path / 'other'}", *how)
    assert not (tmp_path / "other/.copies").exists()


def test_tars_hold_what_the_folders_would(taken: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """Also when it is stopped, and when there is more to do later."""
    monkeypatch.setattr(prepare_kinetics, "_done", copied)
    how = ("short_side=48", "gop=6", "workers=1")
    root, plain, out = tmp_path / "set", tmp_path / "plain", tmp_path / "small"
    shutil.copytree(taken, root)
    (root / "train/note.txt").write_text("a note\n")
    tar_gz(root / "train/part_0.tar.gz", {"c/turned.mp4": (root / "val/c/turned.mp4").read_bytes()})
    assert called(f"root={root}", f"out={plain}", *how) == 1
    made = contents(plain)
    assert called(f"root={root}", f"out={out}", *how, "tar=true") == 1 and "4 videos in" in capsys.readouterr().out

    def packed() -> dict[str, bytes]:
        assert set(contents(out)) == {"train.tar", "val.tar", "train.csv"} and len(list(out.iterdir())) == 3
        inside = {s: contents_of_tar(out / f"{s}.tar") for s in ("train", "val")}
        return {"train.csv": (out / "train.csv").read_bytes()} | {
            f"{split}/{name}": content for split, found in inside.items() for name, content in found.items()
        }

    assert packed() == made and len(made) == 6
    whole = {name: (out / name).read_bytes() for name in ("train.tar", "val.tar")}
    for share in (0, 0.3, 0.7, 0.98):  # as kill -9 leaves them
        for name, content in whole.items():
            (out / name).unlink()
            (out / f".{name}.part").write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])
        assert called(f"root={root}", f"out={out}", *how, "tar=true") == 1 and packed() == made
    stamp = (out / "train.tar").stat().st_mtime_ns
    shutil.copy(root / "val/c/turned.mp4", root / "val/c/more.mp4")
    assert called(f"root={root}", f"out={out}", *how, "tar=true") == 1
    assert packed() == made | {"val/c/more.mp4": made["val/c/turned.mp4"]}
    assert (out / "train.tar").stat().st_mtime_ns == stamp
    (out / "train").mkdir()
    with pytest.raises(UserError, match=r"small/train is there, and would be read instead of .*train.tar: delete it"):
        called(f"root={root}", f"out={out}", *how, "tar=true")
    shutil.copy(root / "val/c/turned.mp4", root / "flat.mp4")
    with pytest.raises(UserError, match="tar=true: flat.mp4 lies in no folder"):
        called(f"root={root}", f"out={tmp_path / 'other'}", *how, "tar=true")


def copied(jobs: Iterator[Job], workers: int) -> Iterator[tuple[Job, str | None]]:
    """For encoding, which gives other bits in another run (x264's threads)."""
    for job in jobs:
        if job.source.stem in ("cut", "sound"):
            yield job, "bad"
            continue
        job.target.parent.mkdir(parents=True, exist_ok=True)
        job.target.write_bytes(b"small" + job.source.read_bytes())
        yield job, None


def contents_of_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as source:
        assert len(source.getnames()) == len(set(source.getnames()))
        return {member.name: source.extractfile(member).read() for member in source}


def test_what_is_written(taken: Path, tmp_path: Path) -> None:
    target = tmp_path / "large.mp4"
    assert encode(Job(taken / "train/a b/large.mp4", target, 60, 6, 10)) is None
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.codec.name, stream.average_rate) == (80, 60, "h264", Fraction(12))
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
        assert len(keys) == 30 and [place for place, key in enumerate(keys) if key] == [0, 6, 12, 18, 24]
    with av.open(str(taken / "train/a b/large.mp4")) as container:
        small = [frame.to_ndarray(format="rgb24", width=80, height=60) for frame in container.decode(video=0)]
    error = np.abs(videos.decoded(target).astype(int) - np.stack(small)).mean((1, 2, 3))
    assert error.max() < 12 < np.abs(np.roll(small, 4, 0).astype(int) - np.stack(small)).mean((1, 2, 3)).min()
    data = target.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_nothing_is_enlarged_and_turns_are_made(taken: Path, tmp_path: Path) -> None:
    target = tmp_path / "turned.mp4"
    assert encode(Job(taken / "val/c/turned.mp4", target, 256, 12, 5)) is None
    upright = np.rot90(videos.decoded(taken / "val/c/turned.mp4"), axes=(1, 2)).astype(int)
    assert upright.shape == (5, 96, 64, 3)
    assert np.abs(videos.decoded(target) - upright).mean() < 6


def test_times_are_kept(tmp_path: Path) -> None:
    times = [0, 30, 170, 200, 670, 700, 730, 1330]
    source = videos.write(tmp_path / "uneven.mp4", videos.pattern(8), times=times, codec="libx264", bf="2")
    target = tmp_path / "out.mp4"
    assert encode(Job(source, target, 32, 4, 20)) is None
    with av.open(str(target)) as container:
        found = [float(1000 * frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert found == pytest.approx(times, abs=1)


def test_a_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that crashes takes its process with it, and no other video."""
    monkeypatch.setattr(prepare_kinetics, "encode", fragile)
    jobs = [Job(Path(name), tmp_path / name, 32, 12, 20) for name in ("a.mp4", "deadly.mp4", "z.mp4")]
    found = {job.source.name: fault for job, fault in prepare_kinetics._done(iter(jobs), 2)}
    assert found == {"a.mp4": None, "deadly.mp4": "the process that read it died", "z.mp4": None}


def test_faults_change_nothing(taken: Path, tmp_path: Path) -> None:
    for name in ("none", "twins"):
        (tmp_path / name).mkdir()
    for name in ("x.mp4", "x.avi"):
        (tmp_path / "twins" / name).write_bytes(b"x")
    out = f"out={tmp_path / 'out'}"
    for arguments, message in (
        ([f"root={tmp_path / 'nowhere'}", out], "no such folder"),
        ([f"root={tmp_path / 'twins'}", out], "would both become"),
        ([f"root={taken}", f"out={taken / 'small'}"], "lies in root"),
        ([f"root={taken}", out, "short_side=8"], "short_side=8: give a whole number, 16 or more"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            called(*arguments)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_imports_no_torch() -> None:
    code = "import sys, scripts.prepare_kinetics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
