"""Whether this version of transformers decodes through the memory: tried once per kind of backbone."""

from typing import TYPE_CHECKING

import torch
import transformers

from hiermem.cache import CACHE_NAME, BackboneCache
from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.working import WorkingMemory

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

PROMPT = (1, 2, 3)
TOLERANCE = 0.1
"""Of the difference in logits, as a share of their deviation; rounding to bf16 stays far below."""

_checked: set[type] = set()


def check_decoding(model: "HierMemModel") -> None:
    """Decode two tokens through `generate` and compare their logits with those of one pass over them all.

    A version of transformers that hands on the cache by a name that is not known here would let every token
    begin an empty memory, with answers that look like answers.

    Raises:
        BackboneUnsupportedError: the logits differ, or tokens did not reach the memory.
    """
    kind = type(model.backbone)
    if kind in _checked:
        return
    memory = model.adapter.whole_memory()
    try:
        error = _error(model, memory)
    except (AttributeError, TypeError, ValueError) as cause:
        raise _unsupported(kind) from cause
    if (
        memory.num_tokens != (len(PROMPT) + 1,) or error > TOLERANCE
    ):  # what is not finite is named once it is read
        raise _unsupported(kind)
    _checked.add(kind)


def _error(model: "HierMemModel", memory: WorkingMemory) -> float:
    """How far logits that are decoded over ``memory`` are from those of one pass."""
    with model._inference():
        ids = torch.tensor([PROMPT], device=model.device) % model.vocab_size
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **{CACHE_NAME: BackboneCache(memory)},
            max_new_tokens=2,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        read, once = output.sequences[:, :-1], model.adapter.whole_memory()
        known = model.adapter.read_chunk(once, read, [read.shape[1]], logits=2)[0].float()
    decoded = torch.cat(output.logits).float().to(known.device)
    spread = (known - known.mean(dim=-1, keepdim=True)).norm()
    return float((decoded - known).norm() / spread.clamp_min(1e-3))  # a head of zeros has none


def _unsupported(kind: type) -> BackboneUnsupportedError:
    return BackboneUnsupportedError(
        f"{kind.__name__} does not decode through the memory under transformers {transformers.__version__}: "
        f"install a version that hiermem declares."
    )
