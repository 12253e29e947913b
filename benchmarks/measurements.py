"""The measurements of the page of results, in order of importance, and about how long each takes.

The numbers of examples are such that all of it takes two cores less than ten hours, with two more backbones
of the size of Qwen2.5 0.5B and Gemma 3 270M.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

READ, DECODED = 380, 12
"""Tokens of smollm2 a second, read and decoded, by one core without bf16 units."""
SMOLLM2 = "smollm2"
DTYPE = ("--dtype", "float32")
"""The same on every machine: figures of several dtypes never stand in one table."""
PEERS = {
    "needles": ("streamingllm", "snapkv", "tova", "expected-attention", "keydiff", "knorm", "kvzip"),
    "ruler-4k": ("streamingllm", "snapkv", "expected-attention", "kvzip"),
}
"""Methods of kvpress that are asked dumped prompts; of RULER's, the best of the needles and the plainest."""
PEER_PROMPTS = {"needles": ("24", ("0.25",), 7.0), "ruler-4k": ("1", ("0.25", "0.50", "0.75"), 4.0)}
"""How many of the prompts, shares that are kept, and minutes of each."""
PEER_PYTHON = ".venv-peers/bin/python"
"""The interpreter of an environment from `make peers`."""
TIERS = {
    "working": ("--policy", "segment_local"),
    "longterm": ("--set", "longterm.top_k=0"),
    "embeddings": ("--set", "summary.tokens=0"),
}
"""Options that turn a tier off."""
PARTS = {
    "shipped": (),
    "without-meaning": ("--set", 'longterm.keys={"lexical": {}}'),
    "without-refusal": ("--set", "asking.least_confidence=0"),
    "one-segment": ("--set", "longterm.top_k=1"),
    "best-unit": ("--set", "asking.least_score=1"),
    "half-as-much": ("--set", "asking.passage_characters=300"),
    "whole-segment": ("--set", "longterm.top_k=1", "--set", "asking.passage_characters=0"),
}
"""Options that take a part of how questions are answered out, or change it."""
STORED = ((1, "bfloat16"), (1, "int8"), (1, "int4"), (0.25, "int8"), (0.1, "int8"), (0.05, "int8"))
"""Shares of the keys and values that a document leaves, and their formats."""


@dataclass(frozen=True)
class Backbone:
    """A model to measure.

    Attributes:
        name: what results are called by.
        option: what --model takes.
        slowness: how much longer a token takes than one of smollm2; so many fewer examples are measured.
    """

    name: str = SMOLLM2
    option: str = SMOLLM2
    slowness: float = 1.0

    def some(self, count: int) -> str:
        """A number of examples for a backbone as slow as this."""
        return str(max(1, round(count / self.slowness)))


@dataclass(frozen=True)
class Measurement:
    """A command and the file that it makes.

    Attributes:
        name: of the file, without its ending.
        words: the command; ``{out}`` stands for its file, ``{folder}`` for the folder of all.
        minutes: about how long it takes one core.
        ending: of the file.
        alone: whether it runs before all others and with nothing beside: what is made for them, and what
            would be spoilt.
        needs: the measurement whose file it reads.
    """

    name: str
    words: tuple[str, ...]
    minutes: float
    ending: str = ".json"
    alone: bool = False
    needs: str = ""

    @property
    def file(self) -> str:
        """The name of the file that it makes."""
        return self.name + self.ending


def minutes(read: float, answers: float = 0, decoded: float = 24, shown: float = 600) -> float:
    """Of one core: so many tokens read, and answers of so many tokens each after so many shown."""
    return ((read + answers * shown) / READ + answers * decoded / DECODED) / 60


def all_measurements(data: Path, others: Sequence[Backbone]) -> list[Measurement]:
    """Every measurement: those of smollm2, then what other backbones are compared by."""
    found = [*of_questions(data, Backbone()), *of_lengths(data, Backbone()), *of_texts(data, Backbone())]
    found += [*of_tiers(data), *of_parts(data), *of_stored(data, Backbone()), *of_policies(data)]
    found += [*of_peers(data), *of_speed(data), *of_heads(data)]
    for backbone in others:
        found += [*of_questions(data, backbone), *of_lengths(data, backbone), *of_texts(data, backbone)]
        found += of_stored(data, backbone)
    return found


def hiermem(name: str, backbone: Backbone, took: float, *words: str) -> Measurement:
    """A measurement by a command of hiermem."""
    own = backbone.name == SMOLLM2
    model = () if own else ("--model", backbone.option)
    return Measurement(
        name if own else f"{backbone.name}-{name}",
        ("hiermem", *words, *model, *DTYPE, "--out", "{out}"),
        took,
    )


def alone(policy: str) -> tuple[str, ...]:
    """Options for a working memory with that policy, `attention` without the head shares that ship."""
    return ("--policy", policy, *(("--evictor", "none") if policy == "attention" else ()))


def of_questions(data: Path, backbone: Backbone) -> Iterator[Measurement]:
    """Questions about real documents, and summaries."""
    own = backbone.name == SMOLLM2

    def qa(name: str, count: int, read: float, folder: str, *words: str) -> Measurement:
        limit = backbone.some(count)
        took = minutes(read, int(limit)) * backbone.slowness
        return hiermem(
            name, backbone, took, "eval", "qa", "--data", str(data / folder), "--limit", limit, *words
        )

    nq, answers = 100_000, 100 if own else 40
    if own:
        yield qa("qa-nq-hiermem", answers, nq, "nq")
    else:  # the same answers, without the reading
        yield qa("qa-nq-indexed", answers, nq / 10, "nq", "--method", "indexed")
    for method in ("bm25", "dense", "hybrid") if own else ("bm25", "dense"):
        for passages in (4, 1) if own and method != "hybrid" else (4,):
            shown = ("--method", method, "--passages", str(passages))
            yield qa(f"qa-nq-{method}-{passages}", answers, 0, "nq", *shown)
    for method in ("right", "closed", "truncated", "streaming") if own else ("right", "closed"):
        yield qa(f"qa-nq-{method}", answers, 0, "nq", "--method", method)
    for method in ("hiermem", "bm25") if own else ():
        read = nq if method == "hiermem" else 0
        yield qa(f"qa-abstain-{method}", 50, read / 2, "nq", "--abstain", "--method", method)
    for language in ("en", "de", "zh") if own else ():
        for method in ("hiermem", "bm25"):
            chosen = ("--language", language, "--method", method)
            read = 100_000 if method == "hiermem" else 0
            yield qa(f"qa-xquad-{language}-{method}", 40, read, "xquad", *chosen)
    if own:
        for method in ("hiermem", "dense"):
            chosen = ("--language", "en", "--document-language", "de", "--method", method)
            read = 100_000 if method == "hiermem" else 0
            yield qa(f"qa-xquad-en-de-{method}", 40, read, "xquad", *chosen)
        for method in ("indexed", "bm25", "dense"):
            yield qa(f"qa-xquad-en-{method}-120", 120, 5_000, "xquad", "--method", method)
    for method in ("hiermem", "bm25", "full"):
        pairs = {"hiermem": 5_500, "bm25": 0, "full": 11_000}[method]
        read = int(backbone.some(10)) * pairs
        yield qa(f"qa-kv-{method}", 10, read, "kv-retrieval", "--method", method)
    if own:
        book = str(data / "pg19" / "test" / "2544.txt")
        script = ("python", "benchmarks/prose.py", book, "{folder}/prose")
        yield Measurement("prose", script, 1, ending="/document.txt", alone=True)
    for method in ("hiermem", "bm25", "dense", "hybrid", "closed"):
        took = minutes(30_000 if method == "hiermem" else 0, 20) * backbone.slowness
        words = ("--data", "{folder}/prose", "--method", method)
        measurement = hiermem(f"qa-prose-{method}", backbone, took, "eval", "qa", *words)
        yield replace(measurement, needs="prose")
    methods = {name: ("--method", name) for name in ("hiermem", "bm25", "truncated")}
    if own:
        methods["working"] = ("--set", "asking.working=true")
    for folder, length in (("qmsum", 13_000), ("squality", 7_000)) if own else (("squality", 7_000),):
        for method, words in methods.items():
            limit = backbone.some(12 if own else 6)
            read = int(limit) * length if method in ("hiermem", "working") else 0
            took = minutes(read, int(limit), 200) * backbone.slowness
            words = ("--data", str(data / folder), "--limit", limit, *words)
            yield hiermem(f"summary-{folder}-{method}", backbone, took, "eval", "summary", *words)


