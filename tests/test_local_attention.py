"""Local attention of Mamba heads: to the first and the last tokens, wherever the text is cut."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from readers import ids_of, lively, reader, settings
from torch import Tensor

from hiermem.attention import SoftmaxAttention
from hiermem.config import HierMemConfig
from hiermem.memory.attention import QKV
from hiermem.memory.chunk import Chunk
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.local_attention import SinkWindowKV, local_attention, plan_local_attention
from hiermem.memory.mamba.module import MambaConfig
from hiermem.model import HierMemModel

FIRST, LAST = 3, 7


def chunk_of(seen: int, tokens: int) -> Chunk:
    """The next tokens of one row."""
    positions = torch.arange(seen, seen + tokens)[None]
    return Chunk(positions, positions, positions, (tokens,), (seen,), False)


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


@pytest.mark.parametrize("cuts", [(40,), (1, 1, 1, 1, 30, 5, 1), (2, 18, 20), (5,) * 8])
@pytest.mark.parametrize(("softcap", "sliding"), [(None, None), (2.0, None), (None, 5), (None, 12)])
def test_looking_in_blocks_is_attention_under_a_mask(
    cuts: tuple[int, ...], softcap: float | None, sliding: int | None
) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 40, 6), (1, 2, 40, 6), (1, 2, 40, 6)]
    ours, theirs = ([torch.randn(s, generator=draw).requires_grad_() for s in shapes] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    attention = SoftmaxAttention(0.3, softcap)
    near, outputs, at = SinkWindowKV.nothing(torch.cat(ours[1:], -1), FIRST, LAST), [], 0
    for take in cuts:
        query, key, value = (tensor[:, :, at : at + take] for tensor in ours)
        plan = plan_local_attention(chunk_of(at, take), FIRST, LAST, 0, sliding)
        output, near = local_attention(QKV(query, key, value), plan, near, attention)
        outputs.append(output)
        at += take
    expected = plain(*theirs, softcap, sliding)
    torch.testing.assert_close(torch.cat(outputs, 2), expected, atol=1e-5, rtol=1e-4)
    torch.cat(outputs, 2).square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)
    pairs = torch.cat(ours[1:], -1)
    torch.testing.assert_close(near.first, pairs[:, :, :FIRST])
    torch.testing.assert_close(near.last, pairs[:, :, 1 - LAST :])


@dataclass
class Document:
    """Tokens that one row has read: keys beside values of its tokens, and of the prompt that it may see."""

    tokens: list[Tensor] = field(default_factory=list)
    prompt: list[Tensor] = field(default_factory=list)


def attended(query: Tensor, pairs: list[Tensor]) -> Tensor:
    """Attention of one query, ``[H', D]``, to keys beside values ``[G', E]``."""
    repeats = query.shape[0] // pairs[0].shape[0]
    keys, values = torch.stack(pairs).repeat_interleave(repeats, 1).chunk(2, -1)
    return torch.einsum("hn,nhd->hd", (torch.einsum("hd,nhd->hn", query, keys) * 0.3).softmax(-1), values)


def visible(
    document: Document, at: int, place: int, own: list[Tensor], sinks: int, window: int, sliding: int
) -> list[Tensor]:
    """Tokens that a query at ``at`` sees: the prompt, first and last tokens, and those before it of what
    follows (``own``); a sliding window is measured from ``place``."""
    every, read = document.tokens + own, len(document.tokens)
    near = [i for i in range(at + 1) if at - i < window and (i >= read or place - i < sliding)]
    far = [i for i in range(min(sinks, read)) if at - i >= window and place - i < sliding]
    return document.prompt + [every[i] for i in far + near]


@pytest.mark.parametrize("seed", range(40))
def test_rows_at_different_places_see_what_they_should(seed: int) -> None:
    draw, G, R, D = random.Random(seed), 2, 2, 4
    generator = torch.Generator().manual_seed(seed)
    B, sinks, window = draw.choice([1, 3]), draw.choice([0, 1, 5]), draw.choice([1, 2, 4, 20])
    sliding, m = draw.choice([None, None, 3, 9]), draw.choice([0, 3])
    lead = m + draw.choice([0, 2]) * (m > 0)
    attention = SoftmaxAttention(0.3)
    documents, there = [Document() for _ in range(B)], None
    near = SinkWindowKV.nothing(torch.zeros(B, G, 1, 2 * D), sinks, window)
    for step in range(4):
        Q = draw.choice([1, 2, 5, 11])
        valid = [Q if step == 0 else draw.choice([Q, draw.randint(0, Q)]) for _ in range(B)]
        starting = [bool(m and n and (step == 0 or draw.random() < 0.3)) for n in valid]
        ending = [bool(m and n and draw.random() < 0.4) for n in valid]
        before, after = lead * any(starting), m * any(ending)
        query, key, value = (
            torch.randn(B, heads, before + Q + after, D, generator=generator) for heads in (G * R, G, G)
        )
        if before:
            new = torch.ones(B, lead, dtype=torch.bool)
            new[:, m:] = torch.rand(B, lead - m, generator=generator) < 0.5
            there = new if there is None else torch.where(torch.tensor(starting)[:, None], new, there)
        around: dict[str, Any] = {"prefix": before, "suffix": after, "prefix_mask": there}
        if before or after:
            around |= {"starting": tuple(starting), "ending": tuple(ending)}
        seen = tuple(len(document.tokens) for document in documents)
        columns = torch.zeros(B, Q, dtype=torch.int64)
        chunk = Chunk(columns, columns, columns, tuple(valid), seen, min(valid) < Q, **around)
        plan = plan_local_attention(chunk, sinks, window, before or near.prompt.shape[2], sliding)
        output, near = local_attention(QKV(query, key, value), plan, near, attention)
        for row, document in enumerate(documents):
            pairs = torch.cat((key, value), -1)[row].transpose(0, 1)  # [T, G', E]
            if starting[row]:
                document.prompt = [pairs[i] for i in range(lead) if there[row, i]]
            document.tokens += pairs[before : before + valid[row]]
            own = list(pairs[before + Q :]) if ending[row] else []
            count = len(document.tokens)
            asked = [(before + i, seen[row] + i) for i in range(valid[row])]
            asked += [(before + Q + i, count + i) for i in range(len(own))]
            for column, at in asked:
                found = visible(document, at, min(at, count), own, sinks, window, sliding or 10**6)
                torch.testing.assert_close(output[row, :, column], attended(query[row, :, column], found))
            if count >= max(sinks, window - 1) > 0:
                kept = document.tokens[:sinks] + document.tokens[count - window + 1 :]
                held = torch.cat((near.first[row], near.last[row]), 1).transpose(0, 1)
                torch.testing.assert_close(held, torch.stack(kept) if kept else held)


def test_states_do_not_hold_on_to_the_chunks_they_were_made_of() -> None:
    model = silent(reader(config=looking([[0, 1], [1, 0]], 6, SummaryConfig(tokens=3, width=8))))
    with torch.no_grad():
        states = model(ids_of(60)).past_key_values.memory.mamba.tensors()
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in states.values())


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
        *[(name, True) for name in ("llama", "mistral", "gemma2", "phi3", "gpt-neox", "opt", "gpt2")],
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
        near = silent(reader(config=looking([[0, 1]], width, None, **own)))(ids).past_key_values.memory.mamba
        cache = reader(config=looking([], width, None, **own))(ids).past_key_values.memory.caches[0]
    first, last = near.states[0].near.first[:, 0], near.states[0].near.last[:, 0]
    torch.testing.assert_close(last, torch.cat((cache.keys, cache.values), -1)[:, 1, 1 - width :])
    torch.testing.assert_close(first[:, :, 8:], cache.values[:, 1, :2])
    held = {"distance": 1, "compact": 0, "absolute": 2}[positions]  # the others have moved in the cache
    torch.testing.assert_close(first[:, :held, :8], cache.keys[:, 1, :held])
