"""Plots that go beside a page of results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from hiermem.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"
"""How every picture begins."""


def new_figure(height: float = 3.6) -> Any:
    """An empty figure of the page's width, in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("Plots need matplotlib: install hiermem with the extra eval.") from error
    return Figure(figsize=(9, height), layout="constrained")


def plain_label(name: str) -> str:
    """A name as matplotlib shows it, which takes dollars for formulas and hides what an underscore begins."""
    return name.replace("$", r"\$").removeprefix("_")


MOST_COLOURS = 10
"""Lines with a colour of their own; of more, those of one method share it and differ in style."""
_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (7, 3)))
_MARKERS = "osv^D*XP<>h"


@dataclass
class Line:
    """A line of a plot.

    Attributes:
        label: the method with its settings; no two lines of a panel share it.
        family: the method whatever its budget.
    """

    label: str
    family: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    @property
    def variant(self) -> str:
        """Its difference from other lines of its family, such as the budget."""
        return self.label.removeprefix(self.family)

    def in_order(self) -> "Line":
        """The same line from the left to the right."""
        points = sorted(zip(self.x, self.y, strict=True))
        return Line(self.label, self.family, [x for x, _ in points], [y for _, y in points])


@dataclass(frozen=True)
class Panel:
    """Axes with their lines."""

    x_label: str
    y_label: str
    lines: Sequence[Line]
    log: bool = False
    from_zero: bool = False


def styles(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of every line by its label; no two look alike.

    Dashes say the variant. Up to `MOST_COLOURS` lines have colours of their own; of more, families have.
    """
    by_label = {line.label: line for line in lines}
    few = len(by_label) <= MOST_COLOURS
    owner = {label: label if few else line.family for label, line in by_label.items()}
    owners = list(dict.fromkeys(owner.values()))
    colours, variants = _colours(owners), list(dict.fromkeys(line.variant for line in by_label.values()))
    # Twenty colours are hard to tell apart: markers help.
    markers = variants if len(owners) <= MOST_COLOURS else owners
    return {
        label: {
            "color": colours[owner[label]],
            "linestyle": _dashes(variants.index(line.variant)),
            "marker": _MARKERS[
                markers.index(line.variant if markers is variants else owner[label]) % len(_MARKERS)
            ],
        }
        for label, line in by_label.items()
    }


def _dashes(number: int) -> Any:
    """A pattern of dashes, another for each number."""
    more = number - len(_DASHES)
    return _DASHES[number] if more < 0 else (0, (4 + more, 2, 1, 2))


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each name, no two alike."""
    from matplotlib import colormaps

    count = len(names)
    if count <= 20:
        listed = colormaps["tab10" if count <= 10 else "tab20"]
        return {name: listed(place) for place, name in enumerate(names)}
    return {name: colormaps["hsv"](place / count) for place, name in enumerate(names)}


def chart(panels: Sequence[Panel], title: str = "") -> Any:
    """A figure of panels beside each other, with one legend below."""
    every = [line for panel in panels for line in panel.lines]
    looks = styles(every)
    columns = max(1, min(3, 150 // max((len(label) + 8 for label in looks), default=1)))
    legend_rows = -(-len(looks) // columns)
    figure = new_figure(3.6 + 0.2 * legend_rows)
    handles = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for line in panel.lines:
            marked = max(1, len(line.x) // 6)
            (handles[line.label],) = axes.plot(
                line.x, line.y, label=plain_label(line.label), markevery=marked, **looks[line.label]
            )
        axes.set(xlabel=plain_label(panel.x_label), ylabel=plain_label(panel.y_label))
        if panel.log and all(x > 0 for line in panel.lines for x in line.x):
            axes.set_xscale("log")
        if panel.from_zero:
            axes.set_ylim(0, None)
    figure.suptitle(plain_label(title))
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=columns, fontsize="small")
    return figure


def draw(panels: Sequence[Panel], path: Path, title: str = "") -> None:
    """Write `chart` into the PNG file ``path``, in so few colours that it takes a quarter of the bytes."""
    picture = BytesIO()
    chart(panels, title).savefig(picture, dpi=120)
    from PIL import Image  # matplotlib needs it, too

    Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(
        path, "PNG", optimize=True
    )
