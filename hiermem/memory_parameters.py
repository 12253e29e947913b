"""Parameters of a model that are hiermem's own: which are in use, and taking over saved ones."""

from collections.abc import Collection, Mapping

from torch import Tensor

from hiermem.errors import InputError
from hiermem.eviction_weights import is_evolved
from hiermem.memory.policies import LinearPolicy, NammPolicy
from hiermem.model_folder import BACKBONE
from hiermem.pretrained import HierMemPreTrainedModel
from hiermem.seal import REMEDY


def memory_parameters(model: HierMemPreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters in ``state`` that are hiermem's own and in use, by name, contiguous and on the CPU."""
    return _in_use(state, _switched_off(model))


def _in_use(state: Mapping[str, Tensor], off: tuple[str, ...]) -> dict[str, Tensor]:
    others = (f"{BACKBONE}.", *off)
    return {name: t.detach().cpu().contiguous() for name, t in state.items() if not name.startswith(others)}


def load_memory_parameters(model: HierMemPreTrainedModel, parameters: Mapping[str, Tensor]) -> None:
    """Take over parameters from `memory_parameters`; see there."""
    off = _switched_off(model, parameters)
    parameters = {name: t for name, t in parameters.items() if not name.startswith(off)}
    expected = _in_use(model.state_dict(), off)
    wrong = set(expected) ^ set(parameters)
    wrong |= {
        name for name in expected.keys() & parameters.keys() if expected[name].shape != parameters[name].shape
    }
    later = ("summary.search_", "namm.", "scorer.")
    wrong -= {name for name in wrong if name.startswith(later) and name not in parameters}
    if wrong:
        raise InputError(
            f"The saved memory parameters do not fit this configuration ({', '.join(sorted(wrong))} "
            f"differ): leave the configuration out, or take the one that was saved."
        )
    for name, tensor in parameters.items():
        if expected[name].is_floating_point() != tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"The saved memory parameter {name} holds no finite numbers: {REMEDY}.")
    model.load_state_dict(dict(parameters), strict=False)


def _switched_off(model: HierMemPreTrainedModel, given: Collection[str] = ()) -> tuple[str, ...]:
    """Beginnings of the names of parameters that the model's configuration does not use.

    Args:
        given: names of parameters that are to be taken over; linear scores stay with a model, whatever its
            policy.
    """
    network: dict[str, Tensor] = {f"namm.{name}": weight for name, weight in model.namm.named_parameters()}
    is_linear = model.config.working.policy == LinearPolicy.name
    is_linear = is_linear or any(name.startswith("scorer.") for name in given)
    used = {
        "summary.": model.summary is not None,
        "mamba.": bool(model.mamba.groups),
        "kv_prompt.": model.kv_prompt is not None,
        "state_encoder.": model.state_encoder is not None,
        "scorer.": is_linear or model.scorer.is_set,
        "namm.": model.config.working.policy == NammPolicy.name or is_evolved(network),
    }
    return tuple(name for name, is_used in used.items() if not is_used)
