"""Recall stores: search keys by inner product, exact in torch or through FAISS.

Dimension names: N stored keys, B queries, K recalled, D key width.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiermem.errors import InputError, NonFiniteError
from hiermem.retrieval.arena import TensorArena
from hiermem.settings import check_settings

INDEX_KINDS = ("flat", "hnsw", "ivf", "torch")

MOST_LINKS = 1024
"""Per node of a graph; each takes memory, whatever it is good for."""

MOST_LISTS = 1 << 20


@dataclass
class StoreConfig:
    """Settings of the recall store.

    Attributes:
        kind: `flat` is exact (FAISS), `hnsw` a graph and `ivf` inverted lists (FAISS, approximate, for
            more than about 100,000 segments), `torch` an exact search without FAISS.
        hnsw_links: links per node of the graph.
        ivf_lists: number of inverted lists; they are trained once there are ``40 * ivf_lists`` keys, and
            the search is exact until then.
        ivf_probes: inverted lists that one search looks into.
    """

    kind: str = "flat"
    hnsw_links: int = 32
    ivf_lists: int = 256
    ivf_probes: int = 16

    def __post_init__(self) -> None:
        check_settings(self)
        if self.kind not in INDEX_KINDS:
            raise InputError(f"Unknown index {self.kind!r}: choose one of {', '.join(INDEX_KINDS)}.")
        if not 2 <= self.hnsw_links <= MOST_LINKS:
            raise InputError(f"hnsw_links must be between 2 and {MOST_LINKS}, not {self.hnsw_links}.")
        if min(self.ivf_lists, self.ivf_probes) < 1 or max(self.ivf_lists, self.ivf_probes) > MOST_LISTS:
            raise InputError(f"ivf_lists and ivf_probes must be between 1 and {MOST_LISTS}.")


class RecallStore(ABC):
    """Keys in the order they were added; ids are their indices. Safe to use from several threads.

    The keys themselves are the truth and stay in `keys`; an index is derived from them.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._lock = threading.RLock()
        self._blocks: list[Tensor] = []
        self._slabs = TensorArena(torch.float32, (dim,))

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks)

    @property
    def keys(self) -> Tensor:
        """All keys, ``[N, D]`` float32."""
        with self._lock:
            if not self._blocks:
                return torch.zeros(0, self.dim)
            if len(self._blocks) > 1:
                self._blocks = [torch.cat(self._blocks)]
            return self._blocks[0]

    def add(self, keys: Tensor) -> None:
        """Add ``keys [n, D]`` float32.

        Raises:
            NonFiniteError: a key holds NaN or infinity; nothing is added.
        """
        if keys.ndim != 2 or keys.shape[1] != self.dim:
            raise InputError(f"Keys must have the shape [n, {self.dim}], not {list(keys.shape)}.")
        with self._lock:
            bad = ~keys.isfinite().all(dim=1)
            if bad.any():
                segment = len(self) + int(bad.nonzero()[0])
                raise NonFiniteError(f"the search key of segment {segment} is not finite: it was not stored")
            self._blocks = [*self._blocks, self._slabs.keep(keys.detach())]

    def copy(self) -> "RecallStore":
        """An independent store of the same keys; costs nothing."""
        return copy(self)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``min(k, N)`` best keys for each of ``queries [B, D]``.

        Returns:
            scores ``[B, K]`` float32, best first, and ids ``[B, K]`` int64.
        """
        with self._lock:
            k = min(k, len(self))
            if k < 1:
                return torch.zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
            return self._search(queries.detach().to("cpu", torch.float32), k)

    def scores(self, query: Tensor, ids: Sequence[int]) -> list[float]:
        """Inner products of ``query [D]`` with some of the keys."""
        return (self.keys[list(ids)] @ query).tolist()

    @abstractmethod
    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`search` for 1 <= k <= N."""


class TorchStore(RecallStore):
    """Exact search by one matrix product: the reference for the others."""

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, ids = (queries @ self.keys.T).topk(k, dim=1)
        return scores, ids


class FaissStore(RecallStore):
    """FAISS, exact or approximate. A search first takes in the keys that the index does not know yet.

    So keys and index cannot drift apart, wherever adding is interrupted.
    """

    def __init__(self, dim: int, config: StoreConfig) -> None:
        super().__init__(dim)
        try:
            import faiss  # here, so that the torch store works where FAISS is missing
        except ImportError as error:
            raise InputError(
                f"The index {config.kind!r} needs FAISS: install hiermem with the extra cpu or gpu, or "
                f"choose the index torch."
            ) from error

        self.config = config
        self._new_index: Callable[[], Any]
        if config.kind == "hnsw":
            self._new_index = partial(faiss.IndexHNSWFlat, dim, config.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        else:
            self._new_index = partial(faiss.IndexFlatIP, dim)
        self._start_index()

    def _start_index(self) -> None:
        self._faiss: Any = self._new_index()
        self._untrained = self.config.kind == "ivf"

    def copy(self) -> "FaissStore":
        """An independent store of the same keys; the index goes along, and is built anew here."""
        with self._lock:
            twin = cast(FaissStore, super().copy())
            self._start_index()
        return twin

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self._catch_up()
        scores, ids = self._faiss.search(np.ascontiguousarray(queries.numpy()), k)
        return torch.from_numpy(scores), torch.from_numpy(ids)

    def _catch_up(self) -> None:
        keys = np.ascontiguousarray(self.keys.numpy())
        if self._untrained and len(keys) >= 40 * self.config.ivf_lists:
            self._faiss, self._untrained = self._trained_ivf(keys), False
        elif self._faiss.ntotal < len(keys):
            self._faiss.add(keys[self._faiss.ntotal :])

    def _trained_ivf(self, keys: NDArray[np.float32]) -> Any:
        import faiss

        coarse = faiss.IndexFlatIP(self.dim)
        index = faiss.IndexIVFFlat(coarse, self.dim, self.config.ivf_lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = self.config.ivf_probes
        index.train(keys)
        index.add(keys)
        return index


def new_store(dim: int, config: StoreConfig) -> RecallStore:
    """An empty store of the configured kind for keys of ``dim`` numbers."""
    return TorchStore(dim) if config.kind == "torch" else FaissStore(dim, config)
