"""What tasks do alike: their colours, the classes of a sample, pictures to predict, and the folder of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from tdaf.errors import UserError
from tdaf.media import archive
from tdaf.media.image import image_notes
from tdaf.model.classifier import Probabilities, log_probabilities
from tdaf.model.normalise import Normalise
from tdaf.model.staged import Staged
from tdaf.ranges import within
from tdaf.task import Batch, Dataset, Media


class Source(Protocol):
    """Where a task's data come from."""

    classes: list[str]  # names for people, in the order of the network's outputs

    def split(self, name: str) -> Any:
        """The split "train" or "val". Raises UserError when it is not there."""


class ColourTask:
    """A task on RGB pixels. mean, std: of the pixels, in units of 0..1. Raises UserError for others."""

    def __init__(self, data: Source, mean: Sequence[float], std: Sequence[float]) -> None:
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise UserError("mean, std: give three numbers each, one a colour, std above 0")
        self.data, self.mean, self.std = data, list(mean), list(std)

    @property
    def classes(self) -> list[str]:
        """What the outputs stand for, in their order."""
        return self.data.classes

    def normalise(self, body: Staged) -> Normalise:
        return Normalise(self.mean, self.std, body.dims)

    def media(self, paths: list[Path]) -> Media:
        """A user's files, read as the data set's own."""
        from tdaf.media.files import Media  # with a decoder of videos, which training does not need

        return Media(paths, getattr(self.data, "background", None))


class ClassTask(ColourTask):
    """A task that names one class a sample, the five best to people.

    Args:
        data, mean, std: as of `ColourTask`.
        train_transform: from what is read to an input.
        val_transforms: the same for evaluation, one for each protocol by name. Softmax probabilities of several views
            are averaged.
        protocol: which of `val_transforms` is used.
        label_smoothing, dropout: in 0..1; dropout is before the linear layer.

    Raises:
        UserError: values outside these.
    """

    metric = "top1"

    def __init__(
        self,
        data: Source,
        train_transform: Callable[[Tensor], Tensor],
        val_transforms: Mapping[str, Callable[[Tensor], Tensor]],
        mean: Sequence[float],
        std: Sequence[float],
        protocol: str,
        label_smoothing: float,
        dropout: float,
    ) -> None:
        super().__init__(data, mean, std)
        if protocol not in val_transforms:
            raise UserError(f"protocol={protocol}: this data set has {', '.join(val_transforms)}")
        within("[0, 1)", label_smoothing=label_smoothing, dropout=dropout)
        self.train_transform, self.val_transform, self.protocol = train_transform, val_transforms[protocol], protocol
        self.label_smoothing, self.dropout = label_smoothing, dropout

    def postprocess(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """{"top5": [{"class": name, "probability": p}, ...]} a sample, the best first; as "text" for people."""
        found = log_probabilities(outputs).exp().cpu().topk(min(5, len(self.classes)))
        answers = []
        for classes, values in zip(found.indices.tolist(), found.values.tolist(), strict=True):
            top5 = [{"class": self.classes[k], "probability": p} for k, p in zip(classes, values, strict=True)]
            text = ", ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in top5)
            answers.append({"top5": top5, "text": text})
        return answers

    def draw(self, picture: Tensor, answers: list[dict[str, Any]]) -> Tensor:
        """The best class and its probability at the picture's foot."""
        from tdaf.media.drawing import labelled  # training draws nothing

        best = answers[0]["top5"][0] if answers else {}
        return labelled(picture, f"{best['class']} {best['probability']:.0%}" if best else "?")

    def by_class(self, labels: Iterable[int]) -> dict[str, int]:
        found = Counter(labels)
        return {name: found[k] for k, name in enumerate(self.classes)}

    def deployed(self, network: nn.Module, onnx: bool) -> nn.Module:
        return Probabilities(network)


class PredictDataset(Dataset):
    """Pictures that a user gives to predict: one sample a picture, "input" as the transform makes it."""

    def __init__(self, pictures: Media, transform: Callable[[Tensor], Any]) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.transform(self.pictures.read(index))}

    def shown(self, index: int) -> Sequence[int]:
        return [index]

    def name(self, index: int) -> str:
        return self.pictures.name(self.shown(index)[0])


class Names:
    """Texts in one string: a list of a million would be copied into every worker, because counting references writes to
    each of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.text, self.ends = "".join(names), np.cumsum([len(name) for name in names])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        return self.text[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]


class ImageFiles:
    """What checks the images of a split, as `files` of a Dataset. reading: exif and background of `read_image`."""

    scans = ("full", "strict")
    reading: dict[str, Any]

    def check(self, index: int, scan: str) -> list[str]:
        """Reads an image as `image_notes` does, strict: with its decoder that stops at any damage."""
        self.read(index)
        return image_notes(self.path(index), **self.reading, strict=scan == "strict")


def data_root(root: str | None, what: str, layout: str) -> Path:
    """The folder of a data set. Raises UserError where it is not given or not there. layout: what is expected in it."""
    if not root:
        raise UserError(f"root is not set; give {what}: {layout}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"root={root}: no such folder ({folder.absolute()}); {layout}")
    return folder


def existing(root: Path, place: str, name: str, layout: str, folder: bool = True) -> str:
    """place, where `name` should lie, be it in an archive. Raises UserError where no such folder or file is there."""
    if not (archive.is_folder if folder else archive.is_file)(place):
        raise UserError(f"root={root}: there is no {name}{'/' * folder} in it{archive.hint(root, name)}; {layout}")
    return place


def check_num_classes(given: int | None, found: int, root: Path) -> None:
    if given is not None and given != found:
        raise UserError(
            f"num_classes={given}, but {root} has {found} classes; correct it, or leave it out to have it found"
        )


def some(names: Iterable[str]) -> str:
    """The first three, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
