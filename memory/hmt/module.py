"""HMT's memory parameters and equations (Hierarchical Memory Transformer, arXiv 2405.06067).

A segment leaves m memory embeddings behind: the backbone's final states at the m positions of the memory
prompt that ends it. The next segment's memory prompt is what its query recalls of all that were left.

Dimension names: B batch, m memory embeddings of a segment, n segments, k sensory tokens, d backbone width,
h width of the recall attention.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiermem.errors import InputError
from hiermem.memory.digest import digest
from hiermem.memory.modules import AtLeastFloat32, Projection
from hiermem.settings import check_settings

QUERIES = ("half", "previous")
SHARPNESS = 20.0
"""Factor of cosines before the softmax, in the recall of a residual memory (docs/lab-notes/hmt.md)."""


FORMER_NAMES = {"neutral": "residual", "words": "init_text"}
"""Settings that files and digests hold by the names that they had first, with those that they have now."""


@dataclass
class SummaryConfig:
    """Settings of the memory embeddings.

    Attributes:
        tokens: m, the memory embeddings of a segment (published: 1); 0 switches them off, and all below.
            None: those of the saved model; a backbone has none.
        sensory: k, tokens of the previous segment that are read again before a segment (published: 32).
        width: h, of the recall attention.
        last: N, how many segments the recall attends to, the newest ones (published: 300). 1: only what the
            segment before has left, whatever `query` says. 0: nothing is recalled, every segment's prompt is
            the learned first one, and `width`, `query` and `residual` change nothing that is read.
        query: what a segment recalls by. `half`: the summary of its first half, which is read beforehand (as
            published). A segment of which less than half has come is read again when more comes, so that
            pieces and decoding give what one reading gives. The prompt of a segment has seen the tokens
            of that half, so their likelihoods are no predictions. `previous`: the memory embeddings of the
            segment before, which costs no second reading. In a residual memory the query is then that
            segment's own key.
        residual: whether the prompt is the learned first one plus a learned projection of what is recalled,
            which starts at 0, so that an untrained memory changes nothing from segment to segment. A segment
            is then recalled by one key of length 1, of the last of its memory embeddings, and is h numbers
            of it. As published, the prompt is the recalled memory embeddings themselves.
        init_text: text that the two prompts begin as, in the backbone's embeddings: its last m tokens; what
            is missing in front, and all where there is no text (as published), is noise.
        search: width of the trained part of search keys; 0: keys are lexical alone.
    """

    tokens: int | None = None
    sensory: int = 0
    width: int = 512
    last: int = 300
    query: str = "previous"
    residual: bool = True
    init_text: str = "\nKeywords:"
    search: int = 0

    def __new__(cls, *_: Any, **settings: Any) -> "SummaryConfig":
        for former in FORMER_NAMES.keys() & settings:
            raise InputError(f"The setting {former} of SummaryConfig is now {FORMER_NAMES[former]}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_settings(self)
        if min(self.tokens or 0, self.sensory, self.last, self.search) < 0 or self.width < 1:
            raise InputError(
                "tokens, sensory, last and search of the summaries must not be negative, width at least 1."
            )
        if self.search and not self.tokens:
            raise InputError("The trained part of a search key is made of memory embeddings: raise tokens.")
        if self.tokens is None and any(f.default != getattr(self, f.name) for f in fields(self)):
            raise InputError(
                "Settings of memory embeddings change nothing without: give summary.tokens, too."
            )
        if self.query not in QUERIES:
            raise InputError(f"There is no query {self.query!r}: choose one of {', '.join(QUERIES)}.")


class SoftPrompt(nn.Module):
    """A few learned embeddings."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, batch: int) -> Tensor:
        """The embeddings for each row, ``[batch, tokens, width]``."""
        return self.weight.repeat(batch, 1, 1)


