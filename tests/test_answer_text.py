"""The text of an answer while its tokens come: what was shown stays, and in the end all is shown."""

import itertools
import random
from collections.abc import Callable

import pytest
from readers import text_of, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hiermem.answer_text import AnswerText
from hiermem.decoding import settled, without_copies

END = 2


def sentencepiece() -> PreTrainedTokenizerFast:
    """Pieces with spaces before them; characters that are none are written byte by byte."""
    pieces = ["<pad>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghinorst.,'"]
    vocabulary = [(piece, -9.0 if piece.startswith("<") else -3.0) for piece in [*pieces, "▁the", "▁cat"]]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def wordpiece() -> PreTrainedTokenizerFast:
    """Words with spaces between them, those before punctuation taken out when all is decoded."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[PAD]", "[UNK]", "[SEP]"])
    core.train_from_iterator([text_of(300) + " I don't, we've, it's 'so'. They're!"], trainer)
    core.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
        clean_up_tokenization_spaces=True,
    )


def drawn(draw: random.Random, vocabulary: int) -> list[int]:
    """Tokens at random, many of which are words and come again, control tokens and bytes among them."""
    tokens: list[int] = []
    while len(tokens) < 60:
        most = draw.choice([20, vocabulary])
        fresh = [vocabulary - 1 - draw.randrange(most) for _ in range(draw.randint(1, 6))]
        again = tokens[-draw.randint(1, 9) :]
        tokens += draw.choice([fresh, again, again * draw.randint(1, 6)])
    return tokens


def played(
    known: PreTrainedTokenizerFast, tokens: list[int], limit: int = 50
) -> tuple[AnswerText, list[str]]:
    """An answer of these tokens, and what of it stayed at every step."""
    text, steps = AnswerText(known, {END}, limit), list[str]()
    for token in tokens:
        if text.going:
            text.add(token)
            steps.append(text.settled)
    return text, steps


def assert_what_was_shown_stays(text: AnswerText, steps: list[str]) -> None:
    assert not text.going and steps[-1] == text.text
    assert all(after.startswith(before) for before, after in itertools.pairwise(steps))


@pytest.mark.parametrize("make", [tokenizer, sentencepiece, wordpiece])
def test_what_is_shown_stays_whatever_tokens_follow(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    known, draw, early = make(), random.Random(3), 0
    for _ in range(100):
        text, steps = played(known, drawn(draw, len(known)))
        assert_what_was_shown_stays(text, steps)
        early += any(step for step in steps[:10])
    assert early > 60  # pieces do come before the end


@pytest.mark.parametrize("make", [tokenizer, sentencepiece])
def test_half_a_character_is_not_shown(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    known = make()
    tokens = known("the cat 東京 🚢 né the cat", add_special_tokens=False).input_ids
    text, steps = played(known, [*tokens, END])
    assert (text.text, text.complete) == ("the cat 東京 🚢 né the cat", True)
    assert_what_was_shown_stays(text, steps)
    assert not any("\ufffd" in step for step in steps) and "the cat" in steps[:-8]
    for length in range(len(tokens)):  # an answer may end within a character
        assert_what_was_shown_stays(*played(known, [*tokens[:length], END]))
        padded = [part for token in tokens[:length] for part in (token, 0)]  # 0 has no text
        assert_what_was_shown_stays(*played(known, [*padded, END]))


def test_the_models_own_next_question_and_its_thoughts_are_not_shown() -> None:
    known = tokenizer()
    for before in ("", "\n<think>Hm.\n\nQuestion: I?</think>\n"):
        written = f"{before} Nantucket\n\nQuest or\n\nQuestion: Who? </think>"
        tokens = known(written, add_special_tokens=False).input_ids
        text, steps = played(known, tokens, 200)
        assert (text.text, text.complete) == ("Nantucket\n\nQuest or", True)
        assert len(steps) < len(tokens)  # it ends there
        assert_what_was_shown_stays(text, steps)
        assert "Nantucket" in steps and not any("think" in step for step in steps)
    text, steps = played(known, known("A <think", add_special_tokens=False).input_ids, 3)
    assert_what_was_shown_stays(text, steps)


def test_a_phrase_is_shown_once_where_it_loops() -> None:
    known = tokenizer()
    parts = ("The captain", " is he who")
    start, phrase = (known(part, add_special_tokens=False).input_ids for part in parts)
    text, steps = played(known, start + phrase * 20, 200)
    assert (text.text, text.complete) == ("The captain is he who", False)
    assert_what_was_shown_stays(text, steps)
    text, steps = played(known, [*start, *phrase * 2, *start, END])
    assert text.text == "The captain is he who is he whoThe captain"
    assert_what_was_shown_stays(text, steps)


def test_settled_tokens_are_those_that_no_loop_takes_back() -> None:
    draw = random.Random(5)
    for _ in range(100):
        tokens: list[int] = []
        shown = 0
        for token in (draw.randrange(3) for _ in range(99)):
            tokens.append(token)
            if (kept := without_copies(tokens)) is not None:
                assert shown <= len(kept)
                break
            assert settled(tokens) >= shown
            shown = settled(tokens)
