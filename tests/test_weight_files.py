"""Reading a state dict from a file, or from torchvision by name; never from the network in this test."""

import argparse
import datetime
import os
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tdaf.cli.build import load_pretrained
from tdaf.errors import UserError
from tdaf.model.pretrained import read_checkpoint, torchvision_weights

STATE = {"a.weight": torch.rand(2, 3), "b": torch.tensor(4)}
RAW = {name: tensor + 1 for name, tensor in STATE.items()}
AVERAGED = {"n_averaged": torch.tensor(9), **{f"module.{name}": tensor for name, tensor in STATE.items()}}
ARGS = argparse.Namespace(lr=0.1, since=datetime.datetime(2026, 1, 2), mean=np.ones(3), top1=np.float64(76.1))
TORCHVISION = {"model": RAW, "optimizer": {"state": {}}, "epoch": 3, "args": ARGS}  # references/classification/train.py
TIMM = {"arch": "resnet50", "state_dict": RAW, "args": ARGS, "metric": np.float32(3)}  # timm/utils/checkpoint_saver.py


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (STATE, ""),
        ({"network": STATE, "config": "{}", "step": 3, "metric": {"top1": 0.5}}, "network"),
        ({"network": RAW, "ema": STATE}, "ema"),
        ({"model_state_dict": STATE, "epoch": 90}, "model_state_dict"),
        ({"state_dict": STATE, "callbacks": {"best": torch.tensor(1.0)}, "ema": None}, "state_dict"),
        (TORCHVISION | {"model": STATE}, "model"),
        (TORCHVISION | {"model_ema": AVERAGED}, "model_ema"),
        (TIMM | {"state_dict": STATE}, "state_dict"),
        (TIMM | {"state_dict_ema": STATE}, "state_dict_ema"),
        ({"model": RAW, "ema": {"module": STATE, "updates": 3}}, "ema.module"),
        ({"model": STATE, "ema": {"a.weight": torch.rand(2, 3)}}, "model"),  # parameters alone are no whole network
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_weights_of_a_checkpoint(tmp_path, content, entry, zipped):
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read, source = read_checkpoint(path)
    assert source == (f"{path} ({entry})" if entry else str(path))
    read = {name.removeprefix("module."): tensor for name, tensor in read.items() if name != "n_averaged"}
    assert list(read) == list(STATE) and all(torch.equal(read[name], STATE[name]) for name in STATE)


def _safetensors(path, cut=0):
    tensors = {"a.weight": torch.rand(2, 3), "b": torch.tensor(4), "half": torch.rand(5).bfloat16()}
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: -cut or None])
    return tensors


@pytest.mark.parametrize("name", ["x.safetensors", "renamed.bin"])
def test_safetensors(tmp_path, name):
    tensors = _safetensors(tmp_path / name)
    read, _ = read_checkpoint(tmp_path / name)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in tensors.items())


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def _bomb(path):
    return Harmful(path.with_name("mark"))


def _cut(path):
    torch.save({"a": torch.rand(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def _hostile_namespace(path):
    torch.save({"model": STATE, "args": argparse.Namespace(x=_bomb(path))}, path)


def _plain_pickle(protocol):
    def write(path):
        path.write_bytes(pickle.dumps({"a": _bomb(path)}, protocol))

    return write


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "not a file"),
        (lambda path: path.write_text("hello, this is no checkpoint\n"), "not a file of tensors"),
        (lambda path: path.write_text("\n<!DOCTYPE html><title>404</title>"), "not a file of tensors.*web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (_cut, "not a file of tensors.*damaged"),
        (lambda path: torch.save({"a": _bomb(path)}, path), r"posix\.mkdir.* unpickled"),
        (_hostile_namespace, r"posix\.mkdir.* unpickled"),
        (_plain_pickle(2), "posix.mkdir.* unpickled"),
        (_plain_pickle(4), "a plain pickle.* unpickled"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"torch\.nn\.modules\.linear\.Linear.* unpickled"),
        (lambda path: torch.jit.trace(nn.Linear(2, 2), torch.ones(2)).save(path), "TorchScript.* unpickled"),
        (lambda path: torch.save([torch.rand(2)], path), "holds no state dict"),
        (lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path), "holds no state dict"),
        (lambda path: torch.save({"a": torch.empty(2, device="meta")}, path), "holds no state dict"),
        (lambda path: _safetensors(path, cut=3), "not a file of tensors"),
    ],
)
def test_what_is_refused_is_one_line_and_never_run(tmp_path, write, message):
    path = tmp_path / "bad.pt"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "mark").exists()


def test_a_run_folder_means_its_best_checkpoint_and_averaged_weights(tmp_path):
    network = nn.Module()
    network.stages = nn.ModuleList([nn.Linear(2, 2)])
    ones = {name: torch.ones_like(tensor) for name, tensor in network.state_dict().items()}
    twos = {f"module.{name}": tensor * 2 for name, tensor in ones.items()}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"network": ones, "ema": {**twos, "n_averaged": torch.tensor(3)}}, tmp_path / "run/checkpoints/best.pt")
    report = load_pretrained({"pretrained": str(tmp_path / "run")}, network)
    assert "loaded 2 of 2" in str(report) and "best.pt (ema)" in str(report) and "\n" not in str(report)
    assert (network.stages[0].weight == 2).all()
    with pytest.raises(UserError, match="not the folder of a run"):
        load_pretrained({"pretrained": str(tmp_path)}, network)


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
