"""State made of tensors: copied, detached, reordered, named for files and loaded in one way for all of it.

A tree is a tensor, None, or a dataclass, list, tuple or dict of trees; whatever else it holds goes along
unchanged.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from hiermem.memory.stored import Stored, in_range


@dataclass(frozen=True)
class TensorSpec:
    """Demands on a stored tensor: it stands in a tree where the tensor will.

    Attributes:
        dtype: its dtype, or those that it may have.
        shape: its sizes; None: any; a name: any, but the same wherever the name stands.
        within: the least and the most that its numbers may be, and what they are called; None: any.
    """

    dtype: torch.dtype | Collection[torch.dtype]
    shape: tuple[int | str | None, ...]
    within: tuple[int, int, str] | None = None


def mapped(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with every tensor changed; lists and dicts are new ones."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: mapped(change, branch) for name, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(change, branch) for branch in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(
            tree, **{entry.name: mapped(change, getattr(tree, entry.name)) for entry in fields(tree)}
        )
    return tree


def named(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and specs of a tree with their paths, such as ``3.state.received``.

    A field of a dataclass may have another name in files, in its metadata under `file`.
    """
    if isinstance(tree, Tensor | TensorSpec):
        yield path, tree
        return
    if isinstance(tree, dict):
        branches = list(tree.items())
    elif isinstance(tree, list | tuple):
        branches = list(enumerate(tree))
    elif is_dataclass(tree) and not isinstance(tree, type):
        branches = [
            (entry.metadata.get("file", entry.name), getattr(tree, entry.name)) for entry in fields(tree)
        ]
    else:
        return
    for name, branch in branches:
        yield from named(branch, f"{path}.{name}" if path else str(name))


def _filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree with its specs replaced by tensors, in the order of `named`."""
    if isinstance(tree, TensorSpec):
        return next(tensors)
    if isinstance(tree, dict):
        return {name: _filled(branch, tensors) for name, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_filled(branch, tensors) for branch in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(
            tree, **{entry.name: _filled(getattr(tree, entry.name), tensors) for entry in fields(tree)}
        )
    return tree


class TensorState:
    """State of a batch of documents; tensors are replaced, never written in place.

    A subclass lists its attributes that hold tensors, each with a path. In files a tensor is called by this
    path and, after a dot, by its own path within the attribute (`named`). With an empty path it is called by
    its own path alone; with None the attribute is in no file.

    Attributes:
        batched: trees of tensors whose first dimension is the batch.
        by_row: lists of a tree for each row.
    """

    batched: ClassVar[Mapping[str, str | None]] = {}
    by_row: ClassVar[Mapping[str, str | None]] = {}

    def copy(self) -> Self:
        """An independent one with the same content, between two chunks; it shares the tensors."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        for name in (*self.batched, *self.by_row):
            setattr(twin, name, mapped(lambda tensor: tensor, getattr(self, name)))
        twin.end_chunk()
        return twin

    def end_chunk(self) -> None:
        """Drop what belongs to the present chunk alone."""

    def change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put another tensor in the place of each."""
        for name in (*self.batched, *self.by_row):
            setattr(self, name, mapped(change, getattr(self, name)))

    def detach(self) -> None:
        """Cut the gradients: what was read so far is a constant from here."""
        self.change(Tensor.detach)

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes old row ``index[i]`` (int64)."""
        for name in self.batched:
            tree = mapped(lambda t: t.index_select(0, index.to(t.device)), getattr(self, name))
            setattr(self, name, tree)
        rows = index.tolist()
        for name in self.by_row:
            value = getattr(self, name)
            setattr(self, name, [value[row] for row in rows])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in files."""
        paths = {**self.batched, **self.by_row}
        trees = ((path, getattr(self, name)) for name, path in paths.items() if path is not None)
        return {self.file_name(name): tensor for path, tree in trees for name, tensor in named(tree, path)}

    def file_name(self, path: str) -> str:
        """Name in files of the tensor at a path."""
        return path

    def load(self, stored: Stored, specs: Mapping[str, Any]) -> None:
        """Take the tensors of one row that `tensors` gave.

        Args:
            specs: of attributes, a tree with a `TensorSpec` for each tensor.

        Raises:
            ValueError: something is missing or of another kind.
        """
        sizes: dict[str, int] = {}
        paths = {**self.batched, **self.by_row}
        for name, tree in specs.items():
            found = []
            for path, spec in named(tree, paths[name] or ""):
                shape = [sizes.get(size) if isinstance(size, str) else size for size in spec.shape]
                tensor = stored.take(self.file_name(path), spec.dtype, *shape)
                sizes |= {s: n for s, n in zip(spec.shape, tensor.shape, strict=True) if isinstance(s, str)}
                found.append(tensor if spec.within is None else in_range(tensor, *spec.within))
            setattr(self, name, _filled(tree, iter(found)))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())
