"""HMT's memory embeddings: equal to the paper's equations written down plainly, however a text is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONFIGS
from readers import (
    assert_rows_are_singles,
    assert_same_memory,
    assert_same_working,
    ids_of,
    lively,
    reader,
    settings,
    text_of,
)
from torch import Tensor, nn

from hiermem.asking import recall
from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryIncompatibleError, NonFiniteError
from hiermem.memory.hmt.fit import fit_recall, fit_search
from hiermem.memory.hmt.module import SHARPNESS, HMTModule, SummaryConfig
from hiermem.memory.longterm import Hit
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.retrieval.keys import Question

PUBLISHED = SummaryConfig(tokens=1, sensory=5, width=8, last=4, query="half", residual=False)
CARRIED = SummaryConfig(tokens=2, width=8, last=3)


def published(segment: int = 16, **changes: Any) -> HierMemConfig:
    """HMT in proportion to the tiny models' range."""
    config = settings(segment, segment, policy="forget", update_interval=segment, positions="compact")
    return HierMemConfig(**{**config.settings(), "summary": replace(PUBLISHED, **changes)})


def carried(chunk: int = 16, summary: SummaryConfig = CARRIED, **working: Any) -> HierMemConfig:
    """Memory embeddings beside a working memory that is carried across segments."""
    return HierMemConfig(**{**settings(chunk, **working).settings(), "summary": summary})


def handing_on(
    config: HierMemConfig, family: str = "llama", dtype: torch.dtype = torch.float32
) -> HierMemModel:
    """A reader with random memory parameters in its own dtype."""
    return lively(reader(family, config, dtype)).to(dtype)


