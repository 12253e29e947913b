"""`hiermem eval TASK`: quality of any configuration on public tasks."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.cli import results
from hiermem.errors import InputError, first_line
from hiermem.eval.result_log import ResultLog, data_hash, writable

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

LEAST_KEPT = 16
"""Tokens that a policy needs for the sinks and something of its own."""

app = typer.Typer(help="Measure quality on public tasks.", no_args_is_help=True)

Split = Annotated[str, typer.Option(help="train, test or (books) validation; all for PubMedQA from the hub.")]
Keep = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Share of a text that --system pruned or compressed keeps."),
]
Method = Annotated[
    str,
    typer.Option(help="hiermem, or a peer: full, truncated, streaming, bm25, closed, pruned, compressed."),
]
Books = Annotated[int | None, typer.Option(min=1, help="Use only so many books, the first by name.")]
Questions = Annotated[
    int | None,
    typer.Option(min=1, help="Use only so many questions, drawn at random, each decision in proportion."),
]
Draw = Annotated[int | None, typer.Option("--seed", help="Seed of what --limit draws; default: 0.")]


@app.command()
def pg19(
    data: opt.Data,
    split: Split = "test",
    book: Annotated[str | None, typer.Option(help="Id of one book; default: all.")] = None,
    start_token: Annotated[int, typer.Option(help="First token that is read.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens read of each book.")] = None,
    score_from: Annotated[int, typer.Option(help="Score only predictions made from this token on.")] = 0,
    window: Annotated[int | None, typer.Option(help="Forget everything after so many tokens.")] = None,
    overlap: Annotated[int, typer.Option(help="Tokens read again, unscored, at the start of a window.")] = 1,
    model: opt.Model = "smollm2",
    policy: Annotated[
        str | None,
        typer.Option(
            help="window, attention, namm, none, or full: plain full attention. Default: the model's own."
        ),
    ] = None,
    budget: opt.Budget = None,
    chunk: opt.Chunk = None,
    positions: opt.Positions = None,
    evictor: opt.EvictorName = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    limit: Books = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Streaming perplexity over books: teacher-forced, each token scored once.

    Examples:

        hiermem eval pg19 --data pg19 --policy window --budget 512 --max-tokens 32768

        hiermem eval pg19 --data book.txt --policy full --window 8192 --json

        hiermem eval pg19 --data pg19 --policy full --window 512 --overlap 32  # HMT without its memory
    """
    from hiermem.eval.tasks import pg19 as task

    part = task.Slice(start_token, max_tokens, score_from, window, overlap)
    texts = task.books(data, split, book, limit)
    if policy == "full":
        if budget is not None or positions is not None:
            raise InputError("Full attention keeps everything in place: leave --budget and --positions out.")
        config = opt.configuration(model, "bare", chunk=chunk)
    else:
        config = opt.configuration(
            model, None, policy, budget, chunk=chunk, positions=positions, evictor=evictor
        )
    settings = {"books": list(texts), "split": split, **asdict(part)}
    settings["policy"] = "full" if policy == "full" else config.working.policy

    def run(journal: ResultLog) -> dict[str, Any]:
        return task.evaluate(opt.load_model(model, config, dtype, device), texts, part, journal)

    known = results.settings(model, config, dtype, device, texts.values())
    results.run("pg19", run, {**known, **settings}, out, json)


