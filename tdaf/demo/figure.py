"""An articulated figure seen from the front: COCO's 17 key points, and the polygons that are drawn over them.

The figure's left side, at the right in the picture, is warm in colour, its right side cool."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from tdaf.demo import shapes
from tdaf.demo.scene import Colour

JOINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
# Pairs of key points, counted from 1, as in the category "person" of COCO.
SKELETON = [
    [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9],
    [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7],
]  # fmt: skip
SIDES = {"left": 1.0, "right": -1.0}  # where they are in the picture: x to the right
_CAP = shapes.polar(np.ones(6), sweep=1.2 * math.pi)  # the right half of a circle
_OVAL = shapes.polar(np.ones(16))


@dataclass(frozen=True)
class Part:
    """A polygon of one colour. shows: the places in JOINTS that are seen where it is in front."""

    points: shapes.Points
    colour: Colour
    shows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Figure:
    """joints: (17, 2) float64 as in JOINTS. parts: from back to front. About one unit tall until it is moved."""

    joints: np.ndarray
    parts: list[Part]

    def moved(self, degrees: float, scale: float, shift: np.ndarray) -> Figure:
        """Turned clockwise about the hips' middle, then scaled, then moved."""
        cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
        turn = np.array([[cos, sin], [-sin, cos]])
        parts = [Part(part.points @ turn + shift, part.colour, part.shows) for part in self.parts]
        return Figure(self.joints @ turn + shift, parts)

    def box(self) -> tuple[float, float, float, float]:
        return shapes.box(np.concatenate([part.points for part in self.parts]))


def standing(rng: np.random.Generator) -> Figure:
    """A figure that stands, walks or waves, the middle of its hips at the origin; head and feet 0.5 from there."""
    joints = np.zeros((len(JOINTS), 2))
    yaw = rng.uniform(-0.7, 0.7)
    skin = _shade(rng.uniform(0.04, 0.1), rng.uniform(0.25, 0.5), rng.uniform(0.7, 0.95))
    shirt = _shade(rng.uniform(), rng.uniform(0.1, 0.5), rng.uniform(0.6, 1))
    lean = _along(rng.normal(0, 0.1)) * [1, -1]
    side = np.array([-lean[1], lean[0]])  # to the figure's left
    neck = 0.3 * lean
    behind, front, legs = [], [], []
    for name, sign in SIDES.items():
        hues = rng.uniform(-0.03, 0.07, size=2) + [0.0, 0.07] if sign > 0 else rng.uniform(0.5, 0.56, size=2) + [0.1, 0]
        dark, light = _shade(hues[0], 0.8, rng.uniform(0.75, 0.95)), _shade(hues[1], 0.7, rng.uniform(0.9, 1))
        shoulder, hip = neck + sign * 0.115 * math.cos(yaw) * side, np.array([sign * 0.068 * math.cos(yaw), 0.0])
        arm = _arm(rng, name, shoulder, sign, (dark, light, skin), joints)
        (behind if rng.random() < 0.2 else front).extend(arm)
        legs += _leg(rng, name, hip, sign, (dark, light), joints)
    torso = _torso(joints, side, shirt)
    head = _head(rng, neck, yaw, skin, joints)
    return Figure(joints, [*behind, *legs, Part(_limb(neck, 1.2 * neck, 0.03, 0.03), skin), torso, *head, *front])


def _arm(
    rng: np.random.Generator,
    name: str,
    shoulder: np.ndarray,
    sign: float,
    colours: tuple[Colour, Colour, Colour],
    joints: np.ndarray,
) -> list[Part]:
    """Upper arm, forearm and hand; outwards is positive, straight down is nought."""
    lift = rng.uniform(-0.1, 1.7) if rng.random() < 0.75 else rng.uniform(1.7, 2.7)
    bend = lift + rng.uniform(-1.8, 0.7)
    elbow = shoulder + rng.uniform(0.13, 0.165) * _along(sign * lift)
    wrist = elbow + rng.uniform(0.12, 0.15) * _along(sign * bend)
    hand = wrist + 0.035 * _along(sign * bend)
    places = [JOINTS.index(f"{name}_{joint}") for joint in ("shoulder", "elbow", "wrist")]
    joints[places] = shoulder, elbow, wrist
    return [
        Part(_limb(wrist, hand, 0.024, 0.03), colours[2], (places[2],)),
        Part(_limb(shoulder, elbow, 0.044, 0.034), colours[0], (places[0], places[1])),
        Part(_limb(elbow, wrist, 0.033, 0.026), colours[1], (places[1], places[2])),
    ]


