"""The house as it was drawn: imports point downwards, and files stay short."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for part in ("tdaf", "tasks", "scripts") for path in (ROOT / part).rglob("*.py"))
FILES.append(ROOT / "train.py")
# the lowest first; a module belongs to the longest name that fits
LAYERS = (
    ("tdaf", "tdaf.errors", "tdaf.task", "tdaf.build", "tdaf.settings", "tdaf.model.staged"),
    ("tdaf.model", "tdaf.media", "tdaf.demo", "tdaf.measure"),
    ("tdaf.engine",),
    ("tasks",),
    ("tdaf.cli",),
    ("scripts", "train"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
PURE = {"torch", "torchvision", "safetensors", "timm"}  # all that tdaf/model knows, beside Python's own


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imports(path: Path, deferred: bool = True) -> Iterator[str]:
    """Every module that a file imports, by its full name; deferred: also those inside functions."""
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in inside and not deferred:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in MODULES else str(node.module)


def height(name: str) -> int | None:
    """The layer of one of our modules, None for others'."""
    parts = name.split(".")
    known = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((HEIGHT[prefix] for prefix in known if prefix in HEIGHT), None)


def test_every_file_was_found() -> None:
    assert len(FILES) > 50
    assert {"train", "tdaf.model.flows", "tasks.classification.task", "tdaf.cli.compose"} <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    own = height(name)
    assert own is not None
    if name == "tdaf":
        return  # the library's front door, which loads what it names when that is asked for: the test below
    for other in imports(MODULES[name]):
        theirs = height(other)
        if theirs is not None:
            assert theirs <= own, f"{name} imports {other}, which lies above it"
            task, another = name.split(".")[:2], other.split(".")[:2]
            if task[0] == another[0] == "tasks" and len(another) > 1:
                assert another[1] in (task[1], "coco", "common"), f"{name} imports {other}: a task knows no other task"
        if other.split(".")[0] in ("hydra", "omegaconf"):
            assert name == "train" or name.startswith(("scripts", "tdaf.cli")), f"{name} knows {other}"


def test_the_library_is_light_and_whole() -> None:
    """`import tdaf` brings nothing; each name that it offers is there; none needs Hydra, TDAF not even torchvision."""
    code = """
import sys, time
start = time.perf_counter()
import tdaf
assert time.perf_counter() - start < 0.1
heavy = {"torch", "torchvision", "hydra", "av", "numpy"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
tdaf.TDAF, tdaf.ANAR, tdaf.fold
assert not {"torchvision", "hydra", "av"} & sys.modules.keys()
assert all(getattr(tdaf, name) is not None for name in tdaf.__all__)
assert not {"hydra", "omegaconf", "av"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_circle() -> None:
    graph = {name: MODULES.keys() & set(imports(path, deferred=False)) - {name} for name, path in MODULES.items()}
    graph["tdaf"] = set()  # it names its modules for editors, and loads them when they are first used
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", MODULES)
def test_every_name_that_is_imported_is_there(name: str) -> None:
    """Also those that are imported within a function, which may be called once a year."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("tdaf", "tasks"):
            module = importlib.import_module(node.module)
            for one in node.names:
                assert hasattr(module, one.name) or f"{node.module}.{one.name}" in MODULES, f"{node.module}: {one.name}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("tdaf.model")])
def test_the_model_is_pure_torch(name: str) -> None:
    others = {other.split(".")[0] for other in imports(MODULES[name])}
    assert others - PURE - {"tdaf"} <= sys.stdlib_module_names
    assert not any(other.startswith(("torch.distributed", "logging")) for other in imports(MODULES[name]))


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name: str) -> None:
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= (60 if name == "train" else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{node.name} is {node.end_lineno - node.lineno + 1} lines long"


def test_the_checks_themselves_see_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low = tmp_path / "low.py"
    low.write_text("def f():\n    from tasks.classification import task\n    import hydra.utils\n")
    monkeypatch.setitem(MODULES, "tdaf.model.low", low)
    with pytest.raises(AssertionError, match="lies above"):
        test_imports_point_down("tdaf.model.low")
    low.write_text("import hydra.utils\n")
    with pytest.raises(AssertionError, match="knows hydra"):
        test_imports_point_down("tdaf.model.low")
    low.write_text("import tdaf.model.flows\n")
    monkeypatch.setitem(MODULES, "tdaf.model.flows", tmp_path / "flows.py")
    (tmp_path / "flows.py").write_text("from tdaf.model import low\n")
    with pytest.raises(pytest.fail.Exception, match="circle"):
        test_no_circle()
