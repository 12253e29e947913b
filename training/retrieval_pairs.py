"""What recall is taught with: queries, and the one of many texts that each should find.

A pair is a function of seed and number alone, as samples are (`samples.py`).

Dimension names: B queries, Q tokens of a query, n texts.
"""

import random
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.longterm import LongTermConfig
from hiermem.retrieval.keys.lexical import LexicalKey
from hiermem.settings import check_settings
from hiermem.text import encode
from hiermem.training.samples import questions

KINDS = ("questions", "conclusions", "sentences")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class PairConfig:
    """What queries are made of; the texts are abstracts.

    Attributes:
        questions: share of the queries that are the abstract's question.
        conclusions: share that are its conclusion, a later mention of what it tells.
        sentences: share that are one of its own sentences (inverse cloze task: Lee et al., arXiv 1906.00300).
        dropped: share of the words of conclusions and sentences that are left out.
        tokens: Q, most tokens of a query.
        held_out: texts of which no query is trained on.
        seed: of all pairs.
    """

    questions: float = 0.5
    conclusions: float = 0.25
    sentences: float = 0.25
    dropped: float = 0.3
    tokens: int = 64
    held_out: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        shares = (self.questions, self.conclusions, self.sentences)
        if min(shares) < 0 or not any(shares) or not 0 <= self.dropped < 1:
            raise InputError(
                "Shares of queries must not be negative and not all 0, the share of words left out below 1."
            )
        if min(self.tokens, self.held_out) < 1:
            raise InputError("Queries need at least 1 token, and at least 1 text must be held out.")


@dataclass(frozen=True)
class Queries:
    """Queries as one rectangle.

    Attributes:
        names: of the queries.
        ids: ``[B, Q]`` int64.
        valid: tokens of each.
        lexical: what the untrained part of the search gives all texts, ``[B, n]`` float32.
        targets: the texts that should be found, ``[B]`` int64.
    """

    names: list[str]
    ids: Tensor
    valid: list[int]
    lexical: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Queries":
        """The same queries where the model computes."""
        ids, lexical, targets = (tensor.to(device) for tensor in (self.ids, self.lexical, self.targets))
        return replace(self, ids=ids, lexical=lexical, targets=targets)


class RetrievalPairs:
    """Queries by number, from the training half of PubMedQA.

    Args:
        data: folder that holds `pubmedqa` in its official layout.

    Attributes:
        texts: all n texts.
        questions: those of the texts that are not held out.
    """

    def __init__(
        self,
        tokenizer: Any,
        data: Path,
        config: PairConfig,
        longterm: LongTermConfig,
    ) -> None:
        self.tokenizer, self.config, self._asks_held_out = tokenizer, config, False
        self._items = questions(data, config.held_out)
        self.texts = [item.abstract for item in self._items]
        self.questions = [item.question for item in self._items[: -config.held_out]]
        self._lexical = LexicalKey(longterm.lexical)
        for text in self.texts:
            self._lexical.observe(text)
        self._keys = self._lexical.document_keys(self.texts)

    def of_held_out(self) -> "RetrievalPairs":
        """The same texts with the held-out texts' questions as queries, in place of the others'."""
        twin = copy(self)
        twin._asks_held_out = True
        return twin

    def batch(self, numbers: Sequence[int]) -> Queries:
        """Several queries as one rectangle, all as wide, so that all processes compute the same."""
        drawn = [self._query(number) for number in numbers]
        ids = torch.zeros(len(drawn), self.config.tokens, dtype=torch.int64)
        valid = []
        for row, (_, text) in enumerate(drawn):
            query = encode(self.tokenizer, text, begins=True)[: self.config.tokens]
            ids[row, : len(query)] = torch.tensor(query)
            valid.append(len(query))
        lexical = torch.stack([self._lexical.query_key(text) for _, text in drawn]) @ self._keys.T
        targets = [target for target, _ in drawn]
        names = [f"a query to {self._items[target].id}" for target in targets]
        return Queries(names, ids, valid, lexical, torch.tensor(targets))

    def _query(self, number: int) -> tuple[int, str]:
        """The text that query ``number`` should find, and the query."""
        known = len(self._items) - self.config.held_out
        if self._asks_held_out:
            target = known + number % self.config.held_out
            return target, self._items[target].question
        rng = random.Random(f"{self.config.seed}/{number}")
        target = rng.randrange(known)
        item, config = self._items[target], self.config
        kind = rng.choices(KINDS, (config.questions, config.conclusions, config.sentences))[0]
        if kind == "questions":
            return target, item.question
        text = item.long_answer
        if kind == "sentences":
            text = rng.choice([piece for piece in _SENTENCE.split(item.abstract) if piece.strip()])
        words = text.split()
        kept = [word for word in words if rng.random() >= config.dropped]
        return target, " ".join(kept or words)
