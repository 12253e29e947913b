"""Keys and values that stand in front of recalled ones: of the beginning of a prompt, as read or as trained.

A document's keys and values were made in passing. A backbone answers worse from them than from the same text
behind the beginning of a prompt. So the keys and values of that beginning may be trained (prefix tuning, Li
and Liang, arXiv 2101.00190), and with them a factor and a shift of what is recalled, for each KV head. Both
together, taught by the answers that the same backbone gives to the text, are ours.

Dimension names: H KV heads of all layers or of a bank, P tokens of the prompt, N recalled tokens, D head
width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hiermem.errors import InputError
from hiermem.memory.cache.layer import LayerGeometry
from hiermem.memory.kv.quantise import Packed
from hiermem.memory.kv.store import Bank, Head, HeadTokens, SegmentTokens
from hiermem.memory.modules import AtLeastFloat32
from hiermem.settings import check_settings


@dataclass
class KVPromptConfig:
    """Settings of the trained prompt in front of recalled keys and values.

    Attributes:
        tokens: P, its length; 0: there is none; None: that which ships for the backbone, where no head is
            replaced. A model that is loaded says which it has.
    """

    tokens: int | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.tokens is not None and self.tokens < 0:
            raise InputError(f"A prompt of keys and values has 0 tokens or more, not {self.tokens}.")


@dataclass(frozen=True)
class KVChange:
    """How recalled keys, not rotated, and values of a bank's heads are changed before they are used.

    Attributes:
        key_scale: multiplies keys, ``[H, 1, 1]``.
        key_shift: is added to them then, ``[H, 1, D]``.
        value_scale: as for the keys.
        value_shift: as well.
    """

    key_scale: Tensor
    key_shift: Tensor
    value_scale: Tensor
    value_shift: Tensor

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """``[H, N, D]`` float32 each."""
        return keys * self.key_scale + self.key_shift, values * self.value_scale + self.value_shift


@dataclass(frozen=True)
class Lead:
    """Keys and values in front of recalled ones, in place of a document's sinks.

    Attributes:
        tokens: the first keys and values, by bank; places count from 0.
        changes: of those that are recalled, by bank; none: they stay as they are.
    """

    tokens: SegmentTokens
    changes: tuple[KVChange, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens stand in front."""
        return self.tokens[0].places.shape[1]


class KVPrompt(AtLeastFloat32):
    """The trained prompt of a backbone: zeros, until `start` begins it or parameters are loaded.

    Args:
        tokens: P.
        geometries: of the backbone's layers.

    Attributes:
        keys: ``[H, P, D]``, not rotated.
        values: ``[H, P, D]``.
        key_scale: what is added to 1 and multiplies recalled keys, ``[H]``.
        key_shift: what is added to them then, ``[H, D]``.
        value_scale: as for the keys.
        value_shift: as well.

    Raises:
        InputError: heads are of several widths, or positions are learned.
    """

    def __init__(self, tokens: int, geometries: Sequence[LayerGeometry]) -> None:
        super().__init__()
        widths = {shape.widths for shape in geometries}
        if len(widths) > 1 or all(shape.rotary is None for shape in geometries):
            raise InputError(
                "A prompt of keys and values needs rotary positions and heads of one width: leave it out, "
                "kv_prompt.tokens=0."
            )
        ((key_width, value_width),) = widths
        self._row: dict[Head, int] = {}
        for layer, shape in enumerate(geometries):
            for head in range(shape.heads):
                self._row[layer, head] = len(self._row)
        H = len(self._row)
        self.keys = nn.Parameter(torch.zeros(H, tokens, key_width))
        self.values = nn.Parameter(torch.zeros(H, tokens, value_width))
        self.key_scale, self.value_scale = (nn.Parameter(torch.zeros(H)) for _ in range(2))
        self.key_shift = nn.Parameter(torch.zeros(H, key_width))
        self.value_shift = nn.Parameter(torch.zeros(H, value_width))

    @property
    def num_tokens(self) -> int:
        """P, its length."""
        return self.keys.shape[1]

    @property
    def is_set(self) -> bool:
        """Whether it is more than zeros: begun, trained or loaded."""
        return bool(self.keys.any())

    @torch.no_grad()
    def start(self, lead: SegmentTokens, banks: Sequence[Bank]) -> None:
        """Begin as what the backbone has read, of whose heads none is replaced."""
        for tokens, bank in zip(lead, banks, strict=True):
            rows = self._rows(bank)
            self.keys[rows] = tokens.keys.unpacked().to(self.keys.device)
            self.values[rows] = tokens.values.unpacked().to(self.values.device)

    def lead(self, banks: Sequence[Bank]) -> Lead:
        """The prompt in front of keys and values of these banks' heads, with gradients."""
        places = torch.arange(self.num_tokens, dtype=torch.int16)
        tokens, changes = [], []
        for bank in banks:
            keys, values, *change = self(self._rows(bank))
            tokens.append(HeadTokens(places.expand(len(keys), -1), Packed(keys), Packed(values)))
            changes.append(KVChange(*change))
        return Lead(tuple(tokens), tuple(changes))

    def forward(self, rows: list[int]) -> tuple[Tensor, ...]:
        """Keys and values of some heads, and what makes their `KVChange`: plain tensors, which ZeRO needs."""
        scales = (1 + scale[rows, None, None] for scale in (self.key_scale, self.value_scale))
        shifts = (shift[rows, None] for shift in (self.key_shift, self.value_shift))
        changes = (tensor for pair in zip(scales, shifts, strict=True) for tensor in pair)
        return (self.keys[rows], self.values[rows], *changes)

    def _rows(self, bank: Bank) -> list[int]:
        return [self._row[head] for head in bank.heads]
