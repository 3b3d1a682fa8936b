# pyright: basic, reportMissingImports=false
"""Draws figures, in the environment of plot.txt: `plot_draw.py FOLDER svg|png`, the figures as JSON on its input."""

import html
import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Light; and what the dark scheme has instead. The others stand out on both papers (3 to 1 at least).
INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
OURS, BASELINE, MUST, AIM = "#3b82f6", "#d97706", "#cf222e", "#1a7f37"
DARK = {INK: "#e6edf3", MUTED: "#9198a1", GRID: "#3d444d", PAPER: "#0d1117", MUST: "#ff7b72", AIM: "#56d364"}
MORE = (OURS, BASELINE, "#8b5cf6", "#0d9488", "#db2777", "#65803b")
STYLES = ("-", "--", ":", "-.")
PANEL_INCHES, HEIGHT_INCHES, PER_LINE = 4.6, 3.5, 2

mpl.rcParams.update(
    {
        # Ids are hashed from this instead of drawn at random: the same numbers give the same file.
        "svg.hashsalt": "taskyard",
        "svg.fonttype": "none",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "axes.titlesize": 9,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "legend.facecolor": PAPER,
        "legend.edgecolor": GRID,
        "legend.fontsize": 8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def plain(value: float, _position: object = None) -> str:
    """Write a number as a person does."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(figure: dict, folder: Path, form: str) -> None:
    """Draw one figure into the folder."""
    drawn = overview(figure) if figure["ratios"] else of_panels(figure)
    path = folder / f"{figure['name']}.{form}"
    if form == "png":
        drawn.savefig(path, dpi=110)
        return
    drawn.savefig(path, metadata={"Date": None, "Creator": None})
    path.write_text(schemed(path.read_text(), f"{figure['name']}: {figure['title']}"))


def schemed(svg: str, title: str) -> str:
    """Name the picture, and let its colours follow the viewer's scheme; what knows no media queries shows the light."""
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    start = svg.index("<svg")
    end = svg.index(">", start) + 1
    opening = svg[start : end - 1] + ' role="img">'
    return svg[:start] + opening + f"\n <title>{html.escape(title)}</title>{style}" + svg[end:]


def of_panels(figure: dict) -> Figure:
    """Draw the panels beside each other, two in a line."""
    panels = figure["panels"]
    columns = min(PER_LINE, len(panels))
    lines = -(-len(panels) // columns)
    drawn = Figure(figsize=(PANEL_INCHES * max(columns, 1.4), HEIGHT_INCHES * lines + 0.4), layout="constrained")
    drawn.suptitle(wrapped(f"{figure['name']}: {figure['title']}", 76 * columns), fontsize=10, fontweight="bold")
    for number, panel in enumerate(panels, 1):
        axes = drawn.add_subplot(lines, columns, number)
        axes.set_title(wrapped(panel["title"], 58), loc="left", color=MUTED)
        {"bars": bars, "curve": curve, "tail": tail}[panel["kind"]](axes, panel)
    return drawn


def wrapped(text: str, width: int) -> str:
    """Break a text into lines of so many characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def bars(axes: Axes, panel: dict) -> None:
    """Draw medians as bars, lowest to highest as whiskers, every run as a dot, bounds as lines."""
    for place, (bar, colour) in enumerate(zip(panel["bars"], (OURS, BASELINE), strict=True)):
        values = bar["values"]
        middle = statistics.median(values)
        axes.bar(place, middle, width=0.55, color=colour)
        axes.vlines(place, min(values), max(values), color=INK, linewidth=1.2)
        spread = [
            place + 0.12 * (number - (len(values) - 1) / 2) / max(1, len(values) - 1) for number in range(len(values))
        ]
        axes.scatter(spread, values, s=14, facecolor=PAPER, edgecolor=INK, linewidth=0.9, zorder=3)
        axes.annotate(
            plain(middle), (place, max(values)), (0, 6), textcoords="offset points", ha="center", fontweight="bold",
            zorder=5, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    for (label, value), colour in zip(panel["bounds"].items(), (MUST, AIM), strict=False):
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.3)
        axes.annotate(
            label, (1, value), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            va="bottom", color=colour, fontsize=8,
        )  # fmt: skip
    axes.set_xticks(range(len(panel["bars"])), [bar["label"] for bar in panel["bars"]], color=INK)
    axes.set_xlim(-0.6, len(panel["bars"]) - 0.1)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    axes.set_ylabel(panel["unit"])
    axes.yaxis.set_major_formatter(FuncFormatter(plain))


def lines(axes: Axes, panel: dict, **options: object) -> None:
    """Draw the lines of a panel; a side has its colour, or if there are more lines of one, its style."""
    few = len(panel["lines"]) == len({line["side"] for line in panel["lines"]})
    for number, line in enumerate(panel["lines"]):
        side = {"ours": 0, "baseline": 1}[line["side"]]
        colour, style = (MORE[side], "-") if few else (MORE[number % len(MORE)], STYLES[side])
        axes.plot(line["xs"], line["ys"], color=colour, linestyle=style, label=line["label"], linewidth=1.6, **options)
        if line["low"] != line["high"]:
            axes.fill_between(line["xs"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(panel["x_label"])
    axes.grid(visible=True, axis="both")
    axes.legend()


def curve(axes: Axes, panel: dict) -> None:
    """Draw y over x; an axis that spans more than two powers of ten is logarithmic."""
    lines(axes, panel, marker="o", markersize=3.5)
    ys = [value for line in panel["lines"] for value in (*line["low"], *line["high"])]
    xs = [x for line in panel["lines"] for x in line["xs"]]
    is_wide_x, is_wide_y = is_wide(xs), is_wide(ys)
    axes.set_xscale("log" if is_wide_x else "linear")
    axes.set_yscale("log" if is_wide_y else "linear")
    if not is_wide_y:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())


def is_wide(values: list[float]) -> bool:
    """Whether they are best shown on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > 100


def tail(axes: Axes, panel: dict) -> None:
    """Draw which share of the samples reaches each value: the lower right is the tail."""
    lines(axes, panel, drawstyle="steps-pre")
    if all(x > 0 for line in panel["lines"] for x in line["xs"]):
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylabel("share of samples that reach it")
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def overview(figure: dict) -> Figure:
    """Draw all ratios below each other, on a logarithmic axis, with the bounds of each."""
    rows = figure["ratios"][::-1]
    drawn = Figure(figsize=(8, 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = drawn.add_subplot()
    axes.set_title(figure["title"], loc="left", color=MUTED)
    for place, row in enumerate(rows):
        values = row["values"]
        axes.hlines(place, min(values), max(values), color=OURS, linewidth=2)
        axes.scatter(values, [place] * len(values), s=16, color=OURS, alpha=0.6, linewidth=0, zorder=3)
        axes.vlines(statistics.median(values), place - 0.3, place + 0.3, color=INK, linewidth=2, zorder=4)
        # The arrow points to where the ratio should be.
        marker = "<" if row["is_cost"] else ">"
        for bound, colour in ((row["must"], MUST), (row["aim"], AIM)):
            if bound:
                axes.scatter(
                    bound, place, marker=marker, s=46, facecolor=PAPER, edgecolor=colour, linewidth=1.5, zorder=2
                )
    axes.set_xscale("log")
    axes.axvline(1, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=INK)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(visible=True, axis="x")
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for label, colour in (("must", MUST), ("aim", AIM)):
        axes.scatter([], [], marker=">", s=40, facecolor=PAPER, edgecolor=colour, label=label)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return drawn


if __name__ == "__main__":
    for one in json.load(sys.stdin):
        draw(one, Path(sys.argv[1]), sys.argv[2])
