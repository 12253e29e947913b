"""Answers piece by piece, several at once, and in a conversation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from readers import lively, reader, settings, text_of

from hiermem import answering
from hiermem.answer import NOT_FOUND, Answer
from hiermem.asking import PreparedPrompt, prepare
from hiermem.asking_config import AskConfig
from hiermem.chat import CHARACTERS, TURNS, WEIGHT, Chat, Turn, stands_alone
from hiermem.config import HierMemConfig
from hiermem.decoding import Continuation
from hiermem.errors import InputError, NonFiniteError
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.passages import Source

QUESTIONS = [
    "Who sailed north?",
    "Quantum chromodynamics?",
    "Why was the captain of Orion silent at dawn? " * 4,
    "ice?",
    "Where is the café?",
]


def part(name: str, value: Any) -> HierMemConfig:
    """The tests' settings with another part."""
    return HierMemConfig(**{**settings().settings(), name: value})


CONFIGS = {
    "recalled": settings(),
    "whole segments": part("asking", AskConfig(passage_characters=0)),
    "after the working memory": part("asking", AskConfig(working=True)),
    "nothing recalled": settings(top_k=0),
    "half of a segment read beforehand": HierMemConfig(
        **{
            **settings(16, 16, top_k=0, policy="forget", positions="compact").settings(),
            "summary": SummaryConfig(tokens=2, sensory=3, width=8, query="half"),
        }
    ),
    "memory embeddings": HierMemConfig(
        **{**settings(top_k=0).settings(), "summary": SummaryConfig(tokens=2, width=8, last=3)}
    ),
    "mamba": HierMemConfig(
        **{
            **settings().settings(),
            "mamba": MambaConfig(groups=[[0, 1], [2, 0]], taps=3, window=6, sinks=2),
            "asking": AskConfig(working=True),
        }
    ),
}


def made(config: HierMemConfig, family: str = "llama") -> HierMemModel:
    """A model with these settings, its memory parameters random."""
    model = reader(family, config)
    return model if model.summary is None else lively(model)


def held(memory: MemoryState) -> dict[str, torch.Tensor]:
    """A copy of what the working memory holds."""
    return {name: tensor.clone() for name, tensor in memory.working.state_dict().items()}


def unchanged(memory: MemoryState, before: dict[str, torch.Tensor]) -> bool:
    """Whether the working memory holds what it held."""
    after = held(memory)
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# ---- several at once


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_of_questions_is_answered_as_each_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(CONFIGS[name])
    memory = model.read(text_of(120))
    before = held(memory)
    singles = [model.ask(memory, question, max_new_tokens=6) for question in QUESTIONS]
    assert len({answer.text for answer in singles}) > 2
    assert model.ask(memory, QUESTIONS, max_new_tokens=6) == singles
    monkeypatch.setattr(answering, "ROWS", 2)
    assert model.ask(memory, tuple(QUESTIONS[:3]), max_new_tokens=6) == singles[:3]
    assert unchanged(memory, before)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "mistral"])
def test_a_batch_of_questions_is_answered_so_by_other_backbones(family: str) -> None:
    model = reader(family)
    memory = model.read(text_of(80))
    singles = [model.ask(memory, question, max_new_tokens=4) for question in QUESTIONS[:3]]
    assert model.ask(memory, QUESTIONS[:3], max_new_tokens=4) == singles


def test_questions_that_stand_after_the_same_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("recalled", 4), ("after the working memory", 5), ("memory embeddings", 5)):
        model, batches = made(CONFIGS[name]), list[int]()
        memory = model.read(text_of(120))
        read = model.adapter.read_chunk

        def counted(memory: Any, ids: torch.Tensor, *others: Any) -> torch.Tensor:
            batches.append(len(ids))  # noqa: B023
            return read(memory, ids, *others)  # noqa: B023

        monkeypatch.setattr(model.adapter, "read_chunk", counted)
        model.ask(memory, QUESTIONS, max_new_tokens=2)
        assert batches[0] == most, name


