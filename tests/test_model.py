"""The whole model: however a text arrives, and in whatever batch, the same comes out."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from families import CONFIGS, ROTARY, tiny
from readers import (
    assert_same_memory,
    assert_same_working,
    backbone,
    ids_of,
    over,
    reader,
    settings,
    text_of,
    tokenizer,
)
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryIncompatibleError, NonFiniteError
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel

POLICIES = ["none", "window", "keen", "lively", "linear", "h2o", "l2_norm"]
MODES = ["distance", "absolute", "compact"]


def pieces_of(text: str, seed: int) -> list[str]:
    """The text cut at random places, some pieces empty."""
    chosen = random.Random(seed)
    cuts = sorted(chosen.choices(range(len(text)), k=20))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# ---- whole = chunks = pieces = saved and resumed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", POLICIES)
def test_any_way_of_reading_leaves_the_same_memory(policy: str, mode: str, tmp_path: Path) -> None:
    text = text_of(170)  # about 400 tokens, six times the trained range

    def model(chunk: int) -> HierMemModel:
        return reader(config=settings(chunk, policy=policy, positions=mode), dtype=torch.float64)

    whole = model(16).read(text)
    assert whole.text == text and whole.tokens > 300
    for chunk in (3, 8, 12, 48):
        assert_same_memory(model(chunk).read(text), whole)
    assert_same_memory(model(16).read(iter(pieces_of(text, seed=3))), whole)

    resumed = model(16).new_memory()
    ids = torch.cat([record.ids for record in whole.records()])
    for end in (5, 21, 60, 203, len(ids)):  # inside chunks and segments
        resumed = model(8).read(ids[resumed.tokens : end], resumed)
        resumed.save(tmp_path / "memory")
        resumed = MemoryState.load(tmp_path / "memory", model(16))
    assert torch.equal(torch.cat([record.ids for record in resumed.records()]), ids)
    assert_same_working(resumed.working, whole.working)


@pytest.mark.parametrize("family", list(CONFIGS))
def test_reading_goes_on_where_it_stopped(family: str, tmp_path: Path) -> None:
    model, text = reader(family), text_of(150)
    whole = model.read(text)
    starts = [record.start for record in whole.records()][1:-1]
    memory = model.new_memory()
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        memory = model.read(text[start:end], memory)
        memory.save(tmp_path / "memory")
        memory = MemoryState.load(tmp_path / "memory", model)
    assert_same_memory(memory, whole)


def test_reading_on_from_inside_a_chunk_and_a_segment() -> None:
    model, text = reader(), text_of(150)
    whole = model.read(text)
    ids = torch.cat([record.ids for record in whole.records()])
    memory = model.read(ids[:77])
    assert memory.tokens % model.config.chunk and memory.tokens % model.config.segment
    memory = model.read(ids[77:].tolist(), memory)
    assert [record.first_token for record in memory.records()] == list(range(0, len(ids), 48))
    assert_same_working(memory.working, whole.working)


def test_a_memory_keeps_its_segments_under_another_configuration() -> None:
    text = text_of(150)
    whole = reader(config=settings(16, segment=48)).read(text)
    other = reader(config=settings(64, segment=64))
    memory = MemoryState(
        other.new_working_memory(other.config.working), other.new_memory().longterm, 48, other.fingerprint()
    )
    assert_same_memory(other.read(text, memory), whole)


def test_a_first_token_that_the_tokenizer_asks_for_is_read_once() -> None:
    model = reader(bos=True)
    memory = model.read(["one ", "two"])
    memory = model.read(" three", memory)
    ids = torch.cat([record.ids for record in memory.records()]).tolist()
    assert ids == model.tokenizer("one two three").input_ids
    assert ids.count(model.tokenizer.bos_token_id) == 1
    assert memory.text == "one two three"


def test_token_ids_are_read_as_they_are() -> None:
    model, text = reader(), text_of(60)
    whole = model.read(text)
    ids = model.tokenizer(text).input_ids
    for source in (ids, torch.tensor(ids), torch.tensor([ids]), np.array(ids)):
        memory = model.read(source)
        assert torch.cat([record.ids for record in memory.records()]).tolist() == ids
        assert_same_working(memory.working, whole.working)


@pytest.mark.parametrize("source", ["", [], iter([]), ["", ""], torch.zeros(0, dtype=torch.int64)])
def test_an_empty_document_is_refused(source: object) -> None:
    with pytest.raises(InputError, match="document is empty"):
        reader().read(source)  # type: ignore[arg-type]


def test_reading_needs_a_tokenizer() -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        over(tiny("llama")).read("text")


def test_another_models_memory_is_refused() -> None:
    memory = reader(seed=0).read(text_of(20))
    other = reader(seed=1)
    with pytest.raises(MemoryIncompatibleError):
        other.read("more", memory)
    with pytest.raises(MemoryIncompatibleError):
        other.ask(memory, "Who?")


def test_a_state_that_is_not_finite_names_its_segment_and_is_not_kept() -> None:
    model = reader(config=settings(16, segment=32))
    text = text_of(100)
    bad = model.tokenizer("Z").input_ids[-1]
    model.backbone.model.embed_tokens.weight.data[bad] = torch.nan
    ids = [i for i in model.tokenizer(text).input_ids if i != bad][:80]
    memory = model.read(ids[:40])
    before = model.read(ids[:40])
    with pytest.raises(NonFiniteError, match="Segment 2"):
        model.read([*ids[40:70], bad], memory)
    assert 40 < memory.tokens <= 64
    assert_same_memory(model.read(ids[memory.tokens :], memory), model.read(ids[40:], before), atol=1e-4)


# ---- inputs of any length


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", POLICIES)
def test_chunks_change_no_logits(policy: str, mode: str) -> None:
    model, ids = tiny("llama", torch.float64), ids_of(300, rows=2)
    with torch.no_grad():
        whole, *others = (
            over(model, chunk, policy=policy, positions=mode)(ids, labels=ids) for chunk in (16, 4, 8, 300)
        )
        for other in others:
            torch.testing.assert_close(other.logits, whole.logits, atol=1e-8, rtol=1e-6)
            torch.testing.assert_close(other.loss, whole.loss)
            assert_same_working(other.past_key_values.memory, whole.past_key_values.memory, atol=1e-8)


@pytest.mark.parametrize("family", ROTARY)
@pytest.mark.parametrize("policy", ["window", "keen", "lively"])
def test_an_input_may_come_in_several_calls(family: str, policy: str) -> None:
    model = over(tiny(family), 8, policy=policy)
    ids = ids_of(200, rows=2)
    with torch.no_grad():
        whole, past, parts = model(ids).logits, None, []
        for part in ids.split([40, 8, 100, 4, 48], dim=1):
            output = model(part, past_key_values=past)
            past = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_loss_is_the_mean_over_all_positions_that_count() -> None:
    model, ids = over(tiny("llama"), 16, policy="window"), ids_of(2100)
    labels = ids.clone()
    labels[:, 5:30] = -100
    labels[:, -3] = -100
    with torch.no_grad():
        output = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="Labels need logits"):
        model(ids, labels=labels, logits_to_keep=1)


def test_gradients_flow_through_evicted_memories() -> None:
    """With eviction, too, the gradient is that of the whole input: compared with a difference quotient."""
    model, ids = tiny("llama", torch.float64), ids_of(120)
    ours = over(model, 8, policy="window", budget=24)
    weight = model.model.layers[0].self_attn.k_proj.weight
    ours(ids, labels=ids).loss.backward()
    assert weight.grad is not None
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = []
    with torch.no_grad():
        for step in (1e-3, -2e-3):  # the loss itself is summed in float32
            weight += step * direction
            losses.append(float(ours(ids, labels=ids).loss))
    slope = (losses[0] - losses[1]) / 2e-3
    assert float((weight.grad * direction).sum()) == pytest.approx(slope, rel=5e-3)


# ---- batches


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Rows of different length as one batch: ids and mask; ``ragged`` spreads the padding."""
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width)
    for row, (out, real) in zip(rows, zip(ids, mask, strict=True), strict=True):
        if side == "holes":
            spread = torch.randperm(width, generator=torch.Generator().manual_seed(len(row)))
            columns = spread[: len(row)].sort().values
        else:
            columns = torch.arange(len(row)) + (width - len(row) if side == "left" else 0)
        out[columns], real[columns] = row, 1.0
    return ids, mask.long()