def of_lengths(data: Path, backbone: Backbone) -> Iterator[Measurement]:
    """Synthetic tasks at several lengths."""
    own, book = backbone.name == SMOLLM2, str(book_of(data))

    def ruler(name: str, lengths: str, count: int, *words: str) -> Measurement:
        limit = int(backbone.some(count))
        tokens = 13 * limit * sum(map(int, lengths.split(",")))
        slow = 2 if "full" in words else 1 if "hiermem" in words else 0.2
        took = minutes(tokens * slow, 13 * limit * (lengths.count(",") + 1), 60, 0) * backbone.slowness
        sources = ("--haystack", book, "--qa", str(data))
        chosen = ("--task", "all", "--length", lengths, "--limit", str(limit), *sources)
        return hiermem(f"ruler-{name}", backbone, took, "eval", "ruler", *chosen, *words)

    short = "1024,4096,8192" if own else "1024"
    yield ruler("hiermem", short, 2, "--method", "hiermem")
    yield ruler("full", "1024,4096" if own else short, 2, "--method", "full")
    for method in ("bm25", "streaming") if own else ("bm25",):
        yield ruler(method, short, 2, "--method", method)
    if own:
        yield ruler("full-8k", "8192", 1, "--method", "full")
        for method in ("indexed", "bm25", "streaming"):
            yield ruler(f"{method}-32k", "32768", 1, "--method", method)

    def babi(method: str, lengths: str, count: int, name: str, *words: str) -> Measurement:
        limit = backbone.some(count)
        answers = 5 * int(limit)
        slow = {"full": 2, "bm25": 0, "indexed": 0.1}.get(method, 1)
        read = answers * sum(map(int, lengths.split(","))) * slow
        took = minutes(read, answers * (lengths.count(",") + 1), 10) * backbone.slowness
        chosen = ("--haystack", book, "--data", str(data / "babi"), "--lengths", lengths, "--limit", limit)
        chosen = (*chosen, "--seed", "1", "--method", method, *words)
        return hiermem(f"babi-{name}", backbone, took, "eval", "babi-long", *chosen)

    lengths = "0,1000,8000" if own else "0,1000"
    for method in ("hiermem", "bm25"):
        yield babi(method, lengths, 4, method)
    yield babi("full", "0,1000", 4, "full")
    if own:
        for name, words in (("hmt", ()), ("rmt", ("--set", "summary.last=1"))):
            yield babi("pruned", "0,1000", 4, name, "--model", "smollm2-hmt", *words)
        for method in ("indexed", "bm25"):
            yield babi(method, "32000,128000", 1, f"{method}-128k")
    for task, answers in (("hashhop", 20), ("mqar", 16)):
        for method in ("hiermem", "bm25", "full") if own else ("hiermem", "full"):
            limit = int(backbone.some(2))
            lengths = "1000,8000" if own and method != "full" else "1000"
            words = ("eval", task, "--lengths", lengths, "--limit", str(limit), "--seed", "1")
            read = {"hiermem": 9_000 if own else 1_000, "bm25": 0, "full": 2_000}[method] * limit
            took = minutes(read, answers * limit) * backbone.slowness
            yield hiermem(f"{task}-{method}", backbone, took, *words, "--method", method)

    def passkey(name: str, method: str, lengths: str, count: int) -> Measurement:
        limit = backbone.some(count)
        words = ("--haystack", book, "--lengths", lengths, "--limit", limit, "--seed", "1")
        read = int(limit) * sum(map(int, lengths.split(","))) * (0.4 if method == "indexed" else 1)
        took = minutes(read, int(limit) * 2) * backbone.slowness
        return hiermem(f"passkey-{name}", backbone, took, "eval", "passkey", *words, "--method", method)

    for method in ("hiermem", "bm25", "full") if own else ("hiermem", "full"):
        yield passkey(method, method, "1024,8192" if own else "1024", 5)
    if own:
        yield passkey("indexed", "indexed", "1024,8192", 20)
        yield passkey("indexed-128k", "indexed", "32768,128000", 5)