def plainly(model: HierMemModel, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The paper's equations, one segment after the other, on the bare backbone: logits and embeddings M."""
    hmt, L = model.summary, model.config.segment
    assert hmt is not None
    embed, T, k = model.backbone.get_input_embeddings(), hmt.summary_prompt.weight, hmt.config.sensory
    logits, past = [], []
    for start in range(0, ids.shape[1], L):
        segment = embed(ids[:, start : start + L])
        prompt = hmt.first_prompt.weight
        if past:
            half = torch.cat((T, segment[0, : L // 2], T)).unsqueeze(0)
            summary = model.backbone.base_model(inputs_embeds=half).last_hidden_state[0, -1:]
            memory = torch.cat(past[-hmt.config.last :])
            weights = (hmt.query(summary) @ hmt.key(memory).T / hmt.config.width**0.5).softmax(-1)
            prompt = weights @ memory
        sensory = embed(ids[0, max(start - k, 0) : start])
        whole = torch.cat((prompt, sensory, segment[0], prompt)).unsqueeze(0)
        output = model.backbone(inputs_embeds=whole, output_hidden_states=True)
        first = len(prompt) + len(sensory)
        logits.append(output.logits[:, first : first + segment.shape[1]])
        if segment.shape[1] == L:
            past.append(output.hidden_states[-1][0, -1:])
    return torch.cat(logits, dim=1), past


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma3", "phi3", "gpt2", "opt"])
def test_the_published_preset_is_the_papers_equations(family: str) -> None:
    model, ids = handing_on(published(), family), ids_of(75)
    with torch.no_grad():
        expected, past = plainly(model, ids)
        output = model(ids)
    memory = output.past_key_values.memory
    torch.testing.assert_close(output.logits, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        memory.recurrence.memory_embeddings[0], torch.stack(past[-4:]), atol=1e-5, rtol=1e-4
    )


def test_gradients_are_those_of_the_plain_equations() -> None:
    model, ids = handing_on(published(), dtype=torch.float64), ids_of(64)
    names = [
        "summary.summary_prompt.weight",
        "summary.first_prompt.weight",
        "summary.query.weight",
        "summary.key.weight",
    ]
    wanted = [dict(model.named_parameters())[name] for name in names]
    model(ids, labels=ids).loss.backward()
    fast = [parameter.grad.clone() for parameter in wanted]
    model.zero_grad()
    logits, _ = plainly(model, ids)
    nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    for name, one, other in zip(names, fast, wanted, strict=True):
        assert other.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(one, other.grad, atol=1e-6, rtol=1e-4)  # norms compute in float32


@pytest.mark.parametrize("family", list(CONFIGS))
def test_a_text_reads_the_same_in_any_pieces(family: str, tmp_path: Path) -> None:
    text = text_of(120)
    whole = handing_on(carried(), family).read(text)
    assert len(whole.records()[0].embedding) == 2 and whole.records()[-1].embedding is None
    if family == "llama":
        for chunk in (4, 8, 48):
            assert_same_memory(handing_on(carried(chunk)).read(text), whole, atol=5e-4)
    resumed = handing_on(carried(), family).new_memory()
    ids = torch.cat([record.ids for record in whole.records()])
    for end in (5, 21, 60, 144, 203, len(ids)):
        model = handing_on(carried(8), family)
        resumed = model.read(ids[resumed.tokens : end], resumed)
        resumed.save(tmp_path / "memory")
        resumed = MemoryState.load(tmp_path / "memory", model)
    assert_same_working(resumed.working, whole.working, atol=5e-4)
    assert_same_recurrence(resumed, whole)


def assert_same_recurrence(one: MemoryState, other: MemoryState) -> None:
    """Equal embeddings, prompts and prefixes."""
    ours, theirs = one.working.state_dict(), other.working.state_dict()
    names = [name for name in ours if name.startswith(("prefix", "recurrence"))]
    assert names and names == [name for name in theirs if name.startswith(("prefix", "recurrence"))]
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], atol=5e-4, rtol=1e-3)


def test_a_segment_whose_half_is_summarised_first_is_read_anew(tmp_path: Path) -> None:
    text, model = text_of(60), handing_on(published())
    whole = model.read(text)
    ids = torch.cat([record.ids for record in whole.records()])
    resumed = model.new_memory()
    for end in (3, 5, 16, 30, 47, len(ids)):
        resumed = model.read(ids[resumed.tokens : end], resumed)
        resumed.save(tmp_path / "memory")
        resumed = MemoryState.load(tmp_path / "memory", model)
    assert resumed.text == whole.text
    assert_same_working(resumed.working, whole.working)
    assert_same_recurrence(resumed, whole)


@pytest.mark.parametrize("config", [carried(), carried(policy="window"), published(sensory=0), published()])
def test_a_padded_batch_reads_as_its_rows(config: HierMemConfig) -> None:
    assert_rows_are_singles(handing_on(config))


def test_an_untrained_residual_memory_changes_nothing_from_segment_to_segment() -> None:
    model, ids = reader(config=carried()), ids_of(150)
    with torch.no_grad():
        memory = model(ids).past_key_values.memory
        other = model(ids.flip(1)).past_key_values.memory
    (left,), (flipped,) = memory.recurrence.memory_embeddings, other.recurrence.memory_embeddings
    assert not torch.allclose(left[0], flipped[0])
    torch.testing.assert_close(memory.recurrence.prompt, other.recurrence.prompt)


def test_in_bfloat16_segments_are_summarised_and_recalled() -> None:
    model, ids = lively(reader(config=published(residual=True), dtype=torch.bfloat16)), ids_of(75)
    plain = lively(reader(config=published(residual=True)))
    with torch.no_grad():
        ours, wanted = model(ids).logits, plain(ids).logits
    assert model.summary.key.weight.dtype == torch.float32 and ours.dtype == torch.bfloat16
    assert (ours - wanted).abs().mean() <= 0.02 * wanted.abs().max()


@pytest.mark.parametrize("query", ["half", "previous"])
def test_a_residual_memory_adds_the_recalled_keys_to_the_first_prompt(query: str) -> None:
    draw = torch.Generator().manual_seed(2)
    hmt = handing_on(published(query=query, residual=True, tokens=2)).summary
    assert hmt is not None and hmt.value is not None
    past, asked = torch.randn(2, 6, 32, generator=draw), torch.randn(2, 2, 32, generator=draw)
    there = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])  # three segments, and two
    with torch.no_grad():
        prompts = hmt(asked, past, there)
        for row, segments in enumerate((3, 2)):
            keys = nn.functional.normalize(hmt.key(past[row, 1 : 2 * segments : 2]), dim=1)
            compared = (hmt.query if query == "half" else hmt.key)(asked[row, 1])
            weights = (SHARPNESS * keys @ compared / compared.norm()).softmax(-1)
            found = hmt.weights(asked, past, there)[row, :segments]
            torch.testing.assert_close(found, weights, atol=1e-5, rtol=1e-3)
            content = hmt.content(past[row, 1 : 2 * segments : 2])
            added = hmt.value(weights @ content / 8**0.5).view(2, 32)
            torch.testing.assert_close(prompts[row], hmt.first_prompt.weight + added, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("read", [0, 40, 48])
def test_a_chunk_that_fails_leaves_a_segment_as_it_was(read: int) -> None:
    model, ids = handing_on(carried(summary=replace(CARRIED, sensory=3))), ids_of(80)
    memory = model.new_recurrent_memory()
    if read:
        model.read_ids(memory, ids[:, :read])
    before, counts = dict(memory.state_dict()), memory.bookkeeping()

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = model.backbone.get_decoder().layers[1].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.read_ids(memory, ids[:, read : read + 7])
    hook.remove()
    after = memory.state_dict()
    assert before.keys() == after.keys() and memory.bookkeeping() == counts
    assert all(torch.equal(before[name], after[name]) for name in before)


def recalling(model: HierMemModel, last: int, **changes: Any) -> HierMemModel:
    """A model with the same parameters, whose segments recall so many."""
    summary = replace(model.config.summary, last=last, **changes)
    other = reader(config=HierMemConfig(**{**model.config.settings(), "summary": summary}))
    other.load_memory_parameters(model.memory_parameters())
    return other


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        carried(),
        carried(policy="attention", summary=replace(CARRIED, sensory=3, search=6)),
        published(),
        published(residual=True, tokens=2),
    ],
)
def test_recalling_nothing_is_forgetting_before_every_segment(config: HierMemConfig) -> None:
    """And nothing is computed for it: no projection, no summary, and embeddings only where a search wants
    them."""
    forgetful, ids = handing_on(config), ids_of(3 * config.segment + 7)
    memory, wanted = forgetful.new_recurrent_memory(), []
    for segment in ids.split(config.segment, dim=1):
        (last,) = memory.recurrence.memory_embeddings
        memory.recurrence.forget()
        blocks = forgetful.reader.stream(memory, segment, logits=range(segment.shape[1]))
        wanted += [logits for _, logits in blocks]
    model = recalling(forgetful, last=0)

    def recalls(*_: object) -> None:
        raise AssertionError("something is computed for recall")

    for module in (model.summary, model.summary.query, model.summary.key, model.summary.summary_prompt):
        module.register_forward_pre_hook(recalls)
    widths = []
    decoder = model.backbone.get_decoder()
    decoder.layers[0].register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    output = model(ids)
    torch.testing.assert_close(output.logits, torch.cat(wanted, dim=1), atol=1e-5, rtol=1e-4)
    summary, own = config.summary, output.past_key_values.memory
    after = summary.tokens if summary.search else 0
    around = summary.tokens + summary.sensory + after
    assert sum(widths) == ids.shape[1] + 4 * around - after
    (left,) = own.recurrence.memory_embeddings
    if summary.search:
        torch.testing.assert_close(left, last, atol=1e-5, rtol=1e-4)
    else:
        assert left is None and own.bookkeeping() == memory.bookkeeping()


