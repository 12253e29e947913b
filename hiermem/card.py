"""The card of a saved model: what it is and what it belongs to, as the hub reads it."""

import re
from pathlib import Path

from hiermem.bundled import BUNDLED_MODELS, MODEL_ID, MODEL_LICENCE

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_LICENSES = {MODEL_ID: MODEL_LICENCE.lower()}


def base_model(backbone: str) -> str | None:
    """The hub id of a backbone; None where it has none, as a local folder."""
    if backbone in BUNDLED_MODELS:
        return MODEL_ID
    return backbone if _HUB_ID.fullmatch(backbone) and not Path(backbone).exists() else None


def card(backbone: str, whole: bool) -> str:
    """The text of `README.md`.

    Args:
        backbone: hub id, folder or bundled name; empty where it has no name.
        whole: whether the backbone's weights are saved, too.
    """
    base = base_model(backbone)
    license = _LICENSES.get(base or "")
    head = ["library_name: hiermem", "pipeline_tag: text-generation"]
    head += [f"license: {license}"] if license else ["license: other", "license_name: as-the-backbone"]
    head += [f"base_model: {base}"] if base else []
    head += ["tags:", "- hiermem", "- long-context", "- memory"]
    contents = (
        "and the weights of its backbone" if whole else f"for {base or 'its backbone'}, which is not included"
    )
    return (
        "---\n" + "\n".join(head) + "\n---\n\n"
        f"Memory parameters of hiermem {contents}.\n\n"
        "    from hiermem import HierMemModel\n"
        '    model = HierMemModel.from_pretrained("this folder")\n'
    )
