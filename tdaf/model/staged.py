"""The one contract between a backbone and everything else: a list of stages and what each gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

Attend = Callable[[nn.Module, int, int], nn.Module]  # last stage, its width, classes -> the stage that takes its place


class Staged(nn.Module):
    """A network as stages h_1..h_L (paper, Sec. 3.1). The stem belongs to stage 1.

    stages: L modules, each fed with the previous one's map. A stage that ends in its own `nn.ReLU`
        (`nn.Sequential(..., nn.ReLU())`) lets TDAF fuse that ReLU with the gate, which saves one stored map a stage.
    widths: channels after each stage. strides: input size / map size after each stage (in space).
    dims: 2 for images (B, C, H, W), 3 for clips (B, C, T, H, W).
    classifier: `classifier(width, classes) -> module` from the last map to (B, classes) where the network's
        publication has one of its own (VGG's three fully connected layers); None means pooling and one linear layer.
    appended: how many of the stages, counted from the last, a task has appended to the backbone's own (see `append`).
    attend: what builds the last stage of a network whose attention names classes (ABN), for `for_classes`, without
        which such a network is not complete.
    scores: how many channels of class scores come before the last map's own while its stage trains; see `for_classes`.
    Raises ValueError where the lists' lengths differ.
    """

    def __init__(
        self,
        stages: Iterable[nn.Module],
        widths: list[int],
        strides: list[int],
        dims: int = 2,
        classifier: Callable[[int, int], nn.Module] | None = None,
        appended: int = 0,
        attend: Attend | None = None,
        scores: int = 0,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.widths = list(widths)
        self.strides = list(strides)
        self.dims = dims
        self.classifier = classifier
        self.appended = appended
        self.attend = attend
        self.scores = scores
        if not len(self.stages) == len(self.widths) == len(self.strides):
            raise ValueError(
                f"a staged network needs one width and one stride a stage, "
                f"got {len(self.stages)} stages, {len(self.widths)} widths, {len(self.strides)} strides"
            )

    def append(self, stages: Iterable[nn.Module], widths: list[int], strides: list[int]) -> Staged:
        """A network of these same stages followed by more; it has no `classifier`, which is one for the old last map.

        strides: input size / map size, as for all stages: that of a map the size of half the input is 2.
        Raises ValueError where the lists' lengths differ.
        """
        more = list(stages)
        if not len(more) == len(widths) == len(strides):
            raise ValueError(
                f"appended stages need one width and one stride each, "
                f"got {len(more)} stages, {len(widths)} widths, {len(strides)} strides"
            )
        return Staged(
            [*self.stages, *more],
            [*self.widths, *widths],
            [*self.strides, *strides],
            self.dims,
            appended=self.appended + len(more),
            attend=self.attend,
        )

    def for_classes(self, classes: int) -> Staged:
        """The network for a task of that many classes: itself, or, where `attend` is given, one of these same stages
        with what `attend` makes of the last, which in training puts `scores` channels of class scores, equal at all
        places, before its map's own.
        """
        if self.attend is None:
            return self
        last = self.attend(self.stages[-1], self.widths[-1], classes)
        stages = [*self.stages[:-1], last]
        return Staged(stages, self.widths, self.strides, self.dims, self.classifier, self.appended, scores=classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, C, [T,] H, W) -> the L maps, the last one last."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
