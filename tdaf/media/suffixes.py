"""Which files are images and which videos, by the ends of their names; imports nothing that takes time."""

from __future__ import annotations

from pathlib import Path

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
VIDEOS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts",
    ".3gp", ".ogv",
)  # fmt: skip


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS
