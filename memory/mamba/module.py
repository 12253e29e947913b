"""Mamba heads in place of attention heads that attend to near tokens alone (RecurFormer, arXiv 2410.12850).

No code of that paper is public, so this is our design from its idea: a replaced query head becomes a Mamba-2
(SSD) head that starts from what the attention head computed (c from its query, b from its key, x from its
value, all without positions), with a short convolution before, a learned decay, and a gate; beside it the
few tokens that such heads attend to most are still attended to (`local_attention.py`).

Dimension names: B batch, G' replaced KV groups of a layer, R query heads of a group, H = G' R, T columns,
D head width, C = 3 D channels of the convolution, K its taps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiermem.errors import InputError
from hiermem.memory.cache.layer import LayerGeometry
from hiermem.memory.chunk import in_order
from hiermem.memory.digest import digest
from hiermem.memory.mamba.local_attention import SinkWindowKV
from hiermem.memory.mamba.scan import ScanInputs, scan
from hiermem.memory.modules import AtLeastFloat32
from hiermem.settings import check_settings

Carried = tuple[Tensor, Tensor]
"""States of the convolution and of the scan; plain tensors go in and out of modules, as DeepSpeed wants to
find them."""

OPEN = 2.0
"""Where gates start, before the sigmoid."""

SMALL, SMALLER = -4.0, -6.0
"""Where the logarithm of a scan's share starts, alone and beside attention to what is near: weights of linear
attention do not sum to 1."""


@dataclass
class MambaConfig:
    """Settings of the Mamba heads.

    Attributes:
        groups: the KV groups that are replaced, as pairs of layer and group; empty: none; None: those of the
            saved model that is loaded, if it has any.
        taps: K, of the short convolution.
        span: tokens after which a head has forgotten all but 1/e, before training.
        window: w, last tokens that a head still attends to; 0: none, it has its state alone.
        sinks: s, first tokens of a document that it attends to beside those, where there are any.
    """

    groups: list[list[int]] | None = None
    taps: int = 4
    span: float = 16.0
    window: int = 64
    sinks: int = 4

    def __post_init__(self) -> None:
        check_settings(self)
        if self.groups is not None:
            if any(len(pair) != 2 for pair in self.groups):
                raise InputError("Groups to be replaced are pairs of layer and KV group.")
            self.groups = sorted([layer, group] for layer, group in self.groups)
            if len({(layer, group) for layer, group in self.groups}) < len(self.groups):
                raise InputError("A KV group is replaced twice: name every pair of layer and group once.")
        if self.taps < 2 or self.span <= 0:
            raise InputError("The convolution of Mamba heads needs at least 2 taps, and a span above 0.")
        if min(self.window, self.sinks) < 0:
            raise InputError(
                f"The window and sinks of Mamba heads must not be negative, not {self.window} and "
                f"{self.sinks}."
            )


@dataclass(frozen=True)
class MambaLayerState:
    """State that the Mamba heads of a layer carry from token to token.

    Attributes:
        conv_state: last inputs of the convolution, ``[B, H, K - 1, C]`` float32.
        ssm_state: of the scan (S), ``[B, H, D, D]`` float32.
        near: first and last tokens, and the prompt, that they attend to; None: none.
    """

    conv_state: Tensor = field(metadata={"file": "tail"})
    ssm_state: Tensor = field(metadata={"file": "state"})
    near: SinkWindowKV | None = None


@dataclass(frozen=True)
class ScanOrder:
    """Order in which heads read the columns of a chunk.

    Attributes:
        order: in which order each row's columns are read, ``[B, T]`` int64; None: as they stand.
        written: which of them, in that order, leave something in the state, ``[B, T]`` bool; None: all.
        end: after how many columns each row's convolution will go on, ``[B]`` int64; None: all.
    """

    order: Tensor | None = None
    written: Tensor | None = None
    end: Tensor | None = None


class MambaLayer(nn.Module):
    """The Mamba heads of one layer, float32 whatever the backbone's dtype.

    Of what the attention head computed for a token, q, k and v, each head makes, with SSD(u, a, b, c) the
    recurrence S_t = exp(a_t) S_{t-1} + b_t u_tᵀ, y_t = S_tᵀ c_t (`scan.py`),

        [c, b, x] = conv([W_c q / √D, W_b k, W_x v]),        [Δ, g] = W [q, k, v] + bias
        y = σ(g) (e^s SSD(softplus(Δ) x, -softplus(Δ) e^A, b, c) + d x)

    to which its local attention is added (`local_attention`), where `MambaConfig.window`.

    Args:
        heads: H, replaced query heads.
        width: D.
    """

    def __init__(self, heads: int, width: int, config: MambaConfig) -> None:
        super().__init__()
        self.width, self.taps = width, config.taps
        same = torch.eye(width).repeat(heads, 1, 1)
        self.query, self.key, self.value = (nn.Parameter(same.clone()) for _ in range(3))
        newest = torch.zeros(heads, config.taps, 3 * width)
        newest[:, -1] = 1
        self.convolution = nn.Parameter(newest)
        self.control = nn.Parameter(torch.zeros(heads, 3 * width, width + 1))
        bias = torch.full((heads, width + 1), OPEN)
        bias[:, 0] = math.log(math.expm1(1.0))  # a step of 1
        self.bias = nn.Parameter(bias)
        self.decay = nn.Parameter(torch.full((heads,), -math.log(config.span)))
        self.scale = nn.Parameter(torch.full((heads,), SMALLER if config.window else SMALL))
        self.skip = nn.Parameter(torch.zeros(heads, width))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, scan_order: ScanOrder, before: Carried | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs ``[B, H, T, D]`` and what is carried on, states of the convolution and of the scan.

        Args:
            query: ``[B, H, T, D]``, without positions; key, value: ``[B, G', T, D]``.
            before: what was carried here, in this order; None: nothing.
        """
        repeats = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
        inputs = torch.cat((query, key, value), dim=-1).to(self.bias.dtype)
        if scan_order.order is not None:
            inputs = in_order(inputs, scan_order.order)
        conv_state, ssm_state = self._nothing(inputs) if before is None else before
        q, k, v = inputs.chunk(3, dim=-1)
        mapped = torch.cat((q @ self.query / self.width**0.5, k @ self.key, v @ self.value), dim=-1)
        mixed, conv_state = self._convolved(
            mapped, conv_state, scan_order.end
        )  # conv([W_c q / √D, W_b k, W_x v])
        c, b, x = mixed.chunk(3, dim=-1)
        control = inputs @ self.control + self.bias.unsqueeze(1)  # [Δ, g]
        steps = F.softplus(control[..., 0])
        if scan_order.written is not None:  # a step of 0 neither reads nor decays
            steps = steps * scan_order.written.unsqueeze(1)
        scanned, ssm_state = scan(ScanInputs(x, steps, self.decay.exp(), b, c), ssm_state)
        output = scanned * self.scale.exp().view(-1, 1, 1) + x * self.skip.unsqueeze(1)  # e^s SSD(…) + d x
        output = output * control[..., 1:].sigmoid()  # σ(g)
        if scan_order.order is not None:
            output = in_order(output, scan_order.order.argsort(dim=1))
        return output, conv_state, ssm_state

    def _nothing(self, inputs: Tensor) -> Carried:
        B, H, _, channels = inputs.shape
        conv_state = inputs.new_zeros(B, H, self.taps - 1, channels)
        return conv_state, inputs.new_zeros(B, H, self.width, self.width)

    def _convolved(self, inputs: Tensor, conv_state: Tensor, end: Tensor | None) -> tuple[Tensor, Tensor]:
        """The causal convolution of ``inputs [B, H, T, C]`` after ``conv_state``, and the next one."""
        T, past = inputs.shape[2], self.taps - 1
        padded = torch.cat((conv_state, inputs), dim=2)
        if T == 1 and end is None:
            return (padded * self.convolution).sum(2, keepdim=True), padded[:, :, 1:].clone()
        taps = self.convolution.unsqueeze(2)  # [H, K, 1, C]
        mixed = padded[:, :, :T] * taps[:, 0]
        for tap in range(1, self.taps):  # K products are faster than a grouped convolution of so few taps
            mixed = torch.addcmul(mixed, padded[:, :, tap : tap + T], taps[:, tap])
        if end is None:
            return mixed, padded[:, :, T:].clone()  # a view would keep the whole chunk
        last = end.unsqueeze(1) + torch.arange(past, device=end.device)
        return mixed, in_order(padded, last)