@pytest.mark.parametrize("search", [0, 6])
def test_a_text_without_recall_reads_the_same_in_any_pieces(search: int, tmp_path: Path) -> None:
    text, config = text_of(120), carried(summary=replace(CARRIED, last=0, sensory=3, search=search))
    whole = handing_on(config).read(text)
    assert {record.embedding is None for record in whole.records()[:-1]} == {not search}
    resumed, ids = handing_on(config).new_memory(), torch.cat([record.ids for record in whole.records()])
    for end in (5, 48, 60, 203, len(ids)):
        model = handing_on(config)
        resumed = model.read(ids[resumed.tokens : end], resumed)
        resumed.save(tmp_path / "memory")
        resumed = MemoryState.load(tmp_path / "memory", model)
    assert resumed.text == whole.text
    assert_same_working(resumed.working, whole.working, atol=5e-4)
    assert_same_recurrence(resumed, whole)
    with pytest.raises(MemoryIncompatibleError, match="summaries"):
        MemoryState.load(tmp_path / "memory", recalling(model, last=3))


def test_without_recall_the_first_prompt_alone_has_gradients() -> None:
    model, ids = handing_on(published(residual=True, last=0)), ids_of(64)
    model(ids, labels=ids).loss.backward()
    trained = {name for name, weight in model.summary.named_parameters() if weight.grad is not None}
    assert trained == {"first_prompt.weight"} and model.summary.first_prompt.weight.grad.abs().max() > 1e-6