@app.command()
def interleaved(
    data: opt.Data,
    model: Annotated[str, typer.Option(help="Folder of a model whose segments leave memory embeddings.")],
    split: Split = "test",
    segments: Annotated[int, typer.Option(min=2, help="Segments read of each book.")] = 32,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    limit: Books = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Pairs of books cut into alternating segments: does recall look at the right book, what does it bring?

    Example:

        hiermem eval interleaved --data pg19 --model runs/memory --segments 32
    """
    from hiermem.eval.tasks import interleaved as task
    from hiermem.eval.tasks import pg19 as books

    texts = books.books(data, split, None, limit)
    config = opt.configuration(model, None)
    task.check(config, len(texts))
    settings = {"books": list(texts), "split": split, "segments": segments}

    def run(journal: ResultLog) -> dict[str, Any]:
        return task.evaluate(opt.load_model(model, config, dtype, device), texts, segments, journal)

    known = results.settings(model, config, dtype, device, texts.values())
    results.run("interleaved", run, {**known, **settings}, out, json)


@app.command()
def passkey(
    haystack: Annotated[
        str, typer.Option(help="Text file that the sentence is hidden in.", callback=opt.checked_document)
    ],
    lengths: Annotated[
        str, typer.Option(help="Text lengths in tokens, comma-separated.")
    ] = "1024,8192,32768",
    limit: Annotated[int, typer.Option(min=1, help="Examples per length.")] = 20,
    seed: opt.Seed = 0,
    system: Method = "hiermem",
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    budget: opt.Budget = None,
    keep: Keep = None,
    segment: opt.Segment = None,
    chunk: opt.Chunk = None,
    top_k: opt.TopK = None,
    evictor: opt.EvictorName = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Find a five-digit key in a long text: greedy answer, exact match.

    Examples:

        hiermem eval passkey --haystack book.txt --lengths 1024,8192 --limit 20 --seed 1

        hiermem eval passkey --haystack book.txt --lengths 2048 --system full
    """
    from hiermem.eval.methods import SYSTEMS, HierMem, check_system
    from hiermem.eval.tasks import passkey as task

    wanted = opt.whole_numbers(lengths, "--lengths")
    text = opt.read_document(haystack)
    config = opt.configuration(model, preset, policy, budget, segment, chunk, top_k=top_k, evictor=evictor)
    check_system(system, tuple(SYSTEMS))
    settings = {"haystack": Path(haystack).name, "lengths": wanted, "limit": limit, "seed": seed}
    settings |= results.kept(keep, system, config)
    settings |= {} if system == HierMem.name else {"system": system}  # as before there were others

    def run(journal: ResultLog) -> dict[str, Any]:
        reader = opt.load_model(model, config, dtype, device)
        return task.evaluate(reader, system, text, wanted, limit, seed, journal, keep)

    known = results.settings(model, config, dtype, device, [text])
    results.run("passkey", run, {**known, **settings}, out, json)


@app.command()
def needles(
    data: opt.Data,
    split: Split = "test",
    system: Annotated[
        str,
        typer.Option(
            help="pruned: without recall, by the policy while it reads; compressed: once all was read, as "
            "kvpress does; full: all kept; hiermem: with recall."
        ),
    ] = "pruned",
    policy: opt.Policy = None,
    keep: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the text that is kept.")] = 0.25,
    length: Annotated[int, typer.Option(min=1, help="Tokens of each text.")] = 2000,
    limit: Annotated[int, typer.Option(min=1, help="Number of texts.")] = 100,
    seed: opt.Seed = 0,
    dump: Annotated[
        Path | None, typer.Option(help="Write the prompts to this JSONL file, run nothing.")
    ] = None,
    model: opt.Model = "smollm2",
    chunk: opt.Chunk = None,
    positions: opt.Positions = None,
    evictor: opt.EvictorName = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Four numbered codes in real text, one asked for after the text was pruned to a share of its tokens.

    The share counts all tokens before the question, codes and prompt included.

    Examples:

        hiermem eval needles --data pg19 --policy attention --keep 0.25 --length 2000 --limit 100

        hiermem eval needles --data pg19 --limit 100 --dump prompts.jsonl
    """
    from hiermem.eval.haystack import Haystack
    from hiermem.eval.methods import Compressed, Full, HierMem, Pruned, check_compressed, check_system
    from hiermem.eval.tasks import needles as task
    from hiermem.eval.tasks import pg19

    check_system(system, (Pruned.name, Compressed.name, Full.name, HierMem.name))
    budget = round(keep * length)
    if budget < LEAST_KEPT:
        raise InputError(f"{keep} of {length} tokens is too little to keep: raise --keep or --length.")
    config = opt.configuration(model, None, policy, budget, chunk=chunk, positions=positions, evictor=evictor)
    check_compressed(system, config.working, keep)
    texts = pg19.books(data, split, None, None)
    settings = {"books": list(texts), "system": system, "keep": keep, "length": length, "limit": limit}
    settings["seed"] = seed

    def prepared() -> tuple["HierMemModel", list[task.Example]]:
        reader = opt.load_model(model, config, dtype, device)
        haystacks = [Haystack(reader.tokenizer, text) for text in texts.values()]
        return reader, task.examples(haystacks, length, limit, seed)

    if dump is not None:
        if out is not None:
            raise InputError("--dump measures nothing: leave --out away.")
        writable(dump, "--dump", task.DUMPED)
        reader, made = prepared()
        task.dump(reader, made, dump)
        opt.emit({"prompts": str(dump), "n": len(made)}, json, f"Wrote {len(made)} prompts to {dump}.")
        return

    def run(journal: ResultLog) -> dict[str, Any]:
        reader, made = prepared()
        return task.evaluate(reader, system, keep, made, journal)

    known = results.settings(model, config, dtype, device, texts.values())
    results.run("needles", run, {**known, **settings}, out, json)


@app.command()
def pubmedqa(
    data: opt.Data,
    split: Split = "test",
    together: Annotated[int, typer.Option(min=1, help="M: abstracts fused into one text.")] = 10,
    system: Annotated[
        str,
        typer.Option(
            help="hiermem, full, truncated, streaming, bm25, closed, pruned or right (the right abstract)."
        ),
    ] = "hiermem",
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    budget: opt.Budget = None,
    keep: Keep = None,
    segment: opt.Segment = None,
    chunk: opt.Chunk = None,
    top_k: opt.TopK = None,
    evictor: opt.EvictorName = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    limit: Questions = None,
    seed: Draw = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """PubMedQA with M abstracts read first, then their questions: decision, long answer, recall.

    Examples:

        hiermem eval pubmedqa --data pubmedqa --together 50

        hiermem eval pubmedqa --data pubmedqa --together 50 --system bm25 --limit 100 --json
    """
    from hiermem.eval.methods import SYSTEMS, check_system
    from hiermem.eval.tasks import pubmedqa as task

    config = opt.configuration(model, preset, policy, budget, segment, chunk, top_k=top_k, evictor=evictor)
    config = config.with_asking(**task.ASKING)
    check_system(system, (*SYSTEMS, task.RIGHT))
    drawn = results.drawn(limit, seed)
    items = task.drawn(task.load(data, split), **drawn)
    settings = {"split": split, **drawn, "together": together, "system": system}
    settings |= results.kept(keep, system, config)

    def run(journal: ResultLog) -> dict[str, Any]:
        reader = opt.load_model(model, config, dtype, device)
        return task.evaluate(reader, system, items, together, journal, keep)

    known = results.settings(model, config, dtype, device, map(str, items))
    results.run("pubmedqa", run, {**known, **settings}, out, json)


@app.command("babi-long")
def babi_long(
    haystack: Annotated[
        str, typer.Option(help="Text file that the facts are scattered in.", callback=opt.checked_document)
    ],
    lengths: Annotated[
        str, typer.Option(help="Text lengths in tokens, comma-separated; 0: the stories alone.")
    ] = "0,1000,8000,32000",
    limit: Annotated[int, typer.Option(min=1, help="Texts per length.")] = 4,
    stories: Annotated[int, typer.Option(min=1, help="Stories of each of five kinds in a text.")] = 2,
    seed: opt.Seed = 0,
    system: Method = "hiermem",
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    budget: opt.Budget = None,
    keep: Keep = None,
    segment: opt.Segment = None,
    chunk: opt.Chunk = None,
    top_k: opt.TopK = None,
    evictor: opt.EvictorName = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Little stories of people, places and things scattered in a long text; five kinds of question.

    Example:

        hiermem eval babi-long --haystack book.txt --lengths 1000,8000 --limit 5 --seed 1
    """
    from hiermem.eval.haystack import Haystack
    from hiermem.eval.methods import SYSTEMS, check_system
    from hiermem.eval.tasks import babilong as task

    wanted = opt.whole_numbers(lengths, "--lengths")
    text = opt.read_document(haystack)
    config = opt.configuration(model, preset, policy, budget, segment, chunk, top_k=top_k, evictor=evictor)
    check_system(system, tuple(SYSTEMS))
    size = task.Size(lengths=wanted, texts=limit, rounds=stories, seed=seed)
    kept = results.kept(keep, system, config)
    settings = {"haystack": Path(haystack).name, **asdict(size), "system": system, **kept}

    def run(journal: ResultLog) -> dict[str, Any]:
        reader = opt.load_model(model, config, dtype, device)
        return task.evaluate(reader, system, Haystack(reader.tokenizer, text), size, journal, keep)

    known = results.settings(model, config, dtype, device, [text])
    results.run("babi-long", run, {**known, **settings}, out, json)


@app.command()
def retrieval(
    data: opt.Data,
    split: Split = "test",
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    rerank: opt.Rerank = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    limit: Questions = None,
    seed: Draw = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Find each PubMedQA question's own abstract among all abstracts.

    Examples:

        hiermem eval retrieval --data pubmedqa --split test --limit 300 --json

        hiermem eval retrieval --data pubmedqa --rerank 5

        hiermem eval retrieval --data pubmedqa --model runs/key
    """
    from hiermem.eval.tasks import pubmedqa
    from hiermem.eval.tasks import retrieval as task

    drawn = results.drawn(limit, seed)
    items = pubmedqa.drawn(pubmedqa.load(data, split), **drawn)
    config = opt.reranking(opt.configuration(model, preset), rerank)
    reads = bool(config.summary.search or config.asking.rerank)
    settings: dict[str, Any] = {"split": split, **drawn}
    if reads:
        settings |= results.settings(model, config, dtype, device, map(str, items))
    else:
        settings |= {"longterm": asdict(config.longterm), "data": data_hash(*map(str, items))}

    def run(journal: ResultLog) -> dict[str, Any]:
        reader = opt.load_model(model, config, dtype, device) if reads else None
        return task.evaluate(items, config, reader, journal)

    results.run("retrieval", run, settings, out, json)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder with the JSON files that --out wrote.")],
    page: Annotated[Path, typer.Option(help="Markdown page to write; its plots go beside it.")] = Path(
        "report.md"
    ),
    json: opt.Json = False,
) -> None:
    """Make one page with tables and plots from a folder of results.

    Example:

        hiermem report results --page results/README.md
    """
    from hiermem.eval.report import build

    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give the one that --out wrote into.")
    written = [str(path) for path in build(folder, page)]
    opt.emit({"written": written}, json, f"Wrote {', '.join(written)}.")


def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with the model `hiermem`; all its own options.

    Example:

        hiermem lm-eval --model hiermem --model_args pretrained=smollm2,preset=full --tasks lambada_openai
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise InputError(f"lm-eval needs {error.name}: install hiermem with the extra harness.") from error
    from hiermem.cli import harness  # noqa: F401 - adds the model to lm_eval's table

    sys.argv = ["lm_eval", *context.args]
    try:
        cli_evaluate()
    except (ValueError, KeyError, TypeError, OSError) as error:  # what the harness makes of its arguments
        if isinstance(error, InputError):
            raise
        raise InputError(f"lm-eval stopped: {first_line(error)}.") from error
