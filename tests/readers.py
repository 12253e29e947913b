"""Tiny readers for the tests: models of all families with a byte-level tokenizer, and texts to read."""

import copy
import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import pytest
import torch
from families import CONFIGS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hiermem.config import HierMemConfig
from hiermem.memory.cache.head_groups import HeadBudgets
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.longterm import LongTermConfig
from hiermem.memory.policies import AttentionPolicy, Namm, NammConfig, NammPolicy, register_policy
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.memory.state import MemoryState
from hiermem.memory.tensor_state import named as named_tensors
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.model import HierMemModel
from hiermem.retrieval.keys.lexical import LexicalKeyConfig

VOCABULARY = 320
SAMPLE = (
    "the captain of ship called Orion sailed north with barrels salt and a cat; nobody knew why. "
    "At dawn ice closed in, café naïve 東京 🚢 wind fell silent while men sang old songs about home"
)


@dataclass(frozen=True)
class KeenPolicy(AttentionPolicy):
    """The attention policy in proportion to the tiny models' range, so that heads keep different tokens."""

    near: int = 3
    name: ClassVar[str] = "keen"


def lively_namm(hop: int = 4, threshold: float | None = 0.0) -> Namm:
    """A random network with frames in proportion to the tiny models' range, so that heads differ."""
    network = Namm(NammConfig(SpectrogramConfig(width=8, hop=hop, decay=0.9), threshold=threshold))
    draw = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    return network


@dataclass(frozen=True)
class LivelyNamm(NammPolicy):
    """NAMM with random parameters: drops tokens below its threshold, heads keep different numbers."""

    network: Namm = field(default_factory=lively_namm)
    name: ClassVar[str] = "lively"


register_policy(KeenPolicy)
register_policy(LivelyNamm)


def text_of(words: int, seed: int = 0) -> str:
    """A reproducible text with punctuation, line breaks and characters of one to four bytes."""
    chosen = random.Random(seed).choices(SAMPLE.split(), k=words)
    return "".join(word + ("\n\n" if i % 23 == 22 else " ") for i, word in enumerate(chosen))