class MambaHeads(AtLeastFloat32):
    """The Mamba heads of a backbone, layer by layer.

    Args:
        geometries: of the backbone's attention layers.

    Raises:
        InputError: a group that the backbone does not have is to be replaced, or all are.

    Attributes:
        config: as given.
        geometries: as given.
        groups: the KV groups that are replaced, as pairs of layer and group.
    """

    def __init__(self, config: MambaConfig, geometries: Sequence[LayerGeometry]) -> None:
        super().__init__()
        self.config, self.geometries = config, list(geometries)
        self.groups = [(layer, group) for layer, group in config.groups or ()]
        unknown = [
            (layer, group)
            for layer, group in self.groups
            if not (0 <= layer < len(geometries) and 0 <= group < geometries[layer].heads)
        ]
        if unknown:
            raise InputError(
                f"The backbone has no KV group {unknown[0][1]} in layer {unknown[0][0]}: choose the groups "
                f"that Mamba heads replace with `hiermem heads`."
            )
        if len(self.groups) == sum(shape.heads for shape in geometries):
            raise InputError("Mamba heads cannot replace all KV groups: leave at least one.")
        by_layer: dict[int, list[int]] = {}
        for layer, group in self.groups:
            by_layer.setdefault(layer, []).append(group)
        self._of_layer = by_layer
        self.layers = nn.ModuleDict(
            {
                str(layer): MambaLayer(
                    len(replaced) * geometries[layer].repeats, geometries[layer].width, config
                )
                for layer, replaced in by_layer.items()
            }
        )

    def of_layer(self, layer: int) -> list[int]:
        """KV groups of a layer that are replaced."""
        return self._of_layer.get(layer, [])

    def only(self, groups: Sequence[tuple[int, int]]) -> "MambaHeads":
        """The heads of some of the groups, with the parameters that they have here."""
        fewer = MambaHeads(replace(self.config, groups=[list(group) for group in groups]), self.geometries)
        for layer, kept in fewer._of_layer.items():
            repeats, all_groups = self.geometries[layer].repeats, self.of_layer(layer)
            rows = [all_groups.index(group) * repeats + head for group in kept for head in range(repeats)]
            parameters = self.layers[str(layer)].state_dict()
            fewer.layers[str(layer)].load_state_dict(
                {name: every[rows] for name, every in parameters.items()}
            )
        return fewer.to(next(self.parameters()).device)

    @property
    def digest(self) -> str:
        """A short hash of what is replaced and of the parameters."""
        config = self.config
        replaced = (self.groups, config.window, config.sinks) if config.window else self.groups
        return digest(repr(replaced), self.state_dict())

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scan_order: ScanOrder,
        before: Carried | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `MambaLayer.forward`, of a layer by its index."""
        output: tuple[Tensor, Tensor, Tensor] = self.layers[str(layer)](query, key, value, scan_order, before)
        return output
