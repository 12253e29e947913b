"""Parameters of a model that are hiermem's own: which are in use, and taking over saved ones."""

from collections.abc import Mapping

from torch import Tensor

from hiermem.errors import InputError
from hiermem.eviction_weights import is_evolved
from hiermem.memory.policies import LinearPolicy, NammPolicy
from hiermem.model_folder import BACKBONE
from hiermem.pretrained import HierMemPreTrainedModel
from hiermem.seal import REMEDY


def memory_parameters(model: HierMemPreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters in ``state`` that are hiermem's own and in use, by name, contiguous and on the CPU."""
    others = (f"{BACKBONE}.", *_switched_off(model))
    return {name: t.detach().cpu().contiguous() for name, t in state.items() if not name.startswith(others)}


def load_memory_parameters(model: HierMemPreTrainedModel, parameters: Mapping[str, Tensor]) -> None:
    """Take over parameters from `memory_parameters`; see there."""
    off = _switched_off(model)
    parameters = {name: t for name, t in parameters.items() if not name.startswith(off)}
    expected = memory_parameters(model, model.state_dict())
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


def _switched_off(model: HierMemPreTrainedModel) -> tuple[str, ...]:
    """Beginnings of the names of parameters that the model's configuration does not use."""
    network: dict[str, Tensor] = {f"namm.{name}": weight for name, weight in model.namm.named_parameters()}
    used = {
        "summary.": model.summary is not None,
        "mamba.": bool(model.mamba.groups),
        "kv_prompt.": model.kv_prompt is not None,
        "state_encoder.": model.state_encoder is not None,
        "scorer.": model.config.working.policy == LinearPolicy.name or model.scorer.is_set,
        "namm.": model.config.working.policy == NammPolicy.name or is_evolved(network),
    }
    return tuple(name for name, is_used in used.items() if not is_used)
