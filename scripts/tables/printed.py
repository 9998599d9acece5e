"""Numbers as a paper prints them, so that ours can stand beside them in the same digits."""

from __future__ import annotations

import re
from dataclasses import dataclass

NUMBER = re.compile(r"([+-]?)(\d[\d,]*)(?:\.(\d+))?(M|%|s)?")
UNITS = {"M": 1e6}


@dataclass(frozen=True)
class Printed:
    """value: as it stands, 25.6 of "25.6M". digits: behind the point. signed: with a plus. commas: of thousands."""

    value: float
    digits: int
    unit: str = ""
    signed: bool = False
    commas: bool = False

    def show(self, value: float, signed: bool | None = None) -> str:
        """Another number, in units of this one, in the same digits."""
        sign = "+" if (self.signed if signed is None else signed) else ""
        text = f"{value:{sign}{',' if self.commas else ''}.{self.digits}f}"
        nothing = float(text.replace(",", "")) == 0
        return (sign + text.lstrip("+-") if nothing else text) + self.unit

    def ours(self, value: float) -> str:
        """A count of ours: of 25,557,032 "25.6M"."""
        return self.show(value / UNITS.get(self.unit, 1))

    def difference(self, value: float) -> str:
        """Ours, as it is shown, less what is printed; "0" where every printed digit agrees."""
        shown = round(value / UNITS.get(self.unit, 1), self.digits)
        gap = round(shown - self.value, self.digits)
        return self.show(gap, signed=True) if gap else "0"


def printed(text: str | None) -> Printed | None:
    """None for what is no number, as "-" and ">20%". Behind a number may stand something in brackets."""
    match = NUMBER.fullmatch((text or "").partition(" (")[0])
    if not match:
        return None
    sign, whole, behind, unit = match.groups()
    value = float(f"{sign}{whole.replace(',', '')}.{behind or '0'}")
    return Printed(value, len(behind or ""), unit or "", sign == "+", "," in whole)