def of_texts(data: Path, backbone: Backbone) -> Iterator[Measurement]:
    """Perplexity, needles and questions about abstracts: what a bounded cache loses."""
    own, books = backbone.name == SMOLLM2, str(data / "pg19")
    tokens = "32768" if own else "4096"
    policies = ("window", "attention", "namm") if own else ("window", "attention")
    baselines = ("h2o", "l2_norm") if own else ()
    took = minutes(4 * int(tokens)) * backbone.slowness
    chosen = ("eval", "pg19", "--data", books, "--max-tokens", tokens)
    for policy in policies:
        words = (*alone(policy), "--budget", "512")
        yield hiermem(f"pg19-{policy}-512", backbone, took, *chosen, *words)
    yield hiermem("pg19-full", backbone, 2 * took, *chosen, "--policy", "full", "--window", "8192")

    limit = backbone.some(100 if own else 24)
    took = minutes(int(limit) * 2_000, 0) * backbone.slowness
    chosen = ("eval", "needles", "--data", books, "--length", "2000", "--limit", limit)
    for policy in (*policies, *baselines):
        words = ("--keep", "0.25", *alone(policy))
        yield hiermem(f"needles-{policy}-25", backbone, took, *chosen, *words)
    yield hiermem("needles-full", backbone, took, *chosen, "--keep", "1", "--method", "full")
    yield hiermem("needles-hiermem-25", backbone, took, *chosen, "--keep", "0.25", "--method", "hiermem")
    if own:
        words = ("--length", "4000", "--limit", "24", "--method", "hiermem", "--set", "longterm.top_k=4")
        yield hiermem("needles-four-segments", backbone, took / 2, "eval", "needles", "--data", books, *words)

    limit = backbone.some(100)
    for together, methods in (
        (50, ("hiermem", "bm25")),
        (10, ("hiermem", "bm25", "full", "closed")),
    ):
        for method in methods if own else ():
            chosen = ("--data", str(data / "pubmedqa"), "--method", method, "--together", str(together))
            took = minutes(int(limit) * 350, int(limit), 40) * backbone.slowness
            words = ("eval", "pubmedqa", *chosen, "--limit", limit)
            yield hiermem(f"pubmedqa-{method}-{together}", backbone, took, *words)
    if own:
        words = ("eval", "retrieval", "--data", str(data / "pubmedqa"))
        yield hiermem("retrieval", backbone, 1, *words)
        for folder in ("nq", "xquad"):
            found = ("eval", "retrieval", "--data", str(data / folder), "--encoder", "minilm")
            yield hiermem(f"retrieval-{folder}", backbone, 3, *found)
        for language in ("de", "es", "ru", "zh", "ar"):
            found = ("eval", "retrieval", "--data", str(data / "xquad"), "--language", language)
            yield hiermem(f"retrieval-xquad-{language}", backbone, 1, *found)
        yield hiermem("retrieval-reranked-100", backbone, 6, *words, "--rerank", "5", "--limit", "100")


def of_tiers(data: Path) -> Iterator[Measurement]:
    """The trained model with all tiers before a question, with each left out, and with each alone.

    As shipped, recalled passages stand before a question alone, and no other tier reaches the answer.
    """
    full, together = Backbone(), ("--set", "asking.working=true")
    parts: dict[str, tuple[str, ...]] = {"all": ()}
    for tier, off in TIERS.items():
        parts[f"without-{tier}"] = off
        parts[f"{tier}-alone"] = tuple(word for other in TIERS if other != tier for word in TIERS[other])
    for name, words in parts.items():
        model = ("--model", "smollm2-full", *together, *words)
        stories = ("--haystack", str(book_of(data)), "--data", str(data / "babi"), "--lengths", "1000")
        stories = ("eval", "babi-long", *stories, "--limit", "4", "--seed", "1", *model)
        yield hiermem(f"tiers-babi-{name}", full, minutes(20_000, 20, 10), *stories)
        sizes = ("--lengths", "1024,8192", "--limit", "5", "--seed", "1")
        key = ("eval", "passkey", "--haystack", str(book_of(data)), *sizes, *model)
        yield hiermem(f"tiers-passkey-{name}", full, minutes(46_000, 10), *key)


def of_parts(data: Path) -> Iterator[Measurement]:
    """How questions are answered, each part of it taken out: validation questions, since it tells what to
    choose. Stored keys and values need the document read; all else is the same where it is only indexed."""
    questions = ("eval", "qa", "--data", str(data / "nq"), "--split", "validation", "--limit", "100")
    for name, words in PARTS.items():
        whole = (*questions, "--method", "indexed", *words)
        yield hiermem(f"parts-{name}", Backbone(), minutes(10_000, 100), *whole)
    stored = ("--set", "longterm.tiers.kv.keep=1", "--set", "asking.passages=kv")
    for name, words in (("kv", stored), ("kv-untrained", (*stored, "--set", "kv_prompt.tokens=0"))):
        took = minutes(100_000, 100, shown=60)
        yield hiermem(f"parts-{name}", Backbone(), took, *questions, *words)


def of_stored(data: Path, backbone: Backbone) -> Iterator[Measurement]:
    """Questions answered from stored keys and values, by the share of them that is kept and its format;
    for another backbone, for which no prompt in front of them was trained, one row, and one from text."""
    own, limit = backbone.name == SMOLLM2, backbone.some(120)
    questions = ("eval", "qa", "--data", str(data / "xquad"), "--limit", limit)
    took = minutes(25_000, int(limit), shown=60) * backbone.slowness
    for keep, dtype in STORED if own else ((1, "int8"),):
        kept = ("--set", f"longterm.tiers.kv.keep={keep}", "--set", f"longterm.tiers.kv.dtype={dtype}")
        words = (*questions, "--set", "asking.passages=kv", *kept)
        yield hiermem(f"stored-{dtype}-{keep * 100:.0f}", backbone, took, *words)
    if not own:
        yield hiermem("stored-text", backbone, took, *questions, "--method", "indexed")


