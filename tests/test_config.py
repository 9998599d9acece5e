"""Composition: what ships, what overrides mean, and where a run goes."""

import itertools
from pathlib import Path

import pytest
import torch
from commands import ROOT, call, process

from tdaf.build import make
from tdaf.cli import build
from tdaf.cli.compose import FOLDER, compose, differences, from_folder, group_options, to_yaml
from tdaf.cli.main import combinations
from tdaf.errors import UserError

CHOICES = {group: group_options(group) for group in ("task", "recipe", "backbone", "tdaf")}
LIBRARIES = ("timm", "torchvision")  # backbones that want a model


class Names:
    """A source of ten classes without images."""

    classes = [str(k) for k in range(10)]


OF_ONE_TASK = {"night": "imagenet", "search": "imagenet"}


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        pair
        for pair in itertools.product(CHOICES["task"], CHOICES["recipe"])
        if OF_ONE_TASK.get(pair[1], pair[0]) == pair[0]
    ],
)
def test_every_combination_composes(task: str, recipe: str, tmp_path: Path) -> None:
    folders = set()
    # what has no file of its own for a pair composes alike for all: one of a kind stands for the others
    backbones = CHOICES["backbone"] if recipe == "paper" else ["tiny", "res50", "vgg16", "mobile"]
    pairs = [(backbone, "tdaf") for backbone in backbones]
    pairs += [("res50", tdaf) for tdaf in CHOICES["tdaf"] if tdaf != "tdaf"]
    for backbone, tdaf in pairs:
        model = ["model=resnet18"] if backbone in LIBRARIES else []
        config = compose([f"task={task}", f"recipe={recipe}", f"backbone={backbone}", f"tdaf={tdaf}", *model])
        assert (config["name"], config["recipe"]) == (task, recipe)
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert from_folder(tmp_path) == config, "the saved settings are not the settings"
        for node, where in ((config["task"], "task"), (config["optim"]["factory"], "optim.factory")):
            make({**node, "_partial_": True}, where)
        build.settings(config)
        build.optimizer(config)
        make(config["schedule"], "schedule", steps_per_epoch=10, steps=100)
        folders.add(config["run_dir"])
    assert len(folders) == len(pairs)


@pytest.mark.parametrize("backbone", sorted(set(CHOICES["backbone"]) - set(LIBRARIES)))
def test_every_network_is_built(backbone: str) -> None:
    """tests/test_every_choice.py runs one of a kind, for all tasks and with the control too."""
    config = compose(["task=imagenet", f"backbone={backbone}"])
    with torch.device("meta"):
        network = build.network(config, make(config["task"], "task", data=Names()))
    assert network.body.flows == 3 and any(".gates." in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("backbone", ["res50", "mobile"])
def test_settings_reach_the_network(backbone: str) -> None:
    def built(*overrides: str) -> int:
        config = compose([f"backbone={backbone}", *overrides])
        with torch.device("meta"):
            network = build.network(config, make(config["task"], "task", data=Names()))
        return sum(t.numel() for t in network.state_dict().values())

    for other in ("attention=se", "attention=cbam", "anar=7", "tdaf.norm=shared", "tdaf.gated=[1,3]", "flows=1"):
        assert built(other) != built(), other


def test_recipes_say_what_their_sources_say() -> None:
    """The figures of He et al. (2016), torchvision's references and the paper, typed in here a second time."""

    def of(*overrides: str) -> tuple:
        c = compose(list(overrides))
        milestones = c["schedule"]["decay"].get("milestones")
        optim, trainer = c["optim"], c["trainer"]
        return optim["lr"], optim["base_batch"], optim["weight_decay"], trainer["epochs"], trainer["batch"], milestones

    assert of("task=imagenet") == (0.1, 256, 1e-4, 90, 256, [30, 60])
    assert of("task=cifar10") == (0.1, 128, 1e-4, 164, 128, [82, 123])
    for vgg in ("vgg11", "vgg13", "vgg16", "vgg19"):
        assert of("task=imagenet", f"backbone={vgg}") == (0.01, 256, 1e-4, 90, 256, [30, 60])
    assert of("task=imagenet", "backbone=mobile") == (0.1, 256, 4e-5, 90, 256, [30, 60])
    mobile = compose(["backbone=mobile"])
    assert mobile["optim"]["depthwise_weight_decay"] is False and mobile["tdaf"]["depthwise"] is True
    paper = compose(["task=imagenet"])
    assert paper["optim"]["factory"] == {"_target_": "torch.optim.SGD", "_partial_": True, "momentum": 0.9}
    train, val = paper["task"]["train_transform"], paper["task"]["val_transforms"]
    assert (train["size"], train["short_side"], train["flip"], train["scale"]) == (224, [256, 480], 0.5, None)
    views = {name: (v["size"], v["short_side"], v["crops"]) for name, v in val.items()}
    assert views == {"1crop": (224, 256, 1), "10crop": (224, 256, 10)}
    assert (paper["anar"], paper["flows"], paper["eta"], paper["tdaf"]["anar_width"]) == (3, 3, 0.5, 512)
    cifar = compose(["task=cifar10"])
    assert cifar["task"]["train_transform"]["pad"] == 4 and cifar["stem"] == "cifar"
    assert compose(["recipe=modern"])["trainer"]["ema"] and paper["trainer"]["ema"] is None


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("trainer.batch=64", "trainer.batch", 64),
        ("eta=1", "eta", 1.0),
        ("trainer.channels_last=false", "trainer.channels_last", False),
        ("tdaf.gated=[1,2]", "tdaf.gated", [1, 2]),
        ("trainer={batch: 8, accumulate: 2}", "trainer.epochs", 90),
        ("data.root='a, b'", "data.root", "a, b"),
        ("data.root=/a (copy)/x=1/b#c", "data.root", "/a (copy)/x=1/b#c"),
        ("data.root=~/images", "data.root", str(Path.home() / "images")),
        ("data.root=007", "data.root", "007"),
        ("data.root=${oc.env:PLACE}/x", "data.root", "/elsewhere/x"),
        ("trainer.batch=${oc.decode:${oc.env:BATCH}}", "trainer.batch", 48),
        ("run_dir=out/${anar}-${flows}", "run_dir", "out/3-3"),
        ("+optim.factory.nesterov=true", "optim.factory.nesterov", True),
        ("++optim.factory.nesterov=true", "optim.factory.nesterov", True),
        ("~task.train_transform.flip", "task.train_transform.flip", "absent"),
    ],
)
def test_overrides_mean_what_hydra_means(override: str, key: str, value: object, monkeypatch) -> None:
    monkeypatch.setenv("PLACE", "/elsewhere")
    monkeypatch.setenv("BATCH", "48")
    found = compose([override])
    for part in key.split("."):
        found = found.get(part, "absent")
    assert found == value and type(found) is type(value)


