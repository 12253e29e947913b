"""A task from outside has its command, its result file and its part of the report, as the others have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, result, run
from readers import text_of

from hiermem.cli.evaluate import CONFIGURATION
from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks import TASKS, Task, option, register
from hiermem.model import HierMemModel


@dataclass(frozen=True, kw_only=True)
class Growth(Task):
    """How many tokens stay live after texts of some lengths.

    Example:

        hiermem eval growth --text book.txt --lengths 20,40
    """

    name = "growth"
    title = "Growth"
    model_options = ("policy", "budget", "chunk")

    text: Path = option(help="Text file.")
    lengths: tuple[int, ...] = option((20, 40), help="Lengths in characters, comma-separated.")
    share: float = option(1.0, help="Share of each length.", least=0.0, most=1.0)
    chunk: int = option(8, help="Tokens read at once.", least=1)

    def load(self, config: Any) -> str:
        return self.text.read_text("utf-8")

    def texts(self, data: str) -> list[str]:
        return [data]

    def rows(self, model: HierMemModel, data: str, log: ResultLog) -> dict[str, Any]:
        rows = [log.row(str(length), self.live, model, data, length) for length in self.lengths]
        return {"metrics": {"live": max(row["live"] for row in rows)}, "rows": rows, "n": len(rows)}

    def live(self, model: HierMemModel, data: str, length: int) -> dict[str, Any]:
        memory = model.read(data[: int(self.share * length)], progress=False)
        return {"length": length, "live": memory.working.cache.tokens}

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        return table(["most live"], [[report["metrics"]["live"]] for report in reports])


@pytest.fixture
def growth(tmp_path: Path) -> Iterator[list[object]]:
    """The command of the task above, registered for one test."""
    (tmp_path / "book.txt").write_text(text_of(60), "utf-8")
    register(Growth)
    yield ["eval", "growth", "--text", tmp_path / "book.txt"]
    del TASKS["growth"]


def test_a_task_from_outside_has_all_that_the_others_have(
    growth: list[object], tiny_model: Path, tmp_path: Path
) -> None:
    command = [*growth, "--model", tiny_model, "--budget", 16, "--policy", "window", "--lengths", "30,200"]
    out = tmp_path / "out" / "growth.json"
    report = result(*command, "--out", out)
    assert report["task"] == "growth" and report["n"] == 2
    assert report["metrics"]["live"] == max(row["live"] for row in report["rows"]) <= 16 + 8
    config = report["config"]
    assert (config["chunk"], config["working"]["budget"], config["lengths"]) == (8, 16, [30, 200])
    assert (config["text"], config["share"]) == ("book.txt", 1.0)
    assert result(*command, "--out", out) == report  # not measured again
    assert_refused(run(*command, "--share", "0.5", "--out", out), "other settings")
    page = Path(result("report", out.parent, "--page", tmp_path / "page.md")["written"][0]).read_text("utf-8")
    assert "## Growth" in page and f"| most live |\n| --- |\n| {report['metrics']['live']} |" in page
    assert b"growth" in run("eval", "--help").stdout
    shown = run("eval", "growth", "--help").stdout.decode()
    assert "Example" in shown and "--lengths" in shown and "20,40" in shown and "--preset" not in shown


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["--magic", 1], "No such option"),
        (["--share", 2], "'--share'"),
        (["--share", "half"], "'--share'"),
        (["--lengths", "1,b"], "--lengths takes whole numbers"),
        (["--chunk", 0], "'--chunk'"),
        (["--preset", "full"], "No such option"),
        (["--policy", "random"], "Unknown policy 'random'"),
    ],
)
def test_wrong_options_of_a_task_are_refused(
    growth: list[object], tiny_model: Path, wrong: list[object], expected: str
) -> None:
    assert_refused(run(*growth, "--model", tiny_model, *wrong), expected)


def test_a_required_option_is_asked_for(growth: list[object]) -> None:
    assert_refused(run("eval", "growth"), "--text")


@dataclass(frozen=True, kw_only=True)
class Required(Growth):
    """A task without lengths of its own."""

    name = "required"
    lengths: tuple[int, ...] = option(help="Lengths in characters, comma-separated.")


def test_numbers_may_be_required(tmp_path: Path) -> None:
    register(Required)
    try:
        assert_refused(run("eval", "required", "--text", tmp_path), "--lengths")
    finally:
        del TASKS["required"]


def test_numbers_out_of_range_are_refused_in_python_too() -> None:
    with pytest.raises(InputError, match=r"--share must be at most 1\.0, not 2"):
        Growth(text=Path("book.txt"), share=2)
    with pytest.raises(InputError, match="--chunk must be at least 1, not 0"):
        Growth(text=Path("book.txt"), chunk=0)


@dataclass(frozen=True, kw_only=True)
class Nameless(Growth):
    name = "nameless"


@dataclass(frozen=True, kw_only=True)
class Plain(Growth):
    """A field that is no option."""

    name = "plain"
    extra: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Listed(Growth):
    """An option of a type that the command line does not have."""

    name = "listed"
    extra: dict[str, int] = option(None, help="A mapping.")


@dataclass(frozen=True, kw_only=True)
class Strange(Growth):
    """A model option that there is none of."""

    name = "strange"
    model_options = ("budget", "colour")


@dataclass(frozen=True, kw_only=True)
class Writing(Growth):
    """An option that every command has."""

    name = "writing"
    out: Path = option(help="A file.")


@dataclass(frozen=True, kw_only=True)
class Again(Growth):
    """A name that is taken."""

    name = "pg19"


@dataclass(frozen=True, kw_only=True)
class Worded(Growth):
    """A name that is no word of a command line."""

    name = "two words"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Nameless, "has no docstring"),
        (Plain, "'extra' of the task 'plain' is no option"),
        (Listed, "'extra' of the task 'listed' is of a type"),
        (Strange, "no option colour of the model"),
        (Writing, "The option out is one of every task"),
        (Again, "a task 'pg19' already, PG19"),
        (Worded, "small letters, digits and '-', not by 'two words'"),
    ],
)
def test_what_cannot_be_a_command_is_not_registered(task: type[Task], expected: str) -> None:
    before = dict(TASKS)
    with pytest.raises(InputError, match=expected):
        register(task)
    assert before == TASKS


def test_every_option_of_the_model_has_its_type() -> None:
    from hiermem.eval.tasks.base import MODEL_OPTIONS

    assert {*MODEL_OPTIONS, "model", "settings", "dtype", "quantize", "device"} == set(CONFIGURATION)
