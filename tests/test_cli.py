"""The command line: what it prints, and how it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from commands import assert_refused, result, run, run_alone
from readers import backbone, text_of, tokenizer
from typer.main import get_command

from hiermem.cli.main import app
from hiermem.memory.saved import SavedInfo
from hiermem.retrieval.files import load_directory, save_directory


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short text file."""
    file = tmp_path_factory.mktemp("book") / "book.txt"
    file.write_text(text_of(300) + "The pass key is 48213. Remember it. " + text_of(200, seed=1), "utf-8")
    return file


SMALL = ["--budget", "24", "--segment", "32", "--chunk", "16"]


@pytest.fixture(scope="module")
def memory(tiny_model: Path, book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory of the book."""
    out = tmp_path_factory.mktemp("memories") / "book.hmem"
    report = result("read", book, "--out", out, "--model", tiny_model, *SMALL)
    assert report["live_tokens_max"] <= 24 + 16 < report["tokens"]
    assert report["segments"] == -(-report["tokens"] // 32)
    keys = ("seconds", "tokens_per_second", "peak_rss_bytes", "memory_bytes")
    assert all(report[key] > 0 for key in keys)
    return out


def test_ask_quotes_the_document(tiny_model: Path, book: Path, memory: Path) -> None:
    answer = result("ask", memory, "What is the pass key?", "--model", tiny_model, "--max-new-tokens", 4)
    text = book.read_text("utf-8")
    assert answer["sources"]
    assert all(text[s["start"] : s["end"]] == s["text"] for s in answer["sources"])
    assert any("48213" in source["text"] for source in answer["sources"])
    few = ["--model", tiny_model, "--top-k", 1, "--rerank", 3, "--max-new-tokens", 4]
    best = result("ask", memory, "What is the pass key?", *few)
    assert len({source["segment"] for source in best["sources"]}) == 1


def test_ask_refuses_search_keys_that_the_memory_does_not_have(tiny_model: Path, memory: Path) -> None:
    asked = ("ask", memory, "What is the pass key?", "--model", tiny_model)
    assert_refused(run(*asked, "--set", 'longterm.keys={"lexical": {}}'), "has other search keys")


def test_ask_says_what_the_document_does_not_say(tiny_model: Path, memory: Path) -> None:
    asked = ("ask", memory, "Quantum chromodynamics?", "--model", tiny_model)
    answer = result(*asked)
    assert (answer["sources"], answer["found"]) == ([], False)
    assert run(*asked).stdout.decode().strip() == "→ The document does not say."


def test_a_memory_is_asked_as_it_was_read(
    tiny_model: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its dtype, with its model from wherever that is, and with the policy that is given again."""
    shutil.copytree(tiny_model, tmp_path / "model")
    out, question = tmp_path / "book.hmem", "What is the pass key?"
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        settings = ["--model", "model", "--policy", "namm", "--dtype", "bfloat16", *SMALL]
        result("read", book, "--out", out, *settings)
    again = ["--policy", "namm", "--max-new-tokens", 4]
    assert_refused(run("ask", out, question, *again), f"{str(tmp_path / 'model')!r}, which does not come")
    (tmp_path / "model").rename(tmp_path / "moved")
    assert result("ask", out, question, *again, "--model", tmp_path / "moved")["sources"]


@pytest.mark.parametrize("name", ["model", "./model", "smollm2", "some/model", "\x1b[31m", "../model"])
def test_a_memory_leads_to_no_model(
    tiny_model: Path, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not to a folder beside it, nor to one that the name of a bundled model finds."""
    (tmp_path / "model").mkdir()
    (tmp_path / "smollm2").mkdir()
    for folder in ("model", "smollm2"):
        settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
        (tmp_path / folder / "config.json").write_text(json.dumps(settings), "utf-8")
        (tmp_path / folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    tensors, info = load_directory(memory)
    save_directory(tmp_path / "m.hmem", tensors, {**info, "model": name})
    monkeypatch.chdir(tmp_path)
    why = "and a folder here is called so" if name == "smollm2" else "which does not come with hiermem"
    expected = "does not make sense" if "\x1b" in name else f"{name!r}, {why}"
    assert_refused(run("ask", "m.hmem", "Why?"), expected)
    assert not (tmp_path / "ran").exists()


def test_a_memory_goes_on_with_the_search_keys_that_it_has(
    tiny_model: Path, book: Path, tmp_path: Path
) -> None:
    """The default depends on what is installed; other keys are refused where somebody asks for them."""
    out = tmp_path / "m.hmem"
    common = ["--out", out, "--model", tiny_model, *SMALL]
    words = ("--set", 'longterm.keys={"lexical": {}}')
    first = result("read", book, *common, *words)
    again = result("read", "-", *common, "--append", stdin=b" The end.")
    assert again["tokens"] > first["tokens"] and SavedInfo.of(out).longterm.keys == {"lexical": {}}
    other = ("--set", 'longterm.keys={"lexical": {"weight": 2.0}}')
    assert_refused(run("read", "-", *common, *other, "--append", stdin=b" More."), "read with other settings")
    assert_refused(run("read", "-", *common, "--preset", "full", "--append", stdin=b" No."), "other settings")


def test_reading_again_reads_nothing_and_a_longer_text_goes_on(
    tiny_model: Path, book: Path, tmp_path: Path
) -> None:
    text, out = book.read_text("utf-8"), tmp_path / "m.hmem"
    common = ["--out", out, "--model", tiny_model, *SMALL]
    cut = text.index("The pass key")
    first = result("read", "-", *common, stdin=text[:cut].encode())
    assert result("read", "-", *common, stdin=text[:cut].encode())["new_tokens"] == 0
    second = result("read", book, *common)
    assert second["tokens"] == first["tokens"] + second["new_tokens"]
    third = result("read", "-", *common, "--append", stdin=b" The end.")
    assert third["tokens"] == second["tokens"] + third["new_tokens"] > second["tokens"]
    assert result("read", book, *common, "--append")["tokens"] > third["tokens"]
    shown = result("ask", out, "What is the end?", "--model", tiny_model, "--max-new-tokens", 2)["sources"]
    assert "\n The end." in shown[0]["text"]  # a paragraph of its own
    assert_refused(run("read", book, *common), "holds this text and more")
    assert_refused(run("read", "-", *common, stdin=b"Another text altogether."), "another text")
    asked = run("ask", out, "What is the end?", "--model", tiny_model, "--preset", "bare")
    assert_refused(asked, "was read with the policy attention, not full_cache")


def test_verify_names_the_damaged_file(memory: Path, tmp_path: Path) -> None:
    assert result("verify", memory) == {"ok": True, "problems": [], "indexed": False}
    copy = tmp_path / "copy.hmem"
    copy.mkdir()
    for file in memory.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damaged = next(copy.glob("records-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    done = run("verify", copy, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert damaged.name in report["problems"][0]


def test_interrupted_reading_is_saved_and_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """SIGTERM in the middle of reading leaves a memory, in a process of its own too."""
    doc, out = tmp_path / "long.txt", tmp_path / "m.hmem"
    doc.write_text(text_of(30_000), "utf-8")
    arguments = ["read", doc, "--out", out, "--model", tiny_model, *SMALL, "--save-every", "0.001"]
    command = [sys.executable, "-m", "hiermem.cli.main", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        while b"saved after" not in first and process.poll() is None:  # behind what libraries write
            first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors.decode()
    assert b"Traceback" not in errors
    assert b"the same command goes on" in errors
    assert result("verify", out)["ok"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["read", "missing.txt", "--out", "OUT"], "cannot be read"),
        (["read", "EMPTY", "--out", "OUT"], "is empty"),
        (["read", "BINARY", "--out", "OUT"], "convert it to plain text"),
        (["read", "BOOK", "--out", "OUT", "--model", "no-such-model"], "could not be loaded"),
        (["read", "BOOK", "--out", "OUT", "--policy", "random"], "Unknown policy 'random'"),
        (["read", "BOOK", "--out", "OUT", "--budget", "0"], "--budget"),
        (["read", "BOOK", "--out", "OUT", "--preset", "huge"], "no preset 'huge'"),
        (["read", "BOOK", "--out", "OUT", "--segment", "100", "--chunk", "64"], "multiple of the chunk"),
        (["read", "BOOK", "--out", "OUT", "--dtype", "int3"], "no dtype 'int3'"),
        (["read", "BOOK", "--out", "OUT", "--device", "warp"], "'warp' cannot be used"),
        (["read", "BOOK", "--out", "FULL"], "holds other files and no memory"),
        (["read", "BOOK"], "--out"),
        (["ask", "MEMORY", " "], "question is empty"),
        (["ask", "OUT", "Why?"], "There is no memory"),
        (["ask", "MEMORY", "Why?", "--model", "OTHER"], "not read with this model's backbone"),
        (["ask", "MEMORY", "Why?", "--rerank", "5"], "give a top_k below 5"),
        (["ask", "MEMORY", "Why?", "--rerank", "1"], "0 or at least 2"),
        (["verify", "OUT"], "There is no memory"),
        (["eval", "pg19", "--data", "OUT"], "There is no book"),
        (["eval", "pg19", "--data", "BOOK", "--start-token", "99999"], "too few"),
        (["eval", "pg19", "--data", "BOOK", "--max-tokens", "1"], "--max-tokens at least 2"),
        (["eval", "pg19", "--data", "BINARY"], "cannot be read as UTF-8"),
        (["eval", "pg19", "--data", "BOOK", "--policy", "random"], "Unknown policy 'random'"),
        (["eval", "passkey", "--haystack", "missing.txt"], "cannot be read"),
        (["eval", "passkey", "--haystack", "BOOK", "--lengths", "many"], "whole numbers"),
        (["eval", "passkey", "--haystack", "BOOK", "--lengths", "999999"], "The haystack has"),
        (["eval", "needles", "--data", "BOOK", "--keep", "2"], "'--keep'"),
        (["eval", "needles", "--data", "BOOK", "--length", "100000"], "so no text of 100000 tokens"),
        (["eval", "needles", "--data", "BOOK", "--length", "100", "--system", "magic"], "no method 'magic'"),
        (["eval", "needles", "--data", "BOOK", "--dump", "x.jsonl", "--out", "OUT"], "leave --out away"),
        (
            ["eval", "babi-long", "--haystack", "BOOK", "--data", "FULL", "--system", "magic"],
            "no method 'magic'",
        ),
        (["eval", "pg19", "--data", "BOOK", "--overlap", "32"], "needs a --window that is wider"),
        (["eval", "passkey", "--haystack", "BOOK", "--lengths", "64,-3"], "no negative numbers"),
        (["eval", "passkey", "--haystack", "BOOK", "--out", "FULL"], "is a folder"),
        (["bench", "length", "--text", "BOOK", "--device", "warp", "--out", "OUT"], "'warp' cannot be used"),
        (["eval", "pubmedqa", "--data", "missing"], "official layout"),
        (["eval", "pg19", "--data", "BOOK", "--out", "/dev/null"], "no plain file"),
        (["heads", "--text", "BOOK", "--plot", "BOOK"], "ends in .png"),
        (["read", "BOOK", "--out", "OUT", "--segment", "521"], "give --segment 1024"),
        (["read", "BOOK", "--out", "OUT", "--save-every", "-1"], "--save-every"),
        (["eval", "pubmedqa", "--data", "someone/records"], "no list of test questions"),
        (["eval", "pg19", "--data", "someone/books"], "cannot be read from the hub"),
        (["eval", "babi-long", "--haystack", "missing.txt", "--data", "FULL"], "cannot be read"),
        (["eval", "babi-long", "--haystack", "BOOK", "--data", "FULL", "--lengths", "many"], "whole numbers"),
        (["eval", "babi-long", "--haystack", "BOOK", "--data", "FULL"], "no file qa1_*_test.txt"),
        (["eval", "mqar", "--keep", "0.5", "--method", "hiermem"], "leave --keep out"),
        (["eval", "needles", "--data", "BOOK", "--method", "full", "--policy", "window"], "use --policy"),
        (["eval", "mqar", "--keep", "0.5", "--budget", "64"], "--keep takes the place of --budget"),
        (["eval", "mqar", "--method", "bm25", "--budget", "64"], "bm25 does not use --budget"),
        (["eval", "mqar", "--method", "full", "--policy", "window"], "full does not use --policy"),
        (["eval", "mqar", "--method", "pruned", "--top-k", "2"], "pruned does not use --top-k"),
        (["eval", "mqar", "--method", "streaming", "--evictor", "none"], "does not use --evictor"),
        (["eval", "qa", "--data", "OUT", "--method", "right", "--segment", "64"], "does not use --segment"),
        (["bench", "length", "--text", "BOOK", "--systems", "magic"], "no system 'magic'"),
        (["bench", "length", "--text", "BOOK", "--lengths", "10"], "at least two chunks"),
        (["eval", "pg19", "--data", "BOOK", "--policy", "namm", "--evictor", "OUT"], "no evictor at"),
        (["read", "BOOK", "--out", "OUT", "--evictor", "missing"], "no evictor at missing"),
        (["calibrate", "BOOK", "--out", "OUT", "--tokens", "70"], "exceed the backbone's trained range"),
        (["calibrate", "BOOK", "--out", "OUT", "--tokens", "7000"], "give a longer text"),
        (["calibrate", "BOOK", "--out", "OUT", "--kept", "2"], "between 0 and 1"),
        (["calibrate", "BOOK", "--out", "EMPTY"], "is a file"),
        (["calibrate", "missing.txt", "--out", "OUT"], "cannot be read"),
        (["evolve", "--data", "OUT", "--out", "OUT", "--recipe", "magic"], "no recipe 'magic'"),
        (["evolve", "--data", "missing", "--out", "OUT"], "missing"),
        (["evolve", "--data", "missing", "--out", "OUT", "--generations", "0"], "'--generations'"),
        (["report", "missing"], "no folder missing"),
        (["heads", "--text", "BOOK", "--plot", "PICTURE"], "would be lost: give another to --plot"),
        (["eval", "needles", "--data", "BOOK", "--dump", "BOOK"], "would be lost: give another to --dump"),
        (["eval", "pg19", "--data", "BOOK", "--out", "BOOK"], "is no result"),
        (
            ["calibrate", "BOOK", "--out", "OTHER", "--model", "OTHER"],
            "is what is read, and would be written",
        ),
        (["evolve", "--data", "FULL", "--out", "FULL"], "is what is read, and would be written over"),
        (["evolve", "--data", "FULL", "--out", "OTHER", "--model", "OTHER"], "is what is read"),
        (["train", "--data", "FULL", "--out", "FULL"], "is what is read, and would be written over"),
        (["train", "--data", "FULL", "--out", "OTHER", "--model", "OTHER"], "is what is read"),
        (["train", "--data", "FULL", "--out", "MEMORY"], "holds the memory of a document"),
        (["train", "--data", "missing", "--out", "OUT"], "no folder missing"),
        (["train", "--data", "FULL", "--out", "EMPTY"], "is a file"),
        (["train", "--data", "FULL", "--out", "OUT", "--dtype", "int8"], "no dtype 'int8'"),
        (["train", "--data", "FULL", "--out", "OUT", "--device", "warp"], "'warp' cannot be used"),
        (["train", "--data", "FULL", "--out", "OUT", "--batch", "3", "--micro", "2"], "--batch or --micro"),
        (
            ["train", "--data", "FULL", "--out", "OUT", "--recipe", "recall", "--batch", "8"],
            "leave --steps, --batch and --micro out",
        ),
        (["train", "--data", "FULL", "--out", "OUT", "--recipe", "key"], "official layout"),
        (["eval", "needles", "--data", "BOOK", "--length", "10"], "raise --keep or --length"),
        (["eval", "pubmedqa", "--data", "OUT", "--system", "pruned", "--keep", "0"], "raise --keep"),
        (["eval", "passkey", "--haystack", "BOOK", "--limit", "0"], "'--limit'"),
        (["eval", "retrieval", "--data", "OUT"], "no folder"),
        (["eval", "retrieval", "--data", "FULL"], "does not hold PubMedQA"),
        (["eval", "pg19", "--data", "BOOK", "--policy", "full", "--evictor", "none"], "leave --budget"),
        (["eval", "nonsense"], "No such command"),
        (["eval", "retrieval", "--data", "OUT", "--magic", "1"], "No such option"),
        (["eval", "retrieval", "--data", "OUT", "--limit", "many"], "'--limit'"),
        (["eval", "retrieval", "--data", "OUT", "--seed", "1"], "give --limit"),
        (["bench", "overhead", "--text", "BOOK"], "give one of at least"),
        (["bench", "decode", "--text", "BOOK", "--contexts", "9,999999"], "give --contexts of 2 to as many"),
        (["bench", "flat", "--text", "EMPTY"], "is empty"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], expected: str, tiny_model: Path, book: Path, memory: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_bytes(b" \n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("mine")
    (tmp_path / "full" / "mine.png").write_text("mine")
    other = tmp_path / "other"
    backbone(seed=1).save_pretrained(other)
    tokenizer().save_pretrained(other)
    places = {
        "OUT": tmp_path / "out.hmem",
        "EMPTY": tmp_path / "empty.txt",
        "BINARY": tmp_path / "binary.txt",
        "FULL": tmp_path / "full",
        "PICTURE": tmp_path / "full" / "mine.png",
        "BOOK": book,
        "MEMORY": memory,
        "OTHER": other,
    }
    needs_model = arguments[0] not in ("verify", "report") and arguments[:2] != ["eval", "retrieval"]
    given = [str(places.get(argument, argument)) for argument in arguments]
    if needs_model and "--model" not in given and "nonsense" not in given:
        given += ["--model", str(tiny_model)]
    assert_refused(run(*given), expected)
    assert not (tmp_path / "out.hmem").exists()


def test_eval_tasks_report_json(tiny_model: Path, book: Path) -> None:
    pg19 = result("eval", "pg19", "--data", book, "--model", tiny_model, "--budget", 24, "--chunk", 16)
    assert pg19["task"] == "pg19"
    assert pg19["n"] > 100
    assert {"perplexity", "word_perplexity", "bits_per_byte"} == set(pg19["metrics"])
    passkey = result(
        "eval",
        "passkey",
        "--haystack",
        book,
        "--model",
        tiny_model,
        *SMALL,
        "--lengths",
        "100,200",
        "--limit",
        2,
    )
    assert [row["length"] for row in passkey["rows"]] == [100, 200]
    assert "system" not in passkey["config"] and all(0 <= row["recalled"] <= 1 for row in passkey["rows"])
    assert all(row["n"] == 2 and 0 <= row["accuracy"] <= 1 for row in passkey["rows"])
    closed = result(
        *("eval", "passkey", "--haystack", book, "--model", tiny_model, "--lengths", "100", "--limit", 1),
        *("--system", "closed"),
    )
    assert closed["config"]["system"] == "closed" and "recalled" not in closed["rows"][0]


def test_a_calibration_is_read_with(book: Path, tmp_path: Path) -> None:
    wide = backbone()
    wide.config.max_position_embeddings = 512
    wide.save_pretrained(tmp_path / "wide")
    tokenizer().save_pretrained(tmp_path / "wide")
    common, folder = ["--model", tmp_path / "wide"], tmp_path / "evictor"
    made = result("calibrate", book, "--out", folder, "--tokens", 128, "--texts", 1, *common)
    assert [len(row) for row in made["shares"]] == [2, 2, 2]
    assert made["most"] > made["middle"] > 0
    read = ["read", book, "--out", tmp_path / "m.hmem", "--policy", "window", *SMALL, *common]
    assert (
        result(*read, "--evictor", folder)["live_tokens_max"] > 24 + 16
    )  # one head keeps more than the mean
    other = run(*read)
    assert other.returncode == 2 and b"other settings" in other.stderr


def test_bench_reports_json(tiny_model: Path, book: Path) -> None:
    common = ["--text", book, "--model", tiny_model, "--budget", 24, "--chunk", 16]
    rows = result("bench", "overhead", *common, "--rounds", 2)["rows"]
    assert [row["system"] for row in rows] == ["bare limit", "window", "attention", "namm", "hiermem"]
    assert rows[0]["ratio_to_bare"] == 1.0
    decoded = result("bench", "decode", *common, "--contexts", "20,90", "--tokens", 5, "--repeats", 1)["rows"]
    names = ["hiermem", "hiermem, one token a pass", "backbone", "hiermem-float16", "hiermem-int8"]
    assert [(row["context"], row["system"]) for row in decoded] == [
        (context, name) for context in (20, 90) for name in names
    ]
    assert all(row["tokens_per_second"] > 0 for row in decoded)
    counted = result("bench", "gpu", *common, "--rounds", 1, "--rows", 2, "--device", "cpu")["rows"]
    names = ["backbone", "hiermem", "backbone, 2 rows", "hiermem, 2 rows"]
    assert [row["system"] for row in counted] == names
    assert counted[0]["kernels_to_bare"] == 1.0 < counted[1]["kernels_to_bare"]
    flat = result("bench", "flat", *common, "--settle", 64)
    assert flat["live_tokens_max"] <= 24 + 16
    assert len(flat["tokens_per_second_by_tenth"]) == 10


def test_a_result_is_kept_and_not_computed_again(tiny_model: Path, book: Path, tmp_path: Path) -> None:
    common = ["eval", "needles", "--data", book, "--model", tiny_model, "--length", 100, "--chunk", 16]
    command = [*common, "--limit", 2, "--positions", "absolute", "--out", tmp_path / "out" / "needles.json"]
    first = result(*command)
    assert first["n"] == 2
    assert first["command"].startswith("hiermem eval needles")
    assert result(*command) == first
    assert "rerank" not in first["config"]["asking"]  # results from before it can be gone on with
    page = tmp_path / "page.md"
    assert str(page) in result("report", tmp_path / "out", "--page", page)["written"]
    done = run(*command[:-4], "--keep", "0.5", *command[-2:])
    assert done.returncode == 2
    assert b"other settings" in done.stderr
    other = tmp_path / "elsewhere" / book.name
    other.parent.mkdir()
    other.write_text(book.read_text("utf-8") + " One more.", "utf-8")
    done = run(*[other if part == book else part for part in command])
    assert done.returncode == 2
    assert b"other settings" in done.stderr


def test_bench_length_reports_every_point(tiny_model: Path, book: Path) -> None:
    small = ["--text", book, "--model", tiny_model, "--budget", 24, "--chunk", 16, "--lengths", "64"]
    rows = result("bench", "length", *small)["rows"]
    assert [row["system"] for row in rows] == ["hiermem", "full", "bare limit"]
    assert all(row["tokens_per_second"] > 0 and row["peak_rss_bytes"] > 0 for row in rows)
    assert all("ratio_to_bare" in row for row in rows)


def test_the_command_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    """Output of libraries while they are imported, and the exit status."""
    assert_refused(run_alone("ask", tmp_path, "Why?", "--model", tiny_model), "There is no memory")
    shown = run_alone("--version")
    assert shown.returncode == 0 and shown.stderr == b""
    assert shown.stdout.split() == [b"hiermem", version("hiermem-torch").encode()]


@pytest.mark.skipif(sys.platform != "linux", reason="of the OpenMP that torch ships for Linux")
def test_waiting_threads_leave_their_cores_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        if given is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        done = run_alone("eval", "pg19", "--data", tmp_path / "nothing.txt")
        assert f"OMP_WAIT_POLICY = '{expected}'" in done.stderr.decode()


def commands(group: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of every command that is shown in a help."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        elif not command.hidden and name != "lm-eval":  # whose help is the harness's own
            yield (*names, name)


def test_every_help_has_an_example() -> None:
    every = list(commands(get_command(app)))
    assert ("eval", "pg19") in every and len(every) > 15
    for words in every:
        done = run(*words, "--help")
        assert done.returncode == 0 and b"Example" in done.stdout, words


def test_bad_documents_are_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    commands = [
        ["read", "DOC", "--out", "m.hmem"],
        ["inspect", "DOC"],
        ["calibrate", "DOC", "--out", "evictor"],
        ["heads", "--text", "DOC"],
        ["eval", "passkey", "--haystack", "DOC"],
        ["eval", "babi-long", "--haystack", "DOC", "--data", "babi"],
        ["bench", "overhead", "--text", "DOC"],
        ["bench", "length", "--text", "DOC"],
        ["bench", "flat", "--text", "DOC"],
    ]
    bad = ("missing.txt", str(tmp_path), str(tmp_path / "binary.txt"))
    given = [[doc if part == "DOC" else part for part in command] for command in commands for doc in bad]
    code = """
import json, sys
from hiermem.cli.main import _status
for given in json.loads(sys.argv[1]):
    sys.argv = ["hiermem", *given]
    assert _status() == 2, given
    assert not {"torch", "transformers", "numpy"} & set(sys.modules), given
"""
    start = [sys.executable, "-c", code, json.dumps(given)]
    done = subprocess.run(start, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("The document '") == len(given)


def test_a_document_from_a_pipe_is_read_once(tiny_model: Path, tmp_path: Path) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "m.hmem"
    os.mkfifo(pipe)
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write({text_of(40)!r})"])
    assert result("read", pipe, "--out", out, "--model", tiny_model, *SMALL)["tokens"] > 20
    assert writer.wait(timeout=60) == 0
