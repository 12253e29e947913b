"""Evaluation tasks: each one short file with its options, examples, prompt, metric and table.

The order of these imports is that of the commands and of the page of results.
"""

# isort: off
from hiermem.eval.tasks.base import TASKS, AnswerTask, Task, option, register
from hiermem.eval.tasks import pg19
from hiermem.eval.tasks import perplexity
from hiermem.eval.tasks import pubmedqa
from hiermem.eval.tasks import retrieval
from hiermem.eval.tasks import needles
from hiermem.eval.tasks import passkey
from hiermem.eval.tasks import babilong
from hiermem.eval.tasks import hashhop
from hiermem.eval.tasks import mqar
from hiermem.eval.tasks import ruler
from hiermem.eval.tasks import interleaved
from hiermem.eval.tasks import qa
from hiermem.eval.tasks import summary
# isort: on

__all__ = [
    "TASKS",
    "AnswerTask",
    "Task",
    "babilong",
    "hashhop",
    "interleaved",
    "mqar",
    "needles",
    "option",
    "passkey",
    "perplexity",
    "pg19",
    "pubmedqa",
    "qa",
    "register",
    "retrieval",
    "ruler",
    "summary",
]
