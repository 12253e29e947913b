"""Arguments from transformers are obeyed or refused by name, and the model answers as others do."""

import copy
from typing import Any

import pytest
import torch
import transformers
from readers import assert_same_working, backbone, ids_of, lively, over, reader, settings, text_of, tokenizer
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from hiermem.cache import CACHE_NAME, CACHE_NAMES, BackboneCache
from hiermem.errors import BackboneUnsupportedError, InputError, NonFiniteError
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.model import HierMemModel
from hiermem.selfcheck import _checked, check_decoding

GREEDY = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}


def evicting(**changes: Any) -> HierMemModel:
    """A model that evicts from the second chunk on."""
    return over(backbone("llama"), 8, policy="window", budget=20, **changes)


# ---- arguments of forward


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_such_argument", 1),
        ("pixel_values", torch.zeros(1)),
        ("token_type_ids", torch.zeros(1, 20, dtype=torch.int64)),
        ("shift_labels", torch.zeros(1, 20, dtype=torch.int64)),
        ("inputs_embeds", torch.zeros(1, 20, 32)),
        ("output_attentions", True),
        ("cache_params", 1),
        ("use_cahce", False),
    ],
)
def test_what_forward_does_not_know_is_refused_by_name(name: str, value: object) -> None:
    model, ids = over(backbone("llama")), ids_of(20)
    with pytest.raises(InputError, match=name):
        model(ids, **{name: value})
    with pytest.raises(InputError, match=name):
        model.base_model(ids, **{name: value})


