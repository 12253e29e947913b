"""Tiny files of stories in the official layout of bAbI."""

from pathlib import Path

ONE = """\
1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary went back to the garden.
5 Where is Mary? \tgarden\t4
1 Daniel travelled to the office.
2 Where is Daniel? |office|1
"""
TWO = """\
1 Mary got the milk there.
2 Mary moved to the hallway.
3 Where is the milk? \thallway\t1 2
4 Mary went to the kitchen.
5 Where is the milk? \tkitchen\t1 4
"""
PATH = """\
1 The garden is west of the bathroom.
2 The bedroom is west of the garden.
3 How do you go from the bathroom to the bedroom?\tw,w\t1 2
1 The office is south of the hallway.
2 The kitchen is east of the office.
3 How do you go from the hallway to the kitchen?\ts,e\t1 2
"""
FILES = {
    "qa1_single-supporting-fact_test.txt": ONE,
    "qa2_two-supporting-facts_test.txt": TWO,
    "qa19_path-finding_test.txt": PATH,
}


def write_stories(folder: Path) -> Path:
    """The folder, with a file for each of tasks 1, 2 and 19."""
    folder.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, "utf-8")
    return folder
