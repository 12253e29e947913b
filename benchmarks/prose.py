"""Twenty questions about facts that no book holds, asked in other words than the text's.

Scatters the passages of `benchmarks/prose/questions.jsonl`, written for this, over the beginning of a
book, and writes a folder that `hiermem eval qa --data` reads:

    .venv/bin/python benchmarks/prose.py BOOK.txt results/prose --characters 120000
    hiermem eval qa --data results/prose --json
"""

import argparse
import json
import sys
from pathlib import Path

from hiermem.documents import read_document
from hiermem.errors import HierMemError, InputError
from hiermem.eval.haystack import hidden

QUESTIONS = Path(__file__).with_name("prose") / "questions.jsonl"


def write(book: str, folder: Path, characters: int) -> None:
    """Write ``document.txt`` and ``questions.jsonl``.

    Args:
        book: name of a text file.
        characters: of the book that are taken, from its beginning.

    Raises:
        InputError: the book is shorter, or nothing can be written there.
    """
    text = read_document(book)
    if len(text) < characters:
        raise InputError(f"{book} has {len(text)} characters: lower --characters.")
    rows = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    depths = [(place + 0.5) / len(rows) for place in range(len(rows))]
    document = hidden(text[:characters], [row["passage"] for row in rows], depths)
    questions = [
        {"question": row["question"], "answers": row["answers"], "evidence": row["passage"]} for row in rows
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "document.txt").write_text(document, "utf-8")
        lines = "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
        (folder / "questions.jsonl").write_text(lines, "utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): give another folder.") from error


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("book", help="a text file")
    parser.add_argument("folder", type=Path, help="to write into")
    parser.add_argument("--characters", type=int, default=120_000, help="of the book that are taken")
    args = parser.parse_args()
    try:
        write(args.book, args.folder, args.characters)
    except HierMemError as error:
        sys.stderr.write(f"prose: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