def test_a_short_prompt_that_stands_by_itself_is_kept_whole() -> None:
    """As the backbone reads it; a longer one is pruned as the document was, and no row of the same batch."""
    shares = [[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]
    model = reader(config=settings(policy="attention", budget=80, head_shares=shares))
    short, long = QUESTIONS[0], QUESTIONS[2]
    model.adapter.trained_range = 2 * model.prepare(model.read(text_of(120)), short).ids.shape[1]
    memory = model.read(text_of(120))
    whole, pruned = (model.prepare(memory, question) for question in (short, long))
    assert (whole.working.config.policy, whole.working.config.head_shares) == ("full_cache", None)
    assert pruned.working.config == memory.working_config
    with model.inference():
        ours = model.reader.logits(whole.working.copy(), whole.ids, 1)
        torch.testing.assert_close(ours, model.backbone(whole.ids).logits[:, -1:], atol=1e-4, rtol=1e-4)
    singles = [model.ask(memory, question, max_new_tokens=6) for question in (short, long)]
    assert model.ask(memory, [short, long], max_new_tokens=6) == singles
    tokens = whole.ids.shape[1]
    for family, budget, positions in (
        ("llama", tokens - 17, 2 * tokens),
        ("llama", 80, tokens),
        ("gpt2", 80, 999),
    ):
        other = reader(family, settings(policy="attention", budget=budget, positions="absolute"))
        other.adapter.trained_range = positions
        memory = other.index(text_of(120))
        assert other.prepare(memory, short).working.config == memory.working_config


def test_a_row_that_ends_leaves_the_batch() -> None:
    model = reader()
    memory = model.read(text_of(120))
    row, prompt = Continuation((), 4), model.prepare(memory, QUESTIONS[0])
    with torch.no_grad():
        assert len(list(model.reader.greedy(prompt.working, prompt.ids, [row]))) == 4
    model.generation_config.eos_token_id = row.tokens[-1]
    ended = [model.ask(memory, question, max_new_tokens=12) for question in QUESTIONS]
    assert ended[0].complete and not all(answer.complete for answer in ended)
    assert model.ask(memory, QUESTIONS, max_new_tokens=12) == ended


def test_what_is_no_list_of_questions_is_refused() -> None:
    model = reader()
    memory = model.read(text_of(40))
    assert model.ask(memory, []) == []
    with pytest.raises(InputError, match="question is empty"):
        model.ask(memory, ["Who?", " "])
    for wrong in ({"Who?": 1}, None, [["Who?"]], b"Who?"):
        with pytest.raises(InputError, match="A question is a text"):
            model.ask(memory, wrong)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="Several answers cannot be streamed"):
        model.ask(memory, ["Who?"], stream=True)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="stream must be True or False, not 'yes'"):
        model.ask(memory, "Who?", stream="yes")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="at least 1"):
        model.ask(memory, ["Who?"], max_new_tokens=0)


# ---- piece by piece


@pytest.mark.parametrize("name", ["recalled", "after the working memory"])
def test_pieces_together_are_the_answer(name: str) -> None:
    model = made(CONFIGS[name])
    memory = model.read(text_of(120))
    before = held(memory)
    for question in QUESTIONS:
        answer = model.ask(memory, question, max_new_tokens=12)
        stream = model.ask(memory, question, max_new_tokens=12, stream=True)
        with pytest.raises(InputError, match="has not ended"):
            _ = stream.answer
        pieces = list(stream)
        assert "".join(pieces) == answer.text and all(pieces)
        assert stream.answer == answer == stream.finish()
        assert list(stream) == []
        generated = answer.text != NOT_FOUND
        assert (answer.first_token_seconds is not None) == generated
        assert not generated or len(pieces) > 3
    assert unchanged(memory, before)


def test_stopping_half_way_leaves_the_memory_and_gradients_as_they_are() -> None:
    model = made(CONFIGS["after the working memory"]).train()
    memory = model.read(text_of(60))
    before, question = held(memory), QUESTIONS[0]
    for piece in model.ask(memory, question, stream=True):
        assert piece and model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        break
    assert unchanged(memory, before)
    started = model.ask(memory, question, max_new_tokens=8, stream=True)
    next(started)
    other = model.ask(memory, QUESTIONS[2], max_new_tokens=8)  # while the first is half way
    assert started.finish() == model.ask(memory, question, max_new_tokens=8)
    assert other == model.ask(memory, QUESTIONS[2], max_new_tokens=8)


def test_a_stream_that_fails_has_no_answer() -> None:
    model = reader()
    memory = model.read(text_of(60))
    stream = model.ask(memory, QUESTIONS[0], stream=True)
    next(stream)
    model.backbone.lm_head.weight.data[5] = torch.nan
    with pytest.raises(NonFiniteError):
        stream.finish()
    with pytest.raises(InputError, match="has not ended"):
        stream.finish()


# ---- a conversation