def test_what_says_nothing_is_accepted() -> None:
    model, ids = over(backbone("llama")), ids_of(20)
    output = model(ids, inputs_embeds=None, output_attentions=False, token_type_ids=None)
    assert torch.equal(output.logits, model(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"input_ids": None}, "token ids of shape"),
        ({"input_ids": ids_of(20)[0]}, "token ids of shape"),
        ({"attention_mask": torch.ones(1, 1, 20, 20)}, "The mask must"),
        ({"attention_mask": torch.ones(2, 20)}, "The mask must"),
        ({"logits_to_keep": torch.tensor([3])}, "logits_to_keep"),
        ({"logits_to_keep": -1}, "logits_to_keep"),
        ({"position_ids": torch.arange(19)}, r"\[1, 20\]"),
        ({"position_ids": torch.arange(20) + 5}, "must count on"),
        ({"position_ids": torch.arange(20) % 7 + (torch.arange(20) > 9), "use_cache": False}, "must count"),
        ({"position_ids": torch.arange(20) % 10}, "use_cache to False"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        over(backbone("llama"))(**{"input_ids": ids_of(20), **arguments})


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_goes_by_either_name(name: str) -> None:
    model, ids = evicting(), ids_of(60)
    with torch.no_grad():
        whole = model(ids).logits
        past = model(ids[:, :40])[CACHE_NAME]
        rest = model(ids[:, 40:], **{name: past}).logits
        torch.testing.assert_close(rest, whole[:, 40:], atol=1e-4, rtol=1e-4)
    past = model(ids[:, :40])[CACHE_NAME]
    assert torch.equal(model.generate(ids, **{name: past}, **GREEDY), model.generate(ids, **GREEDY))


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_of_another_kind_is_refused(name: str) -> None:
    model, ids = over(backbone("llama")), ids_of(20)
    for call in (model, model.generate):
        with pytest.raises(InputError, match="A DynamicCache holds no working memory"):
            call(ids, **{name: DynamicCache()})
    own = model(ids)[CACHE_NAME]
    with pytest.raises(InputError, match="two names of one cache"):
        model(ids, **dict.fromkeys(CACHE_NAMES, own))


# ---- positions, and several texts in a row


def test_natural_positions_change_nothing() -> None:
    model, ids = evicting(), ids_of(60, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(ids, attention_mask=mask)
        same = model(ids, attention_mask=mask, position_ids=positions)
        assert torch.equal(same.logits, plain.logits)
        more = ids_of(9, rows=2, seed=7)
        after = model(more, cache=same[CACHE_NAME], position_ids=positions[:, -1:] + 1 + torch.arange(9))
        assert torch.equal(after.logits, model(more, cache=plain[CACHE_NAME]).logits)
        with pytest.raises(InputError, match="count on from what was read"):
            model(more, cache=plain[CACHE_NAME], position_ids=torch.arange(9))


@pytest.mark.parametrize("rows", [1, 2])
def test_texts_packed_into_a_row_are_read_as_they_are_alone(rows: int) -> None:
    model, lengths = evicting(), (37, 8, 55)
    texts = [ids_of(n, rows, seed=n) for n in lengths]
    ids = torch.cat(texts, dim=1)
    labels, starts = ids.clone(), torch.tensor([0, *lengths[:-1]]).cumsum(0)
    labels[:, starts] = -100
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(rows, -1)
    with torch.no_grad():
        packed = model(ids, position_ids=positions, labels=labels, use_cache=False)
        alone = [model(text).logits for text in texts]
        states = model.base_model(ids, position_ids=positions, use_cache=False).last_hidden_state
        own = [model.base_model(text).last_hidden_state for text in texts]
    torch.testing.assert_close(packed.logits, torch.cat(alone, dim=1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states, torch.cat(own, dim=1), atol=1e-4, rtol=1e-4)
    losses = [
        torch.nn.functional.cross_entropy(one[:, :-1].flatten(0, 1), text[:, 1:].flatten(), reduction="sum")
        for one, text in zip(alone, texts, strict=True)
    ]
    torch.testing.assert_close(packed.loss, sum(losses) / (rows * (sum(lengths) - len(lengths))))


def test_packed_texts_train_as_they_do_alone() -> None:
    model, texts = evicting(), [ids_of(30), ids_of(44, seed=2)]
    positions = torch.cat([torch.arange(30), torch.arange(44)])[None]
    weight = model.backbone.model.layers[0].self_attn.k_proj.weight
    gradients = []
    labels = torch.cat([texts[0], torch.full((1, 1), -100), texts[1][:, 1:]], dim=1)
    model(torch.cat(texts, dim=1), position_ids=positions, labels=labels, use_cache=False).loss.backward()
    gradients.append(weight.grad.clone())
    weight.grad = None
    sum(model(text, labels=text, num_items_in_batch=29 + 43).loss for text in texts).backward()
    torch.testing.assert_close(gradients[0], weight.grad, atol=1e-5, rtol=1e-4)


def test_generate_takes_the_positions_that_it_would_count() -> None:
    model, ids = evicting(), ids_of(30, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"attention_mask": mask, **GREEDY}
    assert torch.equal(model.generate(ids, position_ids=positions, **given), model.generate(ids, **given))
    with pytest.raises(InputError, match="must count on"):
        model.generate(ids, position_ids=positions + 3, **given)
    with pytest.raises(InputError, match="one text in a row"):
        model.generate(ids, position_ids=torch.arange(30) % 10, **GREEDY)


# ---- without a cache


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("where", ["call", "generation config", "model config"])
def test_generating_without_a_cache_gives_the_same(where: str, beams: int) -> None:
    model, ids = evicting(), ids_of(50, rows=2)
    arguments = GREEDY | {"num_beams": beams}
    expected = model.generate(ids, **arguments)
    if where == "call":
        arguments["use_cache"] = False
    elif where == "generation config":
        model.generation_config.use_cache = False
    else:
        plain = backbone("llama")
        plain.config.use_cache = False
        plain.generation_config = GenerationConfig.from_model_config(plain.config)
        model = over(plain, 8, policy="window", budget=20)
        assert CACHE_NAME not in model(ids)
    assert torch.equal(model.generate(ids, **arguments), expected)


def test_without_use_cache_a_cache_stays_as_it_is() -> None:
    model, ids = evicting(), ids_of(60)
    with torch.no_grad():
        past, twin = (model(ids[:, :40])[CACHE_NAME] for _ in range(2))
        output = model(ids[:, 40:], cache=past, use_cache=False)
        assert CACHE_NAME not in output
        assert_same_working(past.memory, twin.memory, atol=0.0)
        assert torch.equal(output.logits, model(ids[:, 40:], cache=past).logits)
    with pytest.raises(InputError, match="use_cache"):
        model.generate(ids, use_cache=False, past_key_values=twin)


@torch.no_grad()
def test_drafts_change_nothing_of_generation() -> None:
    """Prompt lookup and an assistant over an evicting memory, in a first turn and in a second."""
    model, whole = evicting(), {**GREEDY, "max_new_tokens": 50, "eos_token_id": None}
    prompt = torch.cat((ids_of(60), ids_of(9), ids_of(9), ids_of(4)), dim=1)
    caches = [BackboneCache(model.new_recurrent_memory()) for _ in range(3)]
    drafts = [{}, {"prompt_lookup_num_tokens": 4}, {"assistant_model": backbone("llama", seed=5)}]
    for turn in range(2):
        found = [
            model.generate(prompt, past_key_values=cache, **whole, **options)
            for cache, options in zip(caches, drafts, strict=True)
        ]
        for cache, sequence in zip(caches[1:], found[1:], strict=True):
            assert torch.equal(sequence, found[0])
            assert cache.unread is None and not cache.recording
            assert cache.get_seq_length() == found[0].shape[1] - 1
            assert_same_working(caches[0].memory, cache.memory)
        prompt = torch.cat((found[0], ids_of(7, seed=8 + turn)), dim=1)


@torch.no_grad()
def test_drafts_leave_states_and_scores_as_they_are() -> None:
    model, ids = evicting(), torch.cat((ids_of(30), ids_of(9), ids_of(9)), dim=1)
    shown = {"output_logits": True, "output_hidden_states": True, "return_dict_in_generate": True}
    plain, found = (
        model.generate(ids, **GREEDY, **shown, **drafts) for drafts in ({}, {"prompt_lookup_num_tokens": 3})
    )
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(plain.logits))
    last = torch.cat([states[-1] for states in plain.hidden_states], dim=1)
    torch.testing.assert_close(torch.cat([states[-1] for states in found.hidden_states], dim=1), last)


@torch.no_grad()
def test_drafts_go_with_one_prompt_without_padding_and_a_plain_assistant() -> None:
    model, ids = evicting(), ids_of(20)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    with pytest.raises(InputError, match="without padding"):
        model.generate(ids, attention_mask=mask, prompt_lookup_num_tokens=3)
    with pytest.raises(InputError, match="give its backbone"):
        model.generate(ids, assistant_model=model)


def taken_back(model: HierMemModel, tokens: int = 2) -> BackboneCache:
    """A cache that has read 30 tokens and 6 more, of which some were taken back."""
    cache = BackboneCache(model.new_recurrent_memory())
    model(ids_of(30), cache=cache)
    cache.activate_past_recording()
    output = model(ids_of(6, seed=2), cache=cache)
    assert output[CACHE_NAME] is cache and cache.is_croppable
    cache.crop(-tokens)
    return cache


@torch.no_grad()
def test_what_stays_is_read_before_the_next_input() -> None:
    model, ids = evicting(), ids_of(3, seed=3)
    expected = BackboneCache(model.new_recurrent_memory())
    model(torch.cat((ids_of(30), ids_of(6, seed=2)[:, :4]), dim=1), cache=expected)
    logits = model(ids, cache=expected).logits
    for mask in (None, torch.ones(1, 3), torch.ones(1, 37)):
        cache = taken_back(model)
        assert cache.get_seq_length() == 34 and cache.memory.num_tokens == (30,)
        states = model.base_model(ids, attention_mask=mask, cache=cache, use_cache=False).last_hidden_state
        output = model(ids, attention_mask=mask, cache=cache, output_hidden_states=True)
        torch.testing.assert_close(output.logits, logits)
        torch.testing.assert_close(output.hidden_states[-1], states)
        assert_same_working(expected.memory, cache.memory)
    cache = taken_back(model)
    with pytest.raises(InputError, match="No label"):
        model(ids, labels=torch.full_like(ids, -100), cache=cache)
    assert cache.unread is None and cache.memory.num_tokens == (37,)  # it was read, once
    cache = taken_back(model)
    cache.batch_repeat_interleave(2)
    torch.testing.assert_close(model(ids.repeat(2, 1), cache=cache).logits, logits.repeat(2, 1, 1))


@torch.no_grad()
def test_what_was_not_recorded_or_is_older_is_not_taken_back() -> None:
    model = evicting()
    cache = BackboneCache(model.new_recurrent_memory())
    model(ids_of(30), cache=cache)
    with pytest.raises(BackboneUnsupportedError, match="cannot take tokens back"):
        cache.crop(-1)
    cache.activate_past_recording()
    model(ids_of(6, seed=2), cache=cache)
    with pytest.raises(BackboneUnsupportedError, match="cannot take tokens back"):
        cache.crop(-7)
    cache.crop(0)
    cache.crop(99)
    assert cache.get_seq_length() == 36
    cache.crop(34)  # as up to transformers 5.22: what stays of all
    assert cache.get_seq_length() == 34
    for again in (cache, taken_back(model)):
        with pytest.raises(BackboneUnsupportedError, match="cannot take tokens back"):
            again.crop(-1)
    repeated = taken_back(model, 0)
    repeated.batch_repeat_interleave(2)
    assert not repeated.is_croppable
    with pytest.raises(BackboneUnsupportedError, match="cannot take tokens back"):
        repeated.crop(-1)


# ---- configurations of generation


@pytest.mark.parametrize(
    "changes",
    [
        {"assistant_early_exit": 1},
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized"},
    ],
    ids=str,
)
def test_what_a_memory_cannot_do_is_refused_wherever_it_is_asked(changes: dict[str, Any]) -> None:
    model, ids = evicting(), ids_of(20)
    with pytest.raises(InputError, match="leave it out"):
        model.generate(ids, **changes)
    with pytest.raises(InputError, match="leave it out"):
        model.generate(ids, generation_config=GenerationConfig(**changes))


def test_the_memory_takes_the_place_of_a_checkpoints_cache() -> None:
    plain, ids = backbone("llama"), ids_of(20)
    plain.generation_config.cache_implementation = "static"
    model = over(plain)
    model.generate(ids, **GREEDY)
    assert plain.generation_config.cache_implementation == "static"  # it is not ours to change


SETTINGS = {
    "cache_implementation": "static",
    "return_dict_in_generate": True,
    "stop_strings": ["x"],
    "num_return_sequences": 2,
    "num_beams": 3,
    "output_attentions": True,
    "token_healing": True,
    "use_cache": False,
    "min_new_tokens": 30,
    "repetition_penalty": 5.0,
    "do_sample": True,
    "prompt_lookup_num_tokens": 3,
    "suppress_tokens": list(range(300)),
    "max_length": 5,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_answer_does_not_depend_on_the_checkpoints_settings(name: str) -> None:
    model = reader()
    memory = model.read(text_of(60))
    expected = model.ask(memory, "Who is the captain?", max_new_tokens=6)
    setattr(model.generation_config, name, SETTINGS[name])
    assert model.ask(memory, "Who is the captain?", max_new_tokens=6) == expected


def test_an_answer_is_the_greedy_continuation_up_to_an_end_token() -> None:
    model = reader(config=settings(policy="none", positions="absolute"))
    ids = ids_of(20)
    greedy = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 20:].tolist()
    memory = model.new_recurrent_memory()
    text, ended = model.continue_from(memory, ids, 8)
    assert (text, ended) == (model.tokenizer.decode(greedy, skip_special_tokens=True), False)
    end = next(token for at, token in enumerate(greedy) if at > 1 and token not in greedy[:at])
    at = greedy.index(end)
    for ends in (end, [0, end]):
        model.generation_config.eos_token_id = ends
        memory = model.new_recurrent_memory()
        text, ended = model.continue_from(memory, ids, 8)
        assert (text, ended) == (model.tokenizer.decode(greedy[:at], skip_special_tokens=True), True)
        assert memory.num_tokens == (20 + at,)


def test_an_answer_from_nothing_finite_is_named() -> None:
    model = reader()
    memory = model.read(text_of(40))
    model.backbone.lm_head.weight.data[5] = torch.nan
    with pytest.raises(NonFiniteError, match="logits"):
        model.continue_from(memory.working.copy(), ids_of(5), 3)


# ---- the model as others see it


def test_the_configuration_answers_for_the_backbone() -> None:
    config = settings()
    model, other = (HierMemModel(config, backbone(family), tokenizer()) for family in ("llama", "gpt2"))
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.use_cache) == (32, 3, True)
    assert model.config.num_key_value_heads == 2 and not hasattr(other.config, "num_key_value_heads")
    model.resize_token_embeddings(330)
    assert (
        model.config.vocab_size == model.backbone.config.vocab_size == 330 and other.config.vocab_size == 320
    )
    model.config.pad_token_id = 7
    assert model.backbone.config.pad_token_id == 7
    assert not {"vocab_size", "_backbone"} & model.config.to_dict().keys()  # in the backbone's own file
    assert copy.deepcopy(model).config.get_text_config().vocab_size == 330
    assert not hasattr(config, "vocab_size")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_resizing_reaches_the_head(family: str) -> None:
    model, ids = reader(family), ids_of(20)
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(330)
        after = model(ids).logits
        assert after.shape[-1] == 330
        torch.testing.assert_close(after[..., :320], before)
        torch.testing.assert_close(after, model.backbone(ids).logits, atol=1e-4, rtol=1e-4)
    assert model.get_output_embeddings() is model.backbone.get_output_embeddings()
    new = torch.nn.Linear(32, 330, bias=False)
    model.set_output_embeddings(new)
    assert model.backbone.get_output_embeddings() is new


def test_the_backbones_own_attention_may_be_chosen() -> None:
    model, ids = evicting(), ids_of(40)
    expected = model(ids).logits
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert model.backbone.config._attn_implementation == name
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("tokens", [0, 2])
def test_states_are_those_of_the_backbone(tokens: int) -> None:
    model, ids = lively_or_plain(tokens), ids_of(40, rows=2)
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        body = model.base_model(ids)
        assert len(output.hidden_states) == model.config.num_hidden_layers + 1
        assert {tuple(state.shape) for state in output.hidden_states} == {(2, 40, 32)}
        assert torch.equal(output.hidden_states[-1], body.last_hidden_state)
        torch.testing.assert_close(model.get_output_embeddings()(body.last_hidden_state), output.logits)
        some = model(ids, output_hidden_states=[0, -1]).hidden_states
        assert torch.equal(some[0], output.hidden_states[0]) and torch.equal(some[-1], body.last_hidden_state)
        assert set(some[1:-1]) == {None}
        if not tokens:
            theirs = model.backbone(ids, output_hidden_states=True).hidden_states
            for one, other in zip(output.hidden_states, theirs, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def lively_or_plain(tokens: int) -> HierMemModel:
    """A model that reads prompts around its segments of 48 tokens, or the backbone exactly."""
    config = settings(16, policy="none", positions="absolute")
    if not tokens:
        return reader(config=config)
    config.summary = SummaryConfig(tokens=tokens, sensory=3, width=8, init_text="")
    config.segment = 16
    return lively(reader(config=config))


def test_peft_models_are_read_with_their_adapters() -> None:
    peft = pytest.importorskip("peft")
    ids = ids_of(30)
    wrapped = peft.get_peft_model(
        backbone("llama"), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    ).eval()
    model = over(wrapped, policy="none", positions="absolute")
    with torch.no_grad():
        expected = wrapped(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
        with wrapped.disable_adapter():
            assert not torch.allclose(model(ids).logits, expected, atol=1e-2)
    prefix = peft.get_peft_model(
        backbone("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(BackboneUnsupportedError, match="PromptTuningConfig"):
        over(prefix)


def test_adapters_for_all_linear_layers_stay_in_the_backbone() -> None:
    peft = pytest.importorskip("peft")
    model = lively_or_plain(2)
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    names = made.targeted_module_names
    assert names and all(name.startswith("backbone.model.layers.") for name in names)
    made.train()
    made(ids_of(20), labels=ids_of(20)).loss.backward()


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_what_is_hiermems_own_stays_float32(cast: torch.dtype) -> None:
    model = lively_or_plain(2)
    torch.nn.init.normal_(model.namm.score.weight)
    kept = {name: value.clone() for name, value in model.memory_parameters().items()}
    assert {"namm.score.weight", "summary.query.weight"} <= kept.keys()
    moves = [lambda m: m.to(cast), lambda m: m.half(), lambda m: m.bfloat16()]
    for move in moves:
        moved = move(copy.deepcopy(model))
        assert moved.dtype in (torch.bfloat16, torch.float16)
        assert all(torch.equal(value, kept[name]) for name, value in moved.memory_parameters().items())
    assert copy.deepcopy(model).double().namm.score.weight.dtype == torch.float64  # more is no loss


@pytest.mark.parametrize("policy", ["namm", "lively"])
def test_a_model_in_half_precision_reads_and_answers(policy: str) -> None:
    model = reader(config=settings(policy=policy, sinks=0)).to(torch.bfloat16)
    assert model.ask(model.read(text_of(60)), "Who was silent at dawn?", max_new_tokens=2).sources


# ---- decoding through the memory


def forgetful(
    self: HierMemModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    cache: BackboneCache | None = None,
    past_key_values: BackboneCache | None = None,
    **given: Any,
) -> Any:
    """A forward that drops the cache: every decoded token begins an empty memory."""
    return original(self, input_ids, **given)


original = HierMemModel.forward


def test_a_version_that_decodes_past_the_memory_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = backbone("llama")
    monkeypatch.setattr(HierMemModel, "forward", forgetful)
    monkeypatch.setattr("hiermem.selfcheck._checked", set())
    with pytest.raises(BackboneUnsupportedError, match=transformers.__version__):
        HierMemModel(settings(), plain)
    monkeypatch.setattr(HierMemModel, "forward", original)
    HierMemModel(settings(), plain)


def test_logits_that_differ_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader()
    monkeypatch.setattr("hiermem.selfcheck._checked", set())
    head = model.backbone.lm_head
    head.register_forward_hook(lambda _, __, logits: logits.flip(-1) if logits.shape[1] == 1 else logits)
    with pytest.raises(BackboneUnsupportedError, match="decode through the memory"):
        check_decoding(model.reader, model.generate)


def test_the_check_is_made_once_for_a_kind_of_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: set[type] = set()
    monkeypatch.setattr("hiermem.selfcheck._checked", checked)
    first = reader()
    assert checked == {type(first.backbone)}
    monkeypatch.setattr(HierMemModel, "generate", None)
    reader(seed=1)
    with pytest.raises(BackboneUnsupportedError, match="GPT2"):
        reader("gpt2")
    assert _checked is not checked


def test_the_check_minds_no_settings_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiermem.selfcheck._checked", set())
    plain = backbone("llama")
    for name, value in SETTINGS.items():
        setattr(plain.generation_config, name, value)
    HierMemModel(settings(), plain)


def test_states_of_a_segment_that_is_read_again_are_those_of_the_new_tokens() -> None:
    config = settings(16, segment=16, policy="forget", sinks=0, recent_share=0.0, positions="compact")
    config.summary = SummaryConfig(tokens=1, sensory=2, width=8, query="half", init_text="")
    model, ids = lively(reader(config=config)), ids_of(24, rows=2)
    with torch.no_grad():
        past = model(ids[:, :3])[CACHE_NAME]
        output = model(ids[:, 3:], cache=past, output_hidden_states=True)
        assert output.logits.shape[:2] == output.hidden_states[0].shape[:2] == (2, 21)
        torch.testing.assert_close(model.get_output_embeddings()(output.hidden_states[-1]), output.logits)
