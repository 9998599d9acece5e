"""A list of JSON objects to arrays, one a key; what does not fit is named by its entry, not by a stack trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdaf.errors import UserError

EXACT = 2**53  # whole numbers up to here are what they are in float64


@dataclass(frozen=True)
class Column:
    """The entries of one list of an annotation file. kind: what one entry is called in messages."""

    path: Path
    kind: str
    entries: list[dict[str, Any]]

    def numbers(self, key: str, width: tuple[int, ...] = (), default: Any = None) -> np.ndarray:
        """float64 (len, *width), all finite. default: for entries without the key; None: every entry must have it."""
        try:
            if default is None:
                found = [entry[key] for entry in self.entries]
            else:
                found = [entry.get(key, default) for entry in self.entries]
            values = np.array(found) if found else np.zeros((0, *width))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            values = None
        if values is None or not _fits(values, (len(self.entries), *width)):
            self._refuse(key, width, default)
        return values.astype(np.float64)

    def integers(self, key: str, default: int | None = None, least: int = -EXACT) -> np.ndarray:
        """int64 (len,). A whole number may be written with a decimal point (1.0)."""
        values = self.numbers(key, (), default)
        wrong = np.flatnonzero((values != np.floor(values)) | (values < least) | (values > EXACT))
        if wrong.size:
            entry = self.entries[wrong[0]]
            wanted = "a whole number" if least == -EXACT else f"a whole number of {least} or more"
            raise UserError(f"{self.path}: {self.name(wrong[0])}: {key}={entry[key]}: give {wanted}")
        return values.astype(np.int64)

    def texts(self, key: str) -> list[str]:
        """The key's strings, none of them empty."""
        for place, entry in enumerate(self.entries):
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, str) or not value:
                self._missing(place, key)
                raise UserError(f"{self.path}: {self.name(place)}: {key}={value!r}: give a text")
        return [entry[key] for entry in self.entries]

    def name(self, place: int) -> str:
        """What a person finds the entry by: its id, or its place in the file."""
        entry = self.entries[place]
        if isinstance(entry, dict) and "id" in entry:
            return f"{self.kind} {entry['id']}"
        return f"{self.kind} number {place + 1} of the file"

    def _refuse(self, key: str, width: tuple[int, ...], default: Any) -> None:
        wanted = f"{width[0]} finite numbers" if width else "a finite number"
        for place, entry in enumerate(self.entries):
            if default is None or not isinstance(entry, dict):
                self._missing(place, key)
            value = entry.get(key, default)
            try:
                fits = _fits(np.array(value), width)
            except (TypeError, ValueError, OverflowError):
                fits = False
            if not fits:
                said = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:56]} ..."
                raise UserError(f"{self.path}: {self.name(place)}: {key}={said}: give {wanted}")
        raise UserError(f"{self.path}: the {key} of its {self.kind}s are not all of one kind: give {wanted} everywhere")

    def _missing(self, place: int, key: str) -> None:
        entry = self.entries[place]
        if not isinstance(entry, dict):
            raise UserError(f"{self.path}: {self.name(place)} is no JSON object, but {str(entry)[:40]!r}")
        if key not in entry:
            raise UserError(f"{self.path}: {self.name(place)} has no {key}; COCO's format asks for one")


def _fits(values: np.ndarray, shape: tuple[int, ...]) -> bool:
    return values.dtype.kind in "biuf" and values.shape == shape and bool(np.isfinite(values).all())