def shown_to(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the recall and the backbone will be given of every question from here."""
    asked: list[tuple[str, str]] = []

    def noted(model: Any, memory: Any, query: str, top_k: Any, shown: str) -> PreparedPrompt:
        asked.append((query, shown))
        return prepare(model, memory, query, top_k, shown)

    monkeypatch.setattr("hiermem.chat.prepare", noted)
    return asked


@pytest.fixture
def model() -> HierMemModel:
    """A model that recalls one sentence."""
    config = settings(top_k=1)
    config.asking = replace(config.asking, passage_characters=60)
    return reader(config=config)


STORY = ". ".join(
    [
        text_of(60),
        "Abelard, the skipper, comes from Bergen",
        text_of(60, seed=1),
        "Abelard was born on a Tuesday",
        text_of(60, seed=2),
        "The cooper was born on a Friday",
        text_of(60, seed=3),
    ]
)


def test_the_first_question_of_a_conversation_is_asked_as_by_itself(model: HierMemModel) -> None:
    memory = model.read(STORY)
    before = held(memory)
    for question in ("Who comes from Bergen?", "Where is he?"):
        chat = model.chat(memory)
        answer = chat.ask(question, max_new_tokens=6)
        assert answer == model.ask(memory, question, max_new_tokens=6)
        assert [(turn.question, turn.answer) for turn in chat.turns] == [(question, answer)]
    assert unchanged(memory, before)


def test_earlier_turns_count_in_what_a_question_means(model: HierMemModel) -> None:
    memory, question = model.read(STORY), "When was he born?"
    chat, alone = model.chat(memory), model.ask(memory, question, max_new_tokens=4)
    assert "Bergen" in chat.ask("Where does Abelard come from?", max_new_tokens=1).sources[0].text
    chat.turns = [Turn("Who is Abelard?", Answer("The skipper.", []))]
    later = chat.ask(question, max_new_tokens=4)
    assert "Abelard was born" in later.sources[0].text
    assert all(STORY[source.start : source.end] == source.text for source in later.sources)
    assert later.text != alone.text  # the backbone reads the turn before, too
    assert "cooper" in chat.ask("Which weekday was the cooper born on?", max_new_tokens=1).sources[0].text


def test_what_counts_of_a_conversation_is_bounded(
    model: HierMemModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = model.chat(model.read(STORY))
    asked = shown_to(chat, monkeypatch)
    long = "Abelard of Bergen, " + "the skipper " * 99 + "?"
    chat.turns = [Turn(long, Answer("The skipper " * 99, []))] * (TURNS + 2)
    answer = chat.ask("Unheard-of chromodynamics?")
    assert answer.text == NOT_FOUND  # though the document has words of the question before
    chat.ask("When was he born?", max_new_tokens=4)
    query, shown = asked[-1]
    assert shown.count("Abelard of Bergen") == query.count("Abelard of Bergen") == TURNS
    assert "chromodynamics" not in shown + query  # it has no answer to refer to
    assert shown.startswith("When was he born? (asked after: Abelard") and query.count("born") == WEIGHT
    assert len(shown) < len("When was he born? (asked after: )") + TURNS * (CHARACTERS + 1)
    assert len(chat.turns) == TURNS + 4
    chat.turns.clear()
    chat.ask("When was he born?", max_new_tokens=4)
    assert asked[-1] == ("When was he born?", "When was he born?")


def test_a_streamed_turn_counts_once_it_has_ended(model: HierMemModel) -> None:
    memory = model.read(STORY)
    chat, other = model.chat(memory), model.chat(memory)
    question = "Where does Abelard come from?"
    next(chat.ask(question, max_new_tokens=6, stream=True))
    assert not chat.turns
    stream = chat.ask(question, max_new_tokens=6, stream=True)
    assert "".join(stream) == other.ask(question, max_new_tokens=6).text
    assert chat.turns == other.turns
    with pytest.raises(InputError, match="question is empty"):
        chat.ask(" ")
    with pytest.raises(InputError, match="stream must be"):
        chat.ask("Who?", stream=1)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="A memory is what"):
        model.chat("book.hmem")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "alone"),
    [
        ("Who is the captain of the Orion?", True),
        ("Where was he born?", False),
        ("Why?", False),
        ("And Starbuck?", False),
        ("What are its contents made of?", False),
        ("船長はどこで生まれましたか。", True),
        ("Wo wurde der Kapitän geboren?", True),
    ],
)
def test_a_question_stands_alone_or_not(question: str, alone: bool) -> None:
    assert stands_alone(question) is alone


# ---- shown to a person


def test_answers_and_memories_are_readable() -> None:
    source = Source(3, 10, 30, 0.914, "Ahab is the\n captain.")
    answer = Answer("Ahab.\n\nHe is the captain", [source], complete=False)
    assert str(answer).splitlines() == [
        "Ahab.",
        "  He is the captain …",
        "  [segment 3, characters 10 to 30, score 0.91] Ahab is the captain.",
    ]
    assert str(Answer(NOT_FOUND, [], found=False)) == NOT_FOUND
    likely = str(Answer("Ahab.", [source], confidence=0.914)).splitlines()
    assert likely[1] == "  Confidence that the document holds an answer: 0.91." and len(likely) == 3
    assert "answers by itself" in str(Answer("A book.", [], found=False))
    assert len(str(Answer("", [replace(source, text="word " * 99)]))) < 400
    memory = reader().read(text_of(60))
    assert str(memory).startswith(f"A memory of {memory.tokens} tokens ") and "\n" not in str(memory)
    assert repr(memory).startswith("MemoryState(")
