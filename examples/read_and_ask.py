"""Read a document, ask it a question and print the answer with its sources.

    python examples/read_and_ask.py
    python examples/read_and_ask.py --document book.txt --question "Who is the captain?"

Without `--document` it reads a page of the reference of the Python language, which comes with Python.
"""

from pathlib import Path

import typer

from hiermem import HierMemModel
from hiermem.bundled import python_reference


def main(
    model: str = "smollm2",
    document: Path | None = None,
    question: str = "What does the assert statement do?",
) -> None:
    reader = HierMemModel.from_pretrained(model)
    memory = reader.read(document or python_reference()[:8000])
    print(f"{memory.tokens} tokens in {memory.segments} segments; {memory.working.nbytes:,} bytes of cache")

    stream = reader.ask(memory, question, max_new_tokens=32, stream=True)
    for piece in stream:  # as it is decoded
        print(piece, end="", flush=True)
    print()
    for source in stream.answer.sources:  # spans quote the document exactly
        print(f"  characters {source.start} to {source.end}: {source.text.strip()}")


if __name__ == "__main__":
    typer.run(main)
