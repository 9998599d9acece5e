"""What values mean anything: the range of every setting by its name, for the command line and for classes alike.

The command line refuses by it, before anything is imported, what would only hang, fill the memory or train to nonsense.
A user's own class (a `_target_` of another package) judges its settings itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tdaf.errors import UserError

OURS = ("tdaf.", "tasks.", "torch.optim.")
# an interval: the settings whose numbers, or numbers of a list, lie in it; a name without a dot counts anywhere
RANGES = {
    "(0, 1)": "ema",
    "[0, 1]": "eta flip rotated shifted half_body nms score_threshold shown box_score keypoint_threshold oks_nms "
    "erasing warmup_factor floor dampening",
    "(0, 1]": "decay.gamma",
    "[0, 1)": "momentum label_smoothing dropout betas threshold",
    "[0, 10]": "weight_decay lighting shift",
    "(0, 10]": "sigmas std",
    "[-10, 10]": "mean",
    "(0, 1000]": "lr sigma",
    "[0, 1000]": "bias_lr mixup cutmix pictures pad patience",
    "[0, 255]": "background",
    "[0, 360]": "rotation rotation_limit",
    "(0, 1000000]": "clip epochs",
    "(0, 10000000]": "timeout",
    "[0, 10000000]": "hang_timeout evaluate_every warmup_epochs",
    "[1, 3]": "fold",
    "[0, 31]": "randaugment",
    "[1, 100]": "corner_scales crops flows",
    "[0, 100]": "convs deeper",
    "(0, 1000000000]": "batch accumulate checkpoint_every log_every base_batch max_steps stop_after keep",
    "(0, 8192]": "size short_side short_sides max_size cache_side train_transform.scale",
    "[0, 1024]": "workers gpus",
    "[1, 1024]": "prefetch",
    "[1, 65536]": "width channels deconvolutions anar_width groups width_per_group frames task.stride",
    "[1, 1000000]": "top per_image num_classes every",
    "[1, 10000000]": "demo.train demo.val",
    "[0, 1000000000000]": "warmup_steps milestones",
    "[0, 9223372036854775807]": "seed max_bad",
}
CHOICES = {"anar": (2, 3, 5, 7), "dims": (2, 3), "stem": ("imagenet", "small", "cifar")}
WHOLE = ("seed", "flows", "gpus", "data.max_bad")  # what no annotated class holds to whole numbers
AUTO = ("gpus", "workers")
LENGTHS = {"betas": 2, "mean": 3, "std": 3, "size": 2, "short_side": 2, "scale": 2, "background": 3}  # of lists
_BY_NAME = {name: interval for interval, names in RANGES.items() for name in names.split()}


def check_ranges(settings: Mapping[str, Any], where: str = "") -> None:
    """Raises UserError for the first value that lies outside of its setting's range. where: the settings' own name."""
    if where and not str(settings.get("_target_", OURS[0])).startswith(OURS):
        return
    for name, value in settings.items():
        key = f"{where}.{name}" if where else str(name)
        names = (".".join(key.split(".")[-2:]), str(name))
        interval = next((_BY_NAME[known] for known in names if known in _BY_NAME), None)
        auto = name in AUTO and value == "auto"
        hint = ""
        if isinstance(value, dict):
            check_ranges(value, key)
        elif key in CHOICES and value not in CHOICES[key]:
            *most, last = CHOICES[key]
            hint = f"{', '.join(map(str, most))} or {last}"
        elif (key in WHOLE and type(value) is not int or name in AUTO and isinstance(value, str)) and not auto:
            hint = f"{'auto or ' if name in AUTO else ''}a whole number"
        elif isinstance(value, list) and len(value) != LENGTHS.get(str(name), len(value)):
            hint = f"{LENGTHS[name]} numbers, as [a,b{',c' if LENGTHS[name] == 3 else ''}]"
        else:
            hint = _outside(value, interval)
        if hint:
            raise UserError(f"{key}={as_written(value)}: give {hint}")


def as_written(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def within(interval: str, /, **settings: Any) -> None:
    """The same for an interval that only the caller knows, such as "[0, 1)" or "[1, inf)"."""
    for name, value in settings.items():
        if hint := _outside(value, interval):
            raise UserError(f"{name}={as_written(value)}: give {hint}")


def _outside(value: Any, interval: str | None) -> str:
    """What to give instead of a number, or a list with one, that is not in the interval; "" for all else."""
    low, high = map(float, interval[1:-1].split(",")) if interval else (-math.inf, math.inf)
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            return "a finite number"
        if number < low or (number == low and interval and interval[0] == "("):
            return f"a number above {low:g}" if interval[0] == "(" else f"{low:g} or more"
        if number > high or (number == high and interval and interval[-1] == ")"):
            return f"{'less than' if interval[-1] == ')' else 'at most'} {high:g}"
    return ""