@torch.no_grad()
def test_one_segment_is_recalled_whatever_it_is_compared_with() -> None:
    """As in RMT: the prompt is what the segment before has left, so no half need be read for a query."""
    for residual in (False, True):
        model, ids = handing_on(published(last=1, residual=residual)), ids_of(75)
        plain, other = model(ids), recalling(model, 1, query="previous")(ids)
        torch.testing.assert_close(plain.logits, other.logits, atol=1e-5, rtol=1e-4)
        recurrence, summary = plain.past_key_values.memory.recurrence, model.summary
        (left,) = recurrence.memory_embeddings
        assert left.shape[0] == 1
        wanted = left[0]
        if residual:
            added = summary.value(summary.content(left[0]) / summary.config.width**0.5)
            wanted = summary.first_prompt.weight + added
        torch.testing.assert_close(recurrence.prompt[0], wanted, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(plain.logits, recalling(model, 4)(ids).logits, atol=1e-3)


def test_prompts_begin_as_words() -> None:
    summary = SummaryConfig(tokens=4, width=8, init_text="a cat")
    model = reader(config=carried(summary=summary))
    ids = model.tokenizer("a cat", add_special_tokens=False).input_ids[-4:]
    wanted = model.backbone.get_input_embeddings().weight[ids]
    assert model.summary is not None
    for prompt in (model.summary.summary_prompt, model.summary.first_prompt):
        assert torch.equal(prompt.weight[4 - len(ids) :], wanted)
        assert prompt.weight.std(dim=1).min() > 0
    again = reader(config=carried(summary=summary)).summary
    assert again is not None and again.digest == model.summary.digest
    noise = reader(config=carried(summary=replace(summary, init_text=""))).summary
    assert noise is not None and not torch.equal(noise.first_prompt.weight, model.summary.first_prompt.weight)


def test_a_text_alone_leaves_what_a_first_segment_leaves() -> None:
    model, text = handing_on(published(sensory=0)), text_of(60)
    first = model.read(text).records()[0]
    with torch.no_grad():
        torch.testing.assert_close(model.embed(text), first.embedding, atol=1e-5, rtol=1e-4)


def test_what_is_read_before_a_segment_sees_nothing_else() -> None:
    """So the first of it takes the attention that wants nothing, in every segment as in the first."""
    model, ids = reader(config=carried()), ids_of(150)
    values = []
    with torch.no_grad():
        for length in (90, 150):  # at the very beginning there is no room for it to stand apart
            caches = model(ids[:, :length]).past_key_values.memory.caches
            values.append(torch.stack([cache.prefix.values for cache in caches]))
    torch.testing.assert_close(values[1], values[0], atol=1e-5, rtol=1e-4)


def test_beams_and_batches_hand_on_their_own() -> None:
    model, ids = handing_on(carried()), ids_of(90, rows=2)
    both = model.generate(ids, max_new_tokens=20, num_beams=3, do_sample=False)
    for row in range(2):
        alone = model.generate(ids[row : row + 1], max_new_tokens=20, num_beams=3, do_sample=False)
        assert torch.equal(both[row][: alone.shape[1]], alone[0])


def test_saved_parameters_give_the_same_logits(tiny_model: Path, tmp_path: Path) -> None:
    model = HierMemModel.from_pretrained(tiny_model, config=carried())
    assert model.summary is not None
    for parameter in model.summary.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "saved")
    again, ids = HierMemModel.from_pretrained(tmp_path / "saved"), ids_of(100)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_a_trained_memory_can_be_switched_off(tiny_model: Path, tmp_path: Path) -> None:
    model, ids = HierMemModel.from_pretrained(tiny_model, config=carried()), ids_of(100)
    lively(model).save_pretrained(tmp_path / "saved")
    off = HierMemConfig(**{**model.config.settings(), "summary": SummaryConfig(0)})
    plain = HierMemModel.from_pretrained(tmp_path / "saved", config=off)
    searching = HierMemConfig(**{**model.config.settings(), "summary": replace(CARRIED, search=6)})
    more = HierMemModel.from_pretrained(tmp_path / "saved", config=searching)
    with torch.no_grad():
        assert torch.equal(
            plain(ids).logits, HierMemModel.from_pretrained(tiny_model, config=off)(ids).logits
        )
        assert torch.equal(more(ids).logits, model.eval()(ids).logits)
    for last in (0, 1):  # trained parameters serve any number of recalled segments
        some = HierMemConfig(**{**model.config.settings(), "summary": replace(CARRIED, last=last)})
        fewer = HierMemModel.from_pretrained(tmp_path / "saved", config=some)
        fewer.save_pretrained(tmp_path / f"last-{last}")
        kept = HierMemModel.from_pretrained(tmp_path / f"last-{last}")
        assert kept.config.summary.last == last
        for name, weight in model.memory_parameters().items():
            assert torch.equal(kept.memory_parameters()[name], weight)
        with torch.no_grad():
            assert torch.equal(kept(ids).logits, fewer(ids).logits)
            assert not torch.allclose(kept(ids).logits, model.eval()(ids).logits)
    deeper = HierMemConfig(**{**model.config.settings(), "summary": replace(CARRIED, width=9)})
    with pytest.raises(InputError, match=r"summary\.key"):
        HierMemModel.from_pretrained(tmp_path / "saved", config=deeper)
    wider = HierMemConfig(**{**model.config.settings(), "summary": replace(CARRIED, residual=False)})
    with pytest.raises(InputError, match=r"summary\.value"):
        HierMemModel.from_pretrained(tmp_path / "saved", config=wider)


