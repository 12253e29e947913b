"""hiermem as a model of lm-evaluation-harness: its scores are transformers' own, at any length."""

import json
import math
from pathlib import Path

import pytest
import torch
from commands import run_alone
from readers import backbone, lively_namm, reader, text_of, uneven

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from hiermem.cli import written
from hiermem.cli.harness import HarnessModel
from hiermem.errors import InputError
from hiermem.eviction_weights import EvictionWeights, is_evolved

TASK = """
task: tiny_{output_type}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{text}}}}"
"""
CHOICE = """
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""
ANSWER = """
generation_kwargs: {until: ["captain"], max_gen_toks: 6}
doc_to_target: "{{choices[label]}}"
metric_list: [{metric: exact_match}]
"""


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


@torch.no_grad()
def test_scores_are_those_of_transformers(tiny_model: Path) -> None:
    model, plain, context = HarnessModel(str(tiny_model), preset="bare"), backbone(), text_of(30).strip()

    def expected(before: str, after: str) -> tuple[float, bool]:
        begun = model.tok_encode(before) or [model.prefix_token_id]
        ids = torch.tensor([begun + model.tok_encode(before + after)[len(model.tok_encode(before)) :]])
        logits = plain(ids).logits[0, len(begun) - 1 : -1].log_softmax(-1)
        targets = ids[0, len(begun) :]
        return float(logits[range(len(targets)), targets].sum()), bool((logits.argmax(-1) == targets).all())

    pairs = [(context, " a cat"), ("", "Orion sailed"), (context, " Orion"), (text_of(9).strip(), "x")]
    for given, pair in zip(model.loglikelihood(requests("loglikelihood", *pairs)), pairs, strict=True):
        score, greedy = expected(*pair)
        assert given == (pytest.approx(score, abs=1e-3), greedy)
    (rolling,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (context,)))
    assert rolling == pytest.approx(expected("", context)[0], abs=1e-2)


def test_a_greedy_continuation_is_called_greedy(tiny_model: Path) -> None:
    model = HarnessModel(str(tiny_model), budget=24, chunk=16, segment=48)
    (text,) = model.generate_until(
        requests("generate_until", (text_of(200), {"max_gen_toks": 3})), disable_tqdm=True
    )
    ids = model.tok_encode(text_of(200))
    answer = model.model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0, len(ids) :]
    assert model.tokenizer.decode(answer, skip_special_tokens=True) == text
    ((score, greedy),) = model._loglikelihood_tokens([(("", ""), ids, answer.tolist())], disable_tqdm=True)
    assert greedy
    assert score < 0


def test_only_what_a_chat_template_wrote_is_a_control_token(tiny_model: Path) -> None:
    model = HarnessModel(str(tiny_model))
    model.tokenizer.chat_template = (
        "{% for message in messages %}<s>{{ message.role }} {{ message.content }}</s>{% endfor %}answer"
    )
    messages = [{"role": "user", "content": "Why?</s><s>"}, {"role": "assistant", "content": "So"}]
    whole, begun = model.apply_chat_template(messages), model.apply_chat_template(messages, False)
    assert whole == "<s>user Why?</s><s></s><s>assistant So</s>answer" and whole.startswith(begun)
    for text, count in ((whole, 4), (begun + "</s>", 3), ("<s>So</s>", 0)):
        ids = model.tok_encode(text)
        assert sum(token < 3 for token in ids) == count
        assert model.tokenizer.decode(ids) == text


TURNS = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>answer\n{% endif %}"
)


@pytest.mark.parametrize("turns", [1, 3, 5])
def test_a_prompt_that_begins_as_another_is_known_by_all_its_turns(tiny_model: Path, turns: int) -> None:
    model = HarnessModel(str(tiny_model))
    model.tokenizer.chat_template = TURNS
    roles = ("user", "assistant") * 3
    messages = [{"role": role, "content": f"{place}</s>"} for place, role in enumerate(roles)]
    whole = {count: model.apply_chat_template(messages[:count]) for count in (1, 5, 3)}
    begun = {count: model.apply_chat_template(messages[:count], False) for count in (1, 5, 3)}
    assert whole[5].startswith(begun[3]) and begun[3].startswith(begun[1])
    for text, count in ((whole[turns], 2 * turns + 1), (begun[turns], 2 * turns - 1)):
        for after in ("", "</s>", " <s>user: 1</s>"):
            ids = model.tok_encode(text + after)
            assert sum(token < 3 for token in ids) == count
            assert model.tokenizer.decode(ids) == text + after


def test_white_space_at_the_end_of_a_chat_prompt_goes_to_the_answer(tiny_model: Path) -> None:
    """The harness moves it there before it asks for the tokens of the prompt."""
    model = HarnessModel(str(tiny_model))
    model.tokenizer.chat_template = TURNS
    context = model.apply_chat_template([{"role": "user", "content": "Why?"}])
    assert context.endswith("answer\n")
    begun, answer = model._encode_pair(context, "So")
    assert sum(token < 3 for token in begun) == 3
    assert (model.tokenizer.decode(begun), model.tokenizer.decode(answer)) == (context[:-1], "\nSo")


def test_prompts_are_known_by_their_digests_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "MOST", 2)
    prompts = written.WrittenPrompts()
    for text in ("one", "three", "one"):
        prompts.add(text, [range(len(text))])
    assert prompts.template_of("three and more") == (range(5),)
    assert prompts.template_of("on") == ()
    with pytest.raises(InputError, match="more than 2 chat prompts"):
        prompts.add("four", [])


def test_text_stops_before_the_stop_string(tiny_model: Path) -> None:
    model = HarnessModel(str(tiny_model), preset="bare")
    context = text_of(20)
    (whole,) = model.generate_until(requests("generate_until", (context, {"max_gen_toks": 12})))
    stop = whole[4:6]
    (cut,) = model.generate_until(
        requests("generate_until", (context, {"max_gen_toks": 12, "until": [stop]}))
    )
    assert cut == whole[: whole.index(stop)]


def test_an_evolved_network_scores(tiny_model: Path, tmp_path: Path) -> None:
    network = lively_namm()
    EvictionWeights(uneven(reader()), network.state_dict(), network.config).save(tmp_path)
    small = {"policy": "namm", "budget": 24, "chunk": 16, "segment": 48}
    model = HarnessModel(str(tiny_model), evictor=str(tmp_path), **small).model
    assert model.config.working.head_shares == [list(row) for row in uneven(reader())]
    assert torch.equal(model.namm.score.weight.cpu(), network.score.weight)
    shipped = HarnessModel(str(tiny_model), **small).model
    assert is_evolved(shipped.memory_parameters())  # as elsewhere: what ships
    for none in ("none", None):  # as the harness hands it on
        untrained = HarnessModel(str(tiny_model), evictor=none, **small).model
        assert not is_evolved(untrained.memory_parameters())
    with pytest.raises(InputError, match="no evictor at"):
        HarnessModel(str(tiny_model), evictor=str(tmp_path / "nowhere"), **small)


def test_texts_far_beyond_the_trained_range_are_read(tiny_model: Path) -> None:
    model = HarnessModel(str(tiny_model), budget=24, chunk=16, segment=48)
    assert model.model.adapter.trained_range == 64
    ((score, _),) = model.loglikelihood(requests("loglikelihood", (text_of(1500), " Orion")))
    (rolling,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text_of(1500),)))
    assert math.isfinite(score)
    assert math.isfinite(rolling)


def test_generation_from_nothing_begins_as_every_text_does(tiny_model: Path) -> None:
    model = HarnessModel(str(tiny_model), preset="bare")
    (text,) = model.generate_until(requests("generate_until", ("", {"max_gen_toks": 5})), disable_tqdm=True)
    ids = torch.tensor([[model.prefix_token_id]])
    whole = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert text == model.tokenizer.decode(whole[0, 1:], skip_special_tokens=True)


def test_settings_of_a_policy_go_by_name(tiny_model: Path) -> None:
    model = HarnessModel(str(tiny_model), policy="attention", policy_set="decay=0.5;near=3")
    assert model.model.config.working.policy_settings == {"decay": 0.5, "near": 3}
    with pytest.raises(InputError, match="has no setting 'far'"):
        HarnessModel(str(tiny_model), policy="attention", policy_set="far=3")


@pytest.mark.parametrize("budget", ["many", 12.5, 0])
def test_a_number_that_is_none_is_refused(tiny_model: Path, budget: object) -> None:
    with pytest.raises(InputError, match="budget in --model_args"):
        HarnessModel(str(tiny_model), budget=budget)  # type: ignore[arg-type]


def test_what_the_harness_refuses_is_one_sentence(tiny_model: Path) -> None:
    task = ["--model_args", f"pretrained={tiny_model}", "--tasks", "no_such_task"]
    done = run_alone("lm-eval", "--model", "hiermem", *task)
    assert done.returncode == 2
    assert b"hiermem: lm-eval stopped: Tasks not found: no_such_task." in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_unknown_setting_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="no setting colour"):
        HarnessModel(str(tiny_model), colour="red")


@pytest.mark.timeout(240)
def test_the_command_runs_local_tasks(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": text_of(300, seed), "choices": [" Orion", " a cat and salt"], "label": seed % 2}
        for seed in range(4)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for kind, rest in (("multiple_choice", CHOICE), ("generate_until", ANSWER)):
        task = TASK.format(output_type=kind, data=data) + rest
        (tmp_path / f"{kind}.yaml").write_text(task, "utf-8")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    command = [f"pretrained={tiny_model},preset=streaming,budget=24,chunk=16,segment=48", "--include_path"]
    command += [str(tmp_path), "--tasks", "tiny_multiple_choice,tiny_generate_until"]
    command += ["--output_path", str(tmp_path / "out")]
    done = run_alone("lm-eval", "--model", "hiermem", "--model_args", *command)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text("utf-8"))["results"]
    assert 0 <= results["tiny_multiple_choice"]["acc,none"] <= 1
    assert results["tiny_generate_until"]["exact_match,none"] == 0
