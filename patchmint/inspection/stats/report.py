"""Statistics as one HTML page that needs nothing else: no script, no network; light and dark as the reader's system."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from patchmint.inspection.stats.collect import Stats
from patchmint.inspection.stats.distributions import QUANTILES, Distribution
from patchmint.inspection.stats.plots import DARK, LIGHT, Panel, Theme, draw_svg, panels

_TOP_CODES = 20


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


def named_distributions(stats: Stats) -> list[tuple[str, Distribution]]:
    """The distributions that there are, in the order and with the names that people see."""
    found = [("texts an image", stats.texts_per_image), ("words a text", stats.words_per_text)]
    if stats.labels is not None:
        found += [("label share of a text", stats.labels.shares), ("phrases a text", stats.labels.phrases_per_text)]
        if stats.labels.scores is not None:
            found.append(("score of a phrase", stats.labels.scores))
    sizes = [("image width", stats.width), ("image height", stats.height), ("kB a sample", stats.kilobytes)]
    return [(name, distribution) for name, distribution in (*found, *sizes) if distribution is not None]


def top_codes(counts: tuple[int, ...], limit: int) -> list[tuple[int, int]]:
    """The codes that are there most often, with their counts, the first of equals first."""
    ranked = sorted(range(len(counts)), key=lambda code: (-counts[code], code))[:limit]
    return [(code, counts[code]) for code in ranked if counts[code]]


def _data_uri(panel: Panel, theme: Theme) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(draw_svg(panel, theme)).decode()}"
