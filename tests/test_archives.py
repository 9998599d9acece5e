"""Archives read in place: what unpacking would give, in every form, and one line for what is damaged or hostile."""

import io
import json
import os
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from packing import PACKERS, contents, deflated, nested, tar, zipped

from tdaf.errors import UnreadableSample, UserError
from tdaf.media import archive, members
from tdaf.media.image import read_image
from tdaf.media.tar import Writer

FILES = {
    "b/x.txt": b"x" * 1000,
    "a/deep/one": b"1",
    "a/deep/empty": b"",
    "a-b/two": bytes(range(256)) * 9,
    "a.txt/three": b"3" * 512,
    "b/ä ö\n.txt": b"umlaut",
    "b/" + "long/" * 60 + "name": b"far down",
    "b/" + "n" * 120: b"a long name",
    "empty/": b"",
}


def unpacked(root: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    return root


def seen(place: str | Path) -> list[tuple[str, list[str], list[str]]]:
    """What walking through a place gives, below it."""

    def refused(error: OSError) -> None:
        raise error

    found = archive.walk(place, refused)
    return sorted((os.path.relpath(at, place), sorted(folders), sorted(files)) for at, folders, files in found)


@pytest.mark.parametrize("kind", PACKERS)
def test_a_place_in_an_archive_is_the_folder_it_was(kind: str, tmp_path: Path) -> None:
    folder, (ending, pack) = unpacked(tmp_path / "folder"), PACKERS[kind]
    packed = pack(tmp_path / f"x.{ending}", FILES)
    assert seen(packed) == seen(folder) and len(seen(folder)) > 60
    for name, content in contents(folder).items():
        place = packed / name
        assert archive.exists(place) and archive.is_folder(place) == name.endswith("/") != archive.is_file(place)
        if not name.endswith("/"):
            assert archive.read(place).tobytes() == content == archive.read(folder / name).tobytes()
            with archive.open_file(place) as file:
                file.seek(len(content) // 2)
                assert file.read() == content[len(content) // 2 :] and file.seek(-1, os.SEEK_END) is not None
            assert archive.about(place)[0] == len(content)
    assert archive.is_folder(packed) and archive.is_folder(packed / "b") and not archive.exists(packed / "c")
    for missing in ("c", "b/x", "a"):
        with pytest.raises(FileNotFoundError, match="No such file"):
            archive.read(packed / missing)
    assert archive.read(packed / "a-b/two").flags.writeable


def test_tars_of_the_system_with_a_folder_in_front(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "train")
    for words in (["-C", "train", "."], ["train"], ["--format=v7", "-C", "train", "b/x.txt", "a-b", "empty"]):
        assert os.system(f"cd {tmp_path} && tar -cf train.tar {' '.join(words)}") == 0
        (tmp_path / "train").rename(tmp_path / "aside")
        place = archive.locate(tmp_path, "train")
        (tmp_path / "aside").rename(tmp_path / "train")
        assert place == str(tmp_path / ("train.tar/train" if words == ["train"] else "train.tar"))
        assert seen(place) == seen(folder) or len(words) > 3 and archive.is_folder(f"{place}/empty")


def test_where_a_folder_lies(tmp_path: Path) -> None:
    zipped(tmp_path / "train2017.zip", {"train2017/1.jpg": b"1"})
    zipped(tmp_path / "annotations_trainval2017.zip", {"annotations/a.json": b"{}", "readme": b""})
    zipped(tmp_path / "annotations_more.zip", {"annotations/b.json": b"{}"})
    unpacked(tmp_path / "val2017", {"2.jpg": b"2"})
    tar(tmp_path / "val2017.tar", {"other.jpg": b"2"})  # what is unpacked counts
    (tmp_path / "images").mkdir()
    tar(tmp_path / "images/own.tar", {"__MACOSX/own": b"", "own/3.jpg": b"3", "._own": b""})
    places = {
        "train2017": "train2017.zip/train2017",
        "train2017/1.jpg": "train2017.zip/train2017/1.jpg",
        "annotations/a.json": "annotations_trainval2017.zip/annotations/a.json",
        "annotations/b.json": "annotations_more.zip/annotations/b.json",
        "val2017": "val2017",
        "images/own": "images/own.tar/own",
        "nowhere/x": "nowhere/x",
    }
    assert {name: archive.locate(tmp_path, name) for name in places} == {
        n: str(tmp_path / p) for n, p in places.items()
    }
    (tmp_path / "test.tgz").write_bytes(b"")
    said = archive.hint(tmp_path, "test/x")
    assert said.endswith(f"convert it once: gzip -dc {tmp_path}/test.tgz > {tmp_path}/test.tar")
    assert archive.hint(tmp_path, "val2017") == ""


def linked(kind: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        with tarfile.open(path, "w") as target:
            info = tarfile.TarInfo("a/x")
            info.type, info.linkname = kind, "/etc/passwd"
            target.addfile(info)
        return path

    return write


def encrypted(path: Path) -> Path:
    data = bytearray(zipped(path, {"a/x": b"1"}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def zip_link(path: Path) -> Path:
    info = zipfile.ZipInfo("a/x")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "w") as target:
        target.writestr(info, "/etc/passwd")
    return path


def written(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


HOSTILE = {
    "upwards": (lambda path: tar(path, {"../x": b"1"}), r"member \.\./x leads out of the folder"),
    "absolute": (lambda path: tar(path, {"/etc/x": b"1"}), "member /etc/x leads out of the folder"),
    "upwards in a tar in it": (lambda path: nested(path, {"a/../x": b"1"}), "leads out of the folder"),
    "upwards as Windows has it": (lambda path: zipped(path, {"..\\x": b"1"}), "leads out of the folder"),
    "link": (linked(tarfile.SYMTYPE), "a/x is a link; pack the files themselves"),
    "device": (linked(tarfile.CHRTYPE), "a/x is a device"),
    "link in a zip": (zip_link, "a/x is a link"),
    "encrypted": (encrypted, "a/x is encrypted"),
    "lzma": (lambda path: zipped(path, {"a/x": b"1"}, zipfile.ZIP_LZMA), "compressed by method 14"),
    "a name of two lines": (lambda path: tar(path, {"../x\ny": b"1"}), r"member '\.\./x\\ny' leads"),
    "no archive": (written(b"a text and no archive\n" * 99), "damaged at byte 0: is it a tar or zip file"),
    "empty": (written(b""), "cut off at byte 0: is it"),
    "zeros": (written(bytes(10240)), "holds nothing: is it"),
    "gzip": (written(b"\x1f\x8b\x08" + bytes(99)), r"is compressed.* gzip -dc (.*) > \1.new && mv \1.new \1$"),
    "cut zip": (lambda path: written(zipped(path, FILES).read_bytes()[:-30])(path), "cut off, or no zip file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_one_line(kind: str, tmp_path: Path) -> None:
    make, message = HOSTILE[kind]
    path = make(tmp_path / "x.tar")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as raised:
        archive.inside(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value) and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["gnu", "pax", "nested"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_tar_that_is_cut_off(kind: str, part: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{folder}/{n}": f"{folder}{n};".encode() * 200 for folder in "abc" for n in range(20)}
    path = PACKERS[kind][1](tmp_path / "x.tar", files)
    data = path.read_bytes()
    path.write_bytes(data := data[: int(len(data.rstrip(b"\0")) * part)])
    with pytest.raises(UserError, match=r"x\.tar is cut off (in|at byte) .*; bring it again, or use .*data.max_bad=1"):
        archive.check_whole(path, 0)
    archive.check_whole(path / "a", 1)
    assert capsys.readouterr().err.count("\n") == 1
    whole, cut = 0, 0
    for place, _, names in archive.walk(path, None):
        for name in names:
            try:
                found = archive.read(f"{place}/{name}").tobytes()
            except UnreadableSample as error:
                assert "the archive is cut off in" in str(error) and f"{place}/{name}" in str(error)
                cut += 1
            else:
                whole += found == files[os.path.relpath(f"{place}/{name}", path)]
    assert cut <= 1 and whole == sum(content in data for content in files.values()) and 5 < whole < 60


def test_numbers_that_would_lead_nowhere_end(tmp_path: Path) -> None:
    """Sizes below 0, without end, or in bytes that are no number: no loop, no allocation."""
    for field in (b"-0000000777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0", b"x" * 12):
        block = bytearray(tarfile.TarInfo("x").tobuf())
        block[124:136] = field
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        (tmp_path / "x.tar").write_bytes(bytes(block) + bytes(2048))
        archive.forget()
        with pytest.raises(UserError, match="damaged|cut off"):
            archive.check_whole(tmp_path / "x.tar", 0)
    for records in (b"99999 size=5\n", b"9 size=-5\n", b"0 size=\n", b"11 size=9_9\n", b"\n"):
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, len(records)
        block = info.tobuf() + records.ljust(512, b"\0") + tarfile.TarInfo("y").tobuf() + bytes(1024)
        (tmp_path / "x.tar").write_bytes(block)
        archive.forget()
        with suppress(UserError):
            assert archive.inside(tmp_path / "x.tar")[1] == ["y"]


def test_zips_that_claim_what_is_not_so(tmp_path: Path) -> None:
    path = deflated(tmp_path / "x.zip", {"bomb": bytes(10**6), "other": b"1" * 99})
    good = path.read_bytes()
    at = good.index(b"PK\1\2")
    wrong = ((at + 24, 999_999), (at + 24, 2**31), (at + 24, 10**6 + 1), (at + 16, 5), (at + 20, 50))
    for place, value in wrong:
        data = bytearray(good)
        data[place : place + 4] = value.to_bytes(4, "little")
        path.write_bytes(data)
        archive.forget()
        with pytest.raises(UnreadableSample, match=f"does not inflate to the .* bytes that it claims .{path}/bomb"):
            archive.read(path / "bomb")
        assert archive.read(path / "other").tobytes() == b"1" * 99
    data = bytearray(zipped(tmp_path / "y.zip", {"a": b"1" * 99}).read_bytes())
    data[data.index(b"PK\1\2") + 24] += 1
    (tmp_path / "y.zip").write_bytes(data)
    with pytest.raises(UserError, match="a claims 100 bytes and is stored in 99; bring the archive again"):
        archive.inside(tmp_path / "y.zip")
    path.write_bytes(b"QQ" + good[2:])
    archive.forget()
    with pytest.raises(UserError, match="damaged at byte 0"):
        archive.inside(path)
    path.write_bytes(good.replace(b"PK\3\4", b"PK\3\5").replace(b"PK\3\5", b"PK\3\4", 1))
    with pytest.raises(UnreadableSample, match="the archive is damaged at byte"):
        archive.read(path / "other")
    with pytest.raises(UnreadableSample, match="not an image|the file"):
        read_image(path / "bomb")


class Pipe(io.BytesIO):
    """A file that cannot go back, behind whose members zipfile writes data descriptors."""

    def seek(self, *place: int) -> int:
        raise OSError("a pipe")

    tell = seek


@pytest.mark.parametrize("seed", range(16))
def test_a_zip_is_read_as_zipfile_does(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random archives: zip64, data descriptors, comments, extra fields, names of all scripts."""
    choice = random.Random(seed)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 300 if seed & 1 else 1 << 31)
    out, method = Pipe() if seed & 4 else io.BytesIO(), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(out, "w") as target:
        for number in range(choice.choice((0, 1, 60, 60))):
            info = zipfile.ZipInfo(choice.choice(("a/", "ä/日本/", "b/c/" * 9)) + f"{number}{choice.choice(('', '/'))}")
            info.compress_type, info.comment = choice.choice(method), b"PK" * choice.randrange(20)
            info.extra = choice.choice((b"", b"\x99\x99\2\0ab", b"\1"))
            target.writestr(
                info, b"" if info.is_dir() else choice.randbytes(choice.randrange(99)) * choice.randrange(9)
            )
        target.comment = choice.choice((b"", b"a comment"))
    data = (b"PK\3\4, but not its own" if seed & 8 else b"") + out.getvalue()
    (tmp_path / "x.zip").write_bytes(data)

    with zipfile.ZipFile(tmp_path / "x.zip") as source:
        for name in source.namelist():
            if name[-1] != "/":
                assert archive.read(tmp_path / "x.zip" / name).tobytes() == source.read(name)
    for _ in range(40):  # damaged anywhere in the table, nothing but one line comes of it
        hurt = bytearray(data)
        for _ in range(choice.randrange(4)):
            hurt[-1 - choice.randrange(min(len(data), 400))] = choice.randrange(256)
        (tmp_path / "x.zip").write_bytes(hurt[: len(hurt) - choice.randrange(30) * choice.randrange(2)])
        archive.forget()
        with suppress(UserError):
            archive.inside(tmp_path / "x.zip")


def test_names_in_a_zip_that_are_no_utf8(tmp_path: Path) -> None:
    """As DOS wrote them, and as Info-ZIP adds them in UTF-8."""
    data = zipped(tmp_path / "x.zip", {"??/1": b"1"}).read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace(b"??/1", "äö/1".encode("cp437")))
    assert archive.read(tmp_path / "x.zip/äö/1").tobytes() == b"1"
    info = zipfile.ZipInfo("??/1")
    name = "日本/1".encode()
    info.extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(b"??/1")) + name
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as target:
        target.writestr(info, b"2")
    assert archive.read(tmp_path / "y.zip/日本/1").tobytes() == b"2"


def test_a_name_twice_counts_as_in_unpacking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "x.tar", {"a": b"old", "b": b"1", "c/": b""})
    with tarfile.open(path, "a") as target:
        for name, content in (("a", b"new"), ("c", None)):
            info = tarfile.TarInfo(name)
            info.type = tarfile.REGTYPE if content else tarfile.DIRTYPE
            info.size = len(content or b"")
            target.addfile(info, io.BytesIO(content or b""))
    assert archive.read(path / "a").tobytes() == b"new" and archive.inside(path) == (["c"], ["a", "b"])
    line = capsys.readouterr().err
    assert line == f"{path}: 1 members are in it again under the same name (a first); the last one counts\n"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tar whose list is kept, and opened anew whenever it is used."""
    monkeypatch.setattr(members, "KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(archive, "_open", members.Archive)
    (tmp_path / "data").mkdir()
    return tar(tmp_path / "data/x.tar", {f"a/{n}": b"%d" % n for n in range(50)})


def test_a_kept_list_is_used_and_thrown_away_with_its_archive(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = [archive.read(kept / f"a/{n}").tobytes() for n in range(50)]
    lists = []
    monkeypatch.setattr(members, "scan", lambda *a, scan=members.scan: lists.append(a) or scan(*a))
    assert [archive.read(kept / f"a/{n}").tobytes() for n in range(50)] == read and not lists
    file = kept.with_name("x.tar.index")
    assert [path.name for path in sorted(kept.parent.iterdir())] == ["x.tar", "x.tar.index"]
    assert file.stat().st_size == members.HEAD + sum(40 + len(f"a/{n}") for n in range(50))
    tar(kept, {"a/new": b"new"})
    assert archive.inside(kept / "a") == ([], ["new"]) and len(lists) == 1
    os.utime(kept, (1, 1))
    assert archive.inside(kept / "a") == ([], ["new"]) and len(lists) == 2


def test_a_kept_list_that_is_damaged_or_hostile_is_made_again(kept: Path) -> None:
    archive.inside(kept)
    file = kept.with_name("x.tar.index")
    good, head = file.read_bytes(), members.HEAD
    about = json.loads(good[:head])
    outside = bytearray(good[head:])
    outside[50 * 8 : 50 * 8 + 8] = (10**9).to_bytes(8, "little")  # an offset, with a checksum that fits
    hostile = {**about, "check": members.zlib.crc32(outside)}
    for data in (
        good[:-1],
        good[: head - 5],
        b"",
        b"\x80\x04" + good,
        good[:-9] + b"x" + good[-8:],
        json.dumps({**about, "count": 10**12}).encode().ljust(head) + good[head:],
        json.dumps({**about, "count": -1}).encode().ljust(head) + good[head:],
        json.dumps({**about, "count": 0}).encode().ljust(head) + good[head:],
        json.dumps([]).encode().ljust(head) + good[head:],
        json.dumps(hostile).encode().ljust(head) + outside,
    ):
        file.write_bytes(data)
        assert archive.read(kept / "a/7").tobytes() == b"7"
        assert file.read_bytes() == good


def test_where_a_folder_cannot_be_written_the_cache_keeps_it(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.open

    def refusing(path: Path, mode: str = "r", **rest: object) -> object:
        if "w" in mode and path.parent == kept.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return write(path, mode, **rest)

    monkeypatch.setattr(Path, "open", refusing)
    assert archive.read(kept / "a/7").tobytes() == b"7"
    (file,) = (kept.parents[1] / "cache/tdaf").iterdir()
    assert file.name.startswith("x.tar.") and list(kept.parent.iterdir()) == [kept]
    monkeypatch.setattr(members, "scan", None)
    assert archive.read(kept / "a/8").tobytes() == b"8"


def test_a_tar_that_is_written_goes_on_after_any_byte(tmp_path: Path) -> None:
    files = {"a/1": b"1" * 700, "a/" + "n" * 150: b"long", "b/2": b"", "b/3": b"3" * 1024}

    def write(names: list[str]) -> None:
        with Writer(tmp_path / "x.tar", go_on=True) as target:
            for name in names:
                if name not in target.names:
                    target.add(name, io.BytesIO(files[name]), len(files[name]))

    write([*files])
    whole = (tmp_path / "x.tar").read_bytes()
    for end in range(0, len(whole), 83):
        (tmp_path / "x.tar").unlink()
        (tmp_path / ".x.tar.part").write_bytes(whole[:end])
        write([*files])
        assert (tmp_path / "x.tar").read_bytes() == whole and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "x.tar").unlink()
    for _ in range(2):
        with pytest.raises(KeyError):
            write(["a/1", "nothing"])
        assert [path.name for path in tmp_path.iterdir()] == [".x.tar.part"]
    write([*files])
    assert (tmp_path / "x.tar").read_bytes() == whole
    with Writer(tmp_path / "y.tar", go_on=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
