"""The search key made of hashed words: its scores, its statistics, its stability."""

import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import hiermem
from hiermem.errors import InputError
from hiermem.memory.longterm import LongTermMemory
from hiermem.memory.saved import SavedInfo
from hiermem.retrieval.files import load_directory
from hiermem.retrieval.keys import LexicalKey, LexicalKeyConfig, Question, Text
from hiermem.retrieval.words import are_forms, words

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "prstvz"]


def segments(count: int, words: int = 150, seed: int = 0) -> list[str]:
    """Texts whose words follow Zipf's law over 240 invented words, in a language of their own."""
    pick = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(VOCABULARY))]
    return [" ".join(pick.choices(VOCABULARY, weights, k=words)) for _ in range(count)]


def reader(texts: list[str], config: LexicalKeyConfig | None = None) -> LexicalKey:
    """A key that has observed ``texts``."""
    lexical = LexicalKey(config)
    for text in texts:
        lexical.observe([Text(text)])
    return lexical


def exact_scores(query: str, texts: list[str], saturation: float) -> list[float]:
    """BM25 without length normalisation, word by word: the slow reference."""
    bags = [Counter(text.split()) for text in texts]
    scores = [0.0] * len(texts)
    for word in query.split():
        frequency = sum(word in bag for bag in bags)
        idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
        for i, bag in enumerate(bags):
            scores[i] += idf * (saturation + 1) * bag[word] / (saturation + bag[word])
    return scores


def test_scores_are_bm25_within_the_noise_of_the_sketch() -> None:
    texts = segments(60)
    query = " ".join(VOCABULARY[20:220:25])
    wide = LexicalKeyConfig(dim=1 << 17, cancelled=0, grams=0)
    exact = torch.tensor(exact_scores(query, texts, wide.saturation))
    lexical = reader(texts, wide)
    torch.testing.assert_close(
        lexical.document_keys([*map(Text, texts)]) @ lexical.query_key(Question(query)),
        exact,
        atol=0.5,
        rtol=0.02,
    )

    narrow = LexicalKeyConfig(dim=1024, cancelled=0, grams=0)
    lexical = reader(texts, narrow)
    keys, key = lexical.document_keys([*map(Text, texts)]), lexical.query_key(Question(query))
    noise = keys.norm(dim=1) * key.norm() / math.sqrt(narrow.dim)
    assert bool(((keys @ key - exact).abs() < 4 * noise).all())


def test_a_compound_is_found_by_its_part_and_a_word_by_another_of_its_forms() -> None:
    texts = ["Die Donaudampfschifffahrt endete bald.", "Der Bäcker backt Brot.", "وقرأت كتابهما أمس"]
    for grams, found in ((4, True), (0, False)):
        config = LexicalKeyConfig(dim=1 << 15, cancelled=0, grams=grams)
        lexical = reader(texts, config)
        keys = lexical.document_keys([*map(Text, texts)])
        for query, place in (("Dampfschifffahrt", 0), ("الكتاب", 2)):
            scores = keys @ lexical.query_key(Question(query))
            assert bool(scores[place] > 0.3 and scores.argmax() == place) == found
    assert len(LexicalKey().units("Dampfschifffahrt")[0]) == 1  # passages are chosen by words


def test_neither_numbers_nor_scripts_without_spaces_have_n_grams() -> None:
    plain = LexicalKeyConfig(grams=0)
    for text in ("BX4471 12345", "東京都は首都", "a b"):
        keys = [LexicalKey(config).document_keys([Text(text)]) for config in (plain, LexicalKeyConfig())]
        assert torch.equal(*keys)


def test_cancelling_common_words_brings_scores_nearer_to_bm25() -> None:
    texts = segments(60)
    exact = torch.tensor(exact_scores(" ".join(VOCABULARY[20:220:25]), texts, 0.5))
    correlation = {}
    for cancelled in (0, 4096):
        lexical = reader(texts, LexicalKeyConfig(dim=512, cancelled=cancelled, grams=0))
        scores = lexical.document_keys([*map(Text, texts)]) @ lexical.query_key(
            Question(" ".join(VOCABULARY[20:220:25]))
        )
        correlation[cancelled] = float(torch.corrcoef(torch.stack([scores, exact]))[0, 1])
    assert correlation[4096] > max(0.95, correlation[0])


def test_a_rare_shared_word_wins_over_common_words() -> None:
    texts = [f"{text} the of and" for text in segments(40)]
    texts[7] += " zanzibar"
    texts[8] += " the of and the of and"
    lexical = reader(texts)
    scores = lexical.document_keys([*map(Text, texts)]) @ lexical.query_key(Question("the of and Zanzibar?"))
    assert int(scores.argmax()) == 7


