"""Lists and tables from a seed, each with questions and the rows that answer them."""

import random

NAMES = "Anna Bob Cara Dag Eva Finn Gro Hans Ida Jon Kari Lars Mia Nils Ola Per Rut Siv Tor Unn".split()
FAMILIES = "Berg Lund Moe Vik Ness Aas Lie Bo Dahl Eide Foss Gran Hol Ims Jar Kolb Opp Pil Rot".split()
TOWNS = "Oslo Bergen Trondheim Bodo Alta Molde Narvik Hamar".split()
THINGS = "archive printer boiler gate alarm lamp pump freezer ladder scanner lift heater bench ship".split()
ACTS = "reset clean open lock repair move order register test insure label return lend paint wash".split()

Table = tuple[str, list[tuple[str, str]]]
"""A text, and pairs of a question and the row that answers it."""


def _people(draw: random.Random, count: int) -> list[str]:
    return draw.sample([f"{name} {family}" for name in NAMES for family in FAMILIES], count)


def csv(draw: random.Random, count: int = 200) -> Table:
    """Names with a town and a number, under a header."""
    rows = [(name, draw.choice(TOWNS), str(draw.randrange(10000, 99999))) for name in _people(draw, count)]
    text = "name,town,badge\n" + "".join(",".join(row) + "\n" for row in rows)
    return text, [(f"What is the badge of {row[0]}?", ",".join(row)) for row in rows]


def tsv(draw: random.Random, count: int = 200) -> Table:
    """Numbered articles with a name, a price and a stock, under a header."""
    rows = [
        (f"AK-{number}", draw.choice(THINGS), f"{draw.randrange(1, 99)}.50", str(draw.randrange(1, 900)))
        for number in draw.sample(range(1000, 9999), count)
    ]
    text = "article\tname\tprice\tstock\n" + "".join("\t".join(row) + "\n" for row in rows)
    return text, [(f"What is the price of article {row[0]}?", "\t".join(row)) for row in rows]


def log(draw: random.Random, count: int = 200) -> Table:
    """Lines with a time, some of two sentences."""
    pairs = []
    for second, order in enumerate(draw.sample(range(10000, 99999), count)):
        what = draw.choice(
            (
                f"order {order} failed. Retry in {draw.randrange(2, 60)} s.",
                f"payment of order {order} accepted, amount {draw.randrange(10, 999)} kr",
                f"order {order} shipped to {draw.choice(TOWNS)}",
            )
        )
        time = f"2024-05-01 {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        level = draw.choice(("INFO", "WARN", "ERROR"))
        row = f"{time} {level} [worker-{draw.randrange(1, 9)}] {what}"
        pairs.append((f"What happened to order {order}?", row))
    return "".join(row + "\n" for _, row in pairs), pairs


def faq(draw: random.Random, count: int = 200) -> Table:
    """Questions, each with its answer on the next line."""
    text, pairs = "", []
    for act, thing in draw.sample([(act, thing) for act in ACTS for thing in THINGS], count):
        room, form = draw.randrange(100, 999), draw.randrange(10, 99)
        answer = f"Ask {draw.choice(NAMES)} in room {room}. Bring form {form}."
        text += f"Q: How do I {act} the {thing}?\nA: {answer}\n\n"
        pairs.append((f"How do I {act} the {thing}?", answer))
    return text, pairs


TABLES = {"csv": csv, "tsv": tsv, "log": log, "faq": faq}
