"""Search by the backbone's own states: sentence embeddings that cost no second reading."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from readers import reader, settings, text_of
from test_training import data as data  # the fixture
from torch import Tensor
from trainings import SentenceObjective, stopped_in_step

from hiermem.errors import InputError, MemoryIncompatibleError
from hiermem.memory.state import MemoryState
from hiermem.memory.state_encoder import StateEncoderConfig, TokenVectors
from hiermem.model import HierMemModel
from hiermem.retrieval.encoder import has_minilm
from hiermem.retrieval.keys import Question
from hiermem.text import encode_with_spans
from hiermem.training import finetune
from hiermem.training.optimizer import OptimizerConfig
from hiermem.training.preparation import Run
from hiermem.training.recipes import TRAININGS
from hiermem.training.sentences import SentenceConfig

FACTS = "The brass key hangs in the pantry. A silver whistle lies under the mat.\n\n"
QUESTION = "Where hangs the brass key?"
ENCODER = StateEncoderConfig([0, 2], hidden=8, width=12)


def model_of(encoder: StateEncoderConfig = ENCODER, chunk: int = 8) -> HierMemModel:
    """A tiny reader with a random state encoder, found by words and by states."""
    config = settings(chunk, max(chunk, 16), budget=max(24, chunk + 8), update_interval=max(16, chunk))
    config.longterm = replace(config.longterm, keys={"lexical": {}, "states": {"weight": 3.0}})
    config.state_encoder = encoder
    model = reader(config=config, bos=True)
    if model.state_encoder is not None:
        generator = torch.Generator().manual_seed(7)
        for weight in model.state_encoder.parameters():
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
        model.state_encoder.mean.normal_(generator=generator)
    return model


def document() -> str:
    return text_of(60) + "\n\n" + FACTS + text_of(50) + "."


def keys(memory: MemoryState) -> Tensor:
    """Keys of all units, the partial segment's included."""
    units, longterm = memory.longterm.units, memory.longterm
    assert units is not None
    found = units.tensors()["keys"]
    if longterm.partial is None:
        return found
    last = units.partial(longterm.partial, longterm.records[-1] if longterm.records else None).keys
    return torch.cat((found.reshape(-1, last.shape[1]), last))


def test_an_embedding_is_the_sum_of_its_tokens_vectors() -> None:
    """A token is of the sentence in which it ends."""
    ends, vectors = torch.tensor([4, 5, 9, 9, 13]), torch.randn(5, 3)
    found = TokenVectors(ends, vectors).embeddings(torch.tensor([[0, 8], [8, 13], [5, 8], [4, 9]]))
    for row, tokens in zip(found, ([0, 1], [2, 3, 4], [], [1, 2, 3]), strict=True):
        expected = torch.nn.functional.normalize(vectors[tokens].sum(0), dim=0)
        torch.testing.assert_close(row, expected)


def test_units_have_the_embeddings_of_what_the_backbone_read() -> None:
    """One chunk over an empty cache: the states are those of the backbone itself."""
    model = model_of(chunk=64)
    text = "The key hangs. A whistle lies."
    memory = model.read(text, progress=False)
    ids, spans = encode_with_spans(model.tokenizer, text)
    assert model.state_encoder is not None and len(ids) < 60
    with torch.inference_mode():
        whole = model.reader.encode(text)
        states = model.backbone(whole, output_hidden_states=True).hidden_states
        vectors = model.state_encoder(model.state_encoder.chosen(states))[0]
    vectors = vectors.clone()
    vectors[0] = 0
    vectors = vectors[len(vectors) - len(ids) :]
    cut = text.index("A")
    for key, inside in zip(keys(memory), (lambda end: end <= cut, lambda end: end > cut), strict=True):
        rows = [row for row, (_, end) in enumerate(spans) if inside(end)]
        expected = torch.nn.functional.normalize(vectors[rows].sum(0), dim=0)
        torch.testing.assert_close(key, expected, atol=1e-5, rtol=1e-4)


def test_the_first_token_of_a_document_has_no_vector_however_it_is_read() -> None:
    model = model_of()
    memory = model.read("t", progress=False)
    partial = memory.longterm.partial
    assert partial is not None and partial.token_vectors is not None
    assert not partial.token_vectors.vectors[0].any()
    assert model.reader.sentence_embedding("t").any()


@pytest.mark.parametrize("cut", [7, 40, 150])
def test_whole_pieces_saved_and_copied_memories_have_the_same_keys(cut: int, tmp_path: Path) -> None:
    model, text = model_of(), document()
    whole = model.read(text, progress=False)
    pieces = model.read(iter([text[:cut], text[cut:]]), progress=False)
    torch.testing.assert_close(keys(pieces), keys(whole))
    whole.save(tmp_path / "whole")
    loaded = MemoryState.load(tmp_path / "whole", model)
    for twin in (loaded, copy.deepcopy(whole), pickle.loads(pickle.dumps(whole.longterm))):
        longterm = twin if not isinstance(twin, MemoryState) else twin.longterm
        assert torch.equal(longterm.units.tensors()["keys"], whole.longterm.units.tensors()["keys"])
        assert torch.equal(
            longterm.partial.token_vectors.vectors, whole.longterm.partial.token_vectors.vectors
        )
    assert MemoryState.verify(tmp_path / "whole") == []
    for known in (1.0, 0.5):  # below a trust of a fifth, words alone choose
        scale = whole.longterm.unit_scale(Question(QUESTION, known=known))
        assert (scale is not None and scale.odds is not None) == (known == 1.0)
    first, second = (model.ask(memory, QUESTION, max_new_tokens=4) for memory in (whole, loaded))
    assert first == second and first.sources
    more = " Gold lies at the gate. " + text_of(30)
    torch.testing.assert_close(
        keys(model.read(more, copy.deepcopy(whole), progress=False)),
        keys(model.read(more, loaded, progress=False)),
    )