@lru_cache
def tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a few merges, optionally with a beginning-of-sequence token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([text_of(300)], trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def backbone(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A tiny random model whose vocabulary fits the tokenizer; the same one in every dtype."""
    config = copy.deepcopy(CONFIGS[family])
    config.vocab_size = VOCABULARY
    torch.manual_seed(seed)
    exact = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if dtype == torch.float32:
        return exact
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(exact.state_dict())
    return model.eval()


def settings(chunk: int = 16, segment: int = 48, top_k: int = 2, **working: Any) -> HierMemConfig:
    """A configuration in proportion to the tiny models' range of 64 positions."""
    defaults = {"policy": "keen", "budget": 24, "sinks": 2, "update_interval": 16}
    return HierMemConfig(
        chunk=chunk,
        segment=segment,
        working=WorkingMemoryConfig(**(defaults | working)),
        longterm=LongTermConfig(top_k=top_k, lexical=LexicalKeyConfig(dim=256)),
    )


def changed(config: HierMemConfig, **changes: Any) -> HierMemConfig:
    """The configuration with other top-level settings."""
    return HierMemConfig(**config.settings() | changes)


def reader(
    family: str = "llama",
    config: HierMemConfig | None = None,
    dtype: torch.dtype = torch.float32,
    bos: bool = False,
    seed: int = 0,
) -> HierMemModel:
    """A model that can read and be asked."""
    return scored(HierMemModel(config or settings(), backbone(family, dtype, seed), tokenizer(bos)).eval())


def scored(model: HierMemModel) -> HierMemModel:
    """The model with random weights for the policy `linear`, where that is its own."""
    if model.config.working.policy == "linear":
        draw = torch.Generator().manual_seed(2)
        model.scorer.take([torch.randn(weight.shape, generator=draw) for weight in model.scorer.weights])
    return model


def lively(model: HierMemModel, deviation: float = 0.5) -> HierMemModel:
    """The model with random memory parameters, so that the recurrence changes what follows."""
    draw = torch.Generator().manual_seed(3)
    assert model.summary is not None
    for parameter in model.summary.parameters():
        nn.init.normal_(parameter, std=deviation, generator=draw)
    return model


def over(model: PreTrainedModel, chunk: int = 16, **working: Any) -> HierMemModel:
    """The library around a model that only sees token ids."""
    return scored(HierMemModel(settings(chunk, chunk * 2, **working), model).eval())


def uneven(model: HierMemModel) -> HeadBudgets:
    """Shares by which every layer's first head keeps thrice as much as the second."""
    return tuple(
        tuple(3.0 if head % 2 == 0 else 1.0 for head in range(s.heads)) for s in model.adapter.geometries
    )


def ids_of(length: int, rows: int = 1, seed: int = 1) -> Tensor:
    """Random token ids ``[rows, length]`` without special tokens."""
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def says(model: HierMemModel, monkeypatch: pytest.MonkeyPatch, first: int, tokens: list[int]) -> list[int]:
    """Let the model say these tokens, and the last one for ever, once ``first`` tokens were read.

    Returns:
        the widths of all chunks that it reads from here; a list that grows.
    """
    read, widths = model.adapter.read_chunk, list[int]()

    def scripted(memory: WorkingMemory, ids: Tensor, *others: Any) -> Tensor:
        widths.append(ids.shape[1])
        logits = read(memory, ids, *others)
        (end,) = memory.num_tokens
        places = range(end - logits.shape[1] + 1 - first, end + 1 - first)
        said = [tokens[min(max(at, 0), len(tokens) - 1)] for at in places]
        return torch.nn.functional.one_hot(torch.tensor([said]), model.num_embeddings).float()

    monkeypatch.setattr(model.adapter, "read_chunk", scripted)
    return widths


def tokens_of(cache: LayerCache) -> dict[str, Tensor]:
    """All tensors of a cache that have a slot for each token, by name."""
    return {name: t for name, t in named_tensors(cache) if not name.startswith(("prefix", "queries"))}


def assert_same_working(one: WorkingMemory, other: WorkingMemory, atol: float = 1e-5) -> None:
    """Equal bookkeeping and, up to rounding, equal tensors; slots that are empty may differ."""
    assert one.bookkeeping() == other.bookkeeping()
    for ours, theirs in zip(one.caches, other.caches, strict=True):
        named, same = tokens_of(ours), tokens_of(theirs)
        assert named.keys() == same.keys()
        if not named:  # nothing was read
            continue
        assert torch.equal(named["positions"], same["positions"])
        real = named["positions"] >= 0
        for name in named:
            torch.testing.assert_close(named[name][real], same[name][real], atol=atol, rtol=1e-4)


def assert_same_memory(
    one: MemoryState, other: MemoryState, atol: float = 1e-5, keys_atol: float = 0.0
) -> None:
    """Equal records, search keys and working memory."""
    assert (one.tokens, one.segments, one.characters) == (other.tokens, other.segments, other.characters)
    assert one.text == other.text
    for ours, theirs in zip(one.records(), other.records(), strict=True):
        assert (ours.first_token, ours.start, ours.end, ours.text) == (
            theirs.first_token,
            theirs.start,
            theirs.end,
            theirs.text,
        )
        assert torch.equal(ours.ids, theirs.ids)
    torch.testing.assert_close(one.longterm.store.keys, other.longterm.store.keys, atol=keys_atol, rtol=0.0)
    assert one.indexed == other.indexed
    assert_same_working(one.moment.working, other.moment.working, atol)


def assert_rows_are_singles(model: HierMemModel) -> None:
    """A batch of rows of unlike lengths, padded on either side, reads as each row does alone, and on from
    there, out of step as they are (which segments that are read in part beforehand cannot be)."""
    more = model.config.summary.query != "half"
    lengths, ids = (70, 48, 33), ids_of(70, rows=3)
    mask = (torch.arange(70) < torch.tensor(lengths).unsqueeze(1)).long()
    near = {"atol": 5e-5, "rtol": 1e-3}
    with torch.no_grad():
        right, left = model(ids, attention_mask=mask), model(ids.flip(1), attention_mask=mask.flip(1))
        after = model(ids[:, :40], past_key_values=right.past_key_values).logits if more else None
        for row, length in enumerate(lengths):
            own = ids[row : row + 1]
            alone = model(own[:, :length])
            torch.testing.assert_close(right.logits[row, :length], alone.logits[0], **near)
            single = model(own.flip(1)[:, 70 - length :])
            torch.testing.assert_close(left.logits[row, 70 - length :], single.logits[0], **near)
            if after is not None:
                alone = model(own[:, :40], past_key_values=alone.past_key_values)
                torch.testing.assert_close(after[row], alone.logits[0], **near)
