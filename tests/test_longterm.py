"""Long-term memory: complete segments and an open one are found, forgotten and carried to disk alike."""

import pytest
import torch
from readers import reader, settings, text_of

from hiermem.asking import recall
from hiermem.memory.longterm import LongTermConfig, LongTermMemory, SegmentRecord
from hiermem.retrieval.keys import Question
from hiermem.retrieval.keys.lexical import LexicalKeyConfig
from hiermem.retrieval.store import INDEX_KINDS, StoreConfig

TEXTS = [
    "The captain of the ship was called Ahab and he had one leg.",
    "Barrels of salt stood in the hold beside the sleeping cat.",
    "In the morning the lighthouse keeper, Miriam, wrote a letter.",
    "Nobody knew why the compass pointed to the glacier.",
]


def record(text: str, start: int = 0) -> SegmentRecord:
    return SegmentRecord(
        start, torch.arange(start, start + 5, dtype=torch.int32), start, start + len(text), text
    )


def memory_of(texts: list[str], open_text: str | None = None, kind: str = "flat") -> LongTermMemory:
    config = LongTermConfig(store=StoreConfig(kind=kind, ivf_lists=1), lexical=LexicalKeyConfig(dim=512))
    memory = LongTermMemory(config)
    for index, text in enumerate(texts):
        memory.write([record(text, 100 * index)])
    if open_text is not None:
        memory.partial = record(open_text, 100 * len(texts))
    return memory


@pytest.mark.parametrize("kind", INDEX_KINDS)
@pytest.mark.parametrize(
    ("question", "segment"), [("Who is Ahab?", 0), ("Where is the salt?", 1), ("Miriam", 2)]
)
def test_a_segment_is_found_by_its_words(kind: str, question: str, segment: int) -> None:
    hits = memory_of(TEXTS, kind=kind).recall(Question(question), 2)
    assert hits[0].segment == segment and hits[0].record.text == TEXTS[segment]
    assert hits[0].score > hits[1].score


def test_an_open_segment_is_found_as_a_complete_one_is() -> None:
    memory = memory_of(TEXTS[:3], open_text=TEXTS[3])
    assert len(memory) == 4 and len(memory.store) == 3
    hit = memory.recall(Question("Where did the compass point?"), 1)[0]
    assert (hit.segment, hit.record.text) == (3, TEXTS[3])
    memory.write([record(TEXTS[3])])
    assert memory.partial is None and len(memory) == 4
    assert memory.recall(Question("Where did the compass point?"), 1)[0].segment == 3


def test_an_open_segment_alone_is_found() -> None:
    assert memory_of([], open_text=TEXTS[0]).recall(Question("Ahab"), 3)[0].segment == 0
    assert memory_of([]).recall(Question("Ahab"), 3) == []


def test_only_what_is_wanted_is_found_and_as_much_as_there_is() -> None:
    texts = [f"{TEXTS[0]} Day {i}." for i in range(60)]
    memory = memory_of(texts, open_text="Ahab, Ahab, Ahab.")
    for wanted in ({3}, {57, 58, 59}, set(range(0, 60, 7)), set()):
        hits = memory.recall(Question("Ahab"), 3, lambda r, wanted=wanted: r.first_token // 100 in wanted)
        assert len(hits) == min(3, len(wanted))
        assert {hit.segment for hit in hits} <= wanted
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_a_copy_and_its_original_go_ways_of_their_own(kind: str) -> None:
    """Whichever is searched or written first."""
    for searched in (False, True):
        memory = memory_of(TEXTS[:2], kind=kind)
        if searched:
            memory.recall(Question("Ahab"), 2)
        twin = memory.copy()
        twin.write([record(TEXTS[2])])
        memory.write([record(TEXTS[3])])
        for one, texts in ((memory, [*TEXTS[:2], TEXTS[3]]), (twin, TEXTS[:3])):
            fresh = memory_of(texts, kind=kind)
            assert [r.text for r in one.records] == texts
            assert torch.equal(one.store.keys, fresh.store.keys)
            ours, theirs = one.key.state_dict(), fresh.key.state_dict()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
            found, expected = (longterm.recall(Question("compass Ahab"), 3) for longterm in (one, fresh))
            assert [(h.segment, h.score) for h in found] == [(h.segment, h.score) for h in expected]


@pytest.mark.parametrize("texts", [[], TEXTS, ["", "東京 🚢", "lone \ud800 half", "\x00 zero", "é" * 500]])
@pytest.mark.parametrize("open_text", [None, "", "still \udfff open 🚢"])
def test_tensors_hold_everything(texts: list[str], open_text: str | None) -> None:
    memory = memory_of(texts, open_text)
    again = LongTermMemory.from_tensors(memory.config, memory.tensors())
    assert len(again) == len(memory) and (again.partial is None) == (open_text is None)
    pairs = zip([*again.records, again.partial], [*memory.records, memory.partial], strict=True)
    for one, other in pairs:
        if one is None or other is None:
            assert one is other
            continue
        assert (one.first_token, one.start, one.end, one.text) == (
            other.first_token,
            other.start,
            other.end,
            other.text,
        )
        assert torch.equal(one.ids, other.ids) and one.ids.dtype == torch.int32
    assert torch.equal(again.store.keys, memory.store.keys)
    question = "Where did the compass point? 東京"
    assert [(h.segment, h.score) for h in again.recall(Question(question), 3)] == [
        (h.segment, h.score) for h in memory.recall(Question(question), 3)
    ]


def test_embeddings_are_kept() -> None:
    memory = memory_of(TEXTS)
    for index, one in enumerate(memory.records):
        one.embedding = torch.full((6,), float(index))
    again = LongTermMemory.from_tensors(memory.config, memory.tensors())
    for one, other in zip(again.records, memory.records, strict=True):
        assert one.embedding is not None and other.embedding is not None
        assert torch.equal(one.embedding, other.embedding)


def test_what_the_working_memory_holds_is_not_recalled() -> None:
    model = reader(config=settings(16, segment=16, policy="window", budget=40, update_interval=16))
    memory = model.read(text_of(120))
    held = {
        index
        for index, one in enumerate(memory.records())
        if memory.working.cache.held_everywhere(one.first_token, one.first_token + len(one.ids)).all()
    }
    assert held and len(held) < memory.segments
    every = recall(
        model.reader, memory, "captain Orion salt cat ice wind men home", model.config.asking, memory.segments
    )
    assert {hit.segment for hit in every} == set(range(memory.segments)) - held


def test_a_negative_number_of_segments_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k must not be negative"):
        LongTermConfig(top_k=-1)
