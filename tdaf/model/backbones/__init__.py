"""Backbones cut into stages: one function a family, each giving a `Staged`. None of them downloads anything."""
