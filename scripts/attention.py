"""Attention maps of every flow and stage over pictures and videos (paper, Fig. 3b), and what the flows differ in:

    python scripts/attention.py checkpoint=RUN_FOLDER [input=IMAGE_OR_FOLDER_OR_VIDEO] [out=attention] [style=both]
                                [scale=full] [tile=320] [moments=4] [video=false] [samples=4] [statistics=64]
                                [key=value ...]

OUT/NAME.png of each input has what the network saw at its left, then a row a flow and a column a stage, each mask in
its place over the picture; sizes are height x width. Of a video it shows `moments` moments; video=true also draws all
of it, into OUT/NAME.mp4. Without `input`, `samples` of the run's validation samples are drawn, evenly over the split.
style: overlay, over the picture in grey; mask, by itself; both. scale: full, from 0 to 1; own, from each mask's
smallest value to its largest, for masks that hardly differ from place to place. tile: pixels of a mask's long side, or
about so.

Printed, and in OUT/statistics.json, over up to `statistics` inputs or validation samples: how far the masks vary within
an image and between images, and how many of their values are saturated; and of the batch norms of each flow (MFBN) the
running means and variances, and how far they lie from the last flow's. What the checkpoint's task takes besides is
given as for predict; for poses, boxes=FILE.json. A network without masks is refused. Exit codes as predict's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tdaf.cli.arguments import apart, flag, given, main, pictures
from tdaf.errors import RunError, UserError

NUMBERS = {"tile": 320, "moments": 4, "samples": 4, "statistics": 64}
CHOICES = {"style": ("both", "overlay", "mask"), "scale": ("full", "own")}
OWN = ("checkpoint", "input", "out", "video", *CHOICES, *NUMBERS)


def attention(arguments: list[str]) -> int:
    arguments, options = apart(arguments, OWN)
    own, overrides = given(arguments, OWN, {"protocol": "task.protocol"})
    numbers = {name: _number(name, own[name], default) for name, default in NUMBERS.items()}
    choices = {name: _choice(name, own[name], known) for name, known in CHOICES.items()}
    video = flag("video", own["video"])
    out = Path(own["out"] or "attention").expanduser()
    paths, base = pictures(own["input"], out) if own["input"] is not None else ([], Path())

    from attentions import drawn, report, source  # torch takes seconds to import; a mistake above needs none of it

    model = source.opened(own["checkpoint"], overrides)
    if paths:
        shots = source.of_files(model, paths, base, options, numbers["moments"])
    else:
        shots = source.of_validation(model, numbers["samples"], options)
    look = drawn.Look(choices["style"], choices["scale"], numbers["tile"], video)
    made, bad = drawn.draw(model, shots, out, look)
    for name, why in bad.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    if not made:
        raise RunError(f"not one of {len(shots.shots)} inputs could be drawn")
    print(report.reported(model, shots, numbers["statistics"], out))
    more = f" and {len(made) - 1} more" if made[1:] else ""
    print(f"drawn in {out}: {made[0].relative_to(out)}{more}; statistics.json")
    return 0


def _number(name: str, value: str | None, default: int) -> int:
    if value is None:
        return default
    if not value.isdigit() or int(value) == 0:
        raise UserError(f"{name}={value}: give a whole number above 0")
    return int(value)


def _choice(name: str, value: str | None, known: tuple[str, ...]) -> str:
    chosen = (value or known[0]).lower()
    if chosen not in known:
        raise UserError(f"{name}={value}: give one of {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main(attention, __doc__))
