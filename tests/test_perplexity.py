"""`eval perplexity`: which texts are read, and that they are scored as books are."""

from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, result, run
from readers import reader, text_of

from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tasks.perplexity import Perplexity
from hiermem.eval.tasks.pg19 import PG19

WIKI = " \n = Robert Boulter = \n \n Robert Boulter is an English film , television and theatre actor . \n"


def load(data: Path, **options: Any) -> dict[str, str]:
    return Perplexity(data=data, **options).load(reader().config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two texts, WikiText beside them, and a folder of a split."""
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"Text {name}.", "utf-8")
    (tmp_path / "wiki.valid.raw").write_text(WIKI, "utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.txt").write_text("Text c.", "utf-8")
    return tmp_path


def test_texts_of_a_folder_a_split_and_a_file(folder: Path) -> None:
    assert load(folder) == {"a": "Text a.", "b": "Text b."}
    assert load(folder, limit=1) == {"a": "Text a."}
    assert load(folder, split="test") == {"c": "Text c."}
    assert load(folder / "b.txt") == {"b": "Text b."}


def test_wikitext_is_one_text(folder: Path) -> None:
    assert load(folder, split="valid") == load(folder, split="validation") == {"wiki.valid": WIKI}
    assert load(folder / "wiki.valid.raw") == {"wiki.valid": WIKI}


def test_two_texts_of_a_split_are_not_chosen_between(folder: Path) -> None:
    (folder / "wiki.test.tokens").write_text(WIKI, "utf-8")
    with pytest.raises(InputError, match=r"more than one test text \(test/c\.txt, wiki\.test\.tokens\)"):
        load(folder, split="test")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--split", "train"], "There is no text train/*.txt or wiki.train.* in"),
        (["--subset", "wikitext-103-raw-v1"], "leave --subset out"),
        (["--data", "someone/texts"], "give --split"),
        (["--data", "someone/texts", "--split", "test"], "cannot be read from the hub"),
        (["--data", "missing"], "There is no text *.txt in missing"),
        (["--data", "BINARY"], "cannot be read as UTF-8"),
        (["--data", "FILE", "--split", "test"], "leave --split out"),
        (["--data", "FILE", "--limit", "1"], "leave --limit out"),
        (["--data", "someone/texts", "--split", "test", "--limit", "1"], "leave --limit out"),
        (["--data", "FILE", "--start-token", "999"], "too few to score any after token 999"),
        (["--book", "a"], "No such option"),
    ],
)
def test_wrong_data_are_refused(
    options: list[str], expected: str, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "binary").write_bytes(bytes(range(256)))
    places = {"BINARY": str(folder / "binary"), "FILE": str(folder / "a.txt")}
    given = [places.get(word, word) for word in options]
    assert_refused(run("eval", "perplexity", "--data", folder, *given, "--model", tiny_model), expected)


def test_texts_are_scored_as_books_are() -> None:
    texts = {"a": text_of(90), "b": text_of(80, 1)}
    options: dict[str, Any] = {"max_tokens": 60, "window": 25, "overlap": 3}
    mine, books = (
        kind(data=Path("texts"), **options).measure(reader(), texts, ResultLog(None, {}))
        for kind in (Perplexity, PG19)
    )
    assert mine == books and mine["n"] == 118


def test_the_command_and_its_settings(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(text_of(60), "utf-8")
    out = tmp_path / "results" / "perplexity.json"
    options = ["--model", tiny_model, "--budget", 24, "--chunk", 16]
    report = result("eval", "perplexity", "--data", folder, *options, "--out", out)
    assert set(report["metrics"]) == {"perplexity", "word_perplexity", "bits_per_byte"}
    config = report["config"]
    assert (config["books"], config["split"], config["subset"]) == (["a", "b"], None, None)
    assert config["working"]["budget"] == 24
    page = Path(result("report", out.parent, "--page", tmp_path / "page.md")["written"][0]).read_text("utf-8")
    assert "| policy | budget |" in page.partition("## Perplexity\n\n### ")[2]