@pytest.mark.parametrize("policy", [*POLICIES, "attention"])  # the last leaves many scores equal
@pytest.mark.parametrize("family", list(CONFIGS))
def test_a_padded_batch_gives_what_its_rows_give(family: str, policy: str) -> None:
    limit = 64 if policy == "none" and family in ("opt", "gpt2") else 190
    rows = [ids_of(n, seed=n)[0] for n in (limit, 47, 37, 60)]
    model = over(tiny(family), 8, policy=policy, budget=20)
    with torch.no_grad():
        singles = [model(row[None]).logits[0] for row in rows]
        for side in ("left", "right", "holes"):
            ids, mask = padded(rows, side)
            batch = model(ids, attention_mask=mask).logits
            for single, logits, real in zip(singles, batch, mask.bool(), strict=True):
                torch.testing.assert_close(logits[real], single, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["none", "window"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox"])
def test_a_padded_batch_goes_on_as_its_rows_do(family: str, policy: str, mode: str) -> None:
    """Rows at different places of their documents evict and move their frames each at its own time."""
    lengths, more = (150, 41, 64, 100), 75
    rows = [ids_of(n, seed=n)[0] for n in lengths]
    later = ids_of(more, rows=len(rows))
    model = over(tiny(family), 8, policy=policy, positions=mode, budget=20)
    ids, mask = padded(rows, "left")
    with torch.no_grad():
        past = model(ids, attention_mask=mask).past_key_values
        both = torch.cat((mask, torch.ones_like(later)), dim=1)
        batch = model(later, attention_mask=both, past_key_values=past).logits
        for row, rest, logits in zip(rows, later, batch, strict=True):
            alone = model(torch.cat((row, rest))[None]).logits[0, -more:]
            torch.testing.assert_close(logits, alone, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_generation_from_a_padded_batch(family: str, policy: str, mode: str) -> None:
    rows = [ids_of(n, seed=n)[0] for n in (130, 33, 42, 97)]
    model = over(tiny(family), 8, policy=policy, positions=mode, budget=20)
    ids, mask = padded(rows, "left")
    arguments = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    batch = model.generate(ids, attention_mask=mask, **arguments)[:, ids.shape[1] :]
    for row, generated in zip(rows, batch, strict=True):
        assert torch.equal(model.generate(row[None], **arguments)[0, len(row) :], generated)


def test_generation_goes_on_from_an_earlier_output() -> None:
    model, ids = over(tiny("llama"), 8), ids_of(100)
    past = model(ids[:, :90]).past_key_values
    arguments = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert torch.equal(
        model.generate(ids, past_key_values=past, **arguments), model.generate(ids, **arguments)
    )


def test_a_batch_of_another_size_does_not_fit_a_past() -> None:
    model = over(tiny("llama"))
    past = model(ids_of(8, rows=2)).past_key_values
    with pytest.raises(ValueError, match="2 rows"):
        model(ids_of(8, rows=3), past_key_values=past)


# ---- asking


def test_asking_leaves_the_memory_as_it_is() -> None:
    model = reader()
    memory, twin = model.read(text_of(150)), model.read(text_of(150))
    answers = [model.ask(memory, "Who sailed north?", max_new_tokens=8) for _ in range(2)]
    assert answers[0] == answers[1]
    assert_same_memory(memory, twin, atol=0.0)


def test_sources_quote_the_document() -> None:
    text = text_of(200)
    model = reader()
    memory = model.read(text)
    answer = model.ask(memory, "Who sailed north on Orion?", top_k=3, max_new_tokens=4)
    assert 0 < len(answer.sources) <= 3
    assert [source.score for source in answer.sources] == sorted(
        (source.score for source in answer.sources), reverse=True
    )
    for source in answer.sources:
        assert source.text == text[source.start : source.end]
        record = memory.records()[source.segment]  # a sentence may go on in the next
        assert record.start < source.end and source.start < record.end


def test_top_k_of_nothing_recalls_nothing() -> None:
    model = reader(config=settings(top_k=0))
    memory = model.read(text_of(150))
    assert model.ask(memory, "Who is the captain?", max_new_tokens=2).sources == []
    assert model.ask(memory, "Who is the captain?", top_k=1, max_new_tokens=2).sources


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(question: str) -> None:
    model = reader()
    with pytest.raises(InputError, match="question is empty"):
        model.ask(model.read("some text"), question)


# ---- loading and saving


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone and its tokenizer, saved as transformers does it."""
    folder = tmp_path_factory.mktemp("backbone")
    backbone("gemma3").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_a_saved_model_comes_back_the_same(plain_folder: Path, tmp_path: Path) -> None:
    model = HierMemModel.from_pretrained(plain_folder, config=settings(8, policy="window", budget=20))
    assert model.new_memory().model == str(plain_folder)
    model.save_pretrained(tmp_path)
    again = HierMemModel.from_pretrained(tmp_path)
    assert again.config.settings() == model.config.settings()
    assert again.memory_parameters().keys() == model.memory_parameters().keys()
    ids = ids_of(150)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.tokenizer("one two").input_ids == model.tokenizer("one two").input_ids
    text = text_of(60)
    assert_same_memory(again.read(text), model.read(text), atol=0.0)
    own = again.read(text)
    assert own.fingerprint == model.fingerprint()
    assert own.model == model.read(text).model == str(tmp_path)  # where both are found again


def test_a_saved_model_holds_no_backbone_weights(plain_folder: Path, tmp_path: Path) -> None:
    model = HierMemModel.from_pretrained(plain_folder)
    model.save_pretrained(tmp_path)
    backbone_bytes = sum(p.numel() * p.element_size() for p in model.backbone.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < backbone_bytes / 4
    assert not any(name.startswith("backbone") for name in model.memory_parameters())
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))


def test_settings_may_change_when_loading(plain_folder: Path, tmp_path: Path) -> None:
    HierMemModel.from_pretrained(plain_folder).save_pretrained(tmp_path)
    again = HierMemModel.from_pretrained(tmp_path, config=HierMemConfig.preset("bare"))
    assert again.config.working.policy == "full_cache"


def test_a_newer_format_is_refused(plain_folder: Path, tmp_path: Path) -> None:
    model = HierMemModel.from_pretrained(plain_folder)
    model.config.format_version = 99
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="upgrade hiermem"):
        HierMemModel.from_pretrained(tmp_path)


def test_parameters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="stranger"):
        reader().load_memory_parameters({"stranger": torch.zeros(1)})


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        HierMemModel.from_pretrained(tmp_path / "nowhere")


# ---- the real small model


@pytest.mark.real
def test_the_real_model_reads_saves_and_answers(tmp_path: Path) -> None:
    from hiermem.bundled import python_reference, smollm2_path
    from hiermem.errors import HierMemError

    try:
        smollm2_path()
        text = python_reference()[:9000]
    except HierMemError as error:
        pytest.skip(str(error))
    config = HierMemConfig.preset("full").with_working(budget=256)
    model = HierMemModel.from_pretrained("smollm2", config=config)
    memory = model.read(text, progress=False)
    assert 1500 < memory.tokens < 6000 and memory.text == text
    cache = memory.working.cache
    assert cache.mean_tokens <= 256 + 128
    held = zip(cache.layers, cache.head_groups, strict=True)
    assert all(layer.tokens <= group.budget + 128 for layer, group in held)
    memory.save(tmp_path / "memory")
    again = MemoryState.load(tmp_path / "memory", model)
    assert_same_memory(again, memory, atol=0.0)
    question = "What does the assert statement do?"
    answer = model.ask(memory, question, max_new_tokens=12)
    assert model.ask(again, question, max_new_tokens=12) == answer
    assert answer.text and answer.sources
    for source in answer.sources:
        assert source.text == text[source.start : source.end]


# ---- what is refused


def test_a_memory_of_another_geometry_is_refused() -> None:
    """The same weights with other rotary frequencies are another model."""
    one, other = reader(), reader()
    for module in other.backbone.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq * 0.5
    other = HierMemModel(other.config, other.backbone, other.tokenizer)
    with pytest.raises(MemoryIncompatibleError, match="this model's backbone"):
        other.read("more", one.read(text_of(20)))


def test_the_fingerprint_follows_weights_and_dtype() -> None:
    model = reader()
    before = model.fingerprint()
    with torch.no_grad():
        model.backbone.model.layers[0].self_attn.k_proj.weight += 1
    changed = model.fingerprint()
    assert changed["backbone"] != before["backbone"]
    assert model.bfloat16().fingerprint()["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"bytes", "not bytes"),
        (None, "not NoneType"),
        (["text", 5], "not of int"),
        ("half a pair \ud83d", "not valid Unicode"),
        ([5, 10**6], "do not fit the tokenizer"),
        (torch.zeros(2, 3, dtype=torch.int64), "2 rows"),
    ],
)
def test_what_is_no_document_is_refused(source: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        reader().read(source)  # type: ignore[arg-type]


def test_wrong_arguments_are_refused() -> None:
    model, ids = reader(), ids_of(20)
    with pytest.raises(InputError, match="The mask"):
        model(ids, attention_mask=torch.ones(1, 10))
    with pytest.raises(InputError, match="at least one token"):
        model(ids[:, :0])
    with pytest.raises(InputError, match="output_attentions"):
        model(ids, output_attentions=True)
    with pytest.raises(InputError, match="No label"):
        model(ids, labels=torch.full_like(ids, -100))
    with pytest.raises(InputError, match="Drafts come from"):
        model.generate(ids, assistant_early_exit=1)
    with pytest.raises(InputError, match="top_k"):
        model.ask(model.read(text_of(20)), "Who?", top_k=-1)
    with pytest.raises(InputError, match="'budget'"):
        HierMemConfig.preset("full", budget=100)
    with pytest.raises(InputError, match="'nonsense'"):
        HierMemModel.from_pretrained("smollm2", nonsense=3)


def test_the_loss_may_be_divided_by_a_given_number() -> None:
    model, ids = reader(), ids_of(20)
    with torch.no_grad():
        mean, tenth = model(ids, labels=ids).loss, model(ids, labels=ids, num_items_in_batch=190).loss
    torch.testing.assert_close(mean, 10 * tenth)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model, ids = reader(), ids_of(20)
    model.backbone.model.embed_tokens.weight.data[ids[0, 7]] = torch.nan
    with pytest.raises(NonFiniteError, match="loss"):
        model(ids, labels=ids)


def test_token_ids_stand_for_their_exact_text() -> None:
    model, text = reader(), "naïve café 🚢🚢 東京 and 😀"
    memory = model.read(model.tokenizer(text).input_ids)
    assert memory.text == text


def test_reading_on_after_a_stop_within_a_character() -> None:
    """A character of several tokens may straddle two chunks; a stop between them must not read it twice."""
    model, text = reader(config=settings(4, 8)), "東京 🚢 and 😀😀 naïve 東京東京 🚢🚢 end"
    whole = model.read(text)
    for stop in range(1, whole.tokens // 4):
        memory, left = model.new_memory(), stop
        real = model.adapter.read_chunk

        def stopping(*args: object, real: object = real, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*args, **kwargs)  # type: ignore[operator]

        model.adapter.read_chunk = stopping  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            model.read(text, memory)
        model.adapter.read_chunk = real  # type: ignore[method-assign]
        if memory.tokens < whole.tokens:
            model.read(text[memory.characters :], memory)
        assert_same_memory(memory, whole)


def test_an_answer_begins_as_every_text_does() -> None:
    """The prompt of an answer has the beginning-of-sequence token that the model was trained with."""
    model = reader(bos=True)
    ids = model.reader.encode("Who?")
    assert ids[0, 0] == model.tokenizer.bos_token_id
    assert (ids == model.tokenizer.bos_token_id).sum() == 1
    assert torch.equal(model.reader.encode("Who?", begins=False), ids[:, 1:])
    memory = model.read(text_of(60))
    assert model.prepare(memory, "Who sailed?").ids[0, 0] == model.tokenizer.bos_token_id  # over none of it
    assert model.prepare(memory, "Who sailed?", 0).ids[0, 0] != model.tokenizer.bos_token_id


def test_a_model_can_be_copied() -> None:
    model, ids = reader(), ids_of(20)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_reading_is_without_dropout_whatever_the_mode() -> None:
    model, text = reader(), text_of(40)
    expected = model.read(text)
    model.backbone.model.layers[0].self_attn.attention_dropout = 0.5
    model.train()
    assert_same_memory(model.read(text), expected)
    assert model.training
