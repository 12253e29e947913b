"""`--set PART.NAME=VALUE`: any setting of the configuration from the command line, and what is refused."""

from dataclasses import is_dataclass
from pathlib import Path

import pytest
from commands import assert_refused, result, run
from readers import lively, reader, settings, text_of

from hiermem.cli.assignments import check_free, check_kept, check_used, with_settings
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.methods import METHODS
from hiermem.eval.tasks.pg19 import PG19
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig


def test_values_have_the_types_of_their_settings() -> None:
    changed = with_settings(
        HierMemConfig(),
        [
            "summary.tokens=4",
            "summary.last=1",
            "summary.query=previous",
            "summary.init_text=12",
            "mamba.groups=[[1, 0], [0, 1]]",
            "longterm.store.kind=ivf",
            "longterm.top_k=0",
            "asking.working=true",
            "working.head_shares=none",
            "working.recent_share=0.25",
        ],
    )
    assert (changed.summary.tokens, changed.summary.last, changed.summary.init_text) == (4, 1, "12")
    assert changed.mamba.groups == [[0, 1], [1, 0]] and changed.asking.working is True
    assert (changed.longterm.store.kind, changed.longterm.top_k) == ("ivf", 0)
    assert changed.working.head_shares is None and changed.working.recent_share == 0.25
    same = with_settings(HierMemConfig(), [])
    assert same.to_dict() == HierMemConfig().to_dict()


def test_settings_that_need_each_other_are_set_at_once() -> None:
    trained = HierMemConfig(summary=SummaryConfig(tokens=2, search=8))
    changed = with_settings(trained, ["summary.tokens=0", "summary.search=0"])
    assert (changed.summary.tokens, changed.summary.search) == (0, 0)
    with pytest.raises(InputError, match="raise tokens"):
        with_settings(trained, ["summary.tokens=0"])


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["summary.tokens"], "takes PART.NAME=VALUE"),
        (["segment=64"], "takes PART.NAME=VALUE"),
        (["memory.tokens=1"], "no setting 'memory': choose one of working, longterm"),
        (["summary.token=1"], "no setting 'summary.token': choose one of tokens, sensory"),
        (["summary.tokens.more=1"], "no setting 'summary.tokens.more': give the setting alone"),
        (["longterm.store=flat"], "longterm.store is a part"),
        (["summary.tokens=1", "summary.tokens=2"], "sets summary.tokens twice"),
        (["summary.last=many"], "SummaryConfig.last must be a whole number, not 'many'"),
        (["summary.last=none"], "must be a whole number, not None"),
        (["summary.tokens=-1"], "must not be negative"),
        (["asking.margin=Infinity"], "must be a number, not 'Infinity'"),
        (["working.policy=window"], "give --policy"),
        (["working.policy_settings={}"], "give --policy-set"),
    ],
)
def test_what_sets_nothing_is_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        with_settings(HierMemConfig(), assignments)
    assert "\n" not in str(refused.value)


def test_what_something_else_sets_is_refused() -> None:
    with pytest.raises(InputError, match="option of its own"):
        check_free(["longterm.top_k=0"], {"top_k": 3})
    check_free(["longterm.top_k=0", "summary.tokens=0"], {"top_k": None, "budget": 3})
    with pytest.raises(InputError, match=r"asking.rerank is set by another option or by the task"):
        check_kept(HierMemConfig().with_asking(rerank=5), ["asking.rerank=7"])
    check_kept(HierMemConfig().with_asking(rerank=7), ["asking.rerank=7"])


def test_what_would_change_nothing_is_refused() -> None:
    """Every part that a method or a task names is one of the configuration."""
    known = {name for name, part in HierMemConfig().settings().items() if is_dataclass(part)}
    for method in METHODS.values():
        assert method.parts is None or set(method.parts) <= known
    words = ("eval", "qa", "--data", ".", "--method", "bm25", "--set", "longterm.top_k=0")
    assert_refused(run(*words), "longterm.top_k would change nothing here, only settings of asking would")
    words = ("eval", "pg19", "--data", ".", "--policy", "full", "--set", "summary.tokens=0")
    assert_refused(run(*words), "no settings of the configuration would")
    check_used(["working.budget=3"], PG19(data=Path()).parts())
    with pytest.raises(InputError, match=r"longterm.top_k would change nothing"):
        check_used(["longterm.top_k=0"], PG19(data=Path()).parts())
    check_used(["longterm.top_k=0"], METHODS["hiermem"].parts)


def test_tiers_of_a_saved_model_are_switched_off(tmp_path: Path) -> None:
    """Each leaves other settings in the result, and other figures; all off is the backbone over a window."""
    own = settings(policy="window").settings()
    summary = SummaryConfig(tokens=2, width=8)
    config = HierMemConfig(**own | {"summary": summary, "mamba": MambaConfig(groups=[[0, 0]])})
    lively(reader(config=config)).save_pretrained(tmp_path / "model")
    (tmp_path / "book.txt").write_text(text_of(400), "utf-8")
    command = ["eval", "pg19", "--data", tmp_path / "book.txt", "--model", tmp_path / "model"]
    memory, heads, last = "summary.tokens=0", "mamba.groups=[]", "summary.last=1"
    reports = [
        result(*command, *(word for one in chosen for word in ("--set", one)))
        for chosen in ([], [memory], [heads], [memory, heads], [last])
    ]
    configs = [report["config"] for report in reports]
    assert ["summary" in one for one in configs] == [True, False, True, False, True]
    assert ["mamba" in one for one in configs] == [True, True, False, False, True]
    assert configs[4]["summary"]["last"] == 1
    assert len({report["metrics"]["perplexity"] for report in reports}) == 5
    assert_refused(run(*command, "--set", "working.budget=20", "--budget", 24), "option of its own")
    pubmedqa = ["eval", "pubmedqa", "--data", tmp_path, "--set", "asking.least_score=0.5"]
    assert_refused(run(*pubmedqa), "set by another option or by the task")
