"""Trains one network, or a sweep of them: `python train.py task=imagenet backbone=res50 anar=3 flows=3`.

README.md and `--help` say what can be set. Exit codes: 0 done, 1 a fault while running, 2 a mistake in what was asked,
75 told to stop by SIGTERM or SIGUSR1 with everything saved (start the same command again).
"""

from __future__ import annotations

import sys

from tdaf.errors import UserError

SWEEP = ("-m", "--multirun")
SHOW = (["--cfg", "job"], ["-c", "job"])
HYDRAS_OWN = ("--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc", "--cfg", "-c")


def command(arguments: list[str]) -> int:
    # imports wait until they are needed: a misspelt key takes Hydra but not torch, which takes seconds
    from tdaf.cli import compose, sweep

    settings = [argument for argument in arguments if argument not in SWEEP]
    sweeping = len(settings) < len(arguments)
    for place in range(len(settings) - 1):
        if settings[place : place + 2] in SHOW:
            rest = [argument for argument in settings[:place] + settings[place + 2 :] if argument != "--resolve"]
            jobs = sweep.combinations(rest) if sweeping else [rest]
            print("---\n".join(compose.to_yaml(compose.compose(job)) for job in jobs), end="")
            return 0
    if any(argument.split("=")[0] in HYDRAS_OWN for argument in settings):
        import hydra

        hydra.main(version_base="1.3", config_path="configs", config_name="train")(lambda config: None)()
        return 0
    if sweeping:
        return sweep.sweep(settings)
    config = compose.compose(settings)
    from tdaf.cli.run import start

    return start(config)


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        from tdaf.cli import help

        print(help.text())
        return 0
    try:
        return command(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