def _leg(
    rng: np.random.Generator,
    name: str,
    hip: np.ndarray,
    sign: float,
    colours: tuple[Colour, Colour],
    joints: np.ndarray,
) -> list[Part]:
    """Foot, shin and thigh."""
    spread = rng.uniform(-0.06, 0.5) if rng.random() < 0.85 else rng.uniform(0.5, 1.1)
    bend = spread + rng.uniform(-0.8, 0.15)
    knee = hip + rng.uniform(0.18, 0.22) * _along(sign * spread)
    ankle = knee + rng.uniform(0.17, 0.2) * _along(sign * bend)
    toe = ankle + [sign * 0.05, 0.03]
    places = [JOINTS.index(f"{name}_{joint}") for joint in ("hip", "knee", "ankle")]
    joints[places] = hip, knee, ankle
    shoe = tuple(int(0.5 * value) for value in colours[0])
    return [
        Part(_limb(ankle, toe, 0.03, 0.024), shoe, (places[2],)),
        Part(_limb(knee, ankle, 0.043, 0.03), colours[1], (places[1], places[2])),
        Part(_limb(hip, knee, 0.058, 0.045), colours[0], (places[0], places[1])),
    ]


def _torso(joints: np.ndarray, side: np.ndarray, shirt: Colour) -> Part:
    places = [JOINTS.index(name) for name in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")]
    left, right, right_hip, left_hip = joints[places]
    out, up = 0.025 * side, np.array([side[1], -side[0]]) * 0.035
    waist = 0.75 * (left_hip + right_hip) / 2 + 0.25 * (left + right) / 2
    half = 0.92 * (left_hip - right_hip) / 2 + out
    corners = [left + up, left + out, waist + half, left_hip + out - up, right_hip - out - up, waist - half]
    return Part(np.array([*corners, right - out, right + up]), shirt, tuple(places))


def _head(rng: np.random.Generator, neck: np.ndarray, yaw: float, skin: Colour, joints: np.ndarray) -> list[Part]:
    """The head turned by `yaw` (positive: to the right in the picture) about its own axis, with all that is on it."""
    tilt = rng.normal(0, 0.15)
    across, up = np.array([math.cos(tilt), math.sin(tilt)]), np.array([math.sin(tilt), -math.cos(tilt)])
    wide, tall = 0.08, 0.1
    middle = neck + 0.145 * up

    def oval(centre: np.ndarray, x: float, y: float) -> shapes.Points:
        return centre + _OVAL[:, :1] * x * across + _OVAL[:, 1:] * -y * up

    joints[0] = middle + 1.05 * wide * math.sin(yaw) * across - 0.015 * up
    behind, front = [], []
    for place, (name, sign) in enumerate(SIDES.items()):
        eye, ear = JOINTS.index(f"{name}_eye"), JOINTS.index(f"{name}_ear")
        joints[eye] = middle + wide * math.sin(yaw + 0.42 * sign) * across + 0.025 * up
        joints[ear] = middle + 1.1 * wide * sign * math.cos(yaw) * across
        lobe = Part(oval(joints[ear], 0.022, 0.03), _shade((0.02, 0.55)[place], 0.6, 0.9), (ear,))
        # An ear on the side that the head turns to is beyond it.
        (behind if sign * yaw > 0 else front).append(lobe)
        white = Part(oval(joints[eye], 0.021, 0.017), (255, 255, 255), (eye,))
        front += [white, Part(oval(joints[eye], 0.011, 0.014), (20, 20, 60), (eye,))]
    hair = oval(middle, 1.06 * wide, 1.08 * tall)[[13, 14, 15, 0, 1, 2, 3]]
    return [
        *behind,
        Part(oval(middle, wide, tall), skin),
        Part(hair, _shade(rng.uniform(), 0.5, rng.uniform(0.2, 0.9))),
        *front,
        Part(oval(joints[0], 0.014, 0.02), (200, 60, 50), (0,)),
        Part(oval(middle + 0.6 * wide * math.sin(yaw) * across - 0.06 * up, 0.025, 0.007), (120, 30, 30)),
    ]


def _along(angle: float) -> np.ndarray:
    """The direction at an angle in radians from straight down, towards the right of the picture."""
    return np.array([math.sin(angle), math.cos(angle)])


def _limb(start: np.ndarray, end: np.ndarray, first: float, last: float) -> shapes.Points:
    """A limb from `start` to `end` with round ends; first, last: half its width there."""
    ahead = (end - start) / math.hypot(*(end - start))
    turned = _CAP @ np.array([ahead, [-ahead[1], ahead[0]]])
    return np.concatenate([end + last * turned, start - first * turned])


def _shade(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)
