"""README and docs/ against the code: links, files, commands and settings that they name are there."""

import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest
from commands import ROOT

from tdaf.cli import rehearsal
from tdaf.cli.compose import compose, flat
from tdaf.cli.main import combinations, flags
from tdaf.cli.script import parse
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
SCRIPT = re.compile(r"python scripts/(\w+)\.py(?: ([^`\n]*))?")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}[A-Z_]*\b|runs/[\w/.-]+|\w+\.(?:json|tar)\b")  # what a user replaces


@pytest.fixture(autouse=True, scope="module")
def files_of_the_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder `mine` and the modules that users are told to write are there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("mine")
        pages.install(folder)
        patch.syspath_prepend(ROOT / "scripts")
        for name, shown in {"mynet": "backbone", "myregnet": "existing network", "myattention": "attention"}.items():
            pages.module(name, shown, folder, patch)
        patch.chdir(folder)
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
            asked, settings = flags(words)
            yield [
                *["-m"] * asked.multirun,
                *(word for word in settings if not word.startswith(("hydra/", "hydra.launcher"))),
            ]


@functools.cache
def composed(words: tuple[str, ...]) -> dict[str, Any]:
    return compose(words)


@functools.cache
def refusal(words: tuple[str, ...]) -> str:
    """Why a run of these settings does not start, for other reasons than its data; empty where it does."""
    try:
        rehearsal.choices(composed(words))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_training_command_starts(page: Path) -> None:
    """As far as the first sample: composed, and its task, network and optimizer built."""
    for words in train_commands(page):
        jobs = combinations([word for word in words if word != "-m"]) if "-m" in words else [words]
        same = {tuple(w for w in job if not w.startswith(("data.root", "gpus", "seed", "run_dir"))) for job in jobs}
        assert [why for job in same if (why := refusal(job))] == [], f"{page.name}: train.py {' '.join(words)}"


def test_the_commands_were_found() -> None:
    """Else the test above would see nothing."""
    assert all(len(list(train_commands(page))) >= 3 for page in PAGES if page.name in {"README.md", *TASKS.values()})
    assert any(word.startswith("run_dir=") for words in train_commands(ROOT / "docs/cluster.md") for word in words)


@functools.cache
def started(script: str, words: tuple[str, ...]) -> None:
    """A script with the arguments of a command that names files of the user's: it starts, and the first thing that it
    refuses is one of these, which are not there. Commands without such run, or are run in miniature, by other tests."""
    module = importlib.import_module(f"scripts.{script}")
    function = next(f for name in ("check", "prepare", "detect", script) if (f := getattr(module, name, None)))
    given, settings = parse(list(words), function)
    missing = [name for word in words for name in PLACEHOLDER.findall(word.partition("out=")[0])]
    if missing and "run=true" not in words:  # which counts every row of a table first
        with pytest.raises(UserError) as refused:
            function(*given, **settings)
        assert any(name in str(refused.value) for name in missing), refused.value


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_a_script_starts(page: Path) -> None:
    for script, line in SCRIPT.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        if "..." not in words:
            started(script, tuple(words))


@pytest.mark.parametrize("task", TASKS)
def test_protocols_that_are_evaluated_are_the_tasks(task: str) -> None:
    shown = re.findall(r"evaluate\.py [^`\n]*protocol=(\w+)", (ROOT / "docs" / TASKS[task]).read_text(encoding="utf-8"))
    known = composed((f"task={task}",))["task"].get("val_transforms", {})
    assert set(shown) <= {*known} or task == "cifar10"


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
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220
