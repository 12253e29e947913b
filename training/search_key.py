"""Teaching the search key: the right one of all texts should score best, beside what words alone give it.

The texts' memory embeddings are computed once: of what makes them nothing is trained here. Both projections
of the search are fitted to them and to summaries of questions in closed form; what is trained by gradient is
how questions are summarised.

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
"""What scores are multiplied by before the softmax. A lexical score is a sum of idf, so that the right text
is often 10 or more ahead: flatter, and queries whose words already decide still teach something."""


WEIGHT = 20.0
"""Of the cosine beside the lexical score, chosen by cross-validation on the training half."""


class RecallObjective(TrainingObjective):
    """A model and the contrast of each query's text with all others, as one module.

    Attributes:
        store: memory embeddings of all texts, ``[n, m, d]``.
    """

    store: Tensor

    def __init__(self, model: HierMemModel, pairs: RetrievalPairs) -> None:
        super().__init__(model)
        if model.summary is None or not model.config.summary.search:
            raise InputError("There is no search key to teach: set summary.search.")
        self.register_buffer("store", _read(model.embed, pairs.texts), persistent=False)
        known = self.store[: len(pairs.questions)]  # without what is held out
        fit_search(model.summary, known, _read(model.summarise, pairs.questions), WEIGHT)

    def forward(self, batch: Queries) -> Losses:
        """Cross-entropy of the right texts in nats; `Losses.nll` is ``[B, 1]``, of each query."""
        model, summary = self.model, self.model.summary
        assert summary is not None
        asked = model.adapter.summary(summary, summary.summary_prompt, batch.ids, batch.valid)
        trained = summary.search_queries(asked) @ summary.search_keys(self.store).T
        scores = SHARPNESS * (batch.lexical + trained)
        nll = F.cross_entropy(scores, batch.targets, reduction="none")
        return Losses(nll.mean(), nll.mean().detach(), nll.detach().unsqueeze(1), torch.zeros_like(nll[0]))


@torch.no_grad()
def _read(summarise: Callable[[str], Tensor], texts: list[str]) -> Tensor:
    """What each text leaves, ``[n, m, d]``."""
    from tqdm.auto import tqdm

    return torch.stack([summarise(text) for text in tqdm(texts, desc="reading texts", disable=None)])
