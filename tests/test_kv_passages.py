"""Passages that stand before a question as the keys and values that were stored of them."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import CONFIGS, RANGE
from readers import VOCABULARY, reader, settings, text_of, tokenizer
from test_asking import chatty
from tokenizers import normalizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hiermem.answer import NOT_FOUND
from hiermem.asking import PreparedPrompt
from hiermem.asking_config import AskConfig
from hiermem.errors import InputError
from hiermem.eval.methods import HierMem, Indexed
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.passages import Selection, Source, select
from hiermem.prompts import around_passages, prompt_text
from hiermem.recalling import chosen_tokens, kv_tier
from hiermem.text import encode_with_spans, stream_tokens, token_spans

FACTS = "The brass key hangs in the pantry. A silver whistle lies under the mat."
QUESTION = "Where hangs the brass key?"


def model_of(
    layers: int = 1,
    tokenizer: PreTrainedTokenizerFast | None = None,
    kv: dict[str, Any] | None = None,
    change: dict[str, Any] | None = None,
    **working: Any,
) -> HierMemModel:
    """A model whose passages are stored keys and values. In one of one layer these depend on no context: so
    what is recalled is what reading the same tokens again would give."""
    config = copy.deepcopy(CONFIGS["llama"])
    config.vocab_size, config.num_hidden_layers = VOCABULARY, layers
    torch.manual_seed(0)
    given = settings(**({"positions": "absolute"} | working))
    tiers = {"kv": {"keep": 1.0, "dtype": "float32"} | (kv or {})}
    changes = {"longterm": replace(given.longterm, tiers=tiers), "asking": AskConfig(passages="kv")}
    given = type(given)(**(given.settings() | changes | (change or {})))
    backbone = AutoModelForCausalLM.from_config(config).eval()
    return HierMemModel(given, backbone, chatty() if tokenizer is None else tokenizer).eval()


def document(words: int = 120) -> str:
    return f"{text_of(words)}\n\n{FACTS}\n\n{text_of(words, seed=1)}"


def logits_of(model: HierMemModel, prompt: PreparedPrompt) -> Tensor:
    with torch.inference_mode():
        return model.reader.logits(prompt.working.copy(), prompt.ids)


def expected_logits(model: HierMemModel, memory: MemoryState, prompt: PreparedPrompt) -> Tensor:
    """After the beginning of the prompt and the document's own tokens of the passages, all read again."""
    before, _ = around_passages(model.tokenizer, [], QUESTION, model.config.asking.instruction)
    lead, taken = model.reader.encode(before)[0], []
    spans = [(memory.text.index(s.text.strip(), s.start), len(s.text.strip())) for s in prompt.sources]
    for token, (begin, end) in zip(*encode_with_spans(model.tokenizer, memory.text), strict=True):
        if any(start < end and begin < start + size for start, size in spans):
            taken.append(token)
    working = model.new_working_memory(replace(model.config.working, policy="full_cache"))
    passage = torch.tensor(taken)
    with torch.inference_mode():
        model.reader.read(working, torch.cat((lead, passage))[None])
        return model.reader.logits(working, prompt.ids)


@pytest.mark.parametrize("characters", [200, 60, 0])
def test_stored_passages_are_as_reading_their_tokens_again(characters: int) -> None:
    model = model_of()
    model.config.asking = replace(model.config.asking, passage_characters=characters)
    # ASCII, so that each token is as many characters as it decodes to
    memory = model.read(document().encode("ascii", "ignore").decode(), progress=False)
    prompt = model.prepare(memory, QUESTION)
    assert prompt.found and any("brass key" in source.text for source in prompt.sources)
    ours, expected = logits_of(model, prompt), expected_logits(model, memory, prompt)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    assert "brass key hangs" not in model.tokenizer.decode(prompt.ids[0])


def test_sources_are_those_of_text() -> None:
    model = model_of(layers=3)
    memory = model.read(document(), progress=False)
    stored = model.ask(memory, QUESTION, max_new_tokens=4)
    model.config.asking = replace(model.config.asking, passages="text")
    text = model.ask(memory, QUESTION, max_new_tokens=4)
    assert stored.sources == text.sources and stored.confidence == text.confidence
    prompt = model.prepare(memory, QUESTION)
    assert "brass key hangs" in model.tokenizer.decode(prompt.ids[0])


def test_the_beginning_of_a_document_is_recalled_too() -> None:
    """Its sinks are tokens like others where the beginning of the prompt stands first."""
    model = model_of(sinks=8)
    memory = model.read(f"{FACTS}\n\n" + text_of(60).encode("ascii", "ignore").decode(), progress=False)
    prompt = model.prepare(memory, QUESTION)
    assert min(source.start for source in prompt.sources) == 0
    torch.testing.assert_close(
        logits_of(model, prompt), expected_logits(model, memory, prompt), atol=2e-5, rtol=1e-4
    )


def test_what_no_segment_is_complete_of_stands_as_text() -> None:
    model = model_of(layers=3)
    begun = f"{text_of(100).encode('ascii', 'ignore').decode()}\n\n"
    for filler in range(12):  # ends anywhere in a segment
        memory = model.read(begun + filler * "sail " + FACTS, progress=False)
        prompt = model.prepare(memory, "Where lies the silver whistle? Where hangs the brass key?")
        (tier,) = memory.tiers
        complete = memory.records()[len(tier) - 1].end  # type: ignore[arg-type]
        read = model.tokenizer.decode(prompt.ids[0])
        shown = [source.text for source in prompt.sources]
        assert all(text in memory.text for text in shown) and "".join(shown).count("whistle") == 1
        assert ("silver whistle lies" in read) == (memory.text.index("silver whistle lies") >= complete)
        if memory.text.index("The brass") >= complete:
            assert prompt.working.num_tokens == (len(model.reader.encode(_before(model))[0]),)


def _before(model: HierMemModel) -> Any:
    return around_passages(model.tokenizer, [], QUESTION, "")[0]


def test_prompts_that_begin_with_nothing_have_the_sinks_first() -> None:
    model = model_of(layers=3, tokenizer=tokenizer())
    memory = model.read(document(), progress=False)
    prompt = model.prepare(memory, QUESTION)
    (tier,) = memory.tiers
    assert model.tokenizer.decode(prompt.ids[0]).startswith(f"\n\nQuestion: {QUESTION}")
    layer = prompt.working.caches[0]
    assert layer.keys is not None
    torch.testing.assert_close(layer.values[0, :, :2], tier.sinks[0].values.unpacked()[:2])  # type: ignore
    begins = model_of(layers=3, tokenizer=tokenizer(bos=True))
    memory = begins.read(document(), progress=False)
    first = begins.prepare(memory, QUESTION).working
    alone = begins.new_working_memory(begins.config.working)
    begins.reader.read(alone, torch.tensor([[begins.tokenizer.bos_token_id]]))
    ours, theirs = first.caches[0].values, alone.caches[0].values
    assert ours is not None and theirs is not None
    torch.testing.assert_close(ours[:, :, :1], theirs)


@pytest.mark.parametrize(
    ("kv", "change", "working"),
    [
        ({"keep": 0.25, "dtype": "int8"}, {}, {"positions": "distance"}),
        ({"dtype": "int4"}, {}, {"positions": "compact", "head_shares": [[3.0, 1.0]] * 3}),
        ({}, {"mamba": MambaConfig(groups=[[0, 1], [2, 0]], taps=3, window=6, sinks=2)}, {}),
    ],
)
def test_several_are_answered_as_one_by_one_and_nothing_is_evicted(
    kv: dict[str, Any], change: dict[str, Any], working: dict[str, Any]
) -> None:
    model = model_of(3, None, kv, change, **working)
    memory = model.read(document(), progress=False)
    before = {name: tensor.clone() for name, tensor in memory.working.state_dict().items()}
    questions = [QUESTION, "Where lies the silver whistle?", "Who sailed north?"]
    together = model.ask(memory, questions, max_new_tokens=20)
    assert together == [model.ask(memory, question, max_new_tokens=20) for question in questions]
    assert model.ask(memory, QUESTION, max_new_tokens=20, stream=True).finish() == together[0]
    assert all(torch.equal(before[name], now) for name, now in memory.working.state_dict().items())
    prompt = model.prepare(memory, QUESTION)
    recalled = prompt.working.num_tokens[0]
    with torch.inference_mode():
        model.reader.read(prompt.working, prompt.ids)
    held = [int((cache.positions >= 0).sum(-1).max()) for cache in prompt.working.caches]
    if kv.get("keep", 1.0) == 1.0:
        assert held == [recalled + prompt.ids.shape[1]] * len(held)
    assert max(held) <= recalled + prompt.ids.shape[1]