def test_a_fact_is_found_among_many_segments() -> None:
    texts = segments(300, words=300)
    texts[123] += ". The pass key is 48213. Remember it."
    lexical = reader(texts)
    scores = lexical.document_keys([*map(Text, texts)]) @ lexical.query_key(Question("What is the pass key?"))
    assert int(scores.argmax()) == 123


def test_document_keys_never_change_while_the_document_grows() -> None:
    texts = segments(30)
    lexical = LexicalKey()
    before = lexical.document_keys([*map(Text, texts)])
    first_query = lexical.query_key(Question(texts[3]))
    for text in texts:
        lexical.observe([Text(text)])
    assert torch.equal(lexical.document_keys([*map(Text, texts)]), before)
    assert torch.equal(torch.cat([lexical.document_keys([Text(text)]) for text in texts]), before)
    assert not torch.equal(lexical.query_key(Question(texts[3])), first_query)


def test_query_keys_do_not_depend_on_when_questions_were_asked() -> None:
    texts = segments(30)
    asked = LexicalKey()
    for text in texts:
        asked.observe([Text(text)])
        asked.query_key(Question("a question in between"))
    assert torch.equal(asked.query_key(Question(texts[5])), reader(texts).query_key(Question(texts[5])))


def test_state_round_trip_and_reading_in_pieces() -> None:
    texts = segments(30)
    whole = reader(texts)
    pieces = LexicalKey()
    pieces.load_state_dict(load(save(reader(texts[:11]).state_dict())))
    for text in texts[11:]:
        pieces.observe([Text(text)])
    state = pieces.state_dict()
    assert all(value.dtype == torch.int64 for value in state.values())
    assert bool((state["unit_ids"].diff() > 0).all())
    for name, value in whole.state_dict().items():
        assert torch.equal(state[name], value)
    assert torch.equal(pieces.query_key(Question(texts[5])), whole.query_key(Question(texts[5])))


def test_query_keys_do_not_depend_on_the_order_of_reading() -> None:
    texts = segments(30)
    config = LexicalKeyConfig(cancelled=50)
    backwards = reader(texts[::-1], config)
    assert torch.equal(
        backwards.query_key(Question(texts[5])), reader(texts, config).query_key(Question(texts[5]))
    )


def test_empty_state_round_trip() -> None:
    lexical = reader(segments(3))
    lexical.load_state_dict(LexicalKey().state_dict())
    assert int(lexical.state_dict()["segments"]) == 0
    assert lexical.state_dict()["unit_ids"].shape == (0,)


def test_same_keys_in_every_process() -> None:
    code = (
        "import hashlib; from hiermem.retrieval.keys import LexicalKey, Question, Text; k = LexicalKey();"
        "[k.observe([Text(t)]) for t in ('one two', 'two three', 'vier f\\u00fcnf')];"
        "x = k.document_keys([Text('one two')])[0]; q = k.query_key(Question('two vier'));"
        "print(hashlib.sha256(x.numpy().tobytes() + q.numpy().tobytes()).hexdigest())"
    )
    root = str(Path(hiermem.__file__).parent.parent)
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_hashes_are_the_ones_on_disk() -> None:
    """A stored key must be found again by later versions, so the hash may never change."""
    ids, counts = LexicalKey().units("Lantern lanterns LANTERN")
    assert ids.tolist() == [-282718515629175548]
    assert counts.tolist() == [3.0]


@pytest.mark.parametrize("text", ["", " \n", "?! ... --", "_"])
def test_text_without_words_gives_zeros(text: str) -> None:
    lexical = reader([*segments(3), text])
    assert torch.equal(lexical.document_keys([Text(text)]), torch.zeros(1, LexicalKeyConfig().dim))
    assert torch.equal(lexical.query_key(Question(text)), torch.zeros(LexicalKeyConfig().dim))
    assert lexical.document_keys([]).shape == (0, LexicalKeyConfig().dim)


def test_query_before_anything_was_read_is_finite() -> None:
    key = LexicalKey().query_key(Question("Who hid the lantern?"))
    assert key.dtype == torch.float32
    assert bool(key.isfinite().all())
    assert float(key.norm()) > 0
    one = reader(["The lantern was hidden."])
    assert bool(one.query_key(Question("Who hid the lantern?")).isfinite().all())


def test_scripts_without_spaces_are_cut_into_bigrams() -> None:
    lexical = LexicalKey()
    assert len(lexical.units("東京都")[0]) == 2
    assert len(lexical.units("東")[0]) == 1
    assert set(lexical.units("GPT東京")[0]) == set(lexical.units("gpt 東京")[0])
    assert len(lexical.units("ა" * 5 + "ბ" * 20)[0]) == 3
    texts = ["今日は天気がいいです。", "船長は橋の下に青い提灯を隠した。", "猫が庭で寝ている。"]
    lexical = reader(texts)
    scores = lexical.document_keys([*map(Text, texts)]) @ lexical.query_key(Question("青い提灯はどこですか"))
    assert int(scores.argmax()) == 1


