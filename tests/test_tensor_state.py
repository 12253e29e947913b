"""State made of tensors: what is written once for the cache, the recurrence and the Mamba heads."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from hiermem.memory.stored import Stored
from hiermem.memory.tensor_state import TensorSpec, TensorState, mapped, named


@dataclass(frozen=True)
class Pair:
    """Two tensors, of which one has another name in files."""

    left: Tensor | TensorSpec
    right: Tensor | TensorSpec | None = field(default=None, metadata={"file": "second"})
    flag: bool = False


class Example(TensorState):
    """Tensors by row, of a batch, and in nested trees."""

    batched: ClassVar = {"pairs": "", "whole": "named.whole"}
    by_row: ClassVar = {"rows": "rows", "ids": None}

    def __init__(self) -> None:
        self.pairs = [
            Pair(torch.arange(6.0).view(2, 3), flag=True),
            Pair(torch.ones(2, 1), torch.zeros(2, 4)),
        ]
        self.whole: Tensor | None = torch.tensor([[7], [8]])
        self.rows = [torch.tensor([1.0]), None]
        self.ids = [torch.tensor([5]), torch.tensor([6])]
        self.present = 0

    def end_chunk(self) -> None:
        self.present = 0


def test_tensors_have_the_names_of_files() -> None:
    state = Example()
    found = state.tensors()
    assert list(found) == ["0.left", "1.left", "1.second", "named.whole", "rows.0"]
    assert state.nbytes == sum(tensor.nbytes for tensor in found.values())
    state.whole = None
    assert "named.whole" not in state.tensors()


def test_rows_are_chosen_in_every_tensor_and_list() -> None:
    state = Example()
    state.select_rows(torch.tensor([1, 1, 0]))
    assert state.whole is not None and state.whole.flatten().tolist() == [8, 8, 7]
    assert state.pairs[0].left[:, 0].tolist() == [3.0, 3.0, 0.0] and state.pairs[0].flag
    assert [row is None for row in state.rows] == [True, True, False]
    assert [int(row) for row in state.ids] == [6, 6, 5]


def test_a_copy_shares_tensors_and_nothing_else() -> None:
    state = Example()
    state.present = 1
    twin = state.copy()
    assert twin.present == 0 and state.present == 1
    assert all(map(torch.equal, twin.tensors().values(), state.tensors().values()))
    assert twin.pairs[0].left is state.pairs[0].left
    twin.pairs.pop()
    twin.rows[1] = torch.tensor([2.0])
    assert len(state.pairs) == 2 and state.rows[1] is None


def test_detached_tensors_ask_for_no_gradient() -> None:
    state = Example()
    state.pairs[0] = Pair(torch.ones(2, 3, requires_grad=True) * 2)
    state.rows[1] = torch.ones(1, requires_grad=True) * 2
    state.detach()
    assert not any(tensor.requires_grad for tensor in state.tensors().values())


def specs(size: str | int = "T") -> dict[str, object]:
    return {
        "pairs": [
            Pair(TensorSpec(torch.float32, (1, size)), flag=True),
            Pair(
                TensorSpec({torch.float32, torch.bfloat16}, (1, None)), TensorSpec(torch.float32, (1, size))
            ),
        ],
        "whole": TensorSpec(torch.int64, (1, 1), (0, 9, "a number")),
        "rows": [TensorSpec(torch.float32, (1,))],
    }


def saved(left: int = 3, second: int = 3, whole: int = 7) -> dict[str, Tensor]:
    return {
        "0.left": torch.zeros(1, left),
        "1.left": torch.ones(1, 5),
        "1.second": torch.ones(1, second),
        "named.whole": torch.tensor([[whole]]),
        "rows.0": torch.ones(1),
    }


def test_what_is_saved_is_loaded_into_its_place() -> None:
    state, stored = Example(), Stored(saved())
    state.load(stored, specs())
    stored.done()
    assert {name: tensor.shape for name, tensor in state.tensors().items()} == {
        name: tensor.shape for name, tensor in saved().items()
    }
    assert state.pairs[0].flag and state.pairs[0].right is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda own: own.pop("1.second"), "1.second is missing"),
        (lambda own: own.update({"1.second": torch.ones(1, 4)}), "1.second has another shape"),
        (lambda own: own.update({"0.left": torch.ones(1, 3).long()}), "0.left is of another type"),
        (lambda own: own.update({"named.whole": torch.tensor([[10]])}), "a number leaves its range"),
        (lambda own: own.update({"0.left": torch.full((1, 3), torch.nan)}), "0.left holds NaN"),
        (lambda own: own.update({"more": torch.ones(1)}), "no place for 'more'"),
    ],
)
def test_what_does_not_fit_is_named(change: object, expected: str) -> None:
    tensors = saved()
    change(tensors)  # type: ignore[operator]

    def loaded() -> None:
        stored = Stored(tensors)
        Example().load(stored, specs())
        stored.done()

    with pytest.raises(ValueError, match=expected):
        loaded()


def test_trees_keep_what_is_no_tensor() -> None:
    tree = {"a": (torch.ones(1), 3), "b": [None, Pair(torch.ones(2), flag=True)]}
    twice = mapped(lambda tensor: tensor * 2, tree)
    assert [path for path, _ in named(twice)] == ["a.0", "b.1.left"]
    assert twice["a"][1] == 3 and twice["b"][0] is None and twice["b"][1].flag
    assert twice["b"][1].left.tolist() == [2.0, 2.0]
