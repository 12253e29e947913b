"""No figure is another than before: logits, gradients, memories, answers, evaluations (see `golden.py`)."""

import pytest
from golden import FIGURES, GROUPS, differences, read
from golden_figures import Unavailable

MARKED = [pytest.param(name, marks=[pytest.mark.real] if name == "real" else []) for name in GROUPS]


@pytest.mark.parametrize("name", MARKED)
def test_figures_are_as_they_were(name: str) -> None:
    try:
        found = GROUPS[name]()
    except Unavailable as error:
        pytest.skip(str(error))
    assert differences(read(FIGURES, name), found, exact=False) == []
