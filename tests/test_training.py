"""Gradient training: losses, how far gradients reach, checkpoints, and processes that agree with one."""

import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest
import torch
from commands import assert_refused, run
from readers import backbone, ids_of, over, tokenizer
from safetensors.torch import load_file
from torch import Tensor, nn
from trainings import COMBINATIONS, batch, batch_for, combination, model_with_memory, steps, stopped_in_step
from transformers import AutoModelForCausalLM, GPT2Config

from hiermem.errors import InputError, NonFiniteError
from hiermem.lora import LoraConfig, add_lora
from hiermem.memory.hmt import fit
from hiermem.memory.hmt.module import HMTModule, SummaryConfig
from hiermem.memory.longterm import LongTermConfig, LongTermMemory, SegmentRecord
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.retrieval.keys import Question
from hiermem.training import finetune
from hiermem.training.batches import IGNORED, Sample, collated
from hiermem.training.config import TrainConfig
from hiermem.training.engine import TorchEngine
from hiermem.training.facts import KINDS, with_facts
from hiermem.training.objective import LanguageObjective, ObjectiveConfig
from hiermem.training.optimizer import OptimizerConfig
from hiermem.training.parameters import freeze_all_but, trainable_parameters
from hiermem.training.preparation import FITTED, Run, prepared_model
from hiermem.training.recipes import TRAININGS
from hiermem.training.retrieval_pairs import PairConfig, RetrievalPairs
from hiermem.training.samples import SampleConfig, TrainingDataset, check_samples
from hiermem.training.search_key import SHARPNESS, RecallObjective

TESTS = Path(__file__).parent


