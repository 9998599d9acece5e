"""What networks of timm and torchvision are as stages, and what TDAF costs on them, a line of a table each:

python -m tdaf.model.zoo 'resnet*' timm/convnextv2_nano     # names or patterns; without a library of both
"""

from __future__ import annotations

import fnmatch
import sys
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from tdaf import measure
from tdaf.errors import UserError
from tdaf.model.backbones import library
from tdaf.model.backbones.cut import Refused
from tdaf.model.classifier import Classifier
from tdaf.model.flows import TDAF
from tdaf.model.staged import Staged

HEAD = ("network", "stages", "widths", "strides", "norms", "size", "M parameters", "with TDAF", "GFLOPs", "with TDAF")
_NORMS = ("batch", "layer", "group", "rms", "instance")


def table(names: Sequence[str], flows: int = 3, anar: int = 3) -> Iterator[str]:
    """Markdown, a line as soon as it is known: what each network is, or why it is refused.

    Args:
        names: of networks, or patterns, with or without their library, as "timm/resnet*".
        flows, anar: of TDAF, with a gate at every stage but the last.

    Raises:
        UserError: a name that no network has.
    """
    networks = [network for name in names for network in _matching(name)]
    yield f"| {' | '.join(HEAD)} |"
    yield "|" + "---|" * len(HEAD)
    for network in networks:
        try:
            yield f"| {' | '.join(row(network, flows, anar))} |"
        except Refused as error:
            yield f"| {network} | {str(error).partition('cannot have TDAF: ')[2]} |"


def row(network: str, flows: int = 3, anar: int = 3) -> list[str]:
    """The columns of `HEAD`, at the size of input that its weights have; nothing is computed. Raises UserError."""
    size = library.preprocessing(network)["size"]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        staged = library.stages(network)
        head = staged.classifier(staged.widths[-1], staged.classifier.classes)
        pyramid = (" ".join(map(str, numbers)) for numbers in (staged.widths, staged.strides))
        columns = [network, str(len(staged.stages)), *pyramid, norms(staged), str(size)]
        image, costs = torch.zeros(1, 3, size, size), []
        # The plain one first: TDAF puts its gates onto these same stages.
        for body in (lambda: staged, lambda: TDAF(staged, min(flows, len(staged.stages)), anar)):
            whole = Classifier(body(), head, nn.Identity())
            costs.append((measure.parameters(whole).total / 1e6, measure.gflops(whole, image).total))
    return columns + [f"{cost:.2f}" for pair in zip(*costs, strict=True) for cost in pair]


def norms(staged: Staged) -> str:
    """The kinds of normalisation in the stages, as "batch 20, layer 3"; the first alone has statistics for MFBN."""
    found = [type(part).__name__.lower() for part in staged.modules()]
    for stage in staged.stages:
        calls = [getattr(node.target, "__name__", "") for node in stage.eval_graph.nodes if node.op == "call_function"]
        found += [call for call in calls if call != "batch_norm"]  # which standardises weights where it is no module
    counts = {kind: sum("norm" in name and kind in name for name in found) for kind in _NORMS}
    return ", ".join(f"{kind} {count}" for kind, count in counts.items() if count) or "none"


def _matching(name: str) -> list[str]:
    chosen = [one for one in library.LIBRARIES if name.startswith(f"{one}/")] or library.LIBRARIES
    pattern = name.removeprefix(f"{chosen[0]}/")
    if not any(sign in pattern for sign in "*?["):
        found = [f"{one}/{pattern}" for one in chosen if pattern.partition(".")[0] in library.names(one)]
        return found or ["/".join(library.find(f"{chosen[0]}/{pattern}"))]
    found = [f"{one}/{known}" for one in chosen for known in fnmatch.filter(library.names(one), pattern)]
    if not found:
        raise UserError(f"{name}: no network of {' or '.join(chosen)} is called so")
    return found


def main(arguments: Sequence[str]) -> int:
    if not arguments or any(word.startswith("-") for word in arguments):
        print(__doc__.partition("\n\n")[2].strip(), file=sys.stdout if "--help" in arguments else sys.stderr)
        return 0 if "--help" in arguments else 2
    try:
        for line in table(arguments):
            print(line, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
