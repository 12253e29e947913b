"""Read half of a document, save the memory, load it and read the rest: the same memory as reading at once.

python examples/resume_memory.py --folder notes.hmem
"""

from pathlib import Path

import torch
import typer

from hiermem import HierMemModel, MemoryState
from hiermem.bundled import python_reference


def main(model: str = "smollm2", folder: Path = Path("example.hmem"), characters: int = 8000) -> None:
    reader = HierMemModel.from_pretrained(model)
    text = python_reference()[:characters]
    half = text.index(" ", characters // 2)

    memory = reader.read(text[:half])
    memory.save(folder)  # whole or not at all, whenever it is killed
    print(f"saved {memory.tokens} tokens to {folder}")

    resumed = MemoryState.load(folder, reader)  # every byte is verified before anything is used
    reader.read(text[half:], memory=resumed)
    resumed.save(folder)

    at_once = reader.read([text[:half], text[half:]])
    same = torch.equal(resumed.longterm.store.keys, at_once.longterm.store.keys)
    print(f"{resumed.tokens} tokens; search keys as if read at once: {same}")


if __name__ == "__main__":
    typer.run(main)
