"""Starting the ranks of a job."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tdaf.cli.compose import Config
from tdaf.cli.ending import exit_code
from tdaf.engine import dist
from tdaf.errors import RunError
from tdaf.streams import lossy_streams

Job = Callable[[Config, torch.device], None]


def launch(job: Job, config: Config) -> int:
    """Runs `job(config, device)` on as many ranks as `gpus` asks for, or as one rank of torchrun's.

    Returns an exit code, as `exit_code` has them. Raises UserError where there are not as many GPUs.
    """
    gpus = dist.count_gpus(config["gpus"])
    if dist.under_torchrun() or gpus <= 1:
        return run_rank(job, config, gpus)
    from tdaf.engine.spawn import spawn

    return spawn(run_rank, (job, config, gpus), gpus)


@lossy_streams()
def run_rank(job: Job, config: Config, gpus: int) -> int:
    """One rank of the job, on a GPU if `gpus` is not 0. Returns its exit code."""
    timeout = dist.collective_timeout(config["trainer"]["hang_timeout"], config["loader"]["timeout"])

    @dist.explain_peer_failure()
    def ranked() -> None:
        try:
            job(config, dist.join("cuda" if gpus else "cpu", timeout))
        except torch.cuda.OutOfMemoryError as error:
            first = str(error).splitlines()[0]
            raise RunError(f"out of GPU memory: {first} ({_smaller(config)})") from error

    try:
        return exit_code(ranked, "interrupted; the same command goes on from the last checkpoint", dist.rank)
    finally:
        dist.leave()


def _smaller(config: Config) -> str:
    """What makes a run take less of a GPU's memory."""
    batch, parts = config["trainer"]["batch"], config["trainer"]["accumulate"]
    again = "" if config.get("tdaf", {}).get("rematerialise") else ", or tdaf.rematerialise=true (slower)"
    return f"try trainer.accumulate={2 * parts} (the same run), less than trainer.batch={batch}{again}"
