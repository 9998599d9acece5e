"""What numbers mean anything: the range of every setting, by its name, held against a composed configuration.

Classes refuse what they cannot work with; this refuses, before anything is imported, what would only hang, fill the
memory or train to nonsense. A user's own class (a `_target_` of another package) judges its settings itself.
"""

from __future__ import annotations

import math
import re
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
    "[1, 100]": "corner_scales crops",
    "[0, 100]": "convs deeper",
    "(0, 1000000000]": "trainer.batch accumulate checkpoint_every log_every base_batch max_steps stop_after keep",
    "(0, 8192]": "size short_side short_sides max_size cache_side train_transform.scale",
    "[0, 1024]": "workers",
    "[1, 1024]": "prefetch",
    "[1, 65536]": "width channels deconvolutions anar_width groups width_per_group frames task.stride",
    "[1, 1000000]": "top per_image num_classes every",
    "[1, 10000000]": "demo.train demo.val",
    "[0, 1000000000000]": "warmup_steps milestones",
    "[0, 9223372036854775807]": "seed max_bad",
}
LENGTHS = {"betas": 2, "mean": 3, "std": 3, "size": 2, "short_side": 2, "scale": 2, "background": 3}  # of lists
_BY_NAME = {name: interval for interval, names in RANGES.items() for name in names.split()}


def check_ranges(config: dict[str, Any], where: str = "") -> None:
    """Raises UserError for the first number that lies outside of its setting's range."""
    if where and not str(config.get("_target_", OURS[0])).startswith(OURS):
        return
    for name, value in config.items():
        key = f"{where}.{name}" if where else str(name)
        if isinstance(value, dict):
            check_ranges(value, key)
            continue
        interval = next((_BY_NAME[k] for k in (".".join(key.split(".")[-2:]), str(name)) if k in _BY_NAME), None)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                _check(key, value, number, interval)
        length = LENGTHS.get(str(name))
        if isinstance(value, list) and length and len(value) != length:
            raise UserError(f"{key}={_text(value)}: give {length} numbers, as [a,b{',c' if length == 3 else ''}]")


def _check(key: str, value: Any, number: float, interval: str | None) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{key}={_text(value)}: give a finite number")
    if interval is None:
        return
    low, high = (float(bound) for bound in re.findall(r"-?[\d.]+", interval))
    open_low, open_high = interval[0] == "(", interval[-1] == ")"
    if number < low or (open_low and number == low):
        raise UserError(f"{key}={_text(value)}: give {f'a number above {low:g}' if open_low else f'{low:g} or more'}")
    if number > high or (open_high and number == high):
        raise UserError(f"{key}={_text(value)}: give {'less than' if open_high else 'at most'} {high:g}")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
