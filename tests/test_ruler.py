"""RULER: what its examples hold, how long they are, how answers are scored, and its command."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, result, run
from readers import text_of, tokenizer

from hiermem.errors import InputError
from hiermem.eval.haystack import Haystack
from hiermem.eval.ruler import RULER, Example, Place, Sources, fitted
from hiermem.eval.ruler.questions import pools
from hiermem.eval.ruler.scoring import any_found, share_found, summary
from hiermem.eval.ruler.words import different
from hiermem.eval.tasks.pubmedqa import PubMedQA
from hiermem.eval.tasks.qa import QuestionAnswering
from hiermem.eval.tasks.ruler import Ruler

pytest.importorskip("wonderwords")
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (.+?) is: (\S+)\.")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a book, and with questions in the layouts of XQuAD and Natural Questions."""
    folder = tmp_path_factory.mktemp("ruler")
    (folder / "book.txt").write_text(text_of(4000), "utf-8")
    facts = [
        (f"Who led crew {n}?", f"Captain {n}", f"Crew {n} was led by Captain {n} in May.") for n in range(9)
    ]
    asked = [
        {"context": text, "qas": [{"id": q, "question": q, "answers": [{"text": a, "answer_start": 0}]}]}
        for q, a, text in facts
    ]
    rows = [
        {"question": q, "answers": [a, "the cook"], "ctxs": [{"title": "", "text": text, "isgold": True}]}
        for q, a, text in facts
    ]
    (folder / "xquad").mkdir()
    (folder / "nq").mkdir()
    (folder / "xquad" / "en.test.json").write_text(json.dumps({"data": [{"paragraphs": asked}]}), "utf-8")
    (folder / "nq" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def sources(folder: Path) -> Sources:
    haystack = Haystack(tokenizer(), " ".join((folder / "book.txt").read_text("utf-8").split()))
    return Sources(haystack, pools(folder, {"xquad": "qa_1", "nq": "qa_2"}, "test", 0))


@pytest.fixture(scope="module")
def make(sources: Sources) -> Callable[..., Example]:
    def made(task: str, size: int = 200, index: int = 0, length: int = 4096, seed: int = 0) -> Example:
        return RULER[task].example(sources, Place(seed, task, length, index), size)

    return made


# ---- examples


def test_the_tasks_are_the_published_ones() -> None:
    needles = "single_1 single_2 single_3 multikey_1 multikey_2 multikey_3 multivalue multiquery".split()
    assert list(RULER) == [*(f"niah_{name}" for name in needles), *"vt cwe fwe qa_1 qa_2".split()]
    rooms = {name: family.room for name, family in RULER.items()}
    assert rooms == {
        **dict.fromkeys(list(RULER)[:8], 128),
        "vt": 30,
        "cwe": 120,
        "fwe": 50,
        "qa_1": 32,
        "qa_2": 32,
    }


@pytest.mark.parametrize("task", RULER)
def test_an_example_follows_from_its_place_alone(task: str, make: Callable[..., Example]) -> None:
    assert make(task) == make(task)
    assert make(task) != make(task, index=1) and make(task) != make(task, seed=1)


@pytest.mark.parametrize(
    ("task", "hidden", "asked", "kind"),
    [
        ("niah_single_1", 1, 1, "number"),
        ("niah_single_2", 1, 1, "number"),
        ("niah_single_3", 1, 1, "uuid"),
        ("niah_multikey_1", 4, 1, "number"),
        ("niah_multikey_2", 201, 1, "number"),
        ("niah_multikey_3", 201, 1, "uuid"),
        ("niah_multivalue", 4, 4, "number"),
        ("niah_multiquery", 4, 4, "number"),
    ],
)
def test_needles_are_hidden_and_asked_for(
    task: str, hidden: int, asked: int, kind: str, make: Callable[..., Example]
) -> None:
    for index in range(5):
        example = make(task, index=index)
        found = NEEDLE.findall(example.text)
        assert len(found) == hidden and {each[0] for each in found} == {f"{kind}s"}
        assert len(example.answers) == asked == len(set(example.answers))
        keys = {key for _, key, value in found if value in example.answers}
        assert len(keys) == (4 if task == "niah_multiquery" else 1)
        pattern = r"[1-9]\d{6}" if kind == "number" else UUID
        assert all(re.fullmatch(pattern, value) for _, _, value in found)
        assert all(re.fullmatch(UUID, key) for key in keys) == (task == "niah_multikey_3")
        assert all(key in example.question and key in example.lead for key in keys)
        verb, words = ("is", kind) if asked == 1 else ("are", f"{kind}s")
        assert example.lead.startswith(f" The special magic {words} for ")
        assert example.lead.endswith(f" mentioned in the provided text {verb}")
        start = f"A special magic {kind} is" if asked == 1 else f"Some special magic {kind}s are"
        rest = (
            f" hidden within the following text. Make sure to memorize it. I will quiz you about the {words} "
        )
        assert example.text.startswith(f"{start}{rest}afterwards.\n")


def test_needles_stand_at_all_depths(make: Callable[..., Example]) -> None:
    for task in ("niah_single_1", "niah_single_2"):
        made = [make(task, size=1500, index=index) for index in range(60)]
        depths = sorted(each.text.index(each.answers[0]) / len(each.text) for each in made)
        assert depths[0] < 0.2 and depths[-1] > 0.9 and 0.3 < depths[30] < 0.75


def test_a_text_stays_whole_around_its_needles(make: Callable[..., Example], sources: Sources) -> None:
    assert sources.haystack is not None
    for index in range(10):
        context = make("niah_multikey_1", index=index).text.partition("\n")[2]
        left = re.sub(rf"(\s*{NEEDLE.pattern}\s*)+", " ", context).strip()
        assert left in sources.haystack.text


def test_a_chain_leads_from_the_value_to_every_variable(make: Callable[..., Example]) -> None:
    example = make("vt", size=30)
    shown, _, asked = example.text.rpartition("Memorize and track")
    assert "they are:" in shown and asked.count("The grass is green.") == 30
    lines = [line for line in asked.splitlines() if line.startswith("VAR ")]
    value = re.findall(r"\d{5}", example.question)[0]
    assert lines[0] == f"VAR {example.answers[0]} = {value}" and value in example.lead
    links = [f"VAR {b} = VAR {a}" for a, b in zip(example.answers, example.answers[1:], strict=False)]
    assert lines[1:] == links and len(links) == 4
    assert " 5 variables are assigned the value" in example.lead
    given = shown.split("they are: ")[1].split()
    assert len(given) == 5 and f"VAR {given[1]} = VAR {given[0]}" in shown


@pytest.mark.parametrize(
    ("length", "repeats", "shown"), [(1024, (6, 1), (3, 1, 20)), (4096, (30, 3), (10, 3, 40))]
)
def test_common_words_stand_more_often(
    length: int, repeats: tuple[int, int], shown: tuple[int, int, int], make: Callable[..., Example]
) -> None:
    example = make("cwe", size=50, length=length)
    lists = [
        Counter(re.findall(r"\d+\. (.+?)(?= \d+\. |$)", part.split("\n")[1]))
        for part in example.text.split("Below is a numbered list")[1:]
    ]
    (one, other), (common, others) = lists, repeats
    assert {word for word, count in other.items() if count == common} == set(example.answers)
    assert Counter(other.values()) == {common: 10, others: 40}
    assert Counter(one.values()) == {shown[0]: 10, shown[1]: shown[2] - 10}


def test_there_are_words_enough_for_the_longest_list() -> None:
    import random

    words = different(12_000, random.Random(0))
    assert len(set(words)) == 12_000 and sum("-" not in word for word in words) > 8_000


def test_frequent_words_fall_by_zipfs_law(make: Callable[..., Example]) -> None:
    example = make("fwe", size=1000)
    counts = Counter(example.text.split("coded words. ")[1].split()).most_common()
    assert [word for word, _ in counts[:4]] == ["...", *example.answers]
    shares = [1 / 1.6449 / rank**2 for rank in (1, 2, 3, 4)]
    assert [count for _, count in counts[:4]] == [int(1000 * share) for share in shares]


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_the_right_paragraph_stands_once_among_others(task: str, make: Callable[..., Example]) -> None:
    asked = set()
    for index in range(9):
        example = make(task, size=30, index=index)
        shown = re.findall(r"Document (\d+):\nCrew (\d) was led by (Captain \d) in May\.", example.text)
        assert [int(number) for number, _, _ in shown] == list(range(1, 31))
        assert sum(captain == example.answers[0] for _, _, captain in shown) == 1
        assert example.text.endswith("do not output any other words.") and example.lead == " Answer:"
        asked.add(example.question)
    assert len(asked) == 9
    with pytest.raises(InputError, match=r"has 9 questions: give --limit 9"):
        make(task, index=9)


# ---- length


@pytest.mark.parametrize("task", RULER)
def test_examples_fill_their_length(task: str, sources: Sources) -> None:
    def tokens(example: Example) -> int:
        return len(tokenizer()(example.text + example.question + example.lead).input_ids)

    family, place = RULER[task], Place(0, task, 8000, 0)
    example, used = fitted(family, sources, place, tokens)
    assert used == tokens(example) + family.room <= 8000
    unit = tokens(family.example(sources, place, 300)) - tokens(family.example(sources, place, 200))
    assert 8000 - used <= 2 * unit / 100 + 15


def test_few_examples_are_tokenised_whatever_the_length(sources: Sources) -> None:
    seen: list[int] = []

    def tokens(example: Example) -> int:
        seen.append(len(example.text) // 4)
        return seen[-1]

    fitted(RULER["niah_single_1"], sources, Place(0, "niah_single_1", 131072, 0), tokens)
    assert sum(seen) < 4 * 131072


# ---- scores


def test_scores_are_the_published_ones() -> None:
    assert share_found("1234567, 7654321.", ("1234567", "7654321", "1", "9")) == 0.75
    assert share_found("it is abcde", ("ABCDE",)) == 1 and share_found("", ("a",)) == 0
    assert any_found("The Captain.", ("captain", "cook")) == 1 and any_found("nobody", ("captain",)) == 0


def test_a_result_has_a_row_for_each_task_and_length() -> None:
    rows = [
        {"task": task, "length": length, "score": score}
        for task, length, score in [("a", 1, 1.0), ("a", 1, 0.0), ("a", 2, 0.25), ("b", 1, 1.0)]
    ]
    made = summary(rows)
    lines = [(row["task"], row["length"], row["score"], row["n"]) for row in made["rows"]]
    assert lines == [("a", 1, 0.5, 2), ("a", 2, 0.25, 1), ("b", 1, 1.0, 1)]
    assert made["metrics"]["score"] == pytest.approx(1.75 / 3) and made["n"] == 4
    assert made["rows"][1]["interval"] == (0.25, 0.25)


# ---- the command


@pytest.fixture
def command(wide_model: Path, folder: Path) -> list[Any]:
    return ["eval", "ruler", "--model", wide_model, "--haystack", folder / "book.txt"]


def test_all_tasks_run(command: list[Any], folder: Path, tmp_path: Path) -> None:
    command = [*command, "--task", "all", "--qa", folder, "--length", 3200, "--limit", 1]
    out = tmp_path / "results" / "ruler.json"
    made = result(*command, "--policy", "window", "--keep", 0.25, "--out", out)
    assert [row["task"] for row in made["rows"]] == list(RULER)
    assert {(row["length"], row["n"]) for row in made["rows"]} == {(3200, 1)}
    assert made["metrics"]["score"] == sum(row["score"] for row in made["rows"]) / 13
    config = made["config"]
    assert (config["task"], config["system"], config["keep"]) == ("ruler", "pruned", 0.25)
    assert config["asking"]["instruction"] == "" and len(config["differs"]) == 3
    for example in made["examples"]:
        assert 3000 < example["tokens"] <= 3200 and 0 <= example["score"] <= 1
    page = Path(result("report", out.parent, "--page", tmp_path / "page.md")["written"][0]).read_text("utf-8")
    assert "## RULER" in page and "in place of Paul Graham's" in page
    assert "Score, length 3,200:" in page and "| qa\\_2 |" in page


def test_the_prompts_are_written_as_they_are_asked(command: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    command = [*command, "--task", "niah_multivalue, cwe", "--lengths", "2000,3000", "--limit", 2]
    assert result(*command, "--dump", file)["n"] == 8
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [(row["task"], row["length"]) for row in rows[::2]] == [
        (task, length) for task in ("niah_multivalue", "cwe") for length in (2000, 3000)
    ]
    for row in rows:
        assert len(row["answer"]) == (10 if row["task"] == "cwe" else 4) and row["any_answer"] is False
        assert all(answer in row["context"] for answer in row["answer"])
        whole = row["context"] + row["question"]
        room = RULER[row["task"]].room
        assert row["max_new_tokens"] == room
        assert row["length"] - 60 < len(tokenizer()(whole).input_ids) + room <= row["length"]
    # Prompts without a chat template end with "Answer:", which the published leads begin with.
    assert rows[-1]["question"].count("Answer:") == 1
    assert rows[-1]["question"].endswith("Answer: The top 10 words that appear most often in the list are:")


def test_a_short_haystack_is_repeated(command: list[Any], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(text_of(60), "utf-8")
    command[-1] = tmp_path / "short.txt"
    command += ["--task", "niah_single_2", "--length", 2000, "--limit", 1, "--dump", tmp_path / "p.jsonl"]
    assert result(*command)["n"] == 1


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["--task", "niah"], "no RULER task 'niah': give all, or some of niah_single_1"),
        (["--task", "vt,"], "no RULER task ''"),
        (["--task", "vt,cwe,vt"], "One of --task is given twice"),
        (["--task", "fwe", "--length", "2000,2000"], "One of --length is given twice"),
        (["--task", "niah_single_1", "--length", "100"], "give --length "),
        (["--task", "niah_single_1", "--length", "-5"], "--length takes no negative numbers"),
        (["--task", "niah_single_1", "--length", "4k"], "--length takes whole numbers"),
        (["--task", "niah_single_1", "--limit", "0"], "'--limit'"),
        (["--task", "all"], "The task qa_1 needs questions about paragraphs: give --qa"),
        (["--task", "qa_2", "--qa", "EMPTY"], "qa_2 needs nq: give --qa a folder with a folder nq"),
        (["--task", "qa_2", "--qa", "FOLDER", "--split", "train"], "has no split 'train'"),
        (["--task", "qa_1", "--qa", "FOLDER", "--limit", "10"], "give --limit 9 or less"),
        (["--task", "vt", "--keep", "0.5", "--method", "full"], "leave --keep out"),
        (["--task", "vt", "--dump", "BOOK"], "would be lost: give another to --dump"),
    ],
)
def test_bad_options_are_refused(
    wrong: list[str], expected: str, command: list[Any], folder: Path, tmp_path: Path
) -> None:
    places = {"EMPTY": tmp_path, "FOLDER": folder, "BOOK": folder / "book.txt"}
    assert_refused(run(*command, *(places.get(each, each) for each in wrong)), expected)


def test_essays_need_a_haystack(wide_model: Path) -> None:
    done = run("eval", "ruler", "--model", wide_model, "--task", "vt,niah_single_2,niah_single_3")
    assert_refused(done, "The task niah_single_2 hides needles in a text: give --haystack")


def test_a_share_to_keep_chooses_what_keeps_it() -> None:
    assert Ruler(task="vt").method == "hiermem" and Ruler(task="vt", keep=0.5).method == "pruned"
    assert Ruler(task="vt", keep=0.5, method="compressed").method == "compressed"
    assert QuestionAnswering(data=Path("nq"), keep=0.5).method == "pruned"  # which has a method of its own
    assert PubMedQA(data=Path("pubmedqa"), keep=0.5).method == "pruned"
    with pytest.raises(InputError, match="leave --keep out"):
        Ruler(task="vt", keep=0.5, method="hiermem")
