"""Train memory embeddings around the segments of `full` for a few steps, and read with the trained model.

    python examples/train_memory.py --steps 4 --output runs/example

The texts are pieces of the reference of the Python language; give `--data` for books of your own.
"""

from dataclasses import replace
from pathlib import Path

import typer

from hiermem import HierMemModel
from hiermem.bundled import python_reference
from hiermem.training.finetune import Run, train
from hiermem.training.recipes import TRAININGS


def write_books(folder: Path) -> Path:
    """Two train books and one for validation, in the layout of PG-19."""
    text = python_reference()
    for split, count in (("train", 2), ("validation", 1)):
        (folder / "pg19" / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            start = 100_000 * (number + 2 * (split == "validation"))
            (folder / "pg19" / split / f"{number}.txt").write_text(text[start : start + 100_000], "utf-8")
    return folder


def main(
    model: str = "smollm2",
    output: Path = Path("runs/example"),
    data: Path | None = None,
    steps: int = 4,
    tokens: int = 1024,
) -> None:
    recipe = TRAININGS["carried"]()
    samples = replace(recipe.samples, tokens=tokens)
    config = replace(recipe, samples=samples, steps=steps, fitted=2, evaluated=1, evaluate_every=steps)
    result = train(config, Run(model, data or write_books(output / "data"), output))
    print(f"held-out loss {result['held_out']:.3f} after {result['step']} steps")

    trained = HierMemModel.from_pretrained(output)
    memory = trained.read(python_reference()[:4000])
    parameters = sum(weight.numel() for weight in trained.summary.parameters())
    print(f"read {memory.tokens} tokens with {parameters:,} trained parameters")


if __name__ == "__main__":
    typer.run(main)
