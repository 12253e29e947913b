"""Text in pieces gives the tokens and the character spans of the whole text."""

import copy
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers import backbone, text_of, tokenizer
from readers import settings as small
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hiermem import text as text_module
from hiermem.errors import BackboneUnsupportedError, InputError
from hiermem.model import HierMemModel
from hiermem.text import (
    TokenBlock,
    beginning,
    encode,
    encode_with_spans,
    separated,
    stream_tokens,
)

PIECES = st.lists(st.text(st.sampled_from(" \n\n.aehno東🚢é\u0301'"), max_size=60), max_size=12)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows so small that a test crosses many; words stay shorter than the margin."""
    monkeypatch.setattr(text_module, "WINDOW", 150)
    monkeypatch.setattr(text_module, "MARGIN", 60)


def joined(blocks: Iterable[TokenBlock]) -> tuple[list[int], list[int], str]:
    ids: list[int] = []
    starts: list[int] = []
    text = ""
    for block in blocks:
        assert len(block.ids) == len(block.starts)
        ids, starts, text = ids + block.ids, starts + block.starts, text + block.text
    return ids, starts, text


def test_windows_give_the_tokens_of_the_whole_text() -> None:
    text = text_of(400)
    encoded = tokenizer()(text, return_offsets_mapping=True)
    ids, starts, covered = joined(stream_tokens(tokenizer(), [text], 0))
    assert covered == text and len(text) > 10 * text_module.WINDOW
    assert ids == encoded.input_ids
    ends = [0, *(end for _, end in encoded.offset_mapping)]
    within = [start < end for (start, _), end in zip(encoded.offset_mapping, ends, strict=False)]
    assert any(within)
    for index, (start, _) in enumerate(encoded.offset_mapping):
        assert starts[index] == (starts[index - 1] if within[index] else start)


def test_reading_on_between_two_characters_gives_the_tokens_of_the_whole_text() -> None:
    """Tokens may hold the last byte of one character and the first of the next."""
    text = text_of(120)
    ids, starts, _ = joined(stream_tokens(tokenizer(), [text], 0))
    assert "aÃ" in tokenizer().convert_ids_to_tokens(ids)
    for index in range(1, len(ids)):
        if starts[index] > starts[index - 1]:
            read, rest = text[: starts[index]], text[starts[index] :]
            more = stream_tokens(tokenizer(), [rest], len(read), read[-text_module.MARGIN :])
            assert joined(more)[0] == ids[index:]


@settings(deadline=None, max_examples=60)
@given(PIECES, st.integers(0, 1000))
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], offset: int) -> None:
    text = "".join(pieces)
    whole = joined(stream_tokens(tokenizer(), [text], offset))
    assert joined(stream_tokens(tokenizer(), iter(pieces), offset)) == whole
    assert joined(stream_tokens(tokenizer(), text, offset)) == whole  # character by character
    ids, starts, covered = whole
    assert covered == text
    assert starts == sorted(starts)
    assert tokenizer().decode(ids, clean_up_tokenization_spaces=False) == text
    if text:
        assert starts[0] == offset and starts[-1] < offset + len(text)


def test_text_without_any_break_is_covered() -> None:
    text = "x" * 2000 + "東" * 700
    ids, starts, covered = joined(stream_tokens(tokenizer(), [text], 0))
    assert covered == text and starts == sorted(starts)
    assert tokenizer().decode(ids) == text


def test_memory_is_bounded_by_the_window() -> None:
    sizes = [len(block.text) for block in stream_tokens(tokenizer(), [text_of(500)], 0)]
    assert max(sizes) <= text_module.WINDOW + text_module.MARGIN


def test_what_a_tokenizer_puts_first_stands_first_alone() -> None:
    """Llama's tokenizer marks the first word of what it is given; later windows are not first."""
    core = Tokenizer(models.BPE({"\u2581": 0, "x": 1, "y": 2}, []))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    marking = PreTrainedTokenizerFast(tokenizer_object=core)
    text = "xxxyx" * 300
    ids, starts, covered = joined(stream_tokens(marking, [text], 0))
    assert covered == text and starts == sorted(starts)
    assert ids == marking(text).input_ids


