"""Pages and chapters of a document: kept with its memory, shown with every source."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from readers import reader
from tiers import MEMORIES, TEXT, model_of

from hiermem import MemoryState
from hiermem.documents import Document
from hiermem.errors import MemoryFileError
from hiermem.memory.places import LONGEST_CHAPTER, NOWHERE, Place, Places
from hiermem.memory.stored import MOST
from hiermem.retrieval.files import load_directory, save_directory

PAGES = ["The old harbour office burnt down. ", "A brass key hangs in the mill. ", "The ferry left at dawn."]


def document(name: str = "harbour.pdf") -> Document:
    """Three pages under two chapters."""
    starts = [0, len(PAGES[0]), len(PAGES[0]) + len(PAGES[1])]
    marks = zip(starts, [Place(1, "Fire"), Place(2, "Fire"), Place(3, "Water")], strict=True)
    return Document(name, "pdf", "".join(PAGES), Places(marks), "0" * 64)


_MARKS = st.lists(
    st.tuples(st.integers(0, 50), st.builds(Place, st.none() | st.integers(1, 9), st.text(max_size=5)))
)


@given(marks=_MARKS, at=st.integers(0, 60))
def test_a_character_is_where_the_last_mark_before_it_says(marks: list[tuple[int, Place]], at: int) -> None:
    marks = sorted(marks, key=lambda mark: mark[0])
    expected = next((place for start, place in reversed(marks) if start <= at), NOWHERE)
    places = Places(marks)
    assert places.at(at) == expected
    assert Places.of(places.tensors()) == places
    assert Places(places.marks()) == places


def test_marks_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="not in the order"):
        Places([(5, Place(1)), (4, Place(2))])


def test_the_name_of_a_chapter_is_cut() -> None:
    assert Places([(0, Place(1, "x" * 999))]).at(0).chapter == "x" * LONGEST_CHAPTER


def test_places_of_a_text_that_follows_are_moved() -> None:
    first, second = Places([(0, Place(1)), (9, Place(2))]), Places([(2, Place(1, "New"))])
    joined = first.then(second, 7)  # what the first would have had behind that is gone
    assert joined.marks() == [(0, Place(1)), (7, NOWHERE), (9, Place(1, "New"))]


@pytest.mark.parametrize(
    "change",
    [
        {"pages": torch.tensor([-1])},
        {"starts": torch.tensor([MOST + 1])},
        {"sizes": torch.tensor([3])},
        {"pages": torch.tensor([1.0])},
        {"more": torch.tensor([1])},
        {"chapters": torch.tensor([255], dtype=torch.uint8), "sizes": torch.tensor([1])},
    ],
)
def test_tensors_that_no_places_leave_are_refused(change: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Places.of(Places([(0, Place(1))]).tensors() | change)


def test_sources_have_pages_and_chapters_before_and_after_a_save(tmp_path: Path) -> None:
    model = reader()
    memory = model.read(document())
    question = "Where hangs the brass key?"
    source = model.ask(memory, question).sources[0]
    assert (source.page, source.chapter, source.line) == (2, "Fire", None)
    assert memory.text[source.start : source.end] == source.text
    memory.save(tmp_path / "m")
    loaded = MemoryState.load(tmp_path / "m", model)
    assert loaded.places == memory.places
    assert model.ask(loaded, question).sources == model.ask(memory, question).sources
    assert MemoryState.verify(tmp_path / "m") == []


def test_a_second_document_goes_on_with_its_own_pages() -> None:
    model = reader()
    memory = model.read("A preface without pages.\n\n")
    model.read(document(), memory)
    source = model.ask(memory, "Where hangs the brass key?").sources[0]
    assert (source.page, source.chapter) == (2, "Fire")
    assert memory.places.at(3) == NOWHERE


def test_a_document_without_pages_has_lines() -> None:
    model = reader()
    memory = model.read("\n".join(["The office burnt.", "", "The ferry left.", "The brass key hangs here."]))
    (source,) = model.ask(memory, "Where hangs the brass key?").sources
    before = memory.text[: source.start]
    assert (source.page, source.line) == (None, before.count("\n") + 1)


def test_lines_are_counted_over_segments() -> None:
    model = reader()
    memory = model.read("a line of words\n" * 60 + "The brass key hangs here.\n" + "a line of words\n" * 40)
    for source in model.ask(memory, "Where hangs the brass key?").sources:
        assert source.line == memory.text[: source.start].count("\n") + 1
    assert memory.segments > 2


def test_damaged_places_are_told(tmp_path: Path) -> None:
    model = reader()
    model.read(document()).save(tmp_path / "m")
    files, info = load_directory(tmp_path / "m")
    files["places"] = {**files["places"], "pages": -files["places"]["pages"]}
    save_directory(tmp_path / "n", files, info)
    assert "does not make sense (a page leaves its range)" in MemoryState.verify(tmp_path / "n")[0]
    with pytest.raises(MemoryFileError, match="a page leaves its range"):
        MemoryState.load(tmp_path / "n", model)


@pytest.mark.parametrize("kind", ["plain", "indexed"])
def test_memories_of_the_format_before_places_load_and_answer(kind: str) -> None:
    model, folder = model_of("plain"), MEMORIES / "format3" / kind
    assert MemoryState.verify(folder) == []
    memory = MemoryState.load(folder, model)
    fresh = (model.index if kind == "indexed" else model.read)(TEXT)
    assert (memory.text, memory.indexed, memory.places) == (TEXT, kind == "indexed", Places())
    question = " ".join(TEXT.split()[:4])
    answer, expected = model.ask(memory, question), model.ask(fresh, question)
    assert (answer.text, answer.sources) == (expected.text, expected.sources)
    assert answer.sources
