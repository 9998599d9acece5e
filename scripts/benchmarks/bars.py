"""What is to be reached: the speed and memory goals of this project, a row of the table each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """key: the result's name. device: "cpu", "gpu" or "any". low, high: what the result is to lie between; None: open.

    fixed: holds for any network and batch; the other bars are for what Settings.of_the_bars says.
    """

    key: str
    what: str
    peer: str
    device: str = "any"
    high: float | None = None
    low: float | None = None
    fixed: bool = True

    def met(self, value: float) -> bool:
        return (self.high is None or value <= self.high) and (self.low is None or value >= self.low)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.high is not None:
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else "-"


def _network(key: str, what: str, peer: str, device: str = "any", **limits: float) -> Bar:
    return Bar(key, what, peer, device, fixed=False, **limits)


# by the subject that measures them, as scripts/benchmark.py's what= names it
BARS: dict[str, tuple[Bar, ...]] = {
    "startup": (
        Bar("start_help", "train.py --help", "import torch", high=0.25),
        Bar("start_cfg", "train.py --cfg job", "import torch", high=0.25),
        Bar("start_mistake", "train.py with a misspelt key", "import torch", high=0.25),
    ),
    "loader": (
        Bar("loader", "image loader, images/s", "PIL + torchvision v1 transforms", low=1.7),
        Bar("loader_timm", "image loader, images/s", "timm's create_loader", low=1.4),
    ),
    "trainer": (
        Bar("trainer", "Trainer's step, small network", "bare PyTorch loop", high=1.02),
        Bar("trainer_large", "Trainer's step, this network", "bare PyTorch loop", "gpu", high=1.02),
    ),
    "model": (
        _network("gflops", "FLOPs of TDAF", "plain", low=1.231, high=1.241),
        _network("forward", "forward", "plain", "cpu", high=1.30),
        _network("forward", "forward", "plain", "gpu", high=1.38),
        _network("training", "training step", "plain", "cpu", high=1.35),
        _network("training", "training step", "plain", "gpu", high=1.42),
        _network("torchvision", "forward, plain", "torchvision's own network"),
    ),
    "fold": (
        _network("folded", "forward, TDAF folded", "TDAF not folded", high=0.90),
        Bar("folded_difference", "largest change of a logit by folding", "largest logit", high=1e-5),
        _network("folded_plain", "forward, both folded", "plain"),
    ),
    "memory": (
        _network("saved", "bytes saved for backward", "plain", high=1.30),
        _network("peak", "peak memory of a training step", "plain", "gpu"),
    ),
    "compile": (
        _network("compiled", "forward, both compiled", "plain", "cpu", high=1.25),
        _network("compiled", "forward, both compiled", "plain", "gpu", high=1.30),
        _network("compiled_training", "training step, both compiled", "plain", "gpu", high=1.35),
    ),
    "detection": (
        _network("fcos_gflops", "FLOPs of FCOS with TDAF, 800x1344", "plain", low=1.091, high=1.101),
        _network("fcos", "forward of FCOS, 800x1344", "plain", "cpu", high=1.14),
        _network("fcos", "forward of FCOS, 800x1344", "plain", "gpu"),
    ),
    "pose": (
        Bar("pose_crop", "crop of a person, crops/s", "PIL's transform"),
        Bar("pose_crop_opencv", "crop of a person, crops/s", "OpenCV's warpAffine"),
        Bar("pose_loader", "pose loader, images/s", "PIL + NumPy in PyTorch's DataLoader"),
        _network("pose_training", "training step, pose network", "plain"),
    ),
    "clips": (
        Bar("clips_250", "clip loader, clips/s, a key frame every 250", "plain PyAV", low=1.2),
        Bar("clips_12", "clip loader, clips/s, a key frame every 12", "plain PyAV", low=1.6),
        Bar("clips_250_torchcodec", "clip loader, clips/s, a key frame every 250", "torchcodec", low=0.95),
        Bar("clips_12_torchcodec", "clip loader, clips/s, a key frame every 12", "torchcodec", low=0.95),
        Bar("clips_one_250", "clips in one process, clips/s, a key frame every 250", "plain PyAV"),
        Bar("clips_one_12", "clips in one process, clips/s, a key frame every 12", "plain PyAV"),
        Bar("clips_work_250", "clips a second of a core's work, a key frame every 250", "plain PyAV"),
        Bar("clips_work_12", "clips a second of a core's work, a key frame every 12", "plain PyAV"),
        Bar("clips_work_250_torchcodec", "clips a second of a core's work, a key frame every 250", "torchcodec"),
        Bar("clips_work_12_torchcodec", "clips a second of a core's work, a key frame every 12", "torchcodec"),
    ),
    # compared with the paper rather than with a bar; each network is a table of its own
    "latency": (
        Bar("forward", "forward, eager", "plain"),
        Bar("forward_folded", "forward, both folded", "plain"),
        Bar("forward_compiled", "forward, both compiled", "plain"),
        Bar("forward_graphs", "forward, both folded and as CUDA graphs", "plain", "gpu"),
        Bar("training", "training step, eager", "plain"),
        Bar("training_compiled", "training step, both compiled", "plain", "gpu"),
        Bar("saved", "bytes saved for backward", "plain"),
        Bar("peak", "peak memory of a training step", "plain", "gpu"),
        Bar("gflops", "FLOPs of TDAF", "plain"),
        Bar("gflops_flows", "FLOPs of TDAF's flows", "all of plain"),
        Bar("gflops_gates", "FLOPs of TDAF's ANARs", "all of plain"),
        Bar("gflops_rest", "FLOPs of the rest", "all of plain"),
    ),
}
