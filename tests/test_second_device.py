"""A run on a second device that computes as the CPU does (tests/second_device.py): forward, backward, clipping,
optimizer, average, evaluation, checkpoint; cut short and gone on with."""

import json

import pytest
from commands import ROOT, process
from devices import TINY


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("second")
    done = process(["tests/second_device.py", str(folder)], ROOT, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("task", TINY)
def test_a_run_gives_the_numbers_of_the_cpu_and_no_step_waits(found: dict[str, str], task: str) -> None:
    assert found[task] == "", found[task]


@pytest.mark.parametrize("fault", ["left behind", "read", "mask", "to the host", "from the host", "nothing"])
def test_the_second_device_sees_what_it_should(found: dict[str, str], fault: str) -> None:
    words = {"left behind": "tensors of two devices", "nothing": ""}
    assert words.get(fault, "the host waits") in found[fault] and bool(found[fault]) == (fault != "nothing")