def dropping_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that drops white space, as many do."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "ship": 1, "cat": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_characters_that_a_tokenizer_drops_belong_to_a_token() -> None:
    text = "  " + " ".join(random.Random(0).choices(["ship", "cat", "moon"], k=200)) + "   "
    ids, starts, covered = joined(stream_tokens(dropping_tokenizer(), [text], 7))
    assert covered == text and starts[0] == 7
    assert ids == dropping_tokenizer()(text).input_ids


def test_a_text_of_which_no_token_is_made_is_empty() -> None:
    model = HierMemModel(small(), backbone(), dropping_tokenizer())
    with pytest.raises(InputError, match="document is empty"):
        model.read(" \n ")
    memory = model.read("ship cat")
    assert model.read("ship", model.read("cat", memory)).tokens == 4
    with pytest.raises(InputError, match="document is empty"):
        model.read("\n", memory)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(BackboneUnsupportedError, match="use a fast tokenizer"):
        list(stream_tokens(Slow(), ["text"]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["<s>", "</s>", "<pad>", " ", "ship ", "\n", "東"]), max_size=30))
def test_names_of_control_tokens_are_text(parts: list[str]) -> None:
    text = "".join(parts)
    ids, starts, covered = joined(stream_tokens(tokenizer(), [text]))
    assert covered == text and tokenizer().decode(ids, clean_up_tokenization_spaces=False) == text
    assert not set(tokenizer().all_special_ids) & set(ids)
    assert ids == encode(tokenizer(), text) and starts == sorted(starts)
    only = encode(tokenizer(), f"<s>{text}</s>", template=[range(3), range(3 + len(text), 7 + len(text))])
    assert [token for token in only if token in tokenizer().all_special_ids] == [1, 2]
    assert tokenizer().decode(only, clean_up_tokenization_spaces=False) == f"<s>{text}</s>"


def with_tools() -> PreTrainedTokenizerFast:
    """A tokenizer whose added tokens are not all special, as Qwen's, and some are white space, as Phi's."""
    chosen = copy.deepcopy(tokenizer())
    names = ["<tool_call>", "</think>", "    ", "<tool_call>s"]
    chosen.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    return chosen


@pytest.mark.parametrize("name", ["<tool_call>", "</think>", "<tool_call>s", "</s>"])
def test_names_of_added_tokens_are_text_whether_special_or_not(name: str) -> None:
    chosen, text = with_tools(), f"ship{name} {name}sailed"
    control = {token for token, added in chosen.added_tokens_decoder.items() if added.content.strip()}
    ids, spans = encode_with_spans(chosen, text)
    assert not control & set(ids)
    assert chosen.decode(ids) == text and spans[0][0] == 0 and spans[-1][1] == len(text)
    assert encode(chosen, text) == ids
    placed = encode(chosen, name + text + name, template=[range(len(name)), range(len(name + text), 99)])
    number = chosen.convert_tokens_to_ids(name)
    assert [token for token in placed if token in control] == [number, number]
    assert placed == [number, *ids, number]


def test_a_control_token_stands_within_the_template() -> None:
    """A name that a template begins and a content ends is no control token."""
    for parts in (["</", "s>"], ["<tool_call>", "s"]):
        text, first = "".join(parts), range(len(parts[0]))
        assert text not in with_tools().convert_ids_to_tokens(encode(with_tools(), text, template=[first]))