def test_order_of_words_and_spelling_leave_a_run_the_same() -> None:
    words = ["task=cifar10", "recipe=modern", "anar=5", "optim.lr=0.2", "trainer.batch=64", "seed=3", "optim=adamw"]
    first = compose(words)
    assert all(compose(list(order)) == first for order in (words[::-1], words[3:] + words[:3]))
    again = "anar=3 eta=0.50 trainer.batch=256 backbone=res50 ++flows=3 gpus=0 loader.workers=2"
    spelt = compose(again.split())
    assert spelt["run_dir"] == compose([])["run_dir"] == "runs/imagenet/res50-anar3-flows3-eta0.5-paper-seed0"
    assert compose(["optim.lr=0.20"])["run_dir"] == compose(["optim.lr=0.2"])["run_dir"]
    assert differences(spelt, compose([])) == []


def test_other_settings_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    long = [f"task.train_transform.short_side=[{low},480]" for low in (250, 251)]
    others = [
        "task=cifar10", "backbone=res18", "tdaf=multiscale", "recipe=modern", "anar=5", "flows=2", "eta=0.4", "seed=1",
        "optim=adam", "schedule=cosine", "optim.lr=0.2", "data.root=/a", "data.root=/b", "data.root=/a b",
        "data.root=/a_b", "tdaf.gated=[1]", "tdaf.gated=[2]", "~task.train_transform.flip",
        "task.train_transform.flip=0.4",
        "+optim.factory.nesterov=true", "pretrained=x.pt", "pretrained=y.pt", "seed=0", *long,
        *(f"data.root={'x' * 100}{end}" for end in "ab"),
    ]  # fmt: skip
    folders = [compose([other])["run_dir"] for other in others]
    assert len(set(folders)) == len(folders)
    assert all(len(part) < 200 for folder in folders for part in folder.split("/"))
    monkeypatch.setenv("PLACE", "one")
    one = compose(["data.root=${oc.env:PLACE}"])["run_dir"]
    monkeypatch.setenv("PLACE", "two")
    assert compose(["data.root=${oc.env:PLACE}"])["run_dir"] != one


