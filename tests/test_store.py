"""Recall stores: FAISS finds what an exact search finds, and keys never drift from their index."""

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiermem.errors import NonFiniteError
from hiermem.retrieval.arena import TensorArena
from hiermem.retrieval.store import INDEX_KINDS, FaissStore, RecallStore, StoreConfig, TorchStore, new_store


def clustered(count: int, dim: int, seed: int = 0) -> Tensor:
    """Random unit keys around 50 centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(50, dim, generator=torch.Generator().manual_seed(99))
    keys = centres[torch.randint(50, (count,), generator=generator)]
    keys = keys + 0.7 * torch.randn(count, dim, generator=generator)
    return torch.nn.functional.normalize(keys, dim=1)


def store_of(kind: str, dim: int = 16) -> RecallStore:
    return new_store(dim, StoreConfig(kind=kind, ivf_lists=4, ivf_probes=4))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 10_000))
def test_flat_finds_what_the_exact_search_finds(blocks: list[int], k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stores = TorchStore(8), FaissStore(8, StoreConfig())
    for size in blocks:  # searches in between, so that the index grows in steps
        keys = torch.randn(size, 8, generator=generator)
        queries = torch.randn(3, 8, generator=generator)
        for store in stores:
            store.add(keys)
        exact, found = (store.search(queries, k) for store in stores)
        torch.testing.assert_close(found[0], exact[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(found[1], exact[1])
    assert torch.equal(stores[0].keys, stores[1].keys)


@pytest.mark.parametrize(
    "config",
    [StoreConfig(kind="hnsw"), StoreConfig(kind="ivf", ivf_lists=32, ivf_probes=8)],
    ids=["hnsw", "ivf"],
)
def test_approximate_search_finds_nine_of_ten(config: StoreConfig) -> None:
    keys, queries = clustered(3000, 32), clustered(100, 32, seed=1)
    exact, store = TorchStore(32), new_store(32, config)
    exact.add(keys)
    for block in keys.split(700):
        store.add(block)
        store.search(queries[:1], 1)
    wanted, found = exact.search(queries, 10)[1].tolist(), store.search(queries, 10)[1].tolist()
    hits = sum(len(set(one) & set(other)) for one, other in zip(wanted, found, strict=True))
    assert hits >= 0.9 * 1000
    if config.kind == "ivf":
        assert store._faiss.nlist == 32  # type: ignore[attr-defined]  # and it was not the exact search


def test_inverted_lists_are_exact_until_trained() -> None:
    exact, store = TorchStore(16), new_store(16, StoreConfig(kind="ivf", ivf_lists=8, ivf_probes=1))
    keys, queries = clustered(319, 16), clustered(20, 16, seed=1)
    exact.add(keys)
    store.add(keys)
    assert torch.equal(store.search(queries, 5)[1], exact.search(queries, 5)[1])


@pytest.mark.parametrize("kind", INDEX_KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_key_that_is_not_finite_is_refused(kind: str, bad: float) -> None:
    store = store_of(kind)
    store.add(clustered(3, 16))
    keys = clustered(4, 16)
    keys[2, 5] = bad
    with pytest.raises(NonFiniteError, match="segment 5 "):
        store.add(keys)
    assert len(store) == 3 and store.keys.isfinite().all()
    assert store.search(clustered(1, 16), 9)[1].shape == (1, 3)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_asking_for_more_than_there_is(kind: str) -> None:
    store, query = store_of(kind), clustered(2, 16)
    assert [result.shape for result in store.search(query, 5)] == [(2, 0), (2, 0)]
    store.add(clustered(3, 16))
    scores, ids = store.search(query, 100)
    assert sorted(ids[0].tolist()) == [0, 1, 2]
    assert (scores.diff(dim=1) <= 0).all()
    assert store.search(query, 0)[1].shape == (2, 0)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_searching_while_another_thread_adds(kind: str) -> None:
    store, keys = store_of(kind), clustered(600, 16)
    store.add(keys[:1])
    problems: list[BaseException] = []
    done = threading.Event()

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)

    def search() -> None:
        while not done.is_set():
            scores, ids = store.search(keys[:4], 5)
            assert ids.shape[1] <= 5
            known = (ids >= 0).flatten()
            own = (keys[:4, None] * keys[ids.clamp(min=0)]).sum(-1)
            torch.testing.assert_close(scores.flatten()[known], own.flatten()[known], atol=1e-5, rtol=1e-5)

    def add() -> None:
        for key in keys[1:]:
            store.add(key[None])
        done.set()

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (search, search, add)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    assert not problems
    assert torch.equal(store.keys, keys)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_an_interrupted_index_does_not_drift_from_its_keys(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives when FAISS gives control back: after the keys went in, before anyone took note."""
    store, keys = store_of(kind), clustered(40, 16)
    store.add(keys[:10])
    inner = store._faiss  # type: ignore[attr-defined]

    class Interrupted:
        ntotal = property(lambda _: inner.ntotal)

        def add(self, more: object) -> None:
            inner.add(more)
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "_faiss", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        store.search(keys[:1], 1)
    monkeypatch.setattr(store, "_faiss", inner)
    store.add(keys[10:])
    assert store.search(keys, 1)[1].flatten().tolist() == list(range(40))


@pytest.mark.parametrize("keys", [torch.zeros(3), torch.zeros(2, 15), torch.zeros(1, 2, 16)])
def test_keys_of_another_shape_are_refused(keys: Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \[n, 16\]"):
        store_of("flat").add(keys)


def test_bad_settings_are_explained() -> None:
    with pytest.raises(ValueError, match="choose one of flat, hnsw, ivf, torch"):
        StoreConfig(kind="no such")
    with pytest.raises(ValueError, match="between 2 and 1024"):
        StoreConfig(hnsw_links=0)


def test_slabs_keep_ordinary_tensors_that_never_move() -> None:
    with torch.inference_mode():
        slabs = TensorArena(torch.float32, (4,))
        first = slabs.keep(torch.ones(3, 4))
    rest = [slabs.keep(torch.full((70_000, 4), float(i))) for i in range(3)]
    assert not first.is_inference()
    assert torch.equal(first, torch.ones(3, 4))
    assert all(bool((block == i).all()) for i, block in enumerate(rest))
    assert slabs.keep(torch.zeros(0, 4)).shape == (0, 4)
