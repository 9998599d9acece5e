"""Figures made of polygons, and an articulated one seen from the front with COCO's 17 key points: its left side, at the
right in the picture, is warm in colour, its right side cool."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tdaf.demo import scene
from tdaf.demo.scene import Box, Colour, Points, Rng

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
_CIRCLE = scene.polar(np.ones(16))
_RIGHT_HALF = scene.polar(np.ones(6), sweep=1.2 * math.pi)

Joints = dict[str, np.ndarray]  # (x, y) by name


@dataclass(frozen=True)
class Part:
    """A polygon of one colour. joints: those that are seen where it is in front."""

    points: Points
    colour: Colour = (0, 0, 0)
    joints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """What is annotated as one object: a person of many parts, or a shape of one.

    parts: from back to front. joints: (17, 2) float64 as in JOINTS, None for a shape."""

    name: str
    parts: list[Part]
    joints: np.ndarray | None = None

    def moved(self, degrees: float, scale: float, shift: np.ndarray) -> Figure:
        """Turned clockwise about the origin, then scaled, then moved."""
        matrix = scene.rotation(math.radians(degrees), scale)
        parts = [Part(part.points @ matrix + shift, part.colour, part.joints) for part in self.parts]
        return Figure(self.name, parts, None if self.joints is None else self.joints @ matrix + shift)

    def box(self) -> Box:
        return scene.box(np.concatenate([part.points for part in self.parts]))


def random_person(rng: Rng) -> Figure:
    """A person that stands, walks or waves, about one unit tall, the middle of the hips at the origin."""
    joints: Joints = {}
    yaw = rng.uniform(-0.7, 0.7)
    skin = _shade(rng.uniform(0.04, 0.1), rng.uniform(0.25, 0.5), rng.uniform(0.7, 0.95))
    shirt = _shade(rng.uniform(), rng.uniform(0.1, 0.5), rng.uniform(0.6, 1))
    lean = _along(rng.normal(0, 0.1)) * [1, -1]
    side = np.array([-lean[1], lean[0]])  # to the figure's left
    neck = 0.3 * lean
    behind, front, legs = [], [], []
    for name, sign in SIDES.items():
        hues = rng.uniform(-0.03, 0.07, size=2) + [0.0, 0.07] if sign > 0 else rng.uniform(0.5, 0.56, size=2) + [0.1, 0]
        colours = _shade(hues[0], 0.8, rng.uniform(0.75, 0.95)), _shade(hues[1], 0.7, rng.uniform(0.9, 1)), skin
        joints[f"{name}_shoulder"] = neck + sign * 0.115 * math.cos(yaw) * side
        joints[f"{name}_hip"] = np.array([sign * 0.068 * math.cos(yaw), 0.0])
        arm = _arm(rng, name, colours, joints)
        (behind if rng.random() < 0.2 else front).extend(arm)
        legs += _leg(rng, name, colours, joints)
    torso = _torso(joints, side, shirt)
    head = _head(rng, neck, yaw, skin, joints)
    parts = [*behind, *legs, Part(_limb(neck, 1.2 * neck, 0.03, 0.03), skin), torso, *head, *front]
    return Figure("person", parts, np.array([joints[name] for name in JOINTS]))


def _arm(rng: Rng, side: str, colours: tuple[Colour, ...], joints: Joints) -> list[Part]:
    """Hand, upper arm and forearm; outwards is positive, straight down is nought."""
    names, sign = [f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist")], SIDES[side]
    lift = rng.uniform(-0.1, 1.7) if rng.random() < 0.75 else rng.uniform(1.7, 2.7)
    bend = lift + rng.uniform(-1.8, 0.7)
    shoulder = joints[names[0]]
    elbow = joints[names[1]] = shoulder + rng.uniform(0.13, 0.165) * _along(sign * lift)
    wrist = joints[names[2]] = elbow + rng.uniform(0.12, 0.15) * _along(sign * bend)
    hand = wrist + 0.035 * _along(sign * bend)
    return [
        Part(_limb(wrist, hand, 0.024, 0.03), colours[2], (names[2],)),
        Part(_limb(shoulder, elbow, 0.044, 0.034), colours[0], (names[0], names[1])),
        Part(_limb(elbow, wrist, 0.033, 0.026), colours[1], (names[1], names[2])),
    ]


def _leg(rng: Rng, side: str, colours: tuple[Colour, ...], joints: Joints) -> list[Part]:
    """Foot, shin and thigh; angles as those of the arm."""
    names, sign = [f"{side}_{joint}" for joint in ("hip", "knee", "ankle")], SIDES[side]
    spread = rng.uniform(-0.06, 0.5) if rng.random() < 0.85 else rng.uniform(0.5, 1.1)
    bend = spread + rng.uniform(-0.8, 0.15)
    hip = joints[names[0]]
    knee = joints[names[1]] = hip + rng.uniform(0.18, 0.22) * _along(sign * spread)
    ankle = joints[names[2]] = knee + rng.uniform(0.17, 0.2) * _along(sign * bend)
    toe = ankle + [sign * 0.05, 0.03]
    red, green, blue = (int(0.5 * value) for value in colours[0])
    return [
        Part(_limb(ankle, toe, 0.03, 0.024), (red, green, blue), (names[2],)),
        Part(_limb(knee, ankle, 0.043, 0.03), colours[1], (names[1], names[2])),
        Part(_limb(hip, knee, 0.058, 0.045), colours[0], (names[0], names[1])),
    ]


def _torso(joints: Joints, side: np.ndarray, shirt: Colour) -> Part:
    names = "left_shoulder", "right_shoulder", "right_hip", "left_hip"
    left, right, right_hip, left_hip = (joints[name] for name in names)
    out, up = 0.025 * side, np.array([side[1], -side[0]]) * 0.035
    waist = 0.75 * (left_hip + right_hip) / 2 + 0.25 * (left + right) / 2
    half = 0.92 * (left_hip - right_hip) / 2 + out
    corners = [left + up, left + out, waist + half, left_hip + out - up, right_hip - out - up, waist - half]
    return Part(np.array([*corners, right - out, right + up]), shirt, names)


def _head(rng: Rng, neck: np.ndarray, yaw: float, skin: Colour, joints: Joints) -> list[Part]:
    """The head turned by `yaw` (positive: to the right in the picture) about its own axis, with all that is on it."""
    tilt = rng.normal(0, 0.15)
    across, up = np.array([math.cos(tilt), math.sin(tilt)]), np.array([math.sin(tilt), -math.cos(tilt)])
    wide, tall = 0.08, 0.1
    middle = neck + 0.145 * up

    def oval(centre: np.ndarray, x: float, y: float) -> Points:
        return centre + _CIRCLE[:, :1] * x * across + _CIRCLE[:, 1:] * -y * up

    nose = joints["nose"] = middle + 1.05 * wide * math.sin(yaw) * across - 0.015 * up
    behind, front = [], []
    for name, sign in SIDES.items():
        eye = joints[f"{name}_eye"] = middle + wide * math.sin(yaw + 0.42 * sign) * across + 0.025 * up
        ear = joints[f"{name}_ear"] = middle + 1.1 * wide * sign * math.cos(yaw) * across
        lobe = Part(oval(ear, 0.022, 0.03), _shade({"left": 0.02, "right": 0.55}[name], 0.6, 0.9), (f"{name}_ear",))
        # An ear on the side that the head turns to is beyond it.
        (behind if sign * yaw > 0 else front).append(lobe)
        front.append(Part(oval(eye, 0.021, 0.017), (255, 255, 255), (f"{name}_eye",)))
        front.append(Part(oval(eye, 0.011, 0.014), (20, 20, 60), (f"{name}_eye",)))
    hair = oval(middle, 1.06 * wide, 1.08 * tall)[[13, 14, 15, 0, 1, 2, 3]]
    mouth = oval(middle + 0.6 * wide * math.sin(yaw) * across - 0.06 * up, 0.025, 0.007)
    return [
        *behind,
        Part(oval(middle, wide, tall), skin),
        Part(hair, _shade(rng.uniform(), 0.5, rng.uniform(0.2, 0.9))),
        *front,
        Part(oval(nose, 0.014, 0.02), (200, 60, 50), ("nose",)),
        Part(mouth, (120, 30, 30)),
    ]


def _along(angle: float) -> np.ndarray:
    """The direction at an angle in radians from straight down, towards the right of the picture."""
    return np.array([math.sin(angle), math.cos(angle)])


def _limb(start: np.ndarray, end: np.ndarray, first: float, last: float) -> Points:
    """A limb from `start` to `end` with round ends; first, last: half its width there."""
    ahead = (end - start) / math.hypot(*(end - start))
    cap = _RIGHT_HALF @ np.array([ahead, [-ahead[1], ahead[0]]])
    return np.concatenate([end + last * cap, start - first * cap])


def _shade(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = scene.shade(hue, saturation, value).astype(int).tolist()
    return red, green, blue