def test_sweeps_are_spelt_as_hydras() -> None:
    assert combinations(["anar=3,5", "flows=1,2", "seed=1"]) == [
        ["anar=3", "flows=1", "seed=1"], ["anar=3", "flows=2", "seed=1"],
        ["anar=5", "flows=1", "seed=1"], ["anar=5", "flows=2", "seed=1"],
    ]  # fmt: skip
    for written, count in {
        "flows=range(1,4)": 3, "anar=choice(2,3)": 2, "task=imagenet,cifar10": 2, "tdaf.gated=[1],[2],[1,2]": 3,
        "data.root='a,b',c": 2, "task.val_transforms.1crop.size=192,224": 2, "data.root=/a (b)": 1,
        "+optim.factory.nesterov=true,false": 2, "backbone=glob(res*)": 7,
    }.items():  # fmt: skip
        jobs = combinations(["seed=1", written])
        assert len(jobs) == count
        assert len({compose(job)["run_dir"] for job in jobs}) == count


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("--cfg job", 0),
        ("anar=4", 2),
        ("resume=nowhere", 2),
    ],
)
def test_torch_is_not_imported_for_that(words: str, code: int, tmp_path: Path) -> None:
    source = f"""
import runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
try:
    runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
finally:
    heavy = {{"torch", "torchvision", "numpy", "PIL", "tensorboard"}}
    print(sorted({{name.split(".")[0] for name in sys.modules}} & heavy), file=sys.stderr)
"""
    done = process(["-c", source, *words.split()], tmp_path)
    assert done.returncode == code and done.stderr.splitlines()[-1] == "[]", done.stderr
    assert not list(tmp_path.iterdir())
    if "--help" in words:
        assert all(words in done.stdout for words in ("backbone=mobile|res101", "eta: 0.5", "resume=RUN_FOLDER"))


def test_cfg_shows_a_job_and_refuses_what_a_run_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--cfg job --resolve task=cifar10 anar=5".split()) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    expected = compose(["task=cifar10", "anar=5"])
    # Hydra shows what it composes; a run adds what follows from it
    added = {"name": None, "recipe": None, "run_dir": None}
    assert {**from_folder(tmp_path), **added} == {**expected, **added}
    for words, reason in {
        "backbone=vgg11 attention=cbam": "attention",
        "task=kinetics dims=2": "dims",
        "schedule=cosine +schedule.decay.milestones=[3]": "milestones",
        "optim=adam +optim.factory.momentum=0.9": "momentum",
    }.items():
        assert call(monkeypatch, [*words.split(), "--cfg", "job"]) == 2, words
        said = capsys.readouterr()
        assert not said.out and reason in said.err and said.err.count("\n") == 1, said.err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def own_files(tmp_path: Path) -> str:
    """A folder of the user's own with a backbone in it."""
    (tmp_path / "mine/backbone").mkdir(parents=True)
    text = (FOLDER / "backbone/res18.yaml").read_text().replace("depth: 18", "depth: 34")
    (tmp_path / "mine/backbone/mynet.yaml").write_text(text)
    return f"hydra.searchpath=[file://{tmp_path / 'mine'}]"


def test_a_users_own_files_are_found_outside_the_checkout(tmp_path: Path) -> None:
    search = own_files(tmp_path)
    config = compose(["backbone=mynet", search])
    assert config["backbone"]["depth"] == 34
    assert config["run_dir"] == "runs/imagenet/mynet-anar3-flows3-eta0.5-paper-seed0"
    with pytest.raises(UserError, match="did you mean mynet"):
        compose(["backbone=mynte", search])
    with pytest.raises(UserError, match="no such backbone"):
        compose(["backbone=mynet"])
    with pytest.raises(UserError, match="there is no folder file:///nowhere"):
        compose(["hydra.searchpath=[file:///nowhere]"])
    assert len(combinations(["backbone=glob(*net)", search])) == 1


def test_hydras_own_flags_work_as_it_documents_them(tmp_path: Path) -> None:
    own_files(tmp_path)

    def said(*words: str) -> str:
        done = process([str(ROOT / "train.py"), *words], tmp_path, COMP_LINE="train.py backbone=res1", COMP_POINT="22")
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    assert "eta: 0.25" in said("--cfg", "job", "--package", "tdaf", "--resolve", "eta=0.25")
    assert "depth: 34" in said("--config-dir", "mine", "--cfg", "job", "backbone=mynet")
    assert "launcher: basic" in said("--cfg", "hydra", "--package", "hydra.runtime.choices").replace("hydra/", "")
    assert said("-sc", "query=bash").split() == ["backbone=res101", "backbone=res152", "backbone=res18"]
