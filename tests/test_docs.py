"""README and docs/ against the code: links, files, commands and settings that they name are there."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
from commands import ROOT

from tdaf.cli.compose import compose, flat
from tdaf.cli.main import _flags, combinations
from tdaf.errors import UserError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
# settings of a task that users find on its page
TASKS = {
    "imagenet": "classification.md",
    "cifar10": "classification.md",
    "coco_fcos": "detection.md",
    "coco_pose": "pose.md",
    "kinetics": "action.md",
}
TRAIN = re.compile(r"(?:python|torchrun[^`\n]*) train\.py ([^`\n]*)")
PATH = re.compile(r"(?<![\w./-])(?:configs|tdaf|tasks|scripts|tests|docs)/[\w./*-]*\w")
SETTING = re.compile(r"`\+?((?:task|data|trainer|loader|optim|schedule|demo|tdaf)\.[\w.<>]+)(?:=[^`]*)?`")
OWN = {"what", "scan", "out"}  # settings of scripts that are none of a run


@pytest.fixture(autouse=True, scope="module")
def files_of_the_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder `mine` that users are told to write is there."""
    with pytest.MonkeyPatch.context() as patch:
        pages.install(tmp_path_factory.mktemp("mine"))
        patch.chdir(tmp_path_factory.getbasetemp() / "mine0")
        yield


def prose(text: str) -> str:
    """Without code blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8")))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}; there are {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    shown = set(pages.FILES.values())
    made = {*(f"mine/{f}" for f in shown)}
    for name in set(PATH.findall(page.read_text(encoding="utf-8"))) - made:
        assert list(ROOT.glob(name)) or list(ROOT.glob(f"{name}.*")), f"{page.name}: {name}"


def train_commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of train.py that is shown whole, continued lines joined."""
    for line in TRAIN.findall(page.read_text(encoding="utf-8").replace("\\\n", " ")):
        words = shlex.split(line.rstrip("'"), comments=True)
        if words and "..." not in words and not words[0].startswith(("--", "and", "resume=")):
            flags, settings = _flags(words)
            yield [*flags, *(word for word in settings if not word.startswith(("hydra/", "hydra.launcher")))]


@functools.cache
def composed(words: tuple[str, ...]) -> dict[str, Any]:
    return compose(words)


def refusal(words: list[str]) -> str:
    """Why these settings do not compose; empty where they do."""
    try:
        composed(tuple(words))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_training_command_composes(page: Path) -> None:
    for words in train_commands(page):
        jobs = combinations([word for word in words if word != "-m"]) if "-m" in words else [words]
        assert [why for job in jobs if (why := refusal(job))] == [], f"{page.name}: train.py {' '.join(words)}"


def test_the_commands_were_found() -> None:
    """Else the test above would see nothing."""
    assert all(len(list(train_commands(page))) >= 3 for page in PAGES if page.name in {"README.md", *TASKS.values()})
    assert any(word.startswith("run_dir=") for words in train_commands(ROOT / "docs/cluster.md") for word in words)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_check_data_composes(page: Path) -> None:
    for line in re.findall(r"^ *python scripts/check_data\.py (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = shlex.split(line, comments=True)
        assert refusal([word for word in words if word.split("=")[0] not in OWN]) == "", f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_argument_of_a_script_is_in_its_help(page: Path) -> None:
    lines = re.findall(r"python (scripts/\w+\.py) ([^`\n]*)", page.read_text(encoding="utf-8"))
    runs = composed(())
    for script, line in lines:
        known = (ROOT / script).read_text(encoding="utf-8")
        for word in shlex.split(line, comments=True):
            name = re.match(r"(?:--)?([\w-]+)=|--([\w-]+)$", word)
            key = name and (name[1] or name[2])
            assert not key or key in runs or re.search(rf"\b{key}\b", known), f"{page.name}: {script} {word}"


def test_every_setting_that_is_named_is_one() -> None:
    jobs = [[f"task={task}"] for task in TASKS] + [["task=imagenet", "recipe=demo"]]
    known = {name for job in jobs for name in flat(composed(tuple(job)))}
    known |= {name.rpartition(".")[0] for name in known}
    known |= {"task.train_transform.crop", "task.train_transform.jitter", "task.gamma"}  # shown with a plus
    for page in PAGES:
        for name in SETTING.findall(page.read_text(encoding="utf-8")):
            module = (ROOT / name.replace(".", "/")).with_suffix(".py")
            assert name in known or module.is_file(), f"{page.name}: {name}"


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_of_a_task_is_on_its_page(task: str) -> None:
    text = (ROOT / "docs" / TASKS[task]).read_text(encoding="utf-8")
    config = composed((f"task={task}",))
    for node in ("task", "data"):
        for name in flat(config[node]):
            if "_target_" in name or name.startswith("val_transforms."):
                continue
            assert f"`{name}`" in text or f"`{node}.{name}`" in text, (
                f"{TASKS[task]} does not say what {node}.{name} is"
            )


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 210
