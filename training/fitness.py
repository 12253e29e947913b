"""Fitness of candidates of an evolution: all share one reading of each text, and each prunes it its way."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.memory.policies import Namm, NammConfig, NammPolicy
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.training.cma_es import Vector
from hiermem.training.population import Candidate, kept_tokens, pruned_by_each
from hiermem.training.prompts import FitnessPrompt

ROWS = 32
"""Candidates that are read at once."""


@dataclass(frozen=True)
class Genome:
    """The encoding of head shares and a network's parameters as a vector.

    Attributes:
        shape: layers and KV heads of the backbone.
        namm: settings of the network.
        buffers: normalisation of the network, which does not evolve.
    """

    shape: tuple[int, int]
    namm: NammConfig
    buffers: dict[str, Tensor]

    def shares(self, vector: Vector) -> list[list[float]]:
        """Head shares with mean 1; the vector holds their logarithms, so that they stay positive."""
        layers, heads = self.shape
        shares = np.exp(np.clip(vector[: layers * heads], -20.0, 20.0)).reshape(self.shape)
        return (shares / shares.mean()).tolist()

    def network(self, vector: Vector) -> Namm:
        """The network with the rest of the vector as its parameters, in the order of `Namm.parameters`."""
        network = Namm(self.namm)
        network.load_state_dict(self.buffers, strict=False)
        rest = torch.from_numpy(vector[self.shape[0] * self.shape[1] :]).float()
        torch.nn.utils.vector_to_parameters(rest, network.parameters())
        return network

    def candidate(self, vector: Vector) -> Candidate:
        """The candidate that a vector stands for."""
        return Candidate(self.shares(vector), self.network(vector))

    def vector(self, shares: Sequence[Sequence[float]], network: Namm) -> Vector:
        """The inverse of `shares` and `network`; shares count at least a hundredth of the mean."""
        parameters = torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
        logs = np.log(np.maximum(np.array(shares), 0.01)).flatten()
        return np.concatenate((logs, parameters)).astype(np.float64)


class FitnessEvaluator:
    """Evaluates candidates on prompts; texts that were read are kept for later generations.

    Args:
        model: the backbone.
        genome: encoding of the candidates.
        room: how many texts are kept in memory.
    """

    def __init__(self, model: HierMemModel, genome: Genome, room: int = 48) -> None:
        self.model, self.genome, self.room = model, genome, room
        self._read: OrderedDict[str, tuple[WorkingMemory, float]] = OrderedDict()

    @torch.inference_mode()
    def scores(
        self, candidates: Sequence[Vector], prompts: Sequence[FitnessPrompt]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Relative likelihoods and kept shares, each ``[candidates, prompts]``."""
        decoded = [self.genome.candidate(vector) for vector in candidates]
        columns = [self._column(decoded, prompt) for prompt in prompts]
        likelihoods, kept = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
        return likelihoods, kept

    def _column(
        self, candidates: Sequence[Candidate], prompt: FitnessPrompt
    ) -> tuple[np.ndarray, np.ndarray]:
        """Relative likelihood of the answer after the text was pruned, and the share that was kept, of each
        candidate."""
        whole, reference = self._reading(prompt)
        config = replace(whole.config, budget=max(round(prompt.keep * len(prompt.text)), 1))
        likelihoods, kept = [], []
        for start in range(0, len(candidates), ROWS):
            memory = pruned_by_each(whole, candidates[start : start + ROWS], config)
            kept.append(kept_tokens(memory) / len(prompt.text))
            likelihoods += [relative_likelihood(nll, reference) for nll in self._nll(memory, prompt)]
        return np.array(likelihoods), np.concatenate(kept)

    def _reading(self, prompt: FitnessPrompt) -> tuple[WorkingMemory, float]:
        """A text in a cache that keeps all of it, and the answer's negative log-likelihood after it."""
        if prompt.key not in self._read:
            whole = read_whole(self.model, self.genome.namm, prompt)
            self._read[prompt.key] = whole, self._nll(whole.copy(), prompt)[0]
            while len(self._read) > self.room:
                self._read.popitem(last=False)
        self._read.move_to_end(prompt.key)
        return self._read[prompt.key]

    def _nll(self, memory: WorkingMemory, prompt: FitnessPrompt) -> list[float]:
        """Negative log-likelihood per scored token in nats of each row; the first token of the rest is not
        scored. The memory moves on."""
        scored = min(prompt.scored, len(prompt.rest) - 1)
        rest = torch.tensor(prompt.rest, device=self.model.device)
        ids = rest[:-1].expand(len(memory.num_tokens), -1)
        logits = self.model.reader.logits(memory, ids, scored)
        targets = rest[-scored:]
        return [float(F.cross_entropy(row, targets)) for row in logits]


def read_whole(model: HierMemModel, namm: NammConfig, prompt: FitnessPrompt) -> WorkingMemory:
    """A prompt's text in a cache that has kept all of it, with the spectrogram of every token."""
    interval = model.adapter.trained_range  # no decision falls within the text
    working = model.config.working.with_policy(NammPolicy.name)
    config = replace(working, update_interval=interval, head_shares=None)
    memory = model.adapter.new_memory(config, network=Namm(namm))
    model.read_ids(memory, torch.tensor([prompt.text], device=model.device))
    return memory


@torch.inference_mode()
def normalisation(
    model: HierMemModel, namm: NammConfig, prompts: Sequence[FitnessPrompt]
) -> dict[str, Tensor]:
    """Mean and deviation of the spectrogram's features over texts, all layers and heads pooled."""
    averages = torch.cat(
        [
            cache.state["average"].flatten(0, 2)
            for prompt in prompts
            for cache in read_whole(model, namm, prompt).caches
        ]
    )
    return {"mean": averages.mean(0), "deviation": averages.std(0)}


def relative_likelihood(nll: float, reference: float) -> float:
    """Likelihood of an answer per token, relative to the same backbone with its full cache: 1 is as likely.

    It is smooth and not below 0, and NaN where one of the two is.

    Args:
        nll: negative log-likelihood per token in nats.
        reference: the same with the full cache.
    """
    return math.exp(min(reference - nll, 50.0))