# ---- samples


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two train books, one for validation, and labelled questions, in the official layouts."""
    folder = tmp_path_factory.mktemp("data")
    for split, seeds in (("train", (1, 2)), ("validation", (3,))):
        (folder / "pg19" / split).mkdir(parents=True)
        for seed in seeds:
            words = " ".join(f"word{(seed * i * i) % 89}" for i in range(400))
            (folder / "pg19" / split / f"{seed}.txt").write_text(words, "utf-8")
    (folder / "pubmedqa").mkdir()
    items = {
        str(i): {
            "QUESTION": f"Is {i} odd?",
            "CONTEXTS": [f"The number {i} was studied."],
            "LONG_ANSWER": f"It was {i}.",
            "final_decision": ("no", "yes")[i % 2],
        }
        for i in range(8)
    }
    (folder / "pubmedqa" / "ori_pqal.json").write_text(json.dumps(items), "utf-8")
    (folder / "pubmedqa" / "test_ground_truth.json").write_text(json.dumps({"7": "yes"}), "utf-8")
    return folder


def test_samples_depend_on_seed_and_number_alone(data: Path) -> None:
    config = SampleConfig(books=0.5, questions=0.5, tokens=200, held_out=2)
    one, other = (TrainingDataset(tokenizer(), data, config) for _ in range(2))
    backwards = {number: other[number] for number in reversed(range(12))}
    assert all(one[number] == backwards[number] for number in range(12))
    assert len({one[number].name for number in range(12)}) > 8
    assert {one[number].name.split()[0] for number in range(12)} == {"book", "questions"}
    assert all(len(one[number].ids) <= 200 for number in range(12))
    held_out = TrainingDataset(tokenizer(), data, SampleConfig(tokens=200), split="validation")
    assert {held_out[number].name.split()[1] for number in range(5)} == {"3"}


@pytest.mark.parametrize(("split", "own"), [("train", range(5)), ("validation", range(5, 7))])
def test_only_answers_to_questions_of_the_split_count(data: Path, split: str, own: range) -> None:
    """7 is a test question, and of the others the last two are held out."""
    config = SampleConfig(books=0, questions=1, tokens=300, held_out=2)
    samples = TrainingDataset(tokenizer(), data, config, split=split)
    seen = set()
    for number in range(20):
        sample = samples[number]
        seen |= {int(name) for name in sample.name.removeprefix("questions ").split(", ")}
        wanted = [token for token, scored in zip(sample.ids, sample.scored, strict=True) if scored]
        text = tokenizer().decode(wanted)
        assert "studied" not in text and "odd" not in text
        assert "The answer is" in text or "It was" in text
    assert seen == set(own)
    with pytest.raises(InputError, match="7 questions for training, of which 9 are held out"):
        check_samples(data, replace(config, held_out=9))


def test_abstracts_of_the_training_half_are_read_as_a_text(data: Path) -> None:
    samples = TrainingDataset(
        tokenizer(True), data, SampleConfig(books=0, abstracts=1, tokens=300, held_out=2)
    )
    seen = set()
    for number in range(12):
        sample = samples[number]
        seen |= {int(name) for name in sample.name.removeprefix("abstracts ").split(", ")}
        assert len(sample.ids) == 300 and sample.scored == [False] + [True] * 299
        text = tokenizer().decode(sample.ids)
        assert "studied" in text and "The answer is" not in text
    assert seen == set(range(5))
    with pytest.raises(InputError, match="7 questions for training, of which 9 are held out"):
        check_samples(data, SampleConfig(abstracts=0.5, held_out=9))


@pytest.mark.parametrize("tokens", [1100, 8000])
def test_codes_in_a_book_are_asked_for_at_its_end(data: Path, tokens: int) -> None:
    """The codes count, each hidden in the text and asked for by its number, whatever the room."""
    samples = TrainingDataset(tokenizer(), data, SampleConfig(books=0, facts=1, tokens=tokens))
    sample = samples[3]
    assert sample == samples[3] != samples[4] and len(sample.ids) <= tokens
    text = tokenizer().decode(sample.ids)
    wanted = tokenizer().decode([i for i, counts in zip(sample.ids, sample.scored, strict=True) if counts])
    found = re.findall(r"(\w+ \d) is (\d{5})", text)
    assert len(found) == 8 and set(found[:4]) == set(found[4:]) and len({name for name, _ in found}) == 4
    assert wanted.split() == [code for _, code in found[4:]]
    with pytest.raises(InputError, match="Texts with facts need samples of at least"):
        TrainingDataset(tokenizer(), data, SampleConfig(books=0, facts=1, tokens=60))[3]


@pytest.mark.parametrize("kind", KINDS)
def test_facts_of_a_kind_stand_in_the_text_and_are_asked_for(data: Path, kind: str) -> None:
    """Every answer that counts stands once before its question, and four facts have four subjects."""
    config = SampleConfig(books=0, facts=1, kinds=(kind,), tokens=1500)
    sample = TrainingDataset(tokenizer(), data, config)[5]
    assert sample.name.startswith(kind)
    answers, current = [], []
    for token, scored in zip([*sample.ids, 0], [*sample.scored, False], strict=True):
        if scored:
            current.append(token)
        elif current:
            answers, current = [*answers, tokenizer().decode(current).strip()], []
    text = tokenizer().decode(sample.ids)
    told = with_facts("One. Two. Three. Four.", kind, random.Random(3))
    assert len(answers) == len(told) == 4 and len({(e.question, e.lead) for e in told}) == 4
    assert all(text.count(answer) >= 2 for answer in answers)
    for example in told:
        assert example.answer.strip() in example.text and example.lead in example.text


def test_unknown_kinds_of_facts_are_refused() -> None:
    with pytest.raises(InputError, match=r"Facts are of the kinds codes, pass keys, .*, not rumours\."):
        SampleConfig(facts=1, kinds=("rumours",))
    with pytest.raises(InputError, match=r"not none\."):
        SampleConfig(facts=1, kinds=())


def test_a_book_too_short_to_hide_anything_is_read_as_it_is(data: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / "pg19" / split).mkdir(parents=True)
        (tmp_path / "pg19" / split / "1.txt").write_text("A short book.", "utf-8")
    sample = TrainingDataset(tokenizer(), tmp_path, SampleConfig(books=0, facts=1, tokens=2000))[0]
    assert tokenizer().decode(sample.ids) == "A short book." and all(sample.scored)


def test_labels_are_the_next_tokens() -> None:
    samples = [Sample("a", [5, 6, 7, 8], [True, False, True, True]), Sample("b", [9, 4], [True, True])]
    made, no = collated(samples, 5), IGNORED
    assert made.labels.tolist() == [[no, 7, 8, no, no], [4, no, no, no, no]]
    assert made.ids.tolist() == [[5, 6, 7, 8, 0], [9, 4, 0, 0, 0]]


# ---- losses


def test_the_loss_is_that_of_the_model_and_every_sample_counts_the_same() -> None:
    objective, _ = combination("plain")
    ids = ids_of(70, rows=2)
    samples = [Sample("a", ids[0].tolist(), [True] * 70), Sample("b", ids[1, :30].tolist(), [True] * 30)]
    with torch.no_grad():
        losses = objective(collated(samples, 70))
        alone = [objective.model(row, labels=row).loss for row in (ids[:1], ids[1:, :30])]
        singles = [objective(collated([sample], 70)).total for sample in samples]
    torch.testing.assert_close(losses.total, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.total, torch.stack(singles).mean(), atol=1e-5, rtol=1e-5)
    assert losses.nll.shape == (2, 5) and (losses.nll[1, 2:] == 0).all()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_gradients_reach_back_as_many_segments_as_they_should(depth: int, recompute: bool) -> None:
    model = model_with_memory(policy="window")
    objective = LanguageObjective(model.train(), ObjectiveConfig(depth=depth, recompute=recompute))
    L, n = 16, 6
    ids = [token for segment in range(n) for token in range(10 + 20 * segment, 10 + 20 * segment + L)]
    sample = Sample("a", ids, [False] * (L * (n - 1) + 1) + [True] * (L - 1))  # all in the last segment
    embeddings = model.backbone.get_input_embeddings().weight.requires_grad_(True)
    objective(collated([sample], L * n)).total.backward()
    reached = [
        bool(embeddings.grad[10 + 20 * segment : 26 + 20 * segment].abs().sum() > 0) for segment in range(n)
    ]
    first = (n - 1) // (depth + 1) * (depth + 1)  # of the last block
    assert reached == [segment >= first for segment in range(n)]
    assert n - 1 - first == depth or depth == 3


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_step_leaves_no_memory_behind(name: str) -> None:
    """The part of the graph that a memory holds would otherwise stay until Python searches for cycles."""

    def memories() -> int:
        return sum(type(own) is WorkingMemory for own in gc.get_objects())

    objective, _ = combination(name)
    gc.collect()
    gc.disable()
    before = memories()
    try:
        losses = objective(batch_for(objective, 0, 0))
        losses.total.backward()
        del losses
        assert memories() == before
    finally:
        gc.enable()


def test_recomputed_segments_give_the_same_gradients() -> None:
    kept, recomputed = combination("lora")[0], combination("lora-recomputed")[0]
    for objective in (kept, recomputed):
        objective(batch(0, 0)).total.backward()
    for (name, one), other in zip(
        trainable_parameters(kept).items(), trainable_parameters(recomputed).values(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5, msg=name)
    changed = [
        name
        for name, weight in trainable_parameters(kept).items()
        if weight.grad is not None and weight.grad.any()
    ]
    assert len(changed) == 10  # six lora_B, P_0, W_c and its bias, W_v; lora_A waits for lora_B to leave 0


def test_the_teacher_is_the_backbone_with_full_attention() -> None:
    model = model_with_memory(budget=8, sinks=1)
    add_lora(model.backbone, LoraConfig(rank=2))
    for name, weight in model.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(weight, std=0.5)
    ids = ids_of(64)
    sample = collated([Sample("a", ids[0].tolist(), [True] * 64)], 64)
    with torch.no_grad():
        losses = LanguageObjective(model, ObjectiveConfig(language=0.0, teacher=1.0))(sample)
        student = model(ids).logits[0, :-1].log_softmax(-1)
        teacher = backbone()(ids).logits[0, :-1].log_softmax(-1)
    expected = (teacher.exp() * (teacher - student)).sum(-1).mean()
    torch.testing.assert_close(losses.total, expected, atol=1e-5, rtol=1e-4)
    assert losses.teacher > 0.01


# ---- steps


def test_exactly_the_trainable_parameters_change() -> None:
    objective, config = combination("lora")
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    steps(TorchEngine(objective, config), 2)
    changed = {
        name for name, tensor in objective.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == set(trainable_parameters(objective))


def test_a_loss_that_is_not_finite_changes_nothing_and_names_its_place() -> None:
    objective, config = combination("plain")
    engine = TorchEngine(objective, config)
    with torch.no_grad():
        objective.model.summary.value.weight.fill_(torch.inf)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with pytest.raises(NonFiniteError, match="segment 1 of sample 0"):
        steps(engine, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())


def test_what_cannot_be_trained_is_refused() -> None:
    objective, config = combination("plain")
    with pytest.raises(InputError, match="divide"):
        config.rounds(3)
    for weight in objective.parameters():
        weight.requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        TorchEngine(objective, config)
    for wrong in ({"batch": 3, "micro": 2}, {"memory_rate": 0.0}):
        with pytest.raises(InputError):
            OptimizerConfig(**wrong)
    with pytest.raises(InputError):
        ObjectiveConfig(language=0.0)
    with pytest.raises(InputError):
        SampleConfig(books=0.0)


# ---- the search key


PAIRS = PairConfig(held_out=2, tokens=24)


def searching() -> HierMemModel:
    """A reader whose search key has a trained part, with random memory parameters."""
    return model_with_memory(SummaryConfig(tokens=2, width=8, search=6)).train()


def test_queries_depend_on_seed_and_number_alone_and_leave_out_what_is_held_out(data: Path) -> None:
    longterm = LongTermConfig()
    one, other = (RetrievalPairs(tokenizer(), data, PAIRS, longterm) for _ in range(2))
    first, again = one.batch(range(40)), other.batch(range(20, 40))
    assert torch.equal(first.ids[20:], again.ids) and torch.equal(first.lexical[20:], again.lexical)
    assert set(first.targets.tolist()) == set(range(5)) and len(one.texts) == 7
    held_out = one.of_held_out().batch(range(2))
    assert held_out.targets.tolist() == [5, 6]
    memory = LongTermMemory(longterm)
    memory.write([SegmentRecord(0, first.ids[0], 0, len(text), text) for text in one.texts])
    scores = {hit.segment: hit.score for hit in memory.recall(Question("Is 5 odd?"), 7)}
    assert held_out.lexical[0].tolist() == pytest.approx([scores[text] for text in range(7)], abs=1e-4)


def test_the_search_is_taught_by_contrast_with_all_texts(data: Path) -> None:
    model = searching()
    freeze_all_but(model, ("search",))
    pairs = RetrievalPairs(tokenizer(), data, PAIRS, model.config.longterm)
    objective, queries = RecallObjective(model, pairs), pairs.batch(range(4))
    losses, hmt = objective(queries), model.summary
    assert hmt is not None
    with torch.no_grad():
        keys = torch.stack([hmt.search_key(model.embed(text)[-1]) for text in pairs.texts])
        assert keys.abs().sum(0).gt(1e-3).all() and hmt.search_weight > 0  # fitted
        for row, (ids, count) in enumerate(zip(queries.ids, queries.valid, strict=True)):
            asked = model.adapter.summary(hmt, hmt.summary_prompt, ids[None, :count], [count])[0, -1]
            cosines = nn.functional.cosine_similarity(keys, hmt.search_query(asked)[None])
            scores = SHARPNESS * (queries.lexical[row] + hmt.search_weight * cosines)
            expected = -scores.log_softmax(-1)[queries.targets[row]]
            torch.testing.assert_close(losses.nll[row, 0], expected, atol=1e-5, rtol=1e-4)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    TorchEngine(objective, OptimizerConfig(batch=4, micro=4)).step([queries], 1.0)
    changed = {
        name for name, tensor in objective.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"model.summary.summary_prompt.weight"}
    with torch.no_grad():
        assert objective(queries).total < losses.total
    with pytest.raises(InputError, match="no search key"):
        RecallObjective(model_with_memory(), pairs)


# ---- whole trainings


def config_of(tmp_steps: int = 4) -> TrainConfig:
    smoke = TRAININGS["smoke"]()
    return replace(
        smoke, steps=tmp_steps, save_every=1, evaluate_every=4, samples=replace(smoke.samples, tokens=600)
    )


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(
    data: Path, wide_model: Path, tmp_path: Path
) -> None:
    where = Run(str(wide_model), data, tmp_path / "whole")
    whole = finetune.train(config_of(), where)
    stopped = replace(where, output=tmp_path / "stopped")
    with stopped_in_step(2):
        finetune.train(config_of(), stopped)
    (tmp_path / "stopped" / "step-00009").mkdir()  # begun, never finished
    again = finetune.train(config_of(), stopped)
    assert again["skipped"] == ["step-00009"]
    assert again["history"] == whole["history"]
    one, other = (HierMemModel.from_pretrained(tmp_path / name) for name in ("whole", "stopped"))
    ids = ids_of(700)
    with torch.no_grad():
        assert torch.equal(one(ids).logits, other(ids).logits)
    files = {file.name for file in (tmp_path / "whole" / "step-00004").iterdir()}
    assert files == {"COMPLETE", "state.json", "weights.safetensors", "optimizer.safetensors"}
    with pytest.raises(InputError, match="other settings"):
        finetune.train(replace(config_of(), warmup=1), stopped)


def test_dropout_stays_off(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=100, n_positions=64)
    assert config.attn_pdrop and config.resid_pdrop
    model = over(AutoModelForCausalLM.from_config(config), 16, policy="window")
    objective = LanguageObjective(model.train(), ObjectiveConfig())  # as it is before the first step
    made = collated([Sample("a", ids_of(60)[0].tolist(), [True] * 60)], 60)
    assert objective.training and torch.equal(objective(made).total, objective(made).total)


def test_the_search_key_is_taught_after_a_training(data: Path, wide_model: Path, tmp_path: Path) -> None:
    first = Run(str(wide_model), data, tmp_path / "first")
    finetune.train(config_of(2), first)
    key = replace(TRAININGS["key"](), pairs=PAIRS, steps=2, evaluated=2)
    finetune.train(key, Run(str(tmp_path / "first"), data, tmp_path / "second"))
    one, other = (HierMemModel.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert other.config.summary.search == 256 and other.summary.search_weight > 0
    ids = ids_of(700)
    with torch.no_grad():
        assert torch.equal(one(ids).logits, other(ids).logits)


def test_a_summary_prompt_that_recalls_is_not_taught_to_search(
    data: Path, wide_model: Path, tmp_path: Path
) -> None:
    summary = SummaryConfig(tokens=2, width=4, query="half")
    config = replace(config_of(1), preset="hmt", segment=32, summary=summary)
    finetune.train(config, Run(str(wide_model), data, tmp_path / "first"))
    key = replace(TRAININGS["key"](), pairs=PAIRS, steps=2, evaluated=2)
    with pytest.raises(InputError, match="whose query is previous"):
        finetune.train(key, Run(str(tmp_path / "first"), data, tmp_path / "second"))


def test_a_trained_model_is_trained_on(data: Path, wide_model: Path, tmp_path: Path) -> None:
    first = Run(str(wide_model), data, tmp_path / "first")
    finetune.train(config_of(2), first)
    second = prepared_model(config_of(2), replace(first, model=str(tmp_path / "first")))
    saved = HierMemModel.from_pretrained(tmp_path / "first")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_recall_is_fitted_once_and_again_where_only_recall_is_trained(
    data: Path, wide_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = SummaryConfig(tokens=2, width=4, query="half")
    samples = SampleConfig(tokens=64)
    config = TrainConfig("hmt", 32, summary, samples=samples, steps=1, fitted=6, save_every=1)
    config = replace(config, optimizer=OptimizerConfig(batch=1, micro=1), evaluated=1)
    fitted: list[Tensor] = []
    fit_closed = fit.fit_recall

    def noted(module: HMTModule, embeddings: Tensor, queries: Tensor) -> None:
        fitted.append(embeddings)
        fit_closed(module, embeddings, queries)
        for projection, states in ((module.key, embeddings), (module.query, queries)):
            means = projection(states[:, :, -1]).mean((0, 1))
            torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-3, rtol=0)

    monkeypatch.setattr(fit, "fit_recall", noted)
    run_of = Run(str(wide_model), data, tmp_path / "run")
    finetune.train(config, run_of)
    model = HierMemModel.from_pretrained(wide_model, config=config.model())
    ids = torch.tensor([TrainingDataset(model.tokenizer, data, samples)[0].ids])
    with torch.no_grad():
        embeddings = model(ids).past_key_values.memory.recurrence.memory_embeddings[0]
    torch.testing.assert_close(fitted[0][0], embeddings, atol=1e-4, rtol=1e-3)
    finetune.train(replace(config, steps=2), run_of)
    kept = HierMemModel.from_pretrained(tmp_path / "run").summary
    assert torch.equal(kept.key.weight, load_file(run_of.output / FITTED)["summary.key.weight"])
    finetune.train(config, Run(str(tmp_path / "run"), data, tmp_path / "second"))
    assert len(fitted) == 1 and fitted[0].shape[:3] == (6, 2, 2)
    again = Run(str(tmp_path / "run"), data, tmp_path / "again")
    result = finetune.train(replace(config, segment=48, trains=("recall",), steps=0), again)
    assert (result["step"], result["loss"]) == (0, None) and result["held_out"] > 0
    refitted = HierMemModel.from_pretrained(again.output)
    recalled = refitted.summary
    assert refitted.config.segment == 32  # the model's own: nothing that reads was trained
    assert len(fitted) == 2 and not torch.equal(recalled.key.weight, kept.key.weight)
    for name in ("first_prompt", "content", "value"):
        assert torch.equal(getattr(recalled, name).weight, getattr(kept, name).weight)
    plain = HierMemModel.from_pretrained(wide_model)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match="Recall is fitted of a residual memory"):
        finetune.train(
            replace(config, trains=("recall",), steps=0), replace(again, model=str(tmp_path / "plain"))
        )
    short = replace(config, samples=SampleConfig(tokens=48))
    with pytest.raises(InputError, match="at least two segments of 32"):
        finetune.train(short, Run(str(wide_model), data, tmp_path / "short"))
    for wrong in ({"fitted": 1}, {"summary": replace(summary, residual=False)}):
        with pytest.raises(InputError, match="where the memory is residual"):
            replace(config, **wrong)


def test_a_twin_without_recall_trains_its_prompt_alone(data: Path, wide_model: Path, tmp_path: Path) -> None:
    """From the same start, on the same samples, in as many steps as the memory that recalls."""

    def tiny(recipe: str) -> TrainConfig:
        config = TRAININGS[recipe]()
        summary = replace(config.summary, tokens=2, width=4)
        sizes = {"segment": 32, "samples": SampleConfig(tokens=96), "fitted": min(config.fitted, 3)}
        return replace(config, summary=summary, steps=2, evaluated=1, **sizes)

    runs = {name: Run(str(wide_model), data, tmp_path / name) for name in ("carried", "carried-alone")}
    results = {name: finetune.train(tiny(name), run_of) for name, run_of in runs.items()}
    first, other = (result["history"][0]["loss"] for result in results.values())
    assert first == pytest.approx(other, abs=1e-5)  # nothing that is recalled counts yet
    twin = HierMemModel.from_pretrained(runs["carried-alone"].output)
    start = HierMemModel.from_pretrained(wide_model, config=twin.config).memory_parameters()
    learned = twin.memory_parameters()
    assert (
        twin.config.summary.last == 0
        and results["carried-alone"]["trained"] == twin.summary.first_prompt.weight.numel()
    )
    changed = {name for name, weight in learned.items() if not torch.equal(weight, start[name])}
    assert changed == {"summary.first_prompt.weight"}
    on = Run(str(runs["carried"].output), data, tmp_path / "on")
    finetune.train(tiny("carried-alone"), on)
    before, after = (
        HierMemModel.from_pretrained(folder).memory_parameters() for folder in (on.model, on.output)
    )
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed
    with pytest.raises(InputError, match="recall nothing"):
        finetune.train(tiny("recall"), Run(str(on.output), data, tmp_path / "recall"))
    for wrong in ({"fitted": 3}, {"trains": ("prompt", "recall")}, {"trains": ("prompt", "keys")}):
        with pytest.raises(InputError, match="trains its prompt alone"):
            replace(tiny("carried-alone"), **wrong)


def test_without_recall_all_that_is_trained_has_gradients() -> None:
    summary = SummaryConfig(tokens=2, width=8, last=0, query="half", residual=False)
    model = model_with_memory(summary, policy="forget", update_interval=16, positions="compact")
    freeze_all_but(model, ("prompt",))
    LanguageObjective(model, ObjectiveConfig())(batch(0, 0)).total.backward()
    trained = trainable_parameters(model)
    assert trained and all(weight.grad is not None for weight in trained.values())


def test_the_documented_launches_divide_their_batches() -> None:
    assert TRAININGS["hmt-1"]().optimizer.rounds(8) == TRAININGS["hmt-2"]().optimizer.rounds(16) == 1
    with pytest.raises(InputError, match="another number"):
        TRAININGS["smoke"]().optimizer.rounds(8)


def test_every_recipe_can_be_made() -> None:
    for recipe in TRAININGS.values():
        config = recipe()
        others = (("mamba",), ("lora",), ("kv",), ("states",))
        assert config.model().summary.tokens or config.goes_on or config.trains in others
        assert config.optimizer.rounds(1) and (config.steps or config.fitted or config.choice)
        if config.steps:
            assert config.factor(0) <= config.factor(config.warmup) == 1.0
            assert config.factor(config.steps) == pytest.approx(config.floor)


def test_bad_input(data: Path, tmp_path: Path) -> None:
    assert_refused(run("train", "--recipe", "nothing", "--data", data, "--out", tmp_path / "a"), "recipe")
    with pytest.raises(InputError, match="nowhere"):
        finetune.train(config_of(), Run("smollm2", tmp_path / "nowhere", tmp_path / "a"))
    assert not (tmp_path / "a").exists()


# ---- many processes


def launch(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Two processes under DeepSpeed's launcher."""
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--master_port"]
    command += [str(29600 + os.getpid() % 300), *map(str, arguments)]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or which("c++") is None,
    reason="DeepSpeed is not installed, or there is no C++ compiler for what it builds",
)


