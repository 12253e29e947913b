"""The scripts in examples/, each as a user runs it, over a tiny model."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALLEST = {
    "read_and_ask.py": ["--question", "What is an assert statement?"],
    "resume_memory.py": ["--folder", "example.hmem", "--characters", "4000"],
    "custom_policy.py": ["--budget", "64", "--tokens", "700"],
    "custom_key.py": ["--characters", "3000"],
    "custom_task.py": ["--limit", "2", "--characters", "300", "--seed", "1"],
    "train_memory.py": ["--steps", "1", "--tokens", "1024", "--output", "run"],
}
"""Arguments of each beside `--model`."""

PRINTED = {
    "read_and_ask.py": ("tokens in", "characters "),
    "resume_memory.py": ("search keys as if read at once: True",),
    "custom_policy.py": ("window: perplexity", "attention: perplexity", "thinning: perplexity"),
    "custom_key.py": ("lexical: ", "lexical and trigrams: "),
    "custom_task.py": ("nll: ", "nll_shuffled: ", "n = 2"),
    "train_memory.py": ("held-out loss", "after 1 steps"),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALLEST) == set(PRINTED)


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("name", SMALLEST)
def test_an_example_runs(
    name: str,
    wide_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--model", str(wide_model), *SMALLEST[name]])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in PRINTED[name]), printed