def of_policies(data: Path) -> Iterator[Measurement]:
    """Measurements of smollm2 alone: its trained memories and its evolved network."""
    own, books = Backbone(), str(data / "pg19")
    needles = ("eval", "needles", "--data", books, "--length", "2000", "--keep", "0.25", "--policy", "namm")
    compressed = (*needles, "--limit", "24", "--method", "compressed")
    yield hiermem("needles-namm-compressed-25", own, minutes(48_000), *compressed)
    for name, words in {
        "isolated": ("--policy", "full", "--window", "512"),
        "sensory": ("--policy", "full", "--window", "512", "--overlap", "32"),
        "hmt": ("--model", "smollm2-hmt"),
        "rmt": ("--model", "smollm2-hmt", "--set", "summary.last=1"),
        "full-memory": ("--model", "smollm2-full"),
        "full-attention-memory": ("--model", "smollm2-full", "--policy", "attention"),
    }.items():
        words = ("eval", "pg19", "--data", books, "--max-tokens", "8192", *words)
        yield hiermem(f"pg19-{name}-8k", own, minutes(50_000), *words)
    pairs = ("--model", "smollm2-hmt", "--segments", "12", "--limit", "2")
    yield hiermem("interleaved-hmt", own, minutes(60_000), "eval", "interleaved", "--data", books, *pairs)


def of_peers(data: Path) -> Iterator[Measurement]:
    """kvpress's methods and ours on the same prompts, RULER of 4 k among them."""
    own, books = Backbone(), str(data / "pg19")
    sources = ("--haystack", str(book_of(data)), "--qa", str(data))
    ruler = ("eval", "ruler", "--task", "all", "--length", "4096", "--limit", "1", *sources)
    needles = ("eval", "needles", "--data", books, "--length", "2000", "--limit", "100")
    for name, words in (("needles", needles), ("ruler-4k", ruler)):
        dump = ("hiermem", *words, "--dump", "{out}")
        yield Measurement(name, dump, 1, ending=".jsonl", alone=True)
    for keep in ("0.25", "0.50", "0.75"):
        for policy in ("window", "attention", "namm", "h2o", "l2_norm"):
            words = (*ruler, "--method", "pruned", *alone(policy), "--keep", keep)
            yield hiermem(f"ruler-4k-{policy}-{keep[2:]}", own, minutes(53_000, 13, 60, 0), *words)
    for prompts, (limit, keeps, took) in PEER_PROMPTS.items():
        for method in PEERS[prompts]:
            for keep in keeps:
                words = (
                    PEER_PYTHON,
                    "benchmarks/kvpress_prompts.py",
                    "--model",
                    "{smollm2}",
                    "--method",
                    method,
                )
                selection = ("--prompts", f"{{folder}}/{prompts}.jsonl", "--limit", limit)
                whole = (*words, *selection, "--keep", keep, "--out", "{out}")
                name = f"{prompts}-kvpress-{method}-{keep[2:]}"
                yield Measurement(name, whole, took, needs=prompts)


def of_speed(data: Path) -> Iterator[Measurement]:
    """Speed and memory, with nothing beside."""
    length = ("hiermem", "bench", "length", "--text", str(book_of(data)), "--lengths")
    for name, took, words in (
        ("length-8k", 10, ("2048,8192", "--repeats", "3")),
        ("length-32k", 15, ("32768",)),
        ("length-128k", 20, ("131072", "--systems", "hiermem,full")),
    ):
        yield Measurement(name, (*length, *words, "--out", "{out}"), took, alone=True)


def of_heads(data: Path) -> Iterator[Measurement]:
    """A third of the heads replaced, and not."""
    own = Backbone()
    for name, model in (("unmodified", SMOLLM2), ("trained", "smollm2-mamba")):
        books = ("eval", "pg19", "--data", str(data / "pg19"), "--max-tokens", "8192", "--model", model)
        for part, words in {
            "2k": ("--policy", "full_cache", "--window", "2048"),
            "stream": (*alone("attention"), "--budget", "512"),
        }.items():
            words = (*books, *words)
            yield hiermem(f"pg19-heads-{name}-{part}", own, minutes(33_000), *words)


def book_of(data: Path) -> Path:
    """PG-19's test book 9931, of 136 k tokens."""
    return data / "pg19" / "test" / "9931.txt"