@needs_deepspeed
@pytest.mark.timeout(600)
def test_two_processes_are_one_in_every_stage_of_zero(tmp_path: Path) -> None:
    """float32: sums over samples in another order, so losses agree to 1e-5."""
    job = launch(TESTS / "ranks.py", tmp_path)
    output, _ = job.communicate()
    assert job.returncode == 0, output[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 3 * len(COMBINATIONS)
    for name in COMBINATIONS:
        objective, config = combination(name)
        expected = steps(TorchEngine(objective, config), 3)
        weights = objective.model.memory_parameters()
        for stage in (1, 2, 3):
            found = results[f"{stage}-{name}"]
            assert found["losses"] == pytest.approx(expected, abs=1e-5), (stage, name)
            assert found["resumed"] == pytest.approx(expected[2:], abs=1e-5), (stage, name)
            saved = load_file(tmp_path / f"model-{stage}-{name}" / "model.safetensors")
            assert {own for own in saved if not own.startswith("backbone.")} == weights.keys()
            assert all(".lora_" in own for own in saved.keys() - weights.keys())
            for own, tensor in weights.items():
                torch.testing.assert_close(saved[own], tensor, atol=1e-4, rtol=1e-3)


@needs_deepspeed
@pytest.mark.timeout(600)
def test_a_killed_process_ends_the_job(data: Path, wide_model: Path, tmp_path: Path) -> None:
    job = launch(
        *("--module", "hiermem.training.finetune", "--recipe", "smoke", "--steps", "100000"),
        *("--deepspeed", TESTS.parent / "ds_config.json", "--data", data, "--model", wide_model),
        *("--output", tmp_path / "run"),
    )
    history, deadline = tmp_path / "run" / "history.jsonl", time.monotonic() + 400
    while not (history.exists() and len(history.read_text().splitlines()) > 3):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    workers = subprocess.run(
        ["pgrep", "-f", f"finetune.*{tmp_path}"], capture_output=True, text=True, check=True
    ).stdout.split()
    victim = max(int(pid) for pid in workers if int(pid) != job.pid)
    os.kill(victim, signal.SIGKILL)
    assert job.wait(timeout=60) != 0