def test_the_question_is_embedded_as_what_is_read() -> None:
    model = model_of()
    memory = model.read(FACTS + document(), progress=False)
    sentence = "The brass key hangs in the pantry."
    embedding = model.reader.sentence_embedding(sentence)
    assert embedding.shape == (12,) and float(embedding.norm()) == pytest.approx(1.0)
    key = memory.longterm.units.keys[0]
    query = Question(sentence, embedding=embedding, known=0.5)
    assert key.weight_for(query) == pytest.approx(3.0 * 0.125)
    torch.testing.assert_close(key.query_key(query), embedding)
    assert not key.query_key(Question(sentence)).any()


def test_an_index_has_no_such_keys_and_a_model_without_encoder_neither(tmp_path: Path) -> None:
    model = model_of()
    indexed = model.index(document(), progress=False)
    assert indexed.longterm.units is None and model.ask(indexed, QUESTION, max_new_tokens=2).sources
    indexed.save(tmp_path / "index")
    assert MemoryState.load(tmp_path / "index", model).indexed
    without = model_of(StateEncoderConfig([]))
    assert without.state_encoder is None
    memory = without.read(document(), progress=False)
    assert memory.longterm.units is None and "states" not in memory.longterm.config.keys
    read = model.read(document(), progress=False)
    read.save(tmp_path / "read")
    with pytest.raises(MemoryIncompatibleError, match="for which this model has no encoder"):
        MemoryState.load(tmp_path / "read", without)
    other = model_of()
    with torch.no_grad():
        other.state_encoder.direct.bias += 1
    with pytest.raises(MemoryIncompatibleError, match="search key states"):
        MemoryState.load(tmp_path / "read", other)
    with pytest.raises(
        InputError, match="The backbone has 3 layers, and a state encoder is to look at layer 9"
    ):
        model_of(StateEncoderConfig([9]))
    with pytest.raises(InputError, match="ascending numbers"):
        StateEncoderConfig([2, 1])


def test_a_saved_model_has_its_encoder(tmp_path: Path, tiny_model: Path) -> None:
    made = model_of()
    made.save_pretrained(tmp_path / "model")
    for config in (None, settings(8, 16)):
        loaded = HierMemModel.from_pretrained(tmp_path / "model", config=config)
        assert loaded.state_encoder is not None and loaded.state_encoder.digest == made.state_encoder.digest
    config = settings(8, 16)
    config.state_encoder = StateEncoderConfig([])
    bare = HierMemModel.from_pretrained(tmp_path / "model", config=type(config)(**config.settings()))
    assert bare.state_encoder is None
    config.state_encoder = ENCODER
    with pytest.raises(InputError, match=r"no encoder of its layers \[0, 2\]"):
        HierMemModel.from_pretrained(tiny_model, config=type(config)(**config.settings()))


# ---- training


@pytest.mark.skipif(not has_minilm(), reason="the extra dense is not installed")
def test_an_encoder_is_taught_stopped_and_gone_on_with(wide_model: Path, data: Path, tmp_path: Path) -> None:
    sentences = SentenceConfig(pieces=24, characters=300, questions=30, sentences=32, asked=8, held_out=0.2)
    rates = OptimizerConfig(memory_rate=1e-3, batch=1, micro=1)
    config = replace(TRAININGS["states"](), sentences=sentences, optimizer=rates, steps=6, warmup=1)
    config = replace(config, evaluated=2, evaluate_every=3, save_every=2)
    whole = finetune.train(config, Run(str(wide_model), data, tmp_path / "whole"))
    assert whole["history"][5]["held_out"] < whole["history"][2]["held_out"]
    stopped = Run(str(wide_model), data, tmp_path / "stopped")
    with stopped_in_step(3):
        finetune.train(config, stopped)
    assert finetune.train(config, stopped)["history"] == whole["history"]
    models = [HierMemModel.from_pretrained(tmp_path / name) for name in ("whole", "stopped")]
    assert models[0].state_encoder.digest == models[1].state_encoder.digest
    assert "states" in models[0].config.longterm.keys and "dense" not in models[0].config.longterm.keys
    memory = models[0].read("word1 word2. " * 60, progress=False)
    assert memory.longterm.units is not None and models[0].ask(memory, "word1", max_new_tokens=2).sources
    with pytest.raises(InputError, match="There is no book in"):
        finetune.train(config, replace(stopped, data=tmp_path, output=tmp_path / "none"))


def test_gradients_of_the_objective_are_those_of_differences() -> None:
    objective = SentenceObjective()
    batch, encoder = objective.batch(0, 0), objective.model.state_encoder.double()
    batch = replace(batch, states=batch.states.double(), taught=batch.taught.double())
    weight = encoder.outer.weight
    objective(batch).total.backward()
    for place in ((0, 0), (3, 5)):
        losses = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                weight[place] += step
                losses.append(float(objective(batch).total))
                weight[place] -= step
        assert float(weight.grad[place]) == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=0.02, abs=1e-5)


def test_an_index_by_states_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    keys = ("--set", 'longterm.keys={"lexical": {}, "states": {}}')
    done = run(
        "read", "-", "--out", tmp_path / "m", "--model", tiny_model, "--index", *keys, stdin=b"A text."
    )
    assert_refused(done, "An index has no search key states")