def test_words_keep_their_marks_and_numbers_all_their_digits() -> None:
    lexical = LexicalKey()
    assert len(lexical.units("हिन्दी")[0]) == 1
    assert lexical.units("cafe\u0301")[0].tolist() == lexical.units("CAFÉ")[0].tolist()
    assert len(lexical.units("12345678 12345679")[0]) == 2
    assert len(lexical.units("snake_case")[0]) == 2


@pytest.mark.parametrize(
    "settings",
    [{"dim": 0}, {"prefix": 0}, {"cancelled": -1}, {"saturation": -0.1}, {"saturation": math.nan}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="LexicalKeyConfig"):
        LexicalKeyConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"segments": torch.tensor([1])},
        {"frequency": torch.tensor([1, 2, 3])},
        {"segments": torch.tensor([1, 2])},
    ],
)
def test_wrong_statistics_are_refused(change: dict[str, torch.Tensor]) -> None:
    lexical = reader(["one two", "two"])
    before = lexical.state_dict()
    with pytest.raises(InputError):
        lexical.load_state_dict({**before, **change})
    with pytest.raises(InputError):
        lexical.load_state_dict({})
    assert torch.equal(lexical.state_dict()["frequency"], before["frequency"])


SPELLINGS = [
    ("the pass\u00adword", "password"),
    ("the pass-\nword", "password"),
    ("the pass\u00ad \n word", "password"),
    ("pass\u200bword\ufeff", "password"),
    ("P A S S W O R D", "password"),
    ("well-\nknown", "well-known"),
    ("ΑΘΗΝΑ", "Αθήνα"),
    ("\u0645\u0650\u0635\u0652\u0631\u064e", "\u0645\u0635\u0631"),
    ("\u0645\u0640\u0640\u0635\u0631", "\u0645\u0635\u0631"),
    ("\u05e7\u05b9\u05d3\u05b6\u05e9\u05c1", "\u05e7\u05d3\u05e9"),
    ("ÉCOLE", "ecole"),
    ("٤٤١٧", "4417"),
    ("ﬁle", "file"),
]


@pytest.mark.parametrize(("written", "plain"), SPELLINGS)
def test_words_are_compared_as_if_written_plainly(written: str, plain: str) -> None:
    key = LexicalKey()
    assert set(key.units(plain)[0].tolist()) <= set(key.units(written)[0].tolist())


def test_the_first_version_folds_as_it_always_did() -> None:
    assert words("The pass\u00adword, CAFÉ_x", 1) == ["the", "pass", "word", "café", "x"]
    ids = LexicalKey(LexicalKeyConfig(version=1)).units("Lantern lanterns CAFÉ")[0].tolist()
    assert ids == [-282718515629175548, LexicalKey(LexicalKeyConfig(version=1)).units("café")[0].item()]
    with pytest.raises(InputError, match="version must be from 1 to 2"):
        LexicalKeyConfig(version=3)


def test_memories_without_a_version_go_on_with_the_keys_that_they_have() -> None:
    files, info = load_directory(Path(__file__).parent / "data" / "memory-without-key-version")
    config = SavedInfo.read(info).longterm
    assert config.lexical.version == 1
    del files["working"]
    memory = LongTermMemory.from_tensors(config, files)
    texts = [record.text for record in memory.records]
    assert torch.equal(memory.key.document_keys([*map(Text, texts)]), files["keys"]["keys"])
    again = reader(texts, config.lexical)
    assert torch.equal(again.query_key(Question("password")), memory.key.query_key(Question("password")))
    assert not torch.equal(
        LexicalKey(LexicalKeyConfig(dim=256)).document_keys([*map(Text, texts)]), files["keys"]["keys"]
    )
    assert any("Αθήνα" in hit.record.text for hit in memory.recall(Question("Where is Αθήνα?"), 3))


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from("aÉ -\u00ad\u200b\n\u0301\u064eم東٤_"), max_size=200))
def test_folding_takes_any_text(text: str) -> None:
    assert all(word and not word.isspace() for version in (1, 2) for word in words(text, version))


@pytest.mark.parametrize(
    "pair",
    [
        "sail sailed", "barrel barrels", "load loading", "story stories", "carried carry", "write writing",
        "child children", "häuser häusern", "maison maisons", "корабль корабля", "discover discovery",
    ],
)  # fmt: skip
def test_forms_of_a_word_are_alike(pair: str) -> None:
    one, other = pair.split()
    assert are_forms(one, other) and are_forms(other, one) and are_forms(one, one)


@pytest.mark.parametrize(
    "pair",
    [
        "sail said", "port portrait", "president present", "capital captain", "run runs", "contract contrast",
        "1847 18475", "general generous", "zanzibar bar", "car cartography",
    ],
)  # fmt: skip
def test_other_words_are_not(pair: str) -> None:
    one, other = pair.split()
    assert not are_forms(one, other) and not are_forms(other, one)
