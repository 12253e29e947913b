"""A library of many documents: added, asked together, removed, whatever happens meanwhile."""

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from library_stops import Expected
from readers import changed, reader, settings, text_of
from test_places import PAGES, document

from hiermem import Library, MemoryState
from hiermem.answer import NOT_FOUND
from hiermem.bundled import BUNDLED_DOCUMENTS
from hiermem.documents import document_of_text
from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryIncompatibleError,
    MemoryLockedError,
    MemoryMissingError,
    MemoryTooNewError,
)
from hiermem.library import Reading
from hiermem.library.catalogue import CATALOGUE
from hiermem.library.document_index import INDEX
from hiermem.library.index import _descending
from hiermem.model import HierMemModel
from hiermem.retrieval.files import only_writer
from hiermem.text import encode

TEXTS = {
    "harbour.txt": f"The captain of the Orion is Ahab. {text_of(150, seed=1)}. The key hangs in the mill.\n",
    "notes/mill.md": f"# Mill\n\nThe miller is Mary Quill. {text_of(60, seed=2)}\n",
    "ferry.txt": "The ferry to Lundy leaves at seven.\n",
}
QUESTIONS = ["Who is the captain of the Orion?", "Who is the miller?", "When leaves the ferry to Lundy?"]


@pytest.fixture(scope="module")
def model() -> HierMemModel:
    return reader()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with three documents."""
    folder = tmp_path / "files"
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(params=[True, False], ids=["indexed", "read"])
def library(request: pytest.FixtureRequest, tmp_path: Path, files: Path, model: HierMemModel) -> Library:
    made = Library.open(tmp_path / "library", model, index=request.param)
    made.add(files)
    return made


def test_documents_are_called_by_their_path_from_the_folder(library: Library) -> None:
    assert {entry.name for entry in library.documents()} == {f"files/{name}" for name in TEXTS}
    for name, text in TEXTS.items():
        assert library.text(f"files/{name}") == text
        assert library.document(f"files/{name}").characters == len(text)


def test_one_document_is_asked_as_its_memory_is(tmp_path: Path, model: HierMemModel) -> None:
    """A library of one document finds what its memory finds, where every segment is complete."""
    words = text_of(300, seed=3).split()
    whole = (" ".join(words[:count]) for count in range(200, 300))
    text = next(text for text in whole if len(encode(model.tokenizer, text)) % model.config.segment == 0)
    memory = model.index(text)
    assert memory.longterm.partial is None
    library = Library.open(tmp_path / "one", model, index=True)
    library.add_document(document_of_text("one.txt", text))
    for question in (" ".join(text.split()[at : at + 3]) for at in range(0, 200, 20)):
        alone, together = model.ask(memory, question), library.ask(question)
        assert [(s.start, s.end, s.text, s.line) for s in together.sources] == [
            (s.start, s.end, s.text, s.line) for s in alone.sources
        ]
        assert together.sources and together.text == alone.text
        scores = [source.score for source in alone.sources]
        assert [source.score for source in together.sources] == pytest.approx(scores, rel=1e-4)


def test_sources_name_document_and_line_and_quote_it_exactly(library: Library) -> None:
    for question, name in zip(QUESTIONS, TEXTS, strict=True):
        answer = library.ask(question)
        assert answer.found and answer.sources[0].document == f"files/{name}"
        for source in answer.sources:
            text = library.text(source.document)
            assert text[source.start : source.end] == source.text
            assert source.line == text[: source.start].count("\n") + 1 and source.page is None
    together = library.ask(QUESTIONS)
    assert [answer.sources for answer in together] == [library.ask(each).sources for each in QUESTIONS]
    assert library.ask(QUESTIONS[0], stream=True).finish() == library.ask(QUESTIONS[0])


def test_the_same_fact_in_two_documents_is_shown_twice(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "two", model, index=True)
    for name in ("one.txt", "two.txt"):
        library.add_document(document_of_text(name, f"{text_of(20)}.\n\nThe brass key hangs in the mill.\n"))
    found = {source.document for source in library.ask("Where hangs the brass key?").sources}
    assert found == {"one.txt", "two.txt"}


def test_only_the_documents_that_are_named_answer(library: Library) -> None:
    answer = library.ask(QUESTIONS[0], documents=["files/harbour.txt", "files/ferry.txt"])
    assert answer.sources[0].document == "files/harbour.txt"
    found = library.search("ferry", documents=["files/ferry.txt"])
    assert found and all(source.document == "files/ferry.txt" for source in found)
    with pytest.raises(InputError, match="There is no document 'ferry'"):
        library.ask(QUESTIONS[0], documents=["ferry"])
    with pytest.raises(InputError, match="as a list, not as one text"):
        library.ask(QUESTIONS[0], documents="files/ferry.txt")


def test_only_pages_before_one_answer(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "pages", model, index=True)
    library.add_document(document())
    question = "Where hangs the brass key?"
    (source,) = library.ask(question).sources
    assert (source.page, source.chapter, source.document) == (2, "Fire", "harbour.pdf")
    assert library.ask(question, before=3).sources[0].page == 2
    for before in (1, 2):
        for source in library.search(question, before=before) + library.ask(question, before=before).sources:
            assert source.end <= len(PAGES[0]) and source.page == 1 < before
    assert library.ask(question, before=1).text == NOT_FOUND
    with pytest.raises(InputError, match="Pages count from 1"):
        library.ask(question, before=0)
    library.add_document(document_of_text("plain.txt", "The brass key hangs nowhere."))
    assert {s.document for s in library.ask(question, before=9).sources} == {"harbour.pdf"}  # no pages


def test_search_gives_a_passage_of_each_of_the_best_segments(library: Library) -> None:
    found = library.search("Who is Ahab?", 3)
    assert 1 <= len(found) <= 3 and found[0].document == "files/harbour.txt"
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    with pytest.raises(InputError, match="at least 1"):
        library.search("captain", 0)


def test_what_is_unchanged_is_left_out_and_what_changed_is_replaced(library: Library, files: Path) -> None:
    before = {entry.name: entry for entry in library.documents()}
    assert {each.outcome for each in library.add(files)} == {"unchanged"}
    assert {entry.name: entry for entry in library.documents()} == before
    (files / "ferry.txt").write_text("The ferry to Lundy leaves at nine.\n", encoding="utf-8")
    outcomes = {each.name: each.outcome for each in library.add(files)}
    assert outcomes.pop("files/ferry.txt") == "replaced" and set(outcomes.values()) == {"unchanged"}
    (source,) = library.ask("When leaves the ferry to Lundy?", top_k=1).sources
    assert "nine" in source.text and len(library) == len(TEXTS)
    assert len(list((library.path / "documents").iterdir())) == len(TEXTS)


def test_what_is_removed_leaves_no_trace(library: Library, model: HierMemModel) -> None:
    name, word = "files/notes/mill.md", b"Mary Quill"
    statistics = library._index.queries.key.state_dict()
    assert any(word in file.read_bytes() for file in library.path.rglob("*") if file.is_file())
    extra = library.add_document(document_of_text("extra.txt", f"Mary Quill. {text_of(90, seed=9)}"))
    assert extra.outcome == "added"
    library.remove("extra.txt")
    for key, value in library._index.queries.key.state_dict().items():
        assert value.tolist() == statistics[key].tolist()
    library.remove(name)
    for reopened in (library, Library.open(library.path, model)):
        assert name not in [entry.name for entry in reopened.documents()]
        assert all(source.document != name for source in reopened.search("Who is the miller Mary Quill?"))
        with pytest.raises(InputError, match="There is no document"):
            reopened.text(name)
    for file in library.path.rglob("*"):
        assert not file.is_file() or (word not in file.read_bytes() and b"mill.md" not in file.read_bytes())
    with pytest.raises(InputError, match="There is no document"):
        library.remove(name)


def test_statistics_are_those_of_all_documents(library: Library, files: Path, model: HierMemModel) -> None:
    """Opened at once, or added one by one with removals in between: the same."""
    library.remove("files/ferry.txt")
    library.add(files)
    again = Library.open(library.path, model)
    one, other = (each._index.queries.key.state_dict() for each in (library, again))
    assert {name: t.tolist() for name, t in one.items()} == {name: t.tolist() for name, t in other.items()}
    assert int(one["segments"]) == sum(entry.segments for entry in library.documents())


def test_another_reader_sees_whole_states_at_once(library: Library, model: HierMemModel) -> None:
    other = Library.open(library.path, model, writes=False)
    library.add_document(document_of_text("new.txt", "The lighthouse keeper is Tom Pound."))
    assert other.ask("Who is the lighthouse keeper?").sources[0].document == "new.txt"
    library.remove("new.txt")
    assert all(source.document != "new.txt" for source in other.search("Who is the lighthouse keeper?"))


def test_one_process_writes_at_a_time(library: Library, model: HierMemModel) -> None:
    script = (
        "import sys; from hiermem.retrieval.files import writer_lock; from pathlib import Path\n"
        "with writer_lock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(library.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(MemoryLockedError, match="Another process is writing"):
            library.remove("files/ferry.txt")
        assert library.ask(QUESTIONS[2]).found
        holder.communicate()
    library.remove("files/ferry.txt")


def test_a_reading_that_stops_goes_on(tmp_path: Path, model: HierMemModel) -> None:
    long = document_of_text("long.txt", text_of(400, seed=5))

    reached: list[int] = []

    def stop(reading: Reading) -> None:
        reached.append(reading.characters)
        assert reading.total == len(long.text) and reading.name == "long.txt"
        if reading.characters > reading.total / 2:
            raise KeyboardInterrupt

    for index in (True, False):
        reached = []
        library = Library.open(tmp_path / f"library-{index}", model, index=index)
        with pytest.raises(KeyboardInterrupt):
            library.add_document(long, on_reading=stop)
        assert library.documents() == [] and library.unfinished() == ["long.txt"]
        rest: list[int] = []
        library.add_document(long, on_reading=lambda reading, rest=rest: rest.append(reading.characters))
        assert rest[0] > max(reached) and library.unfinished() == []
        library.export("long.txt", tmp_path / f"out-{index}")
        memory = MemoryState.load(tmp_path / f"out-{index}", model)
        whole = (model.index if index else model.read)(long.text)
        assert memory.text == whole.text == library.text("long.txt")
        assert memory.longterm.store.keys.equal(whole.longterm.store.keys)


def test_another_version_does_not_go_on_in_the_first(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "library", model, index=True)

    def stop(reading: Reading) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.add_document(document_of_text("a.txt", text_of(400, seed=5)), on_reading=stop)
    library.add_document(document_of_text("a.txt", text_of(300, seed=6)))
    assert library.text("a.txt") == text_of(300, seed=6) and library.unfinished() == []
    with pytest.raises(KeyboardInterrupt):
        library.add_document(document_of_text("b.txt", text_of(400, seed=7)), on_reading=stop)
    library.remove("b.txt")  # what was read of it goes
    assert library.unfinished() == [] and not any((library.path / "incoming").iterdir())


def test_export_is_an_ordinary_memory(library: Library, tmp_path: Path, model: HierMemModel) -> None:
    library.export("files/ferry.txt", tmp_path / "ferry")
    memory = MemoryState.load(tmp_path / "ferry", model)
    assert memory.text == TEXTS["ferry.txt"] and memory.indexed == library.settings.index
    with pytest.raises(MemoryFileError, match="of another text"):
        library.export("files/harbour.txt", tmp_path / "ferry")


def test_a_conversation_counts_earlier_turns(library: Library) -> None:
    chat = library.chat(documents=["files/harbour.txt", "files/notes/mill.md"])
    assert chat.ask(QUESTIONS[0]).sources[0].document == "files/harbour.txt"
    assert chat.ask("Where is he?").sources[0].document == "files/harbour.txt"
    assert len(chat.turns) == 2


def test_an_empty_library_does_not_say(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "empty", model)
    assert library.ask("Who is the captain?").text == NOT_FOUND
    assert library.search("captain") == [] and library.documents() == [] and library.verify() == []


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["missing.txt"], "There is no file"),
        (["one", "two"], "Two files would be called 'a.txt'"),
        (["void"], "holds no file that can be read"),
        (["bad.txt"], "holds binary data"),
    ],
)
def test_files_that_cannot_be_added_get_one_sentence(
    tmp_path: Path, model: HierMemModel, paths: list[str], message: str
) -> None:
    for folder in ("one", "two", "void"):
        (tmp_path / folder).mkdir()
    for name in ("one/a.txt", "two/a.txt"):
        (tmp_path / name).write_text("some text", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(b"\0\1\2")
    given = [tmp_path / path / "a.txt" if path in ("one", "two") else tmp_path / path for path in paths]
    library = Library.open(tmp_path / "library", model, index=True)
    with pytest.raises(InputError, match=message):
        library.add(given)
    assert library.documents() == []


def test_the_bundled_document_is_added_by_its_name(
    tmp_path: Path, model: HierMemModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUNDLED_DOCUMENTS, "python-reference", lambda: "The with statement wraps a block.")
    library = Library.open(tmp_path / "library", model, index=True)
    assert library.add("python-reference")[0].outcome == "added"
    assert library.ask("What does the with statement wrap?").sources[0].document == "python-reference"
    assert library.add("python-reference")[0].outcome == "unchanged"


def test_links_in_folders_are_not_followed(tmp_path: Path, model: HierMemModel, files: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret", encoding="utf-8")
    (files / "link.txt").symlink_to(tmp_path / "secret.txt")
    library = Library.open(tmp_path / "library", model, index=True)
    library.add(files)
    assert len(library) == len(TEXTS)


def test_only_a_library_is_opened(tmp_path: Path, model: HierMemModel) -> None:
    with pytest.raises(MemoryMissingError, match="There is no library"):
        Library.open(tmp_path / "none", model, writes=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds other things"):
        Library.open(tmp_path / "other", model)
    with only_writer(tmp_path / "memory"):
        pass


def test_a_library_is_of_one_model_and_one_way(library: Library, model: HierMemModel) -> None:
    with pytest.raises(MemoryIncompatibleError, match="load the model that made it"):
        Library.open(library.path, reader(seed=5))
    longterm = replace(settings().longterm, tiers={"kv": {}})
    with_tier = changed(settings(), longterm=longterm)
    with pytest.raises(MemoryIncompatibleError, match="other search keys or tiers"):
        Library.open(library.path, reader(config=with_tier))
    with pytest.raises(InputError, match="leave index"):
        Library.open(library.path, model, index=not library.settings.index)


def test_damage_is_told(library: Library, model: HierMemModel) -> None:
    assert library.verify() == []
    entry = library.document("files/ferry.txt")
    index = library.path / "documents" / entry.folder / INDEX
    data = index.read_bytes()
    index.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (problem,) = library.verify()
    assert "'files/ferry.txt' is damaged" in problem and INDEX in problem
    index.write_bytes(data[: len(data) // 2])
    with pytest.raises(MemoryCorruptError, match=r"ferry.txt' is damaged"):
        Library.open(library.path, model)
    shutil.rmtree(index.parent)
    assert library.verify()


def test_a_catalogue_that_is_none_is_refused(library: Library, model: HierMemModel) -> None:
    path = library.path / CATALOGUE
    library.close()
    good = path.read_bytes()
    path.write_bytes(b"not a database at all" * 400)
    with pytest.raises(MemoryCorruptError, match="is damaged"):
        Library.open(library.path, model)
    for statement, error in (
        ("CREATE TRIGGER t AFTER INSERT ON documents BEGIN DELETE FROM settings; END", MemoryCorruptError),
        ("UPDATE documents SET folder = '../../etc' WHERE id = 1", MemoryCorruptError),
        ("UPDATE documents SET tokens = 'many'", MemoryCorruptError),
        ("DELETE FROM settings", MemoryCorruptError),
        ("UPDATE settings SET value = '{}'", MemoryCorruptError),
        ("PRAGMA user_version = 2", MemoryTooNewError),
    ):
        path.write_bytes(good)
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()
        with pytest.raises(error):
            Library.open(library.path, model)


def test_a_killed_writer_loses_nothing_and_leaves_nothing_wrong(tmp_path: Path, model: HierMemModel) -> None:
    """Done changes are there; one that was begun is there whole, or not at all."""
    path, draw, expected = tmp_path / "library", random.Random(11), Expected()
    Library.open(path, model, index=True).close()
    for kill in range(8):
        command = [sys.executable, str(Path(__file__).parent / "library_stops.py"), str(path), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(draw.randrange(1, 12))]
            time.sleep(draw.random() * 0.05)
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        expected.told(lines)
        expected.check(path, model)


def test_links_in_the_place_of_folders_are_refused(tmp_path: Path, model: HierMemModel) -> None:
    """A stranger's library must not have anything else deleted, nor written elsewhere."""
    for folder in ("documents", "incoming"):
        path, victim = tmp_path / f"library-{folder}", tmp_path / f"victim-{folder}"
        library = Library.open(path, model, index=True)
        (victim / "photos").mkdir(parents=True)
        (path / folder).rmdir()
        (path / folder).symlink_to(victim)
        with pytest.raises(MemoryCorruptError, match="is a link"):
            library.add_document(document_of_text("a.txt", "Some words."))
        with pytest.raises(MemoryCorruptError, match="is a link"):
            library.remove("nope")
        with pytest.raises(MemoryCorruptError, match="is a link"):
            Library.open(path, model)
        assert [each.name for each in victim.iterdir()] == ["photos"]


