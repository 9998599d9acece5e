"""A folder of files in every kind of archive, for tests."""

import base64
import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their paths there, and its empty folders with / at the end."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def tar(path: Path, members: Mapping[str, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as target:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return path


def tar_gz(path: Path, members: Mapping[str, bytes]) -> Path:
    path.write_bytes(gzip.compress(tar(path, members).read_bytes()))
    return path


def nested(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of one tar for each folder, as ImageNet's."""
    inner = {}
    for folder in sorted({name.partition("/")[0] for name in members}):
        own = {n.partition("/")[2]: c for n, c in members.items() if n.startswith(f"{folder}/") and n != f"{folder}/"}
        inner[f"{folder}.tar"] = tar(path.with_suffix(".part"), own).read_bytes()
    path.with_suffix(".part").unlink()
    return tar(path, inner)


def zipped(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, content in members.items():
            target.writestr(name, content, method)
    return path


def deflated(path: Path, members: Mapping[str, bytes]) -> Path:
    return zipped(path, members, zipfile.ZIP_DEFLATED)


PACKERS = {
    "gnu": ("tar", tar),
    "pax": ("tar", lambda path, members: tar(path, members, tarfile.PAX_FORMAT)),
    "nested": ("tar", nested),
    "stored": ("zip", zipped),
    "deflated": ("zip", deflated),
}


# meta.mat as the devkit has it: n00000003, n00000001, n00000002 are leaves 1 to 3, and 4 has two children; made with
# scipy.io.savemat(file, {"synsets": structures of ILSVRC2012_ID, WNID, words, gloss, ...}, do_compression=True)
META = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFdlZCBOb3YgMjUgMTQ6MTQ6MjkgMjAyNgAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAAQgEAAHic7ZRPSsNAFMZf/lgNlFBv0AO4SOOmrgzopiAu"
    "FHQZ0s4wCbQTyKSIN/AoHs8jODEz+jK0tpks9YPH8F7y+yaTLyQEgPczgJFc5QIutDpRvS/LUXUqS7xyQWshr/twruZvshZ3j08PN3E0i9PFbW"
    "PwfN+u33opKyLwgK1L0Rnw7SZd5cWaVJR/DTqN9uC0TnNasLxWSF1lBU+LTcaogFAO5/BzntA4j4Oq0RjNQd2fIN7fwQfo/onqedTqsofP2PBp"
    "+mxKSnYxzcstJ9onOuDjdXw8YIxZvwctc9+RwWtpPkDc/BfO3Dfo+H1c2z63t2f/Y3kX8QnY5z9DPodyczo+DiwtOTbg3Fp/LW/MJ2Cfd4x8+u"
    "a2suT+8+7P+4hPwD7vK+TTNzdiyQ3Je99/bRfvGvwE9djHPn9Ihn63n5VmRdA="
)
WNIDS = ["n00000003", "n00000001", "n00000002"]  # by ILSVRC2012_ID
