"""Plots of statistics, by matplotlib: one picture with all of them, or one after another on an HTML page.

The page needs nothing else: no script, no network; light and dark as the reader's system.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patchmint.inspection.stats.collect import Stats, named_distributions, top_codes
from patchmint.inspection.stats.distributions import QUANTILES, Distribution

_COLUMNS = 3
_PANEL_INCHES = (4.4, 3.2)
_DPI = 120

_TOP_CODES = 20


@dataclass(frozen=True)
class Theme:
    """Colours."""

    ground: str
    ink: str
    bar: str
    map: str


LIGHT = Theme(ground="#ffffff", ink="#22262c", bar="#0072b2", map="viridis")
DARK = Theme(ground="#181a1f", ink="#e4e7ea", bar="#56b4e9", map="viridis")


@dataclass(frozen=True)
class Panel:
    """A plot.

    Attributes:
        title: what it shows.
        draw: puts it on axes.
    """

    title: str
    draw: Callable[[Axes, Theme], None]


def panels(stats: Stats) -> list[Panel]:
    """The plots that the statistics have numbers for. No text of the data set is in them."""
    found = []
    if stats.positions is not None:
        what = "part of the image" if stats.positions.relative else "patch"
        found += [
            _map(f"texts that keep the {what}", stats.positions.selector),
            _map(f"mean coverage of the {what}", stats.positions.coverage),
        ]
    if stats.labels is not None:
        found.append(_histogram("label share", "share of the patches", "texts", stats.labels.shares))
        found.append(_histogram("phrases a text", "phrases", "texts", stats.labels.phrases_per_text))
        if stats.labels.scores is not None:
            found.append(_histogram("scores", "score", "phrases", stats.labels.scores))
        if stats.labels.trust is not None:
            found.append(_histogram("trust", "trust", "texts", stats.labels.trust))
    for usage in stats.codes:
        name = f" of book {usage.book}" if len(stats.codes) > 1 else ""
        found.append(_usage(f"use of codes{name}", usage.counts))
    for title, values, counted, distribution in (
        ("words a text", "words", "texts", stats.words_per_text),
        ("image width", "pixels", "images", stats.width),
        ("image height", "pixels", "images", stats.height),
    ):
        if distribution is not None:
            found.append(_histogram(title, values, counted, distribution))
    return found


def draw_png(stats: Stats) -> bytes:
    """All plots in one PNG, light."""
    chosen = panels(stats)
    rows = -(-len(chosen) // _COLUMNS)
    size = (_COLUMNS * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.6)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=LIGHT.ground, layout="constrained")
    # A name may hold what the font lacks, and $ would begin a formula.
    title = stats.dataset.encode("ascii", "replace").decode()
    figure.suptitle(f"{title}: {stats.samples:,} samples", color=LIGHT.ink, parse_math=False)
    for place, panel in enumerate(chosen, start=1):
        _draw(figure.add_subplot(rows, _COLUMNS, place), panel, LIGHT)
    return _saved(figure, "png")


def draw_svg(panel: Panel, theme: Theme) -> bytes:
    """One plot as SVG, without its title."""
    figure = Figure(figsize=_PANEL_INCHES, facecolor=theme.ground, layout="constrained")
    _draw(figure.add_subplot(), Panel("", panel.draw), theme)
    return _saved(figure, "svg")


def _saved(figure: Figure, form: str) -> bytes:
    file = io.BytesIO()
    # Without a date the same numbers give the same plots.
    figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _draw(axes: Axes, panel: Panel, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    axes.set_title(panel.title, color=theme.ink, loc="left", fontsize="medium")
    panel.draw(axes, theme)
    axes.tick_params(colors=theme.ink)
    for spine in axes.spines.values():
        spine.set_color(theme.ink)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)


def _histogram(title: str, values: str, counted: str, distribution: Distribution) -> Panel:
    def draw(axes: Axes, theme: Theme) -> None:
        lows = np.array([entry.low for entry in distribution.bins])
        widths = np.array([entry.high for entry in distribution.bins]) - lows
        whole = distribution.step == 1 and (widths == 1).all()
        axes.bar(
            lows - 0.5 * whole, [entry.count for entry in distribution.bins], widths, align="edge", color=theme.bar
        )
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel(values)
        axes.set_ylabel(counted)
        axes.spines[["top", "right"]].set_visible(False)

    return Panel(title, draw)


def _map(title: str, values: Sequence[Sequence[float]]) -> Panel:
    def draw(axes: Axes, theme: Theme) -> None:
        image = axes.imshow(np.array(values), cmap=theme.map, vmin=0, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        scale = axes.figure.colorbar(image, ax=axes, format="{x:.0%}")
        scale.ax.tick_params(colors=theme.ink)
        scale.outline.set_edgecolor(theme.ink)

    return Panel(title, draw)


def _usage(title: str, counts: Sequence[int]) -> Panel:
    def draw(axes: Axes, theme: Theme) -> None:
        ranked = np.sort(np.array(counts))[::-1]
        used = ranked[ranked > 0]
        axes.loglog(np.arange(1, len(used) + 1), used, color=theme.bar, drawstyle="steps-mid")
        axes.set_xlim(1, len(ranked))
        axes.set_xlabel(f"codes by rank, of {len(ranked):,}")
        axes.set_ylabel("occurrences")
        axes.spines[["top", "right"]].set_visible(False)

    return Panel(title, draw)


def render_page(stats: Stats) -> str:
    """The page; whatever the data set's texts are, they are escaped."""
    environment = Environment(
        loader=PackageLoader("patchmint.inspection.stats"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    plots = [(panel.title, _data_uri(panel, LIGHT), _data_uri(panel, DARK)) for panel in panels(stats)]
    return environment.get_template("stats.html").render(
        stats=stats,
        rejected=sum(entry.count for entry in stats.rejects),
        distributions=named_distributions(stats),
        quantiles=QUANTILES,
        top_codes=[top_codes(usage.counts, _TOP_CODES) for usage in stats.codes],
        plots=plots,
    )


def _data_uri(panel: Panel, theme: Theme) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(draw_svg(panel, theme)).decode()}"
