"""HMT's memory parameters and equations (Hierarchical Memory Transformer, arXiv 2405.06067).

A segment leaves m memory embeddings behind: the backbone's final states at the m positions of the memory
prompt that ends it. The next segment's memory prompt is what its query recalls of all that were left.

Dimension names: B batch, m memory embeddings of a segment, n segments, k sensory tokens, d backbone width,
h width of the recall attention.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiermem.errors import InputError
from hiermem.memory.digest import digest
from hiermem.memory.modules import AtLeastFloat32, Projection
from hiermem.settings import check_settings

QUERIES = ("half", "previous")
RIDGE = 1.0
"""Of the projections that keys are fitted with, as a share of the mean variance (docs/lab-notes.md)."""

CONTENT_RIDGE = 0.1
"""Of the projection that what is recalled begins with (docs/lab-notes.md)."""

SHARPNESS = 20.0
"""Of a neutral memory's recall: what cosines are multiplied by before the softmax (docs/lab-notes.md)."""


@dataclass
class SummaryConfig:
    """Settings of the memory embeddings.

    Attributes:
        tokens: m, the memory embeddings of a segment (published: 1); 0 switches them off, and all below.
        sensory: k, tokens of the previous segment that are read again before a segment (published: 32).
        width: h, of the recall attention.
        last: N, how many segments the recall attends to, the newest ones (published: 300).
        query: what recalls: `half`, the summary of the segment's first half, read beforehand (as published):
            a segment that begins with less is read again with what comes, until it has its half, so that
            pieces and decoding are exact, and likelihoods in that half are of tokens it has recalled by;
            `previous`, the memory embeddings of the segment before, which costs no second reading; where the
            memory is neutral, as keys among keys.
        neutral: whether the prompt is the learned first one plus a learned projection of what is recalled,
            which starts at 0, so that an untrained memory changes nothing from segment to segment. A segment
            is then recalled by one key of length 1, of the last of its memory embeddings, and is h numbers
            of it. As published, the prompt is the recalled memory embeddings themselves.
        words: what the two prompts begin as, in the backbone's embeddings: their last m tokens; what is
            missing in front, and all where there are no words (as published), is noise.
        search: width of the trained part of search keys; 0: keys are lexical alone.
    """

    tokens: int = 0
    sensory: int = 0
    width: int = 512
    last: int = 300
    query: str = "previous"
    neutral: bool = True
    words: str = "\nKeywords:"
    search: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if min(self.tokens, self.sensory, self.search) < 0 or min(self.width, self.last) < 1:
            raise InputError(
                "tokens, sensory and search of the summaries must not be negative, width and last at least 1."
            )
        if self.search and not self.tokens:
            raise InputError("The trained part of a search key is made of memory embeddings: raise tokens.")
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
    of a neutral memory W_c, what is recalled, and W_v, what that adds to P_0.

    Args:
        width: d, of the backbone's embeddings and states.

    Attributes:
        summary_prompt: T: read before and after a text, it ends in the text's summary.
        first_prompt: P_0: the memory prompt of a document's first segment.
    """

    def __init__(self, config: SummaryConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.summary_prompt = SoftPrompt(config.tokens, width)
        self.first_prompt = SoftPrompt(config.tokens, width)
        self.query = Projection(width, config.width, bias=config.neutral)
        self.key = Projection(width, config.width, bias=config.neutral)
        self.content = Projection(width, config.width) if config.neutral else None
        self.value = Projection(config.width, config.tokens * width, bias=False) if config.neutral else None
        if config.search:
            self.search_query = Projection(width, config.search)
            self.search_key = Projection(width, config.search)
            self.search_weight = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start(self, embeddings: Tensor, words: Tensor) -> None:
        """Initialise for a backbone with the token ``embeddings [V, d]``, reproducibly.

        T and P_0 are the embeddings of ``words [w] int64``, and noise with the embeddings' deviation before
        them; the projection of what is recalled starts at 0 where there is one, and so does the search.
        """
        draw = torch.Generator().manual_seed(0)
        deviation, width = float(embeddings.float().std()), embeddings.shape[1]
        prompts = (self.summary_prompt, self.first_prompt)
        projections = (self.query, self.key, *(() if self.content is None else (self.content,)))
        for weight, scale in [
            *((prompt.weight, deviation) for prompt in prompts),
            *((projection.weight, width**-0.5) for projection in projections),
        ]:
            weight.copy_(torch.randn(weight.shape, generator=draw) * scale)
        for projection in projections:
            if projection.bias is not None:
                projection.bias.zero_()
        words = words[-self.config.tokens :]
        for prompt in prompts:
            prompt.weight[len(prompt.weight) - len(words) :] = embeddings[words]
        if self.value is not None:
            self.value.weight.zero_()
        if self.config.search:
            for projection in (self.search_query, self.search_key):
                projection.weight.zero_()
                projection.bias.zero_()
            self.search_weight.zero_()

    @torch.no_grad()
    def fit_search(self, embeddings: Tensor, summaries: Tensor, weight: float) -> None:
        """Set the trained part of the search in closed form (`_whiten`).

        Args:
            embeddings: of texts, ``[n, m, d]``.
            summaries: of questions, ``[q, m, d]``.
            weight: of the cosine of the two projections beside the lexical score.
        """
        _whiten([(self.search_key, embeddings[:, -1]), (self.search_query, summaries[:, -1])], ridge=0.0)
        self.search_weight.fill_(weight)

    @torch.no_grad()
    def fit_recall(self, embeddings: Tensor, summaries: Tensor | None) -> None:
        """Set what a neutral memory recalls by in closed form (`_tell_apart`), and what it recalls
        (`_whiten`), unless that adds something to P_0 already.

        Args:
            embeddings: that the segments of pieces of books leave, ``[p, n, m, d]`` of p pieces.
            summaries: what recalls for the segments, as many; None where memory embeddings do.
        """
        sides = [(self.key, embeddings[:, :, -1])]
        sides += [] if summaries is None else [(self.query, summaries[:, :, -1])]
        _tell_apart(sides, RIDGE)
        if self.content is not None and self.value is not None and not self.value.weight.any():
            _whiten([(self.content, embeddings[:, :, -1].flatten(0, 1))], CONTENT_RIDGE)

    @property
    def search_width(self) -> int:
        """Numbers of the trained part of a search key."""
        return self.config.search

    def search_keys(self, embeddings: Tensor) -> Tensor:
        """The trained part of search keys, ``[n, search]`` float32, from embeddings ``[n, m, d]``."""
        states = embeddings[:, -1].to(self.search_key.weight)
        return F.normalize(self.search_key(states).float(), dim=-1)

    def search_queries(self, summaries: Tensor) -> Tensor:
        """What is multiplied with them, ``[B, search]`` float32, from questions' summaries ``[B, m, d]``."""
        states = summaries[:, -1].to(self.search_query.weight)
        return self.search_weight * F.normalize(self.search_query(states).float(), dim=-1)

    @property
    def digest(self) -> str:
        """A short hash of settings and parameters."""
        return digest(repr(self.config), self.state_dict())

    def forward(self, query: Tensor, past: Tensor, there: Tensor) -> Tensor:
        """The memory prompt P_n, ``[B, m, d]``; P_0 where M is empty.

        As published (section 3.2) it is softmax(Q Kᵀ / √h) M; neutral, P_0 + W_v softmax(κ q̂ K̂ᵀ) W_c M / √h,
        where q̂ and K̂ have length 1 and κ is `SHARPNESS`.

        Args:
            query: S_n, ``[B, m, d]``.
            past: M, ``[B, n * m, d]``.
            there: which of them are a row's own, ``[B, n * m]`` bool.
        """
        first = self.first_prompt(len(past))
        if past.shape[1] == 0:
            return first
        attention, values = self._attention(query, past, there)
        recalled = attention @ values
        if self.value is None:
            prompt = recalled
        else:
            added = self.value(recalled / math.sqrt(self.config.width))
            prompt = first + added.unflatten(2, (self.config.tokens, -1)).squeeze(1)
        return torch.where(there.any(dim=1).view(-1, 1, 1), prompt, first)

    def weights(self, query: Tensor, past: Tensor, there: Tensor) -> Tensor:
        """How much each past segment is recalled, ``[B, n]``; the arguments are those of `forward`."""
        attention = self._attention(query, past, there)[0].mean(dim=1)
        return (
            attention if self.value is not None else attention.unflatten(1, (-1, self.config.tokens)).sum(2)
        )

    def _attention(self, query: Tensor, past: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Attention ``[B, q, k]`` and what it weighs ``[B, k, …]``: all memory embeddings as they are, or the
        content of each segment."""
        own, m = self.key.weight.dtype, self.config.tokens
        query, past = query.to(own), past.to(own)
        if self.value is not None:
            query, past, there = query[:, -1:], past[:, m - 1 :: m], there[:, m - 1 :: m]
        keys = self.key(past)
        before = self.value is not None and self.config.query == "previous"  # itself one of what it looks for
        asked = self.key(query) if before else self.query(query)
        if self.value is not None:
            asked, keys = F.normalize(asked, dim=-1), F.normalize(keys, dim=-1)
        scale = 1 / math.sqrt(self.config.width) if self.value is None else SHARPNESS
        logits = asked @ keys.transpose(1, 2) * scale
        logits = logits.masked_fill(~there.unsqueeze(1), torch.finfo(own).min)
        return logits.softmax(dim=-1), past if self.content is None else self.content(past)


def _whiten(sides: list[tuple[Projection, Tensor]], ridge: float) -> None:
    """Set projections so that they centre and whiten states, each its own ``[n, d]``.

    States of a language model share a large mean and a few large directions, which hide what tells texts
    apart. All projections are onto the principal directions of the states together, each scaled to variance
    1; directions that the samples do not span stay 0.

    Args:
        ridge: what each direction's variance is raised by before it is scaled to 1, as a share of the mean
            variance: directions with little of it then count less.
    """
    own = sides[0][0].weight
    samples = torch.cat([states.to(own) - states.to(own).mean(dim=0) for _, states in sides])
    _, scales, directions = torch.linalg.svd(samples / len(samples) ** 0.5, full_matrices=False)
    spanned = min(len(own), int((scales > 1e-4 * scales[0]).sum()))
    variances = scales.square() + ridge * scales.square().sum() / samples.shape[1]
    whitening = (directions / variances.sqrt().unsqueeze(1))[:spanned]
    for projection, states in sides:
        projection.weight.zero_()
        projection.weight[:spanned] = whitening
        projection.bias.copy_(-projection.weight @ states.to(own).mean(dim=0))


def _tell_apart(sides: list[tuple[Projection, Tensor]], ridge: float) -> None:
    """Set projections so that what varies within a piece of a book counts little, each for its own states
    ``[p, n, d]`` of p pieces.

    What differs from segment to segment of one piece, and from one kind of state to the other, is whitened
    away (linear discriminant analysis); of what is left the largest directions are kept.

    Args:
        ridge: what each direction's variance within pieces is raised by, as a share of the mean variance.
    """
    own = sides[0][0].weight
    means = [states.to(own).mean(dim=(0, 1)) for _, states in sides]
    samples = torch.cat([states.to(own) - mean for (_, states), mean in zip(sides, means, strict=True)], 1)
    within = (samples - samples.mean(dim=1, keepdim=True)).flatten(0, 1)
    variances, directions = torch.linalg.eigh(within.T @ within / len(within))
    variances = variances.clamp(min=0)
    damping = directions / (variances + ridge * variances.mean()).sqrt()  # [d, d], a direction a column
    _, _, largest = torch.linalg.svd(samples.flatten(0, 1) @ damping, full_matrices=False)
    kept = largest[: len(own)] @ damping.T
    for (projection, _), mean in zip(sides, means, strict=True):
        projection.weight.zero_()
        projection.weight[: len(kept)] = kept
        projection.bias.copy_(-projection.weight @ mean)
