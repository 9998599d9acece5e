"""Classification by an attention branch network (Fukui et al. 2019, arXiv 1812.10025), whose branch has a loss too."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tasks.classification.task import Classification
from tdaf.errors import UserError
from tdaf.model.attention.abn import PerceptionBranch2d
from tdaf.model.classifier import Classifier
from tdaf.model.staged import Staged
from tdaf.task import Batch


class AttentionBranchClassifier(Classifier):
    """{"logits", "branch"}, each (B, [V,] classes): what the network says, and its attention branch.

    classes: how many channels of class scores the body's last stage puts before its map.
    """

    def __init__(self, body: Staged, head: nn.Module, normalise: nn.Module, classes: int) -> None:
        super().__init__(body, head, normalise)
        self.classes = classes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        views, last = self.features(x)
        logits, branch = self.head(last[:, self.classes :]), last[:, : self.classes].flatten(2)[:, :, 0]
        return {"logits": logits.view(*views, -1), "branch": branch.view(*views, -1)}


class AttentionBranchClassification(Classification):
    """Classification with the settings of its base, for a backbone with attention=AttentionBranch().

    Raises UserError for a backbone without a branch.
    """

    def network(self, backbone: Staged, tdaf: Callable[[Staged], Staged]) -> nn.Module:
        classes, stage, width = len(self.classes), backbone.stages[-1], backbone.widths[-1]
        if not isinstance(stage, PerceptionBranch2d):
            raise UserError("attention: this task is for a backbone with an attention branch; give attention=abn")
        stage.name_classes(width, classes)
        widths = [*backbone.widths[:-1], classes + width]
        body = tdaf(Staged(backbone.stages, widths, backbone.strides, backbone.dims, backbone.classifier))
        head = self.make_head(body, body.widths[-1] - classes)
        return AttentionBranchClassifier(body, head, self.normalise(body), classes)

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The branch's loss is added with weight 1 (Fukui et al. 2019, Sec. 3.3)."""
        (own,) = super().losses(outputs["logits"], batch).values()
        (branch,) = super().losses(outputs["branch"], batch).values()
        return {"cross_entropy": own, "attention_branch": branch}