def test_a_memory_of_other_parameters_is_refused(tmp_path: Path) -> None:
    model = handing_on(carried())
    model.read(text_of(60)).save(tmp_path / "memory")
    with pytest.raises(MemoryIncompatibleError, match="was not read with this model's summaries"):
        MemoryState.load(tmp_path / "memory", reader(config=carried()))


def every_hit(model: HierMemModel, memory: MemoryState, question: str) -> list[Hit]:
    """All segments with their scores, best first."""
    return recall(model.reader, memory, question, model.config.asking, memory.segments, leave_out_held=False)


def test_a_search_adds_the_trained_part(tmp_path: Path) -> None:
    """In one index, the same on disk; where nothing is trained yet it adds nothing."""
    summary, question = replace(CARRIED, search=6), "Where did the captain find salt?"
    text = text_of(200)
    plain = handing_on(carried()).read(text)
    lexical = {hit.segment: hit.score for hit in plain.longterm.recall(Question(question), plain.segments)}
    known = torch.tensor([lexical[segment] for segment in range(len(lexical))])
    untrained = reader(config=carried(summary=summary))
    hits = every_hit(untrained, untrained.read(text), question)
    assert {hit.segment: hit.score for hit in hits} == pytest.approx(lexical, abs=1e-4)
    model = handing_on(carried(summary=summary))
    memory, hmt = model.read(text), model.summary
    assert hmt is not None and memory.longterm.partial is not None
    embeddings = [record.embedding for record in memory.longterm.records]
    with torch.no_grad():
        embeddings = torch.stack([*embeddings, model.embed(memory.longterm.partial.text)])
        assert not torch.allclose(model.summarise(question), model.summarise("Who?"))
        key, query = hmt.search_key(embeddings[:, -1]), hmt.search_query(model.summarise(question)[-1])
        trained = hmt.search_weight * nn.functional.cosine_similarity(key, query[None])
    assert trained.abs().min() > 1e-4
    memory.save(tmp_path / "memory")
    for own in (memory, MemoryState.load(tmp_path / "memory", model)):
        hits = every_hit(model, own, question)
        found = torch.tensor([hit.score for hit in sorted(hits, key=lambda hit: hit.segment)])
        torch.testing.assert_close(found, known + trained, atol=1e-3, rtol=1e-4)
    with pytest.raises(InputError, match="raise tokens"):
        SummaryConfig(search=8)