def test_a_saved_memory_answers_alike(tmp_path: Any) -> None:
    model = model_of(layers=3, kv={"dtype": "int8", "keep": 0.5})
    memory = model.read(document(), progress=False)
    memory.save(tmp_path / "book.hmem")
    loaded = MemoryState.load(tmp_path / "book.hmem", model)
    assert model.ask(loaded, QUESTION, max_new_tokens=12) == model.ask(memory, QUESTION, max_new_tokens=12)


@pytest.mark.parametrize("tokenizer", [chatty(), tokenizer()], ids=["template", "plain"])
def test_a_prompt_around_passages_is_the_prompt_without_them(tokenizer: PreTrainedTokenizerFast) -> None:
    before, behind = around_passages(tokenizer, ["open"], "Why?", "Be brief.")
    whole = str(prompt_text(tokenizer, ["stored", "open"], "Why?", "Be brief."))
    assert f"{before}stored{behind}" == whole


@pytest.mark.parametrize("characters", [200, 0])
def test_a_beginning_of_sequence_token_covers_no_characters(characters: int) -> None:
    model = model_of(tokenizer=tokenizer(bos=True), sinks=4)
    model.config.asking = replace(model.config.asking, passage_characters=characters)
    text = f"{FACTS}\n\n" + text_of(60).encode("ascii", "ignore").decode()
    memory = model.read(text, progress=False)
    assert memory.records()[0].ids[0] == model.tokenizer.bos_token_id
    source = Source(0, 4, 19, 1.0, "brass key hangs")
    chosen = chosen_tokens(model.reader, memory, kv_tier(memory), [source])
    shown = model.tokenizer.decode(memory.records()[0].ids[chosen[0]])
    assert source.text in shown and len(shown) < 20
    prompt = model.prepare(memory, QUESTION)
    torch.testing.assert_close(
        logits_of(model, prompt), expected_logits(model, memory, prompt), atol=2e-5, rtol=1e-4
    )


def test_tokens_are_known_by_their_characters() -> None:
    """Whatever a tokenizer makes of a text: what it lost, what is no whole character, what came as ids."""
    text = text_of(80)
    plain, lossy = tokenizer(), copy.deepcopy(tokenizer())
    lossy.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    for chosen in (plain, lossy, tokenizer(bos=True)):
        (block,) = stream_tokens(chosen, [text])
        ids, starts = block.ids, [*block.starts, len(text)]
        within = next(at for at in range(60, len(ids)) if starts[at] == starts[at - 1])
        for first, last in ((0, 40), (40, within), (within, len(ids))):
            begin, end = starts[first], starts[last]
            found = token_spans(chosen, ids[first:last], text[begin:end], text[:begin], text[end:])
            assert [begin + span.start for span in found] == starts[first:last]
            for span, start in zip(found, starts[first:last], strict=True):
                after = [other for other in starts if other > start]
                assert begin + span.stop == min([*after, end])
    marked = tokenizer(bos=True)
    ids = [marked.bos_token_id, *encode_with_spans(marked, text)[0]]
    assert token_spans(marked, ids, text)[0] == range(0) and token_spans(marked, ids, text)[1].start == 0
    letters = [id for letter in "sailed north" for id in encode_with_spans(plain, letter)[0]]
    assert [span.start for span in token_spans(plain, letters, "sailed north")] == list(range(12))


