"""TDAF: Top-Down Attention Framework for vision tasks (Pang et al., AAAI 2021)."""

__version__ = "0.1.0"
