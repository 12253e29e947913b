"""Search keys of units: each sentence of a segment is found by itself, whole, in pieces and from disk."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import pytest
import torch
from readers import reader, settings, text_of
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.errors import MemoryCorruptError, MemoryIncompatibleError, NonFiniteError
from hiermem.memory import longterm
from hiermem.memory.longterm import LongTermConfig, LongTermMemory, SegmentRecord
from hiermem.memory.records import Hit, RecordTexts
from hiermem.memory.state import MemoryState
from hiermem.memory.unit_index import LEAST_TRUST, UnitIndex, read_units
from hiermem.model import HierMemModel
from hiermem.passages import QueryTerms, select
from hiermem.retrieval.files import load_directory, save_directory
from hiermem.retrieval.keys import Keyed, Question, SearchKey, register_search_key
from hiermem.retrieval.keys.lexical import LexicalKeyConfig
from hiermem.retrieval.store import StoreConfig
from hiermem.retrieval.units import split

SAME = {"ill": "sick", "physician": "doctor", "automobile": "car", "purchased": "bought"}
"""Words that mean the same to the key below."""


@dataclass
class MeaningKey(SearchKey):
    """A stand-in for a sentence encoder: words hashed into a vector of length 1, some words alike."""

    weight: float = 5.0
    salt: int = 0
    file: str = ""
    trusts: float = 1.0

    name: ClassVar[str] = "meaning"
    of_units: ClassVar[bool] = True
    width = 512

    def document_keys(self, records: Sequence[Keyed]) -> Tensor:
        return (
            torch.stack([self._embedded(record.text) for record in records])
            if records
            else torch.zeros(0, 512)
        )

    def query_key(self, question: Question) -> Tensor:
        return self._embedded(question.meaning or question.text)

    def trust(self, question: Question) -> float:
        return self.trusts

    @property
    def digest(self) -> str:
        return f"meaning {self.salt}"

    @property
    def odds(self) -> tuple[float, float]:
        return 15.5, 0.485

    @classmethod
    def names_files_with(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings.get("file"))

    def _embedded(self, text: str) -> Tensor:
        total = torch.zeros(512)
        for word in text.casefold().replace(".", " ").replace("?", " ").split():
            draw = torch.Generator().manual_seed(crc32(SAME.get(word, word).encode()) + self.salt)
            total += torch.randn(512, generator=draw)
        return total / total.norm().clamp(min=1e-9)


@pytest.fixture(autouse=True)
def meaning(own_registries: None) -> None:
    """The key above is registered for a test."""
    register_search_key(MeaningKey)


KEYS = {"lexical": {}, "meaning": {}}
FILLER = "The wind was cold that day. Nobody spoke much. A gull sat on the rail. "
FACTS = [
    "Doctor Mills bought a red car in Leeds. ",
    "The baker sells rye bread on Mondays. ",
    "Her brother plays the cello in a church. ",
]


def record(text: str, start: int, first: int) -> SegmentRecord:
    return SegmentRecord(first, torch.arange(5, dtype=torch.int32), start, start + len(text), text)


def memory_of(texts: Sequence[str], keys: dict[str, dict] = KEYS, kind: str = "flat") -> LongTermMemory:
    config = LongTermConfig(
        keys=keys, store=StoreConfig(kind=kind, ivf_lists=1), lexical=LexicalKeyConfig(dim=512)
    )
    memory, start = LongTermMemory(config), 0
    for index, text in enumerate(texts):
        memory.write([record(text, start, 5 * index)])
        start += len(text)
    return memory


def random_texts(count: int) -> list[str]:
    draw = random.Random(3)
    words = [f"word{number}" for number in range(90)]
    sentences = (" ".join(draw.choices(words, k=7)).capitalize() + ". " for _ in range(5 * count))
    return ["".join(next(sentences) for _ in range(5)) for _ in range(count)]


def test_a_sentence_finds_its_segment_in_other_words() -> None:
    memory = memory_of([FILLER + fact + FILLER for fact in FACTS])
    hit = memory.recall(Question("Which automobile has the physician purchased?"), 1)[0]
    assert hit.segment == 0
    best = max(hit.units, key=lambda unit: unit.score)
    text = "".join(entry.text for entry in memory.records)
    assert text[best.start : best.end].strip() == FACTS[0].strip() and best.score == hit.score
    whole = memory_of([FILLER + fact + FILLER for fact in FACTS], {"lexical": {}})
    assert whole.units is None and not whole.recall(Question("Leeds"), 1)[0].units


@pytest.mark.parametrize("kind", ["flat", "torch", "hnsw"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_best_of_all_are_found_however_few_are_looked_at_first(
    kind: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longterm, "BREADTH", 1)
    memory = memory_of(random_texts(60), kind=kind)
    for number in range(12):
        question = Question(f"word{number} word{3 * number} word{7 * number % 90}")
        own = memory.store.keys @ memory.query_key(question)
        assert memory.units is not None
        query = memory.units.query(question)
        best = [max(unit.score for unit in memory.units.hits(at, query)) for at in range(60)]
        scores = (own + torch.tensor(best)).tolist()
        order = sorted(range(60), key=lambda at: (-scores[at], at))[:k]
        hits = memory.recall(question, k)
        assert [hit.score for hit in hits] == pytest.approx([scores[at] for at in order], abs=1e-4)
        odd = memory.recall(question, k, lambda entry: entry.first_token % 2 == 1)
        expected = [at for at in sorted(range(60), key=lambda at: -scores[at]) if 5 * at % 2 == 1][:k]
        assert [hit.score for hit in odd] == pytest.approx([scores[at] for at in expected], abs=1e-4)


def test_a_unit_that_goes_on_stands_whole_where_it_ends() -> None:
    text = FILLER + FACTS[0] + FILLER
    cut = len(FILLER) + 12
    memory = memory_of([text[:cut], text[cut:]])
    assert memory.units is not None
    spans = [span.tolist() for span in memory.units._spans]
    start, end = len(FILLER), len(FILLER) + len(FACTS[0])
    assert [start, cut] in spans[0] and [start, end] in spans[1]
    assert len(spans[0]) + len(spans[1]) == len(split(text)) + 1


def test_texts_that_do_not_follow_one_another_share_no_unit() -> None:
    memory = memory_of([])
    memory.write([record("The cat slept on", 0, 0), record("a red mat. It purred.", 0, 5)])
    assert memory.units is not None
    assert [span.tolist() for span in memory.units._spans] == [[[0, 16]], [[0, 11], [11, 21]]]


def model_with(asking: dict[str, Any] | None = None, **keys: dict) -> HierMemModel:
    own = LongTermConfig(keys={"lexical": {}, **keys}, lexical=LexicalKeyConfig(dim=128), top_k=2)
    config = HierMemConfig(**settings().settings() | {"longterm": own})
    return reader(config=config.with_asking(**asking or {}))


def test_pieces_resumed_and_loaded_leave_the_units_of_the_whole(tmp_path: Path) -> None:
    model, text = model_with(meaning={}), text_of(300)
    whole = model.read(text)
    pieces = model.read([text[:37], text[37:200], text[200:]])
    cut = text.rindex(" ", 0, 411)
    half = model.read(text[:cut])
    half.save(tmp_path / "half")
    resumed = model.read(text[cut:], memory=MemoryState.load(tmp_path / "half", model))
    whole.save(tmp_path / "whole")
    loaded = MemoryState.load(tmp_path / "whole", model)
    assert MemoryState.verify(tmp_path / "whole") == []
    question = Question("Why did the captain sing?")
    expected = whole.longterm.tensors()["units"]
    assert len(expected["counts"]) > 2 and len(expected["keys"]) > len(expected["counts"])
    for other in (pieces, resumed, loaded):
        units = other.longterm.tensors()["units"]
        assert all(torch.equal(units[name], tensor) for name, tensor in expected.items())
        assert other.longterm.recall(question, 3)[0].score == whole.longterm.recall(question, 3)[0].score
    assert whole.nbytes > model_with().read(text).nbytes


def test_a_copy_and_its_original_go_ways_of_their_own() -> None:
    memory = memory_of(FACTS[:2])
    twin = memory.copy()
    twin.write([record(FACTS[2], 200, 10)])
    assert memory.units is not None and twin.units is not None
    assert (len(memory.units), len(twin.units)) == (2, 3)
    memory.write([record(FILLER, 200, 10)])
    assert twin.recall(Question("Who plays the cello?"), 1)[0].record.text == FACTS[2]


def test_an_open_segment_is_found_by_its_sentences_which_are_made_once() -> None:
    memory = memory_of(FACTS[:1])
    memory.partial = record(FILLER + FACTS[1], len(FACTS[0]), 5)
    hit = memory.recall(Question("Who sells rye bread?"), 1)[0]
    assert hit.segment == 1 and hit.units
    assert memory.units is not None
    made = memory.units.partial(memory.partial, memory.records[0])
    assert memory.units.partial(memory.partial, memory.records[0]) is made


def test_another_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_with(meaning={}).read(text_of(200)).save(tmp_path / "memory")
    MemoryState.load(tmp_path / "memory", model_with())  # a memory keeps the keys that it was read with
    monkeypatch.setattr(MeaningKey, "digest", "other")
    with pytest.raises(MemoryIncompatibleError, match="search key meaning"):
        MemoryState.load(tmp_path / "memory", model_with())


def damaged(name: str) -> dict[str, Tensor]:
    memory = memory_of(FACTS)
    assert memory.units is not None
    tensors = {key: value.clone() for key, value in memory.units.tensors().items()}
    if name == "counts":
        tensors["counts"][0] += 1
    elif name == "spans":
        tensors["spans"][0] += 500
    elif name == "backwards":
        tensors["spans"][0] = tensors["spans"][0].flip(0)
    elif name == "infinite":
        tensors["keys"][0, 0] = math.inf
    elif name == "left over":
        tensors["more"] = torch.zeros(1)
    else:
        del tensors[name.removeprefix("no ")]
    return tensors


@pytest.mark.parametrize(
    "name", ["counts", "spans", "backwards", "infinite", "left over", "no keys", "no spans", "no counts"]
)
def test_units_that_are_not_of_these_segments_are_refused(name: str) -> None:
    records = memory_of(FACTS).records
    with pytest.raises(ValueError, match=r"unit|place for"):
        read_units(damaged(name), records)


def test_a_memory_without_its_units_is_refused(tmp_path: Path) -> None:
    model = model_with(meaning={})
    model.read(text_of(200)).save(tmp_path / "memory")
    files, info = load_directory(tmp_path / "memory")
    del files["units"]
    save_directory(tmp_path / "other", files, info, lambda: None)
    with pytest.raises(MemoryCorruptError, match="other entries"):
        MemoryState.load(tmp_path / "other", model)
    assert "other entries" in MemoryState.verify(tmp_path / "other")[0]


def test_a_key_that_is_not_finite_is_not_stored() -> None:
    memory = memory_of(FACTS[:1])
    assert memory.units is not None
    memory.units.keys[0].document_keys = lambda records: torch.full((len(records), 512), math.nan)  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError):
        memory.write([record(FACTS[1], len(FACTS[0]), 5)])
    assert len(memory) == len(memory.units) == len(memory.store) == 1
    memory.units.keys[0].query_key = lambda question: torch.full((512,), math.nan)  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError):
        memory.recall(Question("bread"), 1)


def test_an_index_of_nothing_finds_nothing() -> None:
    index = UnitIndex([MeaningKey()], StoreConfig())
    assert index.search(torch.ones(512), 5) == (set(), -math.inf) and index.hits(0, torch.ones(512)) == []
    assert memory_of([]).recall(Question("bread"), 3) == [] and index.nbytes == 0


def shown(
    texts: Sequence[str], question: str, keys: dict[str, dict] = KEYS, characters: int = 1
) -> tuple[list[str], float | None]:
    """Passages in so many characters, of which the best one has as many as it needs; and the confidence."""
    memory = memory_of(texts, keys)
    hits = memory.recall(Question(question), 8)
    terms, scale = QueryTerms(memory.key, question), memory.unit_scale(Question(question))
    selection = select(hits, RecordTexts(memory.records), terms, characters, 0.7, scale)
    return [source.text.strip() for source in selection.sources], selection.confidence


def test_the_sentence_that_says_it_in_other_words_is_shown() -> None:
    texts = [FILLER + fact + FILLER for fact in FACTS]
    sources, confidence = shown(texts, "Which automobile has the physician purchased?")
    assert sources[0] == FACTS[0].strip() and confidence is not None and 0 <= confidence <= 1
    assert shown(texts, "Which automobile has the physician purchased?", {"lexical": {}}) == ([], None)


def test_words_that_stand_together_are_enough() -> None:
    """However little the key of meaning says of them, such as of codes."""
    texts = [FILLER + "Locker qx77 holds zyx981. " + FILLER, FILLER]
    sources, confidence = shown(texts, "What holds locker qx77?")
    assert "zyx981" in sources[0] and confidence is not None and confidence >= 0.7


@pytest.mark.parametrize("weight", [1.0, 80.0, 1e6])
def test_the_confidence_does_not_depend_on_the_weight(weight: float) -> None:
    texts = [FILLER + fact + FILLER for fact in FACTS]
    keys = {"lexical": {}, "meaning": {"weight": weight}}
    for question in ("Which automobile has the physician purchased?", "When do judges vote?"):
        found, expected = shown(texts, question, keys)[1], shown(texts, question)[1]
        assert found == pytest.approx(expected, rel=1e-3) and found is not None


def test_without_known_odds_there_is_no_confidence_and_what_is_found_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MeaningKey, "odds", None)
    sources, confidence = shown([FILLER + FACTS[0]], "Which automobile has the physician purchased?")
    assert sources[0] == FACTS[0].strip() and confidence is None


def test_what_stands_around_the_best_sentence_in_its_paragraph_fills_the_room() -> None:
    paragraph = "It was spring. He came by train. " + FACTS[0] + "It broke down at once. He laughed."
    texts, question = (
        [f"Winter had gone.\n\n{paragraph}\n\nShe slept. {FILLER}", FILLER],
        "An automobile in Leeds?",
    )
    assert shown(texts, question)[0] == [FACTS[0].strip()]
    assert shown(texts, question, characters=70)[0] == [FACTS[0] + "It broke down at once."]
    assert shown(texts, question, characters=600)[0] == [paragraph]
    rows = "".join(f"- {fact.strip()}\n" for fact in FACTS)
    assert shown([f"Notes:\n{rows}"], question, characters=600)[0] == [f"Notes:\n- {FACTS[0].strip()}"]


def test_a_header_alone_is_no_answer() -> None:
    model, header = model_with(meaning={"weight": 80.0}), "Prices of cars in euros:"
    memory = model.read(f"{header}\n- red: 5,100 today\n- blue: 4,200 today\n- green: 3,300 now\n")
    prompt = model.prepare(memory, "What are the prices of cars in euros?")
    assert prompt.sources and {source.text.strip() for source in prompt.sources} != {header}


def test_a_key_that_trusts_itself_less_weighs_less() -> None:
    question, texts = Question("Which physician purchased an automobile?"), [*map(str.__add__, FACTS, FACTS)]
    best = {}
    for trusts in (1.0, 0.5, 0.0):
        memory = memory_of(texts, {"lexical": {}, "meaning": {"trusts": trusts}})
        best[trusts] = memory.recall(question, 1)[0]
        assert (memory.unit_scale(question) is None) == (trusts < LEAST_TRUST)
    (whole, half), nothing = (max(best[t].units, key=lambda unit: unit.own) for t in (1.0, 0.5)), best[0.0]
    assert half.own == pytest.approx(whole.own) and whole.score - half.score == pytest.approx(2.5 * whole.own)
    assert nothing.score == memory_of(texts, {"lexical": {}}).recall(question, 1)[0].score


def test_where_no_key_knows_the_question_words_alone_choose() -> None:
    question, texts = "Who bought a car in Leeds?", [FILLER + FACTS[0], FILLER + FACTS[1]]
    words = shown(texts, question, {"lexical": {}})
    assert words == shown(texts, question, {"lexical": {}, "meaning": {"trusts": 0.1}})
    assert words[1] is None and words != shown(texts, question)


def test_units_that_no_index_knows_are_told_apart_by_their_words() -> None:
    """Such as those of a segment that a tier has recalled."""
    memory = memory_of([FILLER + FACTS[0] + FILLER])
    hits = [Hit(0, 1.0, memory.records[0])]
    question = "Who bought a car in Leeds?"
    scale = memory.unit_scale(Question(question))
    selection = select(hits, RecordTexts(memory.records), QueryTerms(memory.key, question), 1, 0.7, scale)
    assert [source.text.strip() for source in selection.sources] == [FACTS[0].strip()]


def test_files_that_a_memory_names_are_not_opened_for_that(tmp_path: Path) -> None:
    named = model_with(meaning={"file": "elsewhere"})
    named.read(text_of(200)).save(tmp_path / "memory")
    for other in (model_with(), model_with(meaning={}), model_with(meaning={"file": "another"})):
        with pytest.raises(MemoryIncompatibleError, match="names files for its search key meaning"):
            MemoryState.load(tmp_path / "memory", other)
    assert MemoryState.load(tmp_path / "memory", named).tokens


def test_units_of_another_width_are_refused(tmp_path: Path) -> None:
    model = model_with(meaning={})
    model.read(text_of(200)).save(tmp_path / "memory")
    files, info = load_directory(tmp_path / "memory")
    for width in (0, 5):
        keys = torch.zeros(len(files["units"]["keys"]), width)
        changed = {**files, "units": {**files["units"], "keys": keys}}
        save_directory(tmp_path / f"{width}", changed, info, lambda: None)
        with pytest.raises(MemoryCorruptError, match="width"):
            MemoryState.load(tmp_path / f"{width}", model)


def test_a_document_that_does_not_say_is_told_from_one_that_does() -> None:
    model = model_with(meaning={"weight": 80.0})
    memory = model.read(FILLER + FACTS[0] + FILLER)
    asked = model.ask(memory, "Which automobile has doctor Mills purchased in Leeds?", max_new_tokens=3)
    other = model.ask(memory, "When does parliament elect its judges?", max_new_tokens=3)
    assert asked.found and asked.confidence is not None and asked.confidence > 0.27
    assert not other.found and other.confidence is not None and other.confidence < 0.27
    assert not other.sources and other.text == "The document does not say."
    always = model_with({"least_confidence": 0.0}, meaning={"weight": 80.0})
    assert always.ask(memory, "When does parliament elect its judges?", max_new_tokens=3).found