def test_added_white_space_and_tokens_added_later() -> None:
    chosen = with_tools()
    space = chosen.convert_tokens_to_ids("    ")
    assert encode(chosen, "a    b")[1] == space
    assert encode(chosen, "a    b</s>", template=[range(6, 10)])[1] == space
    text = "<later>ship"
    assert encode(chosen, text, template=[range(7)]) == encode(chosen, text)
    chosen.add_tokens([AddedToken("<later>", special=True)])
    assert encode(chosen, text, template=[range(7)])[0] == len(chosen) - 1
    assert len(chosen) - 1 not in encode(chosen, text)


def metaspaced() -> PreTrainedTokenizerFast:
    """A tokenizer that marks the beginning of what stands between control tokens, as Llama's did."""
    pieces = ["▁", *(chr(code) for code in range(33, 127))]
    core = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary holds its control tokens as pieces that a text may be made of."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    core = Tokenizer(models.Unigram([*pieces, *((piece, -3.0) for piece in "▁abcd<>/s")], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("make", [metaspaced, unigram])
def test_a_name_within_a_text_adds_no_spaces(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Reading and asking give the same tokens for the same text."""
    chosen, text = make(), "ab</s>cd <s>"
    ids = encode(chosen, text)
    assert chosen.convert_ids_to_tokens(ids) == ["▁", *"ab</s>cd▁<s>"]
    whole = f"<s>{text}</s>"
    placed = encode(chosen, whole, template=[range(3), range(3 + len(text), len(whole))])
    control = set(chosen.all_special_ids)
    assert [token in control for token in placed] == [True, *[False] * (len(placed) - 2), True]
    assert chosen.decode(placed).replace(" ", "") == whole.replace(" ", "")
    plain = "<s>ab cd</s>dc"  # nothing but the template names control tokens: as the tokenizer itself
    assert encode(chosen, plain, template=[range(3), range(8, 12)]) == chosen(plain).input_ids


def test_an_unknown_character_is_one_token() -> None:
    assert encode(unigram(), "a☃b") == unigram()("a☃b").input_ids


def test_a_tokenizer_is_used_and_its_state_is_neither_minded_nor_changed() -> None:
    """transformers changes it at every call, and so other threads may at any time."""
    chosen = copy.deepcopy(tokenizer(bos=True))
    backend = chosen.backend_tokenizer

    def all_of_it() -> tuple[object, ...]:
        spans = encode_with_spans(chosen, "<s>ship</s> sailed")
        placed = encode(chosen, "<s>ship</s>", template=[range(3)])
        return spans, placed, beginning(chosen), joined(stream_tokens(chosen, ["<s>ship"]))

    expected = all_of_it()
    assert expected[2] == [1] and 1 not in expected[0][0] and expected[1].count(1) == 1
    for as_text in (False, True):
        backend.encode_special_tokens = as_text
        backend.enable_truncation(2)
        backend.enable_padding(length=40)
        assert all_of_it() == expected
        assert backend.encode_special_tokens == as_text
        assert backend.truncation["max_length"] == 2 and backend.padding["length"] == 40


@settings(deadline=None, max_examples=60)
@given(PIECES)
def test_a_text_without_names_has_the_tokens_that_the_tokenizer_gives_it(pieces: list[str]) -> None:
    text = "".join(pieces)
    for chosen in (tokenizer(), with_tools(), metaspaced()):
        own = chosen(text, add_special_tokens=False, return_offsets_mapping=True)
        assert encode_with_spans(chosen, text) == (own.input_ids, own.offset_mapping)
        asked = f"<s>user {text}</s>so"
        template = [range(8), range(8 + len(text), len(asked))]
        own = chosen(asked, add_special_tokens=False)
        assert encode(chosen, asked, template=template) == own.input_ids


@pytest.mark.parametrize(
    ("before", "missing"), [("", 0), ("221", 2), ("one.\n", 1), ("one.\n\n", 0), ("\n", 1)]
)
def test_another_text_begins_a_paragraph(before: str, missing: int) -> None:
    assert separated(before, "37 apples") == "\n" * missing + "37 apples"