class HMTModule(AtLeastFloat32):
    """The trained parameters: summary prompt T, first memory prompt P_0, recall attention W_q and W_k, and
    of a residual memory W_c, what is recalled, and W_v, what that adds to P_0.

    Args:
        width: d, of the backbone's embeddings and states.

    Attributes:
        num_tokens: m, memory embeddings of a segment.
        summary_prompt: T: read before and after a text, it ends in the text's summary.
        first_prompt: P_0: the memory prompt of a document's first segment.
    """

    def __init__(self, config: SummaryConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = m = config.tokens or 0
        self.summary_prompt = SoftPrompt(m, width)
        self.first_prompt = SoftPrompt(m, width)
        self.query = Projection(width, config.width, bias=config.residual)
        self.key = Projection(width, config.width, bias=config.residual)
        self.content = Projection(width, config.width) if config.residual else None
        self.value = Projection(config.width, m * width, bias=False) if config.residual else None
        if config.search:
            self.search_query = Projection(width, config.search)
            self.search_key = Projection(width, config.search)
            self.search_weight = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start(self, embeddings: Tensor, init_ids: Tensor) -> None:
        """Initialise for a backbone with the token ``embeddings [V, d]``, reproducibly.

        T and P_0 are the embeddings of ``init_ids [w] int64``, and noise with the embeddings' deviation
        before them; the projection of what is recalled starts at 0 where there is one, and so does the
        search.
        """
        rng = torch.Generator().manual_seed(0)
        deviation, width = float(embeddings.float().std()), embeddings.shape[1]
        prompts = (self.summary_prompt, self.first_prompt)
        projections = (self.query, self.key, *(() if self.content is None else (self.content,)))
        for weight, scale in [
            *((prompt.weight, deviation) for prompt in prompts),
            *((projection.weight, width**-0.5) for projection in projections),
        ]:
            weight.copy_(torch.randn(weight.shape, generator=rng) * scale)
        for projection in projections:
            if projection.bias is not None:
                projection.bias.zero_()
        init_ids = init_ids[-self.num_tokens :]
        for prompt in prompts:
            prompt.weight[len(prompt.weight) - len(init_ids) :] = embeddings[init_ids]
        if self.value is not None:
            self.value.weight.zero_()
        if self.config.search:
            for projection in (self.search_query, self.search_key):
                projection.weight.zero_()
                projection.bias.zero_()
            self.search_weight.zero_()

    @property
    def embedding_shape(self) -> torch.Size | None:
        """Shape ``[m, d]`` of the memory embeddings of a segment; None: it leaves none, as they are neither
        recalled nor searched by."""
        return self.first_prompt.weight.shape if self.config.last or self.config.search else None

    @property
    def search_width(self) -> int:
        """Numbers of the trained part of a search key."""
        return self.config.search

    def search_keys(self, embeddings: Tensor) -> Tensor:
        """The trained part of search keys, ``[n, search]`` float32, from embeddings ``[n, m, d]``."""
        states = embeddings[:, -1].to(self.search_key.weight)
        return F.normalize(self.search_key(states).float(), dim=-1)

    def search_queries(self, summaries: Tensor) -> Tensor:
        """Queries for them, ``[B, search]`` float32, from questions' summaries ``[B, m, d]``."""
        states = summaries[:, -1].to(self.search_query.weight)
        return self.search_weight * F.normalize(self.search_query(states).float(), dim=-1)

    @property
    def digest(self) -> str:
        """A short hash of settings, by their first names, and parameters."""
        first = {now: former for former, now in FORMER_NAMES.items()}
        settings = [f"{first.get(name, name)}={value!r}" for name, value in vars(self.config).items()]
        return digest(f"SummaryConfig({', '.join(settings)})", self.state_dict())

    def forward(self, query: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        """The memory prompt P_n, ``[B, m, d]``; P_0 where M is empty.

        As published (section 3.2) it is softmax(Q Kᵀ / √h) M; residual, P_0 + W_v softmax(κ q̂ K̂ᵀ) W_c M / √h,
        where q̂ and K̂ have length 1 and κ is `SHARPNESS`.

        Args:
            query: S_n, ``[B, m, d]``.
            embeddings: M, ``[B, n * m, d]``.
            mask: which of them are a row's own, ``[B, n * m]`` bool.
        """
        first = self.first_prompt(len(embeddings))
        if embeddings.shape[1] == 0:
            return first
        attention, values = self._attention(query, embeddings, mask)
        recalled = attention @ values
        if self.value is None:
            prompt = recalled
        else:
            added = self.value(recalled / math.sqrt(self.config.width))
            prompt = first + added.unflatten(2, (self.num_tokens, -1)).squeeze(1)
        return torch.where(mask.any(dim=1).view(-1, 1, 1), prompt, first)

    def weights(self, query: Tensor, embeddings: Tensor, mask: Tensor) -> Tensor:
        """How much each earlier segment is recalled, ``[B, n]``; the arguments are those of `forward`."""
        attention = self._attention(query, embeddings, mask)[0].mean(dim=1)
        return attention if self.value is not None else attention.unflatten(1, (-1, self.num_tokens)).sum(2)

    def _attention(self, query: Tensor, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attention ``[B, q, k]`` and what it weighs ``[B, k, …]``: all memory embeddings as they are, or the
        content of each segment."""
        dtype, m = self.key.weight.dtype, self.num_tokens
        query, embeddings = query.to(dtype), embeddings.to(dtype)
        if self.value is not None:
            query, embeddings, mask = query[:, -1:], embeddings[:, m - 1 :: m], mask[:, m - 1 :: m]
        keys = self.key(embeddings)
        before = self.value is not None and self.config.query == "previous"  # itself one of what it looks for
        queries = self.key(query) if before else self.query(query)
        if self.value is not None:
            queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        scale = 1 / math.sqrt(self.config.width) if self.value is None else SHARPNESS
        logits = queries @ keys.transpose(1, 2) * scale
        logits = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(dtype).min)
        return logits.softmax(dim=-1), embeddings if self.content is None else self.content(embeddings)
