"""Trains one network, or a sweep of them: `python train.py task=imagenet backbone=res50 anar=3 flows=3`.

README.md and `--help` say what can be set. Exit codes: 0 done, 1 a fault while running, 2 a mistake in what was asked,
75 told to stop by SIGTERM or SIGUSR1 with everything saved (start the same command again).
"""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from configs import compose
from tdaf.errors import UserError

HYDRAS_OWN = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--resolve", "--shell-completion", "-sc")


def run(config: compose.Config) -> int:
    from configs.launch import launch  # torch takes seconds to import, which --help and a misspelt key need not wait for
    from configs.run import train

    return launch(train, config)


def sweep(overrides: list[str]) -> int:
    """Every combination through Hydra's launcher (this process, or SLURM's), after all of them have been checked."""
    for combination in compose.combinations(overrides):
        compose.compose(combination)
    codes = []

    @hydra.main(version_base="1.3", config_path="configs", config_name="train")
    def job(config: DictConfig) -> None:
        hydras = HydraConfig.get()
        codes.append(run(compose.finish(config, dict(hydras.runtime.choices), list(hydras.overrides.task))))

    job()
    return max(codes, default=0)


def main() -> int:
    arguments = sys.argv[1:]
    if any(a.split("=")[0] in HYDRAS_OWN for a in arguments):
        hydra.main(version_base="1.3", config_path="configs", config_name="train")(lambda config: None)()
        return 0
    try:
        if "-m" in arguments or "--multirun" in arguments:
            return sweep([a for a in arguments if a not in ("-m", "--multirun")])
        return run(compose.compose(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