def test_what_the_search_is_fitted_to_is_centred_and_white() -> None:
    module, draw = HMTModule(replace(CARRIED, width=6, search=6), 12), torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=draw)
    texts, questions = (torch.randn(count, 2, 12, generator=draw) @ mixed + 5 for count in (300, 200))
    fit_search(module, texts, questions, 7.0)
    sides = [module.search_key(texts[:, -1]), module.search_query(questions[:, -1])]
    for side in sides:
        torch.testing.assert_close(side.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    spread = torch.cat(sides).T @ torch.cat(sides) / 500
    torch.testing.assert_close(spread, torch.eye(6), atol=1e-3, rtol=0)
    assert module.search_weight == 7
    fit_search(module, texts[:2], questions[:2], 7.0)  # two samples a side span two directions
    assert (module.search_key.weight.abs().sum(1) > 0).tolist() == [True, True, False, False, False, False]
    assert module.search_keys(texts).isfinite().all()


def test_fitted_recall_sees_what_tells_pieces_apart_under_differences_within_them() -> None:
    module, draw = (
        HMTModule(replace(CARRIED, width=4, query="half"), 16),
        torch.Generator().manual_seed(0),
    )
    nn.init.ones_(module.value.weight)
    told, noise = torch.randn(4, 16, generator=draw), torch.randn(6, 16, generator=draw)

    def left(pieces: Tensor, kind: float) -> Tensor:
        p, n = len(pieces), 4
        states = (pieces @ told).unsqueeze(1) + torch.randn(p, n, 6, generator=draw) @ noise + kind
        return states.unsqueeze(2).expand(-1, -1, 2, -1)

    def found(keys: Tensor, queries: Tensor) -> float:
        there = torch.ones(len(queries), 2 * len(keys), dtype=torch.bool)
        past = keys.flatten(0, 1).expand(len(queries), -1, -1)
        return float(
            (module.weights(queries, past, there).argmax(1) == torch.arange(len(keys))).float().mean()
        )

    pieces = torch.randn(60, 4, generator=draw)
    unseen = torch.randn(20, 4, generator=draw)
    keys, queries = left(unseen, 5.0)[:, 0], left(unseen, -3.0)[:, 1]
    before = found(keys, queries)
    content = module.content.weight.clone()
    fit_recall(module, left(pieces, 5.0), left(pieces, -3.0))
    assert torch.equal(module.content.weight, content)  # it is in use
    assert found(keys, queries) > 0.6 > 0.3 > before


def test_a_broken_embedding_is_named() -> None:
    model = handing_on(carried())
    assert model.summary is not None and model.summary.value is not None
    with torch.no_grad():
        model.summary.value.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="egment 1"):
        model.read(text_of(120))


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"tokens": -1}, {"width": 0}, {"last": -1}, {"query": "third"}):
        with pytest.raises(InputError):
            SummaryConfig(**wrong)
    with pytest.raises(InputError, match="segment_local"):
        carried(summary=PUBLISHED)


@torch.no_grad()
def test_segments_over_no_cache_need_room_for_themselves_alone() -> None:
    """16 tokens, a prompt before and after, 5 sensory tokens; the budget of 24 is of no use."""
    model, ids = handing_on(published()), ids_of(75)
    expected = model(ids).logits
    model.adapter.trained_range = 23
    torch.testing.assert_close(model(ids).logits, expected)
    model.adapter.trained_range = 22
    with pytest.raises(InputError, match="16 tokens, with 7 around them"):
        model(ids)
    forgetting = reader(config=settings(policy="forget", positions="compact"))
    forgetting.adapter.trained_range = 16
    forgetting(ids)
    with pytest.raises(InputError, match="budget of 24 and 16 tokens"):
        reader(config=settings(policy="window", positions="compact", trained_range=39))(ids)


def test_the_published_size_on_the_default_backbone() -> None:
    preset = HierMemConfig.preset("hmt").summary
    module = HMTModule(preset, 576)
    assert 1.76e6 < sum(parameter.numel() for parameter in module.parameters()) < 1.78e6
