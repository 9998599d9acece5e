"""Reading a state dict from a file, or from torchvision by name; never from the network in this test."""

from __future__ import annotations

import urllib.error

import pytest
import torch

from tdaf.errors import UserError
from tdaf.model.pretrained import read_checkpoint, torchvision_weights


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"network": state, "config": "{}", "step": 3, "metric": {"top1": 0.5}},
        lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 90},
        lambda state: {"model": {f"_orig_mod.{name}": t for name, t in state.items()}},
        lambda state: {f"module._orig_mod.{name}": t for name, t in state.items()},
    ],
)
def test_read_checkpoint_finds_the_state_dict(tmp_path, wrap):
    state = {"a.weight": torch.rand(2, 3), "b": torch.tensor(4)}
    torch.save(wrap(state), tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt")
    assert list(read) == list(state) and all(torch.equal(read[name], state[name]) for name in state)


class Harmful:
    ran = False

    def __reduce__(self):
        return setattr, (Harmful, "ran", True)


def _whole(path):
    torch.save({"a": torch.rand(1000)}, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "not a file"),
        (lambda path: path.write_text("hello, this is no checkpoint\n"), "not a file of tensors"),
        (lambda path: path.write_bytes(b""), "not a file of tensors"),
        (lambda path: path.write_bytes(_whole(path)[:-500]), "not a file of tensors"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "not a file of tensors"),
        (lambda path: torch.save({"a": Harmful()}, path), "not a file of tensors"),
        (lambda path: torch.save([torch.rand(2)], path), "holds no state dict"),
        (lambda path: torch.save({"epoch": 3, "loss": [1.0]}, path), "holds no state dict"),
        (lambda path: torch.save({}, path), "holds no state dict"),
    ],
)
def test_unreadable_checkpoints_are_one_line(tmp_path, write, message):
    path = tmp_path / "bad.pt"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not Harmful.ran


def test_torchvision_weights_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def urlopen(request, *args, **kwargs):
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", urlopen)
    with pytest.raises(UserError, match="could not be fetched .*no route to host") as caught:
        torchvision_weights("ResNet50_Weights.IMAGENET1K_V1")
    assert "\n" not in str(caught.value) and asked == ["https://download.pytorch.org/models/resnet50-0676ba61.pth"]


def test_torchvision_weights_that_are_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = {"conv1.weight": torch.rand(2, 2)}
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth")
    read = torchvision_weights("ResNet50_Weights.IMAGENET1K_V1")
    assert torch.equal(read["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("name", ["ResNet50_Weight.IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V9", "resnet50"])
def test_unknown_torchvision_name_suggests_one(name):
    with pytest.raises(UserError, match=r"none of this name; did you mean .*Net\w*50\w*_Weights\.\w+\?"):
        torchvision_weights(name)
