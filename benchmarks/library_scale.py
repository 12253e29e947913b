"""Search over a library of many segments with synthetic keys: exact over mapped files, beside FAISS's IVF.

    python benchmarks/library_scale.py --segments 100000 --documents 1000 --json

A key is a mixture of a topic, of which there are as many as documents, and noise; a question is a key with
more noise. Recall@8 is the share of the exact eight best segments.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from hiermem.library.document_index import INDEX, DocumentIndex
from hiermem.memory.unit_index import UnitQuery
from hiermem.resources import used_bytes

WIDTH, UNIT_WIDTH = 4096, 384
BEST, QUESTIONS = 8, 20
_CPU = torch.device("cpu")


def write_document(folder: Path, topic: Tensor, segments: int, units: int, draw: torch.Generator) -> Tensor:
    """Write the index of one document with synthetic keys; its keys, ``[n, WIDTH]``."""
    folder.mkdir()
    keys = topic + torch.randn(segments, WIDTH, generator=draw)
    spans = torch.tensor([[at * 512, 512, at * 2000, at * 2000 + 2000, 2000] for at in range(segments)])
    number = segments * units
    starts = torch.arange(number) * (2000 // units)
    tensors = {
        "records.spans": spans,
        "records.text": torch.full((2000 * segments,), ord("a"), dtype=torch.uint8),
        "keys.keys": keys,
        "units.keys": torch.nn.functional.normalize(torch.randn(number, UNIT_WIDTH, generator=draw), dim=1),
        "units.spans": torch.stack((starts, starts + 2000 // units), 1),
        "units.counts": torch.full((segments,), units),
        **{f"places.{name}": torch.zeros(0, dtype=torch.int64) for name in ("starts", "pages", "sizes")},
        "places.chapters": torch.zeros(0, dtype=torch.uint8),
    }
    safetensors.torch.save_file(tensors, folder / INDEX)
    return keys


def exact(documents: list[DocumentIndex], query: Tensor, of_units: UnitQuery | None) -> list[int]:
    """The best segments by their number in the library, as `LibraryIndex.recall` finds them."""
    scores = np.concatenate([document.scores(query, of_units, None) for document in documents])
    best = np.argpartition(-scores, BEST)[:BEST]
    return best[np.argsort(-scores[best])].tolist()


def measure(segments: int, count: int, units: int) -> dict[str, float]:
    """Figures of one library."""
    draw = torch.Generator().manual_seed(0)
    topics = torch.randn(count, WIDTH, generator=draw)
    with tempfile.TemporaryDirectory() as folder:
        keys = [
            write_document(Path(folder, str(at)), topics[at], segments // count, units, draw)
            for at in range(count)
        ]
        together = torch.cat(keys)
        rows = torch.randint(len(together), (QUESTIONS,), generator=draw)
        queries = together[rows] + 2 * torch.randn(QUESTIONS, WIDTH, generator=draw)
        of_units = [UnitQuery(torch.randn(UNIT_WIDTH, generator=draw), 1.0) for _ in range(QUESTIONS)]
        before, start = used_bytes(_CPU), time.perf_counter()
        documents = [DocumentIndex(str(at), Path(folder, str(at)), WIDTH, UNIT_WIDTH) for at in range(count)]
        result: dict[str, float] = {"segments": segments, "documents": count, "units": units * segments}
        result["open_seconds"] = time.perf_counter() - start
        result["open_bytes"] = used_bytes(_CPU) - before
        found = [exact(documents, query, None) for query in queries]  # once, so that files are in memory
        for name, unit in (("exact_segments", None), ("exact", of_units)):
            if unit is not None:
                exact(documents, queries[0], unit[0])
            start = time.perf_counter()
            for at, query in enumerate(queries):
                exact(documents, query, None if unit is None else unit[at])
            result[f"{name}_seconds"] = (time.perf_counter() - start) / QUESTIONS
        return result | of_ivf(together, queries, found)


def of_ivf(keys: Tensor, queries: Tensor, found: list[list[int]]) -> dict[str, float]:
    """Time, memory and recall of FAISS's inverted lists over the segments' keys alone."""
    import faiss

    result: dict[str, float] = {}
    before, start = used_bytes(_CPU), time.perf_counter()
    lists = 256
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(keys[: 40 * lists].numpy())
    index.add(keys.numpy())
    result["ivf_build_seconds"] = time.perf_counter() - start
    result["ivf_bytes"] = used_bytes(_CPU) - before
    for probes in (16, 64):
        index.nprobe = probes
        start = time.perf_counter()
        ids = [set(index.search(query[None].numpy(), BEST)[1][0].tolist()) for query in queries]
        result[f"ivf_{probes}_seconds"] = (time.perf_counter() - start) / QUESTIONS
        shared = [len(own & set(best)) / BEST for own, best in zip(ids, found, strict=True)]
        result[f"ivf_{probes}_recall"] = sum(shared) / len(shared)
    return result


def main() -> None:
    """Measure, and print a JSON object."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--segments", type=int, default=100_000, help="Of the library.")
    parser.add_argument("--documents", type=int, default=1000, help="Of the library.")
    parser.add_argument("--units", type=int, default=16, help="Sentences of a segment.")
    parser.add_argument("--json", action="store_true", help="Print one line of JSON.")
    chosen = parser.parse_args()
    result = measure(chosen.segments, chosen.documents, chosen.units)
    sys.stdout.write(json.dumps(result, indent=None if chosen.json else 1) + "\n")


if __name__ == "__main__":
    main()
