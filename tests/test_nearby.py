"""What Mamba heads still look at: attention to the first and the last tokens, wherever the text is cut."""

from functools import partial
from typing import Any

import pytest
import torch
from readers import ids_of, lively, reader, settings
from torch import Tensor

from hiermem.backbone import _over_cache
from hiermem.config import HierMemConfig
from hiermem.memory.chunk import Chunk
from hiermem.memory.mamba import MambaConfig
from hiermem.memory.nearby import Near, look, view_of
from hiermem.memory.summary import SummaryConfig
from hiermem.model import HierMemModel

FIRST, LAST = 3, 7


def chunk_of(seen: int, tokens: int) -> Chunk:
    """The next tokens of one row."""
    positions = torch.arange(seen, seen + tokens)[None]
    return Chunk(positions, positions, (tokens,), (seen,), False)


def plain(query: Tensor, key: Tensor, value: Tensor, softcap: float | None, sliding: int | None) -> Tensor:
    """The same from one mask over all pairs."""
    T, repeats = query.shape[2], query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
    logits = query @ key.transpose(-1, -2) * 0.3
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    back = torch.arange(T).unsqueeze(1) - torch.arange(T)
    seen = (back >= 0) & ((back < LAST) | (torch.arange(T) < FIRST))
    seen = seen if sliding is None else seen & (back < sliding)
    return logits.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("cuts", [(40,), (1, 1, 1, 1, 30, 6), (2, 18, 20), (5,) * 8])
@pytest.mark.parametrize(("softcap", "sliding"), [(None, None), (2.0, None), (None, 5), (None, 12)])
def test_looking_in_blocks_is_attention_under_a_mask(
    cuts: tuple[int, ...], softcap: float | None, sliding: int | None
) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 40, 6), (1, 2, 40, 6), (1, 2, 40, 6)]
    ours, theirs = ([torch.randn(s, generator=draw).requires_grad_() for s in shapes] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    attend = partial(_over_cache, scaling=0.3, softcap=softcap, dropout=0.0)
    near, said, at = Near.nothing(torch.cat(ours[1:], -1), FIRST, LAST), [], 0
    for take in cuts:
        query, key, value = (tensor[:, :, at : at + take] for tensor in ours)
        view = view_of(chunk_of(at, take), FIRST, LAST, 0, None, sliding)
        output, near = look(query, key, value, view, near, attend)
        said.append(output)
        at += take
    expected = plain(*theirs, softcap, sliding)
    torch.testing.assert_close(torch.cat(said, 2), expected, atol=1e-5, rtol=1e-4)
    torch.cat(said, 2).square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)
    pairs = torch.cat(ours[1:], -1)
    torch.testing.assert_close(near.first, pairs[:, :, :FIRST])
    torch.testing.assert_close(near.last, pairs[:, :, -LAST:])


def looking(groups: list[list[int]], window: int, summary: SummaryConfig | None, **own: Any) -> HierMemConfig:
    """A tiny configuration whose replaced heads look at so many tokens, segments with prompts around them."""
    config = settings(**own).settings() | {"mamba": MambaConfig(groups=groups, window=window, sinks=2)}
    return HierMemConfig(**config | ({} if summary is None else {"summary": summary, "segment": 16}))


def silent(model: HierMemModel) -> HierMemModel:
    """The model with Mamba heads whose recurrences say nothing."""
    for layer in model.mamba.layers.values():
        layer.scale.data.fill_(-torch.inf)
        layer.skip.data.zero_()
    return lively(model) if model.config.summary.tokens else model


@pytest.mark.parametrize(
    ("family", "prompts"),
    [
        *[(name, False) for name in ("llama", "mistral", "gemma2", "gemma3", "phi3", "gpt-neox", "gpt2")],
        *[(name, True) for name in ("llama", "qwen3", "phi3", "gpt-neox", "opt", "gpt2")],
    ],
)
def test_heads_that_see_the_whole_text_are_the_heads_they_replace(family: str, prompts: bool) -> None:
    summary = SummaryConfig(tokens=3, sensory=2, width=8) if prompts else None
    own: dict[str, Any] = {"policy": "none", "positions": "absolute"}
    some = [[0, 1], [1, 0]]
    replaced = silent(reader(family, looking(some, 64, summary, **own)))
    attention = silent(reader(family, looking([], 64, summary, **own)))
    ids = ids_of(50, rows=3)
    mask = (torch.arange(50) < torch.tensor([50, 41, 16]).unsqueeze(1)).long()
    with torch.no_grad():
        ours, plain = (model(ids, attention_mask=mask).logits for model in (replaced, attention))
    real = mask.bool()
    torch.testing.assert_close(ours[real], plain[real], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("positions", ["distance", "compact", "absolute"])
def test_keys_move_with_the_frame_as_those_of_a_cache_do(positions: str) -> None:
    own: dict[str, Any] = {"policy": "window", "positions": positions}
    ids, width = ids_of(150 if positions != "absolute" else 60), 6
    with torch.no_grad():
        near = silent(reader(config=looking([[0, 1]], width, None, **own)))(ids).past_key_values.memory.fading
        cache = reader(config=looking([], width, None, **own))(ids).past_key_values.memory.caches[0]
    first, last = near.states[0].near.first[:, 0], near.states[0].near.last[:, 0]
    torch.testing.assert_close(last, torch.cat((cache.keys, cache.values), -1)[:, 1, -width:])
    torch.testing.assert_close(first[:, :, 8:], cache.values[:, 1, :2])
    held = {"distance": 1, "compact": 0, "absolute": 2}[positions]  # the others have moved in the cache
    torch.testing.assert_close(first[:, :held, :8], cache.keys[:, 1, :held])
