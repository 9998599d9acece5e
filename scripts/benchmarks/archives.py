"""Data sets in archives against the same files in folders: images a second, and the time and memory of listing them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from benchmarks.data import epochs, our_loader, write_photographs
from benchmarks.timing import Settings, Times, in_turns, now
from tasks.classification.folder import ImageFolder
from tdaf.cli import build
from tdaf.cli.compose import compose
from tdaf.media import archive
from tdaf.media.tar import Writer

FOLDER, TAR, ZIP, DEFLATED = "folder", "tar", "stored zip", "deflated zip"
FIRST, AGAIN, TORCHVISION = "tar, first time", "tar, its list kept", "torchvision's ImageFolder"
MEMBERS, CLASSES, ROUNDS, WORK = 1_281_167, 1000, 3, 20


def reading(settings: Settings) -> dict[str, Times]:
    """Read, decode, crop, flip, collate, on to the main process, one worker each; and the first four in one process, by
    the seconds that it works, on which other programs have hardly an influence."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder, FOLDER), settings.images)
        files = {str(path.relative_to(f"{folder}/{FOLDER}")): path for path in Path(folder).rglob("train/*/*")}
        for form in (TAR, ZIP, DEFLATED):
            Path(folder, form).mkdir()
            Path(folder, form, "val").symlink_to(Path(folder, FOLDER, "val"))
        with Writer(Path(folder, TAR, "train.tar")) as target:
            for name, path in sorted(files.items()):
                target.add(name, io.BytesIO(path.read_bytes()), path.stat().st_size)
        for form, method in ((ZIP, zipfile.ZIP_STORED), (DEFLATED, zipfile.ZIP_DEFLATED)):
            with zipfile.ZipFile(Path(folder, form, "train.zip"), "w", method) as target:
                for name, path in sorted(files.items()):
                    target.write(path, name)

        sets = {
            form: build.task(compose(["task=imagenet", f"data.root={folder}/{form}"])).dataset("train")
            for form in (FOLDER, TAR, ZIP, DEFLATED)
        }
        chosen, note = range(settings.images), f"{settings.images} files of {size / 1000:.0f} KB, in memory"

        def work(dataset: Any) -> float:
            torch.manual_seed(0)  # the same crops
            start = time.process_time()
            for index in chosen:
                dataset[index]
            return (time.process_time() - start) / len(chosen)

        loading = {form: lambda dataset=dataset: our_loader(dataset, chosen) for form, dataset in sets.items()}
        working = {form: lambda dataset=dataset: work(dataset) for form, dataset in sets.items()}
        return {
            "archive_reading": epochs(loading, settings).of(1, "images", note),
            "archive_work": in_turns(working, settings.pairs or WORK).of(1, "images", note),
        }


def listing(settings: Settings) -> dict[str, Times | dict[str, float]]:
    """As many files as ImageNet's training set has: empty ones in 1000 folders, and 512 bytes each in a tar of tars."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"n{n:08d}" for n in range(CLASSES)]
        counts = [MEMBERS // CLASSES + (n < MEMBERS % CLASSES) for n in range(CLASSES)]
        files = {name: [f"{name}_{n}.JPEG" for n in range(count)] for name, count in zip(names, counts, strict=True)}
        write_tar(Path(folder, "ILSVRC2012_img_train.tar"), files)
        for name in names:
            os.makedirs(f"{folder}/files/{name}")
            for file in files[name]:
                os.close(os.open(f"{folder}/files/{name}/{file}", os.O_CREAT | os.O_WRONLY))
        os.makedirs(f"{folder}/val/{names[0]}")
        for name in names[1:]:
            os.mkdir(f"{folder}/val/{name}")

        def ours(kept: bool) -> int:
            archive.forget()
            if not kept:
                Path(folder, "ILSVRC2012_img_train.tar.index").unlink(missing_ok=True)
            return len(ImageFolder(folder).split("train"))

        calls = {
            TORCHVISION: lambda: len(datasets.ImageFolder(f"{folder}/files", is_valid_file=bool)),
            FIRST: lambda: ours(kept=False),
            AGAIN: lambda: ours(kept=True),
        }

        def seconds(call: Callable[[], int]) -> float:
            start = now(settings.device)
            assert call() == MEMBERS
            return now(settings.device) - start

        timed = {name: lambda call=call: seconds(call) for name, call in calls.items()}
        times = in_turns(timed, settings.pairs or ROUNDS).of(MEMBERS, "files")
        code = "from tasks.classification.folder import ImageFolder; data = ImageFolder(sys.argv[1]).split('train')"
        root = f"{folder}/files', is_valid_file=bool"
        theirs = f"from torchvision.datasets import ImageFolder; data = ImageFolder('{root})"
        memory = {AGAIN: grown(code, folder), TORCHVISION: grown(theirs, folder)}
        Path(folder, "ILSVRC2012_img_train.tar.index").unlink()
        memory[FIRST] = grown(code, folder)
    return {"archive_listing": times, "archive_memory": memory}


def grown(code: str, folder: str) -> float:
    """MB by which the memory of a process grew at most, mapped files and all, from its imports on."""
    imports, _, work = code.partition("; ")
    start = "open('/proc/self/clear_refs', 'w').write('5')"  # the peak is counted from here (proc(5))
    end = "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    sizes = []
    for step in ("pass", work):
        text = f"import sys; {imports}; {start}; {step}; {end}"
        done = subprocess.run([sys.executable, "-c", text, folder], capture_output=True, text=True, check=True)
        sizes.append(float(done.stdout) / 1024)
    return sizes[1] - sizes[0]


def write_tar(path: Path, files: dict[str, list[str]]) -> None:
    """A tar of tars, of members of 512 bytes."""
    with path.open("wb") as target:
        for folder, names in files.items():
            outer = tarfile.TarInfo(f"{folder}.tar")
            outer.size = 1024 * len(names) + 1024
            blocks = [outer.tobuf(tarfile.USTAR_FORMAT)]
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 512
                blocks += [member.tobuf(tarfile.USTAR_FORMAT), bytes(512)]
            target.writelines([*blocks, bytes(1024)])
        target.write(bytes(1024))
