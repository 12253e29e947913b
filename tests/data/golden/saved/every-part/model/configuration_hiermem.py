"""Needs hiermem: pip install hiermem-torch."""

from hiermem.config import HierMemConfig

__all__ = ["HierMemConfig"]
