"""Needs hiermem: pip install hiermem-torch."""

from hiermem.model import HierMemModel

__all__ = ["HierMemModel"]