def test_all_tokens_of_a_character_are_recalled() -> None:
    model, fact = model_of(), "铜钥匙挂在厨房的墙上 🚢 naïve café"
    text = f"{text_of(40)} {fact} {text_of(40, seed=2)}"
    memory = model.read(text, progress=False)
    start = text.index(fact)
    source = Source(0, start, start + len(fact), 1.0, fact)
    chosen = chosen_tokens(model.reader, memory, kv_tier(memory), [source])
    ids = [token for at in sorted(chosen) for token in memory.records()[at].ids[chosen[at]].tolist()]
    assert model.tokenizer.decode(ids).strip() == fact


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("words", [4, 12, 30])
def test_short_documents_are_answered_from_text(words: int, bos: bool) -> None:
    """No segment is complete yet."""
    for chosen in (chatty(), tokenizer(bos)):
        model = model_of(3, chosen)
        text = f"{FACTS[:34]}\n\n{text_of(words)[: 4 * words]}"
        memory = model.read(text[:40], progress=False)
        assert len(memory.tiers[0]) == 0  # type: ignore[arg-type]
        prompt = model.prepare(memory, QUESTION)
        assert not prompt.recalled and "brass key hangs" in model.tokenizer.decode(prompt.ids[0])
        answers = model.ask(memory, [QUESTION, "Which brass key?"], max_new_tokens=4)
        assert answers[0] == model.ask(memory, QUESTION, max_new_tokens=4)


def test_what_is_not_told_is_not_answered_from_keys_and_values_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(layers=3)
    memory = model.read(document(), progress=False)
    assert model.ask(memory, QUESTION, max_new_tokens=4).found

    def unlikely(*arguments: Any) -> Selection:
        return replace(select(*arguments), confidence=0.01)

    monkeypatch.setattr("hiermem.asking.select", unlikely)
    for answer in (model.ask(memory, QUESTION), *model.ask(memory, [QUESTION, QUESTION])):
        assert (answer.text, answer.found, answer.confidence) == (NOT_FOUND, False, 0.01)
    prompt = replace(model.prepare(memory, QUESTION), recalled=True)
    assert not prompt.answerable


def test_positions_stay_within_the_trained_range() -> None:
    """Without gaps, too, though nothing is evicted."""
    model = model_of(3, positions="compact")
    model.config.asking = replace(model.config.asking, passage_characters=0)
    memory = model.read(document() + document(80), progress=False)
    prompt = model.prepare(memory, QUESTION, top_k=6)
    assert prompt.recalled and prompt.working.num_tokens[0] > RANGE
    frames = [cache.position_ids for cache in prompt.working.caches]
    assert all(int(one.max()) < RANGE for one in frames if one is not None)
    assert model.ask(memory, QUESTION, max_new_tokens=4).text


@pytest.mark.parametrize("family", ["gemma3", "mistral", "qwen3"])
def test_other_families_answer_from_keys_and_values(family: str) -> None:
    config = settings()
    tiers = {"kv": {"keep": 1.0}}
    changes = {"longterm": replace(config.longterm, tiers=tiers), "asking": AskConfig(passages="kv")}
    model = reader(family, type(config)(**(config.settings() | changes)), torch.bfloat16, bos=True)
    memory = model.read(document(), progress=False)
    assert model.prepare(memory, QUESTION).recalled
    questions = [QUESTION, "Where lies the silver whistle?"]
    answers = model.ask(memory, questions, max_new_tokens=3)
    for answer, fact in zip(answers, ("The brass key hangs", "A silver whistle lies"), strict=True):
        assert fact in answer.sources[0].text and answer.recalled


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="as one of text, kv, not 'keys'"):
        AskConfig(passages="keys")
    with pytest.raises(InputError, match="Behind the working memory passages stand as text"):
        AskConfig(passages="kv", working=True)
    model = model_of()
    model.config.asking.working = True
    with pytest.raises(InputError, match="Behind the working memory passages stand as text"):
        model.ask(model.read(document(), progress=False), QUESTION)
    model = model_of(change={"longterm": settings().longterm})
    for memory in (model.read(document(), progress=False), model.index(document(), progress=False)):
        with pytest.raises(InputError, match="keeps no keys and values: read the document with the tier kv"):
            model.ask(memory, QUESTION)
    for method in (HierMem(model), Indexed(model), Indexed(model_of())):
        with pytest.raises(InputError, match="keeps no keys and values: read the document with the tier kv"):
            method.read(document())
