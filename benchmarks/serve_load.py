"""Load on a service of a library: many clients at once, each of which checks that the answers are its own.

    hiermem serve LIB --port 8080 --requests-per-minute 0 &
    python benchmarks/serve_load.py http://127.0.0.1:8080 --clients 32 --seconds 60

Every client uploads a document with a code word that no other has, and asks for it again and again, streamed
and not in turn. An answer is mixed up where a source is of another client's document. Only addresses of this
machine are taken. With --api-key, as often as there are clients, each has a turn of its own in the queue.
"""

import argparse
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

LONGEST = 3600  # seconds
MOST = 256  # clients
FILLER = "The sea was calm and nothing of note was seen along the shore that day. " * 20


@dataclass
class Tally:
    """Answers and errors that one client has seen.

    Attributes:
        waits: seconds from a question to the end of its answer.
        begun: seconds before each answer began, as the service tells.
    """

    waits: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    mixed: int = 0


def loopback(address: str) -> str:
    """An address of this machine; any other is refused."""
    if urlsplit(address).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise argparse.ArgumentTypeError("only addresses of this machine are taken")
    return address.rstrip("/")


def name_of(number: int) -> str:
    """The name of a client's document."""
    return f"load-{number:03}.txt"


def code_of(number: int) -> str:
    """The code word of a client: letters alone, none of which is part of another."""
    letters = "bcdfghjklm"
    return "zq" + "".join(letters[int(digit)] + "u" for digit in f"{number:03}")


def prepare(client: httpx.Client, number: int) -> str:
    """Upload a client's document and wait until it was read; its id."""
    text = f"The password of keeper {number} is {code_of(number)}.\n\n{FILLER}\n"
    made = client.post("/v1/files", files={"file": (name_of(number), text)}).raise_for_status().json()
    while (file := client.get(f"/v1/files/{made['id']}").raise_for_status().json())["status"] != "processed":
        if file["status"] == "error":
            raise SystemExit(f"{file['filename']} could not be read: {file['status_details']}")
        time.sleep(0.5)
    return str(made["id"])


def ask(client: httpx.Client, number: int, stream: bool) -> tuple[list[dict[str, Any]], float]:
    """Sources of an answer, and how long it had waited."""
    question = f"Which keeper has the password {code_of(number)}?"
    body = {"model": "hiermem", "messages": [{"role": "user", "content": question}], "max_tokens": 16}
    if not stream:
        made = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return made["choices"][0]["message"]["annotations"], made["hiermem"]["waited_seconds"]
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
        answer.raise_for_status()
        rows = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    if "error" in rows[-1]:
        raise ValueError(rows[-1]["error"]["code"])
    return rows[-1]["choices"][0]["delta"]["annotations"], rows[-1]["hiermem"]["waited_seconds"]


def work(client: httpx.Client, number: int, tally: Tally, end: float) -> None:
    """Ask until the time is over."""
    stream = number % 2 == 0
    while time.monotonic() < end:
        start, stream = time.monotonic(), not stream
        try:
            sources, waited = ask(client, number, stream)
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (429, 503) and "retry-after" in error.response.headers:
                tally.refused += 1
                time.sleep(0.5)
            else:
                tally.errors.append(f"status {error.response.status_code}")
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
            if str(error) == "overloaded":
                tally.refused += 1
            else:
                tally.errors.append(type(error).__name__)
        else:
            tally.waits.append(time.monotonic() - start)
            tally.begun.append(waited)
            own = (
                sources
                and sources[0]["filename"] == name_of(number)
                and code_of(number) in sources[0]["quote"]
            )
            tally.mixed += not own


def watched(client: httpx.Client, most: list[int], end: float) -> None:
    """Note how many questions wait at most."""
    while time.monotonic() < end:
        most[0] = max(most[0], client.get("/api/status").json()["waiting"])
        time.sleep(0.5)


def resident(client: httpx.Client) -> float:
    """Memory of the service in MiB."""
    found = re.search(r"^process_resident_memory_bytes (\S+)", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) / 2**20 if found else float("nan")


def quantile(numbers: list[float], share: float) -> float:
    """A quantile; 0 of nothing."""
    return sorted(numbers)[min(int(share * len(numbers)), len(numbers) - 1)] if numbers else 0.0


def summary(tallies: list[Tally], seconds: float) -> dict[str, Any]:
    """All that was seen."""
    waits = [wait for tally in tallies for wait in tally.waits]
    means = [sum(tally.waits) / len(tally.waits) for tally in tallies if tally.waits]
    counts = [len(tally.waits) for tally in tallies]
    return {
        "clients": len(tallies),
        "answers": len(waits),
        "answers_per_second": round(len(waits) / seconds, 3),
        "mixed": sum(tally.mixed for tally in tallies),
        "refused": sum(tally.refused for tally in tallies),
        "errors": sorted({error for tally in tallies for error in tally.errors}),
        "error_count": sum(len(tally.errors) for tally in tallies),
        "wait_mean": round(sum(waits) / max(len(waits), 1), 3),
        "wait_p95": round(quantile(waits, 0.95), 3),
        "wait_longest": round(max(waits, default=0.0), 3),
        "client_means": [round(min(means, default=0.0), 3), round(max(means, default=0.0), 3)],
        "answers_of_a_client": [min(counts), max(counts)],
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url", type=loopback)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--api-key", action="append", default=[])
    parser.add_argument("--keep", action="store_true", help="leave the documents there")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not (1 <= options.clients <= MOST and 1 <= options.seconds <= LONGEST):
        parser.error(f"take 1 to {MOST} clients and 1 to {LONGEST} seconds")
    return options


def main() -> None:
    """Run it."""
    options = parsed()
    keys = options.api_key or [""]
    clients = [
        httpx.Client(
            base_url=options.url,
            timeout=600,
            headers={"Authorization": f"Bearer {key}"} if (key := keys[number % len(keys)]) else {},
        )
        for number in range(options.clients)
    ]
    ids = [prepare(client, number) for number, client in enumerate(clients)]
    begin, tallies, most = resident(clients[0]), [Tally() for _ in clients], [0]
    end = time.monotonic() + options.seconds
    threads = [
        threading.Thread(target=work, args=(client, number, tally, end))
        for number, (client, tally) in enumerate(zip(clients, tallies, strict=True))
    ]
    with httpx.Client(base_url=options.url, headers=clients[0].headers) as other:
        threads.append(threading.Thread(target=watched, args=(other, most, end)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        result = summary(tallies, options.seconds)
        result |= {"most_waiting": most[0], "mib_begin": round(begin), "mib_end": round(resident(other))}
        for identity in () if options.keep else ids:
            other.delete(f"/v1/files/{identity}").raise_for_status()
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if result["mixed"] or result["error_count"] else 0)


if __name__ == "__main__":
    main()
