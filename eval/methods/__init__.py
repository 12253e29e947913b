"""Methods that are compared: hiermem and what a user would otherwise pick, each a short file.

The order of these imports is that of the tables.
"""

# isort: off
from hiermem.eval.methods.base import (
    METHODS,
    Method,
    check_method,
    check_model_options,
    check_options,
    new_method,
    register_method,
)
from hiermem.eval.methods.hierarchy import HierMem, Indexed
from hiermem.eval.methods.in_context import Full, InContext, PrefilledContext, Streaming, Truncated
from hiermem.eval.methods.pruned import Compressed, Pruned
from hiermem.eval.methods.passages import Bm25
from hiermem.eval.methods.dense import Dense
from hiermem.eval.methods.hybrid import Hybrid
from hiermem.eval.methods.closed import Closed
from hiermem.eval.methods.right import Right
# isort: on

__all__ = [
    "METHODS",
    "Bm25",
    "Closed",
    "Compressed",
    "Dense",
    "Full",
    "HierMem",
    "Hybrid",
    "InContext",
    "Indexed",
    "Method",
    "PrefilledContext",
    "Pruned",
    "Right",
    "Streaming",
    "Truncated",
    "check_method",
    "check_model_options",
    "check_options",
    "new_method",
    "register_method",
]