def test_folders_of_other_names_stay(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "library", model, index=True)
    own, left = library.path / "documents" / "mine", library.path / "documents" / ("0" * 32)
    own.mkdir()
    left.mkdir()  # as a killed writer leaves it
    library.add_document(document_of_text("a.txt", "Some words."))
    assert own.is_dir() and not left.exists()


def test_what_was_put_into_place_but_not_committed_goes_on(
    tmp_path: Path, model: HierMemModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, note = Library.open(tmp_path / "library", model, index=True), text_of(200, seed=8)

    def killed(entry: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(library._catalogue, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        library.add_document(document_of_text("a.txt", note))
    monkeypatch.undo()
    read: list[int] = []
    library.add_document(
        document_of_text("a.txt", note), on_reading=lambda each: read.append(each.characters)
    )
    assert read == [] and library.text("a.txt") == note  # nothing was read again


def test_another_file_does_not_take_a_name_in_silence(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "library", model, index=True)
    for folder, words in (("one", "The first."), ("two", "The second.")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(words, encoding="utf-8")
    library.add(tmp_path / "one" / "same.txt")
    with pytest.raises(InputError, match=r"of another file, .*one/same\.txt"):
        library.add(tmp_path / "two" / "same.txt")
    assert library.text("same.txt") == "The first."
    library.add([tmp_path / "one", tmp_path / "two"])
    assert {entry.name for entry in library.documents()} == {"same.txt", "one/same.txt", "two/same.txt"}


def test_a_conversation_sees_what_comes_and_goes(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "library", model, index=True)
    library.add_document(document_of_text("a.txt", "The miller is Mary Quill."))
    chat, other = library.chat(), Library.open(library.path, model)
    assert chat.ask("Who is the miller?").sources[0].document == "a.txt"
    other.add_document(document_of_text("b.txt", "The lighthouse keeper is Tom Pound."))
    assert chat.ask("Who is the lighthouse keeper?").sources[0].document == "b.txt"
    other.remove("a.txt")
    assert all(source.document != "a.txt" for source in chat.ask("Who is the miller?").sources)


def test_ties_are_given_once(tmp_path: Path, model: HierMemModel) -> None:
    scores = np.zeros(1000, np.float32)
    scores[7], scores[9] = 1, -np.inf
    order = list(_descending(scores))
    assert order[:3] == [7, 0, 1] and sorted([*order, 9]) == list(range(1000))


def test_nothing_in_scope_is_not_answered_even_if_it_always_is(tmp_path: Path) -> None:
    always = reader(config=settings().with_asking(least_confidence=0.0))
    library = Library.open(tmp_path / "library", always, index=True)
    assert not library.ask("Who is the captain?").found
    library.add_document(document())
    assert library.ask("Where hangs the key?", before=1).text == NOT_FOUND


def test_no_file_stays_open_for_a_document(tmp_path: Path, model: HierMemModel) -> None:
    library = Library.open(tmp_path / "library", model, index=True)
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    for number in range(20):
        library.add_document(document_of_text(f"{number}.txt", f"Document number {number} of many."))
    assert library.ask("Which number is document 7?").sources
    assert len(list(open_files.iterdir())) <= before + 1


def test_files_that_are_missing_are_told(library: Library, model: HierMemModel) -> None:
    entry = library.document("files/ferry.txt")
    (library.path / "documents" / entry.folder / INDEX).unlink()
    with pytest.raises(MemoryCorruptError, match="lacks its file"):
        Library.open(library.path, model)


@pytest.mark.parametrize("before", [2.5, True, "2"])
def test_pages_are_whole_numbers(library: Library, before: object) -> None:
    with pytest.raises(InputError, match="give a whole number"):
        library.ask("Why?", before=before)  # type: ignore[arg-type]
