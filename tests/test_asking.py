"""Passages, prompts and answers."""

import pytest
import torch
from readers import reader, settings, text_of

from hiermem.asking import Answer, AskConfig, prepare, prompt_text
from hiermem.errors import InputError


def test_passages_stand_before_the_question() -> None:
    plain = prompt_text(reader().tokenizer, ["sooner", "later"], "Why?", "Be brief.")
    assert plain.index("sooner") < plain.index("later") < plain.index("Why?")

    class Chatty:
        chat_template = "yes"

        def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
            return f"<user>{messages[0]['content']}</user>"

    chat = prompt_text(Chatty(), ["sooner", "later"], "Why?", "Be brief.")
    assert chat.startswith("<user>") and chat.index("later") < chat.index("Why?") < chat.index("Be brief.")
    assert prompt_text(Chatty(), [], "Why?", "Be brief.") == "<user>Why?</user>"


def test_passages_stand_in_document_order() -> None:
    model, filler = reader(), text_of(200)
    memory = model.read(f"The brass key hung here. {filler}. A brass key hangs there. {filler}")
    prompt = prepare(model, memory, "Where hangs the brass key?")
    starts = [source.start for source in prompt.sources]
    shown = model.tokenizer.decode(prompt.ids[0])
    places = [shown.index(source.text.strip()) for source in prompt.sources]
    assert len(places) == 2
    assert (places[0] < places[1]) == (starts[0] < starts[1])


def test_asking_leaves_the_memory_as_it_is() -> None:
    model = reader()
    memory = model.read(text_of(150))
    before = memory.working.state_dict()
    answers = [model.ask(memory, "Who sailed north?", max_new_tokens=5) for _ in range(2)]
    assert answers[0] == answers[1]
    after = memory.working.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(memory.text[s.start : s.end] == s.text for s in answers[0].sources)


def test_the_working_memory_answers_where_nothing_is_recalled() -> None:
    model = reader(config=settings(top_k=0))
    prompts = "Who sailed north?"
    one, other = model.read(text_of(150)), model.read(text_of(150, seed=9))
    assert model.ask(one, prompts).sources == []
    assert model.ask(one, prompts).text != model.ask(other, prompts).text


def test_what_is_held_is_not_recalled_when_it_stands_before_the_question() -> None:
    model = reader(config=settings(budget=200, update_interval=16))
    model.config.asking = AskConfig(working=True)
    memory = model.read(text_of(30))
    assert memory.tokens <= 200
    assert model.ask(memory, "Who sailed north?").sources == []
    model.config.asking = AskConfig(working=False)
    assert model.ask(memory, "Who sailed north?").sources


def test_an_empty_question_is_refused() -> None:
    model = reader()
    with pytest.raises(InputError, match="question is empty"):
        model.ask(model.read("A text."), "  ")
    with pytest.raises(ValueError, match="passage_characters"):
        AskConfig(passage_characters=-1)
    with pytest.raises(ValueError, match="least_score must be between 0 and 1"):
        AskConfig(least_score=1.5)


def test_answers_and_models_are_shown_in_one_line() -> None:
    assert repr(Answer("Ahab.\nHe is the captain.", [])) == "Answer('Ahab. He is the captain.', sources: 0)"
    assert repr(Answer("word " * 99, [], complete=False)).endswith("…', sources: 0, cut short)")
    shown = repr(reader())
    assert "LlamaForCausalLM" in shown and "policy keen" in shown and len(shown.splitlines()) == 1
