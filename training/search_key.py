"""Training of the search key: for a query, the right one of all texts should score best.

A score adds the cosine of the trained key to the lexical score. The texts' memory embeddings are computed
once, since nothing that makes them is trained here. Both projections of the search are fitted to them and to
summaries of questions in closed form. Gradients train how questions are summarised.

Dimension names: B queries, n texts, m memory embeddings of a text, d backbone width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.errors import InputError
from hiermem.memory.hmt.fit import fit_search
from hiermem.model import HierMemModel
from hiermem.training.objective import Losses, TrainingObjective
from hiermem.training.retrieval_pairs import Queries, RetrievalPairs

SHARPNESS = 0.2
"""Factor of the scores before the softmax. A lexical score is a sum of idf, so the right text is often 10 or
more ahead; with flatter scores, queries whose words already decide still give gradients."""

WEIGHT = 20.0
"""Factor of the cosine beside the lexical score, chosen by cross-validation on the training half."""


class RecallObjective(TrainingObjective):
    """A model and the contrast of each query's text with all others, as one module.

    Attributes:
        store: memory embeddings of all texts, ``[n, m, d]``.
    """

    store: Tensor

    def __init__(self, model: HierMemModel, pairs: RetrievalPairs) -> None:
        super().__init__(model)
        if model.summary is None or not model.config.summary.search:
            raise InputError("There is no search key to train: set summary.search.")
        self.register_buffer("store", _read(model.embed, pairs.texts), persistent=False)
        trained = self.store[: len(pairs.questions)]  # without what is held out
        fit_search(model.summary, trained, _read(model.summarise, pairs.questions), WEIGHT)

    def forward(self, batch: Queries) -> Losses:
        """Cross-entropy of the right texts in nats; `Losses.nll` is ``[B, 1]``, of each query."""
        model, summary = self.model, self.model.summary
        assert summary is not None
        # Only the summary of the query has gradients: the texts' embeddings are constants.
        summaries = model.adapter.summary(summary, summary.summary_prompt, batch.ids, batch.valid)
        trained = summary.search_queries(summaries) @ summary.search_keys(self.store).T
        scores = SHARPNESS * (batch.lexical + trained)
        nll = F.cross_entropy(scores, batch.targets, reduction="none")
        return Losses(nll.mean(), nll.mean().detach(), nll.detach().unsqueeze(1), torch.zeros_like(nll[0]))


@torch.no_grad()
def _read(summarise: Callable[[str], Tensor], texts: list[str]) -> Tensor:
    """Memory embeddings, or summaries, of all texts, ``[n, m, d]``."""
    from tqdm.auto import tqdm

    return torch.stack([summarise(text) for text in tqdm(texts, desc="reading texts", disable=None)])
