"""The evidence of a question and nothing else: the ceiling of every comparison."""

from typing import ClassVar

from hiermem.eval.methods.base import register_method
from hiermem.eval.methods.in_context import Full


@register_method
class Right(Full):
    """Full attention over the evidence alone, as whose text it is read: what perfect recall would give."""

    name: ClassVar[str] = "right"
    needs_evidence = True
