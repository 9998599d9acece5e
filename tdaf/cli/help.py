"""What `train.py --help` prints, from the files themselves; it needs nothing but them, so it is there at once."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "configs"


def text() -> str:
    """How to call train.py, the choices, and the settings with their defaults and meanings."""
    lines = (FOLDER / "train.yaml").read_text().splitlines()
    usage = [line[2:] for line in lines[: lines.index("")] if line.startswith("#  ")]
    settings = lines[lines.index("") + 1 : lines.index("hydra:")]
    first = next(i for i, line in enumerate(settings) if line.startswith("#"))
    return "\n".join(
        [
            "tdaf: Top-Down Attention Framework (AAAI 2021)",
            "",
            *usage,
            "",
            "Choices:",
            *(f"  {group}={'|'.join(options)}" for group, options in choices().items()),
            "",
            "Settings, key=value with dots (trainer.batch=64); what is called null is off or found out:",
            *(f"  {line}".rstrip() for line in settings[first:]),
            "",
            "Every setting of a job, with those of its task and backbone: python train.py --cfg job [key=value ...]",
        ]
    )


def choices() -> dict[str, list[str]]:
    """The groups that a command chooses from, and their options. Tables are scripts/table.py's."""
    found: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*/*.yaml")):
        if path.parent.name != "table":
            found.setdefault(path.parent.name, []).append(path.stem)
    return found
