"""Whether this version of transformers decodes through the memory: tried once per kind of backbone."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from hiermem.cache import CACHE_NAME, BackboneCache
from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.working import WorkingMemory
from hiermem.reader import Reader

PROMPT = (1, 2, 3)
TOLERANCE = 0.1
"""Of the difference in logits, as a share of their deviation; rounding to bf16 stays far below."""

_checked: set[type] = set()


def check_decoding(reader: Reader, generate: Callable[..., Any]) -> None:
    """Decode two tokens through ``generate`` and compare their logits with those of one pass over them all.

    A version of transformers that passes the cache by a name that is not known here would let every token
    begin an empty memory, with answers that look like answers.

    Args:
        generate: transformers' own, of the model that ``reader`` belongs to.

    Raises:
        BackboneUnsupportedError: the logits differ, or tokens did not reach the memory.
    """
    kind = type(reader.adapter.model)
    if kind in _checked:
        return
    memory = reader.adapter.whole_memory()
    try:
        error = _error(reader, generate, memory)
    except (AttributeError, TypeError, ValueError) as cause:
        raise _unsupported(kind) from cause
    # An error that is not finite passes: it is named once a document is read.
    if memory.num_tokens != (len(PROMPT) + 1,) or error > TOLERANCE:
        raise _unsupported(kind)
    _checked.add(kind)


@torch.inference_mode()
def _error(reader: Reader, generate: Callable[..., Any], memory: WorkingMemory) -> float:
    """Distance of logits that are decoded over ``memory`` from those of one pass."""
    ids = torch.tensor([PROMPT], device=reader.device) % reader.num_embeddings
    output = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **{CACHE_NAME: BackboneCache(memory)},
        max_new_tokens=2,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = reader.logits(reader.adapter.whole_memory(), output.sequences[:, :-1], 2)[0]
    decoded = torch.cat(output.logits).float().to(expected.device)
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm()
    return float((decoded - expected).norm() / spread.clamp_min(1e-3))  # a head of zeros has none


def _unsupported(kind: type) -> BackboneUnsupportedError:
    return BackboneUnsupportedError(
        f"{kind.__name__} does not decode through the memory under transformers {transformers.__version__}: "
        f"install a version that hiermem declares."
    )
