"""Greedy answers stop where they say the same again and again, and nowhere else."""

import pytest
import torch
from readers import reader, says, text_of

from hiermem.decoding import end_tokens, repeated


@pytest.mark.parametrize(
    ("tokens", "size"),
    [
        ([], 0),
        ([7] * 15, 0),
        ([7] * 16, 1),
        ([1, 2] * 7, 0),
        ([1, 2] * 8, 2),
        ([9, 9, 8, *[1, 2, 3, 4] * 4], 4),
        ([*[1, 2, 3, 4] * 4, 5], 0),
        ([*range(10)] * 3, 10),
        ([*range(10)] * 2, 0),
        ([*range(64)] * 3, 64),
        ([*range(65)] * 3, 0),
        ([*range(200)], 0),
        ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0),  # a trillion, digit by digit
    ],
)
def test_a_phrase_is_repeated_from_the_third_time_and_sixteen_tokens_on(tokens: list[int], size: int) -> None:
    assert repeated(tokens) == size


def test_an_answer_that_loops_is_cut_to_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader()
    memory = model.read(text_of(40))
    phrase = model.tokenizer(" is the one who", add_special_tokens=False).input_ids
    before = model.tokenizer("The captain", add_special_tokens=False).input_ids
    says(model, monkeypatch, memory.tokens + 1, before + phrase * 20)
    text, ended = model.continue_from(memory.working.copy(), torch.tensor([[5]]), 200)
    assert (text, ended) == ("The captain is the one who", False)


def test_end_tokens_are_all_that_are_named() -> None:
    class Named:
        def __init__(self, ends: object) -> None:
            self.eos_token_id = ends

    assert end_tokens(Named(2), Named([3, 4]), Named(None), None) == {2, 3, 4}
