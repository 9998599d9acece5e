"""Wrong invocations: one line that says what, where and what to do, the right exit code, and nothing left behind."""

import shutil
from pathlib import Path

import pytest
import torch
from commands import ROOT, call, pictures, process, tiny

from scripts import evaluate
from tdaf.cli.script import main as script_main
from tdaf.demo.prepare import prepare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets, good and bad, that many commands read."""
    root = tmp_path_factory.mktemp("mistakes")
    prepare("imagenet", root / "demo", 0, 40, 21, 32)
    pictures(root / "good")
    pictures(root / "no-val", val=()).joinpath("val").rmdir()
    pictures(root / "other-classes", val=("a", "c"))
    shutil.copy(root / "good/val/a/0.JPEG", pictures(root / "flat", val=()) / "val/ILSVRC2012_val_00000001.JPEG")
    shutil.rmtree(pictures(root / "empty") / "train/b")
    (root / "empty/train/b").mkdir()
    cut = pictures(root / "cut") / "train/a/2.JPEG"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (pictures(root / "text") / "val/b/1.JPEG").write_text("not an image\n")
    (root / "file").write_text("a file\n")
    return root


@pytest.fixture
def said(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function: the one line that a command leaves on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORD", "six")

    def run(command: list[str], code: int = 2, main: object = None) -> str:
        before = {*tmp_path.rglob("*"), *place.rglob("*")}
        found = call(monkeypatch, command, main) if main else call(monkeypatch, command)
        out, err = capsys.readouterr()
        assert (found, err.count("\n")) == (code, 1) and err.startswith("error: "), f"{found}\n{out}{err}"
        assert "Traceback" not in out
        if code == 2:
            assert {*tmp_path.rglob("*"), *place.rglob("*")} == before, "something was left behind"
        return err

    return run


# command -> words of its message; found without building anything
COMMAND = {
    "trainer.bacth=3": "did you mean trainer.batch?",
    "trianer.batch=3": "did you mean trainer.batch?",
    "optim.betas=[0.8,0.9]": "did you mean optim.factory.betas?",
    "task=imagnet": "did you mean imagenet? Choose from cifar10, coco_fcos, coco_pose, imagenet, kinetics",
    "backbone=res5": "did you mean res50?",
    "schedule=": "there is no such schedule. Choose from",
    "~backbone": "backbone cannot be left out",
    "+backbone=res18": "write backbone=res18",
    "anar": "'anar' is not a setting: write key=value",
    "--config-dir": "expected one argument", "--resolve": "for what --cfg job shows", "--run": "is not a setting",
    "anar=[1": "brackets and quotes",
    "anar=3,5": "a sweep, which needs -m",
    "anar=4": "anar=4: give 2, 3, 5 or 7", "anar=3.5": "anar=3.5: give 2, 3, 5 or 7",
    "eta=2": "eta=2: give at most 1", "eta=-1": "eta=-1: give 0 or more",
    "eta=high": "eta=high: give a number (it is 0.5)",
    "dims=4": "dims=4: give 2 or 3", "flows=0": "flows=0: give 1 or more",
    "gpus=-1": "gpus=-1: give 0 or more", "loader.prefetch=0": "loader.prefetch=0: give 1 or more",
    "loader.workers=-1": "loader.workers=-1: give 0 or more",
    "data.max_bad=-1": "data.max_bad=-1",
    "trainer.batch=x": "trainer.batch=x: give a whole number",
    "trainer.compile=maybe": "give true or false (it is false)",
    "trainer=3": "give its settings, as trainer.epochs=", "data=/images": "give its settings, as data.root=",
    "data.root=' /images'": "a blank at one end", "task.mean=0.5": "give a list, as [1,2]",
    "+anar=5": "anar is there already; leave the + out",
    "~data.root": "data.root cannot be left out", "~task._target_": "task._target_ cannot be left out",
    "trainer.batch=${nowhere}": "trainer.batch: Interpolation key 'nowhere' not found",
    "trainer.batch=${oc.env:NOT_SET_ANYWHERE}": "NOT_SET_ANYWHERE",
    "hydra/launcher=foo": "Could not find 'hydra/launcher/foo'",
    "resume=nowhere": "nowhere is not a run folder: it has no config.yaml",
    "run_dir=": "run_dir=: give null or a path", "task=null": "there is no such task. Choose from",
    "data.root=\udcff": "is not UTF-8 text",
}  # fmt: skip
# found where the settings are used; {place} is the folder of the data sets
BUILDING = {
    "flows=9": "flows=9: this backbone has 4 stages, so flows must be between 1 and 4",
    "tdaf.downsample=cubic": "must be one of area, bilinear, stride", "tdaf.norm=foo": "must be one of mfbn, shared",
    "tdaf.gate_init=identity eta=0": "needs 0 < eta < 1",
    "backbone._target_=tdaf.model.backbones.resnet.resnett": "did you mean resnet?",
    "backbone._target_=nowhere.net": "cannot be imported: No module named 'nowhere'",
    "+task.labelsmoothing=0.1": "task.labelsmoothing: there is no such setting; did you mean label_smoothing?",
    "trainer={bacth:3}": "trainer.bacth: there is no such setting; did you mean trainer.batch?",
    "trainer.batch=2.5": "trainer.batch=2.5: give a whole number",
    "trainer.batch=${oc.env:WORD}": "trainer.batch=six: give a whole number",
    "trainer.ema=2": "trainer.ema=2: give less than 1",
    "trainer.batch=1000": "larger than the training set of 40 samples",
    "trainer.accumulate=3": "batch=8 is not divisible",
    "trainer.precision=fp8": "give one of auto, fp32, bf16, fp16",
    "optim.factory.betas=[2,0.9]": "betas=[2,0.9]: give less than 1",
    "schedule=multistep schedule.decay.milestones=[5,3]": "give them in rising order",
    "task.protocol=5crop": "protocol=5crop: this data set has 1crop, 10crop",
    "~task.mean": "missing 1 required positional argument: 'mean'",
    "dims=3": "the network cannot take training samples of 3x24x24",
    "gpus=2": "gpus=2: this machine shows 0",
    "data.num_classes=7 data.root={place}/good trainer.batch=4": "num_classes=7, but",
    "data.root=nowhere": "no such folder", "data.root=2012": "root=2012: no such folder",
    "data.root={place}/file": "expected train/<class>/*.JPEG",
    "data.root={place}/no-val": "there is no val/ in it",
    "data.root={place}/other-classes": "only in train/: b; only in val/: c",
    "data.root={place}/flat": "scripts/prepare_imagenet.py",
    "data.root={place}/empty": "1 class folder(s)",
    "demo=null": "root is not set; give the image folder",
    "pretrained=nowhere.pt": "checkpoint nowhere.pt: no such file",
    "pretrained={place}/file": "not a file of tensors",
    "pretrained=imagenet backbone=mobile": "torchvision has no weights for this backbone",
    "run_dir=/proc/run": "run_dir=/proc/run cannot be written",
    "run_dir=" + 300 * "x": "File name too long",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMAND)
def test_the_command_line(command: str, said, place: Path) -> None:
    assert COMMAND[command] in said(tiny(place / "demo", "run_dir=run", command))


@pytest.mark.parametrize("command", BUILDING)
def test_what_a_command_asks_for(command: str, said, place: Path) -> None:
    if command.startswith("gpus") and torch.cuda.device_count() > 1:
        pytest.skip("this machine has the GPUs")
    words = command.replace("{place}", str(place)).split()
    assert BUILDING[command] in said(tiny(place / "demo", "run_dir=run", *words))


def test_no_data(said, place: Path) -> None:
    for task, layout in (("imagenet", "train/<class>/*.JPEG"), ("cifar10", "cifar-10-batches-py")):
        missing = said([f"task={task}", "gpus=0"])
        assert "root is not set" in missing and layout in missing and "recipe=demo" in missing
        elsewhere = said([f"task={task}", "gpus=0", f"data.root={place}/no-val/train"])
        assert f"{place}/no-val/train" in elsewhere and layout in elsewhere and "recipe=demo" in elsewhere


@pytest.mark.parametrize(("data", "file"), [("cut", "train/a/2.JPEG"), ("text", "val/b/1.JPEG")])
def test_a_picture_that_cannot_be_read(data: str, file: str, said, place: Path) -> None:
    line = said(tiny(place / "demo", "run_dir=run", "trainer.batch=4", f"data.root={place / data}"), code=1)
    assert f"cannot read {file}" in line and "max_bad=0" in line and "scripts/check_data.py" in line
    assert not (Path("run") / "summary.json").exists()


def test_checkpoints_that_do_not_fit(said, place: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A run, then everything that can be wrong with using what it left."""
    here = Path.cwd()
    demo = tiny(place / "demo")
    assert call(monkeypatch, [*demo, "run_dir=run"]) == 0
    capsys.readouterr()
    best = here / "run/checkpoints/best.pt"
    assert "other settings (anar: 3 there, 5 here" in said([*demo, "run_dir=run", "anar=5"])
    assert "another architecture" in said([*demo, "run_dir=new", "backbone=res18", f"pretrained={best}"])
    assert "a run goes on with its own settings" in said(["resume=run", "eta=0.4"])

    def evaluation(*words: str) -> str:
        return said(list(words), main=lambda: script_main(evaluate.evaluate, ""))

    assert "is not of this network" in evaluation("checkpoint=run", "tdaf.flows=2")
    assert "eta=0.4: a run keeps its eta" in evaluation("checkpoint=run", "eta=0.4")
    two = evaluation("checkpoint=run", f"data.root={place / 'text'}")
    assert "best.pt was trained for 10 classes, and the data have 2" in two
    for path in (here / "run/checkpoints").glob("[lp]*.pt"):
        path.write_bytes(path.read_bytes()[:2000])
    (here / "run/summary.json").unlink()
    assert "no whole checkpoint is left" in said([*demo, "run_dir=run"])
    (here / "run/config.yaml").write_text("[")
    assert "config.yaml cannot be read" in said([*demo, "run_dir=run"])


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("anar=3,4", "anar=4: give 2, 3, 5 or 7"),
        ("flows=1,9", "flows=9: this backbone has 4 stages"),
        ("task=imagenet,cifar", "did you mean cifar10?"),
        ("anar=3,5 run_dir=run", "run_dir=run is the folder of 2 jobs of this sweep; leave run_dir out"),
        ("anar=3,5 hydra/launcher=submitit_slurm", "Could not find 'hydra/launcher/submitit_slurm'; pip install"),
    ],
)
def test_a_sweep_with_one_bad_job_starts_none(sweep: str, words: str, said, place: Path) -> None:
    assert words in said(["-m", *tiny(place / "demo"), *sweep.split()])


def test_real_processes(place: Path, tmp_path: Path) -> None:
    """The same from a shell: a fault and a mistake, and nothing but the line."""
    train = str(ROOT / "train.py")
    mistake = process([train, "task=imagenet", "anar=4"], tmp_path)
    assert (mistake.returncode, mistake.stdout, mistake.stderr) == (2, "", "error: anar=4: give 2, 3, 5 or 7\n")
    fault = process([train, *tiny(place / "demo", "trainer.batch=4", f"data.root={place / 'cut'}")], tmp_path)
    assert fault.returncode == 1 and fault.stderr.startswith("error: cannot read") and fault.stderr.count("\n") == 1
