"""A search key of your own in one class, beside the lexical one: words that are spelt otherwise fit, too.

python examples/custom_key.py --question "sequense lenght"
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar
from zlib import crc32

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from hiermem import HierMemConfig, HierMemModel
from hiermem.bundled import python_reference
from hiermem.retrieval.keys import Keyed, Question, SearchKey, register_search_key


@dataclass
class TrigramKey(SearchKey):
    """Character trigrams, hashed into a vector of length 1.

    Attributes:
        size: width of the key.
    """

    size: int = 1024

    name: ClassVar[str] = "trigrams"

    @property
    def width(self) -> int:
        return self.size

    def document_keys(self, records: Sequence[Keyed]) -> Tensor:
        return torch.stack([self._vector(record.text) for record in records])

    def query_key(self, question: Question) -> Tensor:
        return self._vector(question.text)

    def _vector(self, text: str) -> Tensor:
        trigrams = {text[at : at + 3].lower() for at in range(len(text) - 2)}
        places = [crc32(trigram.encode("utf-8", "replace")) % self.size for trigram in trigrams]
        counts = torch.bincount(torch.tensor(places, dtype=torch.int64), minlength=self.size)
        return F.normalize(counts.float(), dim=0)


register_search_key(TrigramKey)


def main(model: str = "smollm2", question: str = "sequense lenght", characters: int = 12000) -> None:
    reader = HierMemModel.from_pretrained(model, config=HierMemConfig.preset("full"))
    for keys in ({"lexical": {}}, {"lexical": {}, "trigrams": {"weight": 5.0}}):
        reader.config.longterm = replace(reader.config.longterm, keys=keys)
        memory = reader.read(python_reference()[:characters])
        best = memory.longterm.recall(Question(question), 1)[0]
        print(f"{' and '.join(keys)}: {best.score:.3f} for {best.record.text[:60]!r} …")


if __name__ == "__main__":
    typer.run(main)
