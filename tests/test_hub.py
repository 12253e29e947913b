"""Data by its name on the hub, here from local folders in the hub's layout."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, run
from readers import tokenizer

pytest.importorskip("datasets")
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.tasks import pg19, pubmedqa
from hiermem.eval.tasks.perplexity import Perplexity
from hiermem.training.samples import SampleConfig, TrainingDataset, check_samples

BOOKS = [{"url": f"http://www.gutenberg.org/ebooks/{i}", "text": f"Book {i}."} for i in (11, 7, 42)]
RECORD = {
    "pubid": 5,
    "question": "Does zinc help?",
    "context": {"contexts": ["We gave zinc.", "It helped."]},
    "long_answer": "Zinc helps.",
    "final_decision": "yes",
}


LINES = ["", " = Title = \n", "", " Said by an actor . \n"]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two datasets as the hub lays them out, which any name is looked up in."""
    for name, split, rows in (
        ("books", "test", BOOKS),
        ("records", "train", [RECORD]),
        ("wikitext", "test", [{"text": line} for line in LINES]),
    ):
        file = tmp_path / name / "data" / f"{split}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    card = (
        "configs:\n- config_name: pqa_labeled\n  data_files:\n  - split: train\n    path: data/train.jsonl\n"
    )
    (tmp_path / "records" / "README.md").write_text(f"---\n{card}---\n", "utf-8")
    card = card.replace("pqa_labeled", "wikitext-2-raw-v1").replace("train", "test")
    (tmp_path / "wikitext" / "README.md").write_text(f"---\n{card}---\n", "utf-8")
    real = hub.rows

    def local(name: str, *arguments: Any) -> Any:
        return real(str(tmp_path / Path(name).name), *arguments)

    monkeypatch.setattr(hub, "rows", local)
    return tmp_path


def test_names_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "pg19").mkdir(parents=True)
    assert hub.is_name(Path("emozilla/pg19"))
    for path in ("data/pg19", "pg19", "../pg19", "/data/pg19", "a/b/c"):
        assert not hub.is_name(Path(path))


def test_books_come_by_id_and_no_more_than_wanted(layout: Path) -> None:
    name = Path("someone/books")
    assert pg19.books(name, "test", None, 2) == {"11": "Book 11.", "7": "Book 7."}
    assert pg19.books(name, "test", "42", None) == {"42": "Book 42."}
    with pytest.raises(InputError, match="no book 3"):
        pg19.books(name, "test", "3", None)


def test_a_training_takes_the_first_books_of_a_dataset(layout: Path) -> None:
    name, config = Path("someone/books"), SampleConfig(tokens=4, streamed=2)
    check = TrainingDataset(tokenizer(), name, config, split="test")
    drawn = {check[number].name.split()[1] for number in range(20)}
    assert drawn == {"11", "7"}
    assert all(len(check[number].ids) == 4 for number in range(5))
    with pytest.raises(InputError, match="cannot be read from the hub"):
        check_samples(name, config)  # it has no books to validate on


def test_the_command_takes_a_dataset_by_name(layout: Path, tmp_path: Path) -> None:
    """Here one without books to validate on, which is said before anything is loaded."""
    done = run("train", "--data", "someone/books", "--out", tmp_path / "run", "--recipe", "isolated")
    assert_refused(done, "validation of it cannot be read from the hub")


def test_lines_of_wikitext_are_one_text(layout: Path) -> None:
    wikitext: dict[str, Any] = {"data": Path("someone/wikitext"), "split": "test"}
    texts = Perplexity(**wikitext, subset="wikitext-2-raw-v1").load(HierMemConfig())
    assert texts == {"wikitext": "\n = Title = \n\n Said by an actor . \n"}
    with pytest.raises(InputError, match="cannot be read from the hub"):
        Perplexity(**wikitext, subset="wikitext-9").load(HierMemConfig())
    with pytest.raises(InputError, match="other columns than expected"):
        Perplexity(data=Path("someone/records"), split="train").load(HierMemConfig())


def test_records_come_as_a_whole(layout: Path) -> None:
    name = Path("someone/records")
    (item,) = pubmedqa.load(name, "all")
    assert (item.id, item.abstract, item.decision) == ("5", "We gave zinc.\nIt helped.", "yes")
    with pytest.raises(InputError, match="--split all"):
        pubmedqa.load(name, "test")


def test_other_columns_are_named(layout: Path) -> None:
    with pytest.raises(InputError, match=r"other columns than expected \('url'\)"):
        list(hub.rows("records", "train", lambda row: row["url"]))


def test_a_missing_dataset_or_split_is_one_sentence(layout: Path) -> None:
    for name, split in (("nothing", "test"), ("books", "summer")):
        with pytest.raises(InputError, match=r"cannot be read from the hub: .*\.$") as caught:
            list(hub.rows(name, split, dict))
        assert "\n" not in str(caught.value)
