"""
The report's charts, rendered by Vega-Lite to SVG when the page is written.

SVG needs no script, prints sharply, and takes its colours from the page's style sheet, so the same drawing
works in light mode, in dark mode and on paper. Each chart is rendered twice, for wide and narrow screens,
because a scaled-down drawing would be illegible.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeAlias

from attrs import frozen
from markupsafe import Markup

from postpress_async.errors import Scope
from postpress_async.rotation._outcome import State
from postpress_async.rotation.journal._statistics import ErrorCount
from postpress_async.rotation.report._findings import Findings, Latency
from postpress_async.rotation.report._listing import cut

Spec: TypeAlias = dict[str, Any]

WIDE, NARROW = 880, 290  # width of the plot area in pixels, without the labels on its left
ERRORS_DRAWN: Final = 12  # maximum number of errors in the chart

_COUNT_AXIS: Final = {
    "title": None,
    "tickCount": 3,
    "labelExpr": "format(datum.value, datum.value < 10 ? '~g' : ',')",
}
_BARS: Final[Spec] = {"type": "bar", "orient": "vertical"}
_LABEL: Final[Spec] = {"type": "text", "align": "left", "color": "var(--ink)"}
_DESCRIPTION: Final[Spec] = {"field": "description"}
_NOT_PATCHED: Final = [State.FAILED.value, State.UNKNOWN.value, State.SKIPPED.value]


@frozen
class Chart:
    description: str  # for screen readers
    wide: Markup  # the SVG for wide screens and paper
    narrow: Markup  # the SVG for phones


def throughput(findings: Findings) -> Chart | None:
    """Accounts per second over time; accounts that were not patched have a plot with a scale of its own."""
    bars, step = findings.bars, findings.step
    if not bars:
        return None
    states = {bar.state for bar in bars}
    if State.PATCHED not in states:
        patched = "None of them was patched."
    elif len(states) > 1:
        patched = "Accounts that were not patched are shown below."
    else:
        patched = "All of them were patched."
    rows = [
        {
            "from": bar.start * 1000,
            "to": (bar.start + step) * 1000,
            "state": bar.state.value,
            "rate": bar.accounts / step,
            "description": f"{_time_range(bar.start, step)}: {bar.accounts:,} {bar.state}",
        }
        for bar in bars
    ]
    first, last = bars[0].start * 1000, (bars[-1].start + step) * 1000

    def spec(width: int) -> Spec:
        axis = _time_axis(first, last, ticks=max(3, width // 100))
        plots = []
        if State.PATCHED in states:
            title = "patched accounts per second"
            plots.append(_over_time(axis, [State.PATCHED.value], width, 150, title))
        if states != {State.PATCHED}:
            title = "accounts per second that were not patched"
            plots.append(_over_time(axis, _NOT_PATCHED, width, 60 if plots else 150, title))
        scale = {"color": "independent"}
        return {"data": {"values": rows}, "vconcat": plots, "spacing": 18, "resolve": {"scale": scale}}

    peak = max(bar.accounts for bar in bars) / step
    return _chart(f"Completed accounts per second, over time: at most {peak:,.1f}. {patched}", spec)


def _time_axis(first: float, last: float, ticks: int) -> Spec:
    """The axis that both plots share, from *first* to *last* in milliseconds."""
    seconds = (last - first) / 1000
    if seconds < ticks:  # more than one tick per second
        time_format = "%H:%M:%S.%L"
    elif seconds < 600:
        time_format = "%H:%M:%S"
    elif seconds < 2 * 86_400:
        time_format = "%H:%M"
    else:
        time_format = "%d %b %H:%M"
    return {
        "field": "from",
        "type": "temporal",
        "scale": {"type": "utc", "domain": [first, last], "nice": False},
        "axis": {"format": time_format, "title": None, "grid": False, "tickCount": ticks},
    }


def _over_time(axis: Spec, states: list[str], width: int, height: int, title: str) -> Spec:
    colours = {"domain": states, "range": [f"var(--{state})" for state in states]}
    return {
        "width": width,
        "height": height,
        "title": {"text": title, "anchor": "start", "frame": "group"},
        "transform": [{"filter": {"field": "state", "oneOf": states}}],
        "mark": _BARS | {"binSpacing": 0.5 if width < WIDE else 1},
        "encoding": {
            "x": axis,
            "x2": {"field": "to"},
            "y": {"field": "rate", "type": "quantitative", "axis": _COUNT_AXIS},
            "color": {"field": "state", "scale": colours, "legend": None},
            "order": {"field": "state"},
            "description": _DESCRIPTION,
        },
    }


def latency(distribution: Latency) -> Chart:
    """The distribution of the time per account, on a logarithmic scale."""
    rows = [
        {"from": low, "to": high, "accounts": n, "description": f"{low:.2g} to {high:.2g} s: {n:,} accounts"}
        for low, high, n in distribution.buckets
    ]
    # The median and the 95th percentile may be close, so their labels are on opposite sides of the two lines.
    # Widen the axis to make space for the labels.
    edges = [
        min(distribution.buckets[0][0], distribution.p50 / 4),
        max(distribution.buckets[-1][1], distribution.p95 * 4),
    ]
    scale = {"type": "log", "domain": edges, "nice": False}
    marks = [_percentile("p50", distribution.p50, "right"), _percentile("p95", distribution.p95, "left")]

    def spec(width: int) -> Spec:
        digits = (1,) if width == NARROW else (1, 2, 5)
        ticks = [digit * 10.0**n for n in range(-4, 7) for digit in digits]
        axis = {
            "title": None,
            "grid": False,
            "labelExpr": "format(datum.value, '~g') + ' s'",
            "values": ticks,
        }
        bars = {
            "data": {"values": rows},
            "mark": _BARS | {"binSpacing": 1, "color": "var(--accent)"},
            "encoding": {
                "x": {"field": "from", "type": "quantitative", "scale": scale, "axis": axis},
                "x2": {"field": "to"},
                "y": {"field": "accounts", "type": "quantitative", "axis": _COUNT_AXIS},
                "description": _DESCRIPTION,
            },
        }
        return {"width": width, "height": 150, "layer": [bars, *marks]}

    return _chart(
        f"Accounts by duration: half within {distribution.p50:g} s, 95% within {distribution.p95:g} s.", spec
    )


def _percentile(name: str, seconds: float, align: str) -> Spec:
    """A vertical line with a label."""
    label = _LABEL | {"align": align, "fontWeight": 600}
    return {
        "data": {"values": [{"seconds": seconds, "label": f"{name} {seconds:g} s"}]},
        "encoding": {"x": {"field": "seconds", "type": "quantitative"}, "description": {"field": "label"}},
        "layer": [
            {"mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [3, 3]}},
            {"mark": label, "encoding": {"y": {"value": -8}, "text": {"field": "label"}}},
        ],
    }


def errors(counts: Iterable[ErrorCount]) -> Chart:
    """Accounts by error; the colour shows the error's scope."""
    rows = [
        {
            "error": cut(error.error_type.removeprefix("errors/"), 44),
            "accounts": error.accounts,
            "scope": error.scope or "none",
            "description": f"{cut(error.error_type, 120)}: {error.accounts:,} accounts",
        }
        for error in islice(counts, ERRORS_DRAWN)
    ]
    names = [*(scope.value for scope in Scope), "none"]
    scale = {"domain": names, "range": [f"var(--{name})" for name in names]}
    colour = {"field": "scope", "scale": scale, "legend": None}

    def spec(width: int) -> Spec:
        narrow = width == NARROW
        # On a phone there is no space beside the bars, so put the names above them.
        axis = None if narrow else {"labelLimit": 300, "ticks": False, "domain": False}
        offset = 8 if narrow else 0
        layers: list[Spec] = [
            {
                "mark": {"type": "bar", "height": 10 if narrow else 14, "yOffset": offset},
                "encoding": {"color": colour, "description": _DESCRIPTION},
            },
            {
                "mark": _LABEL | {"dx": 6, "yOffset": offset},
                "encoding": {"text": {"field": "accounts", "format": ","}},
            },
        ]
        if narrow:
            mark = _LABEL | {"yOffset": -7, "limit": NARROW}
            layers.append({"mark": mark, "encoding": {"x": {"value": 0}, "text": {"field": "error"}}})
        return {
            "data": {"values": rows},
            "width": width - 60 if narrow else width - 250,
            "height": {"step": 36 if narrow else 24},
            "encoding": {
                "x": {"field": "accounts", "type": "quantitative", "axis": None},
                "y": {"field": "error", "type": "nominal", "sort": None, "title": None, "axis": axis},
            },
            "layer": layers,
        }

    return _chart("Accounts by error: " + "; ".join(str(row["description"]) for row in rows), spec)


def _chart(description: str, spec: Callable[[int], Spec]) -> Chart:
    return Chart(description, _draw(spec(WIDE)), _draw(spec(NARROW)))


def _draw(spec: Spec) -> Markup:
    # Imported only here, because it contains a whole JavaScript engine.
    import vl_convert

    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "config": _CONFIG, **spec}
    # Vega escapes all text. If that ever failed, the page's policy would still forbid scripts.
    return Markup(vl_convert.vegalite_to_svg(whole, allowed_base_urls=[]))  # noqa: S704


_AXIS: Final = {
    "labelColor": "var(--muted)",
    "tickColor": "var(--line)",
    "domainColor": "var(--line)",
    "gridColor": "var(--line)",
    "labelFontSize": 12,
    "labelFlush": True,
    "labelOverlap": True,
}
_CONFIG: Final[Spec] = {
    "background": "transparent",
    # The text may be wider in the browser than vl-convert assumes.
    "padding": {"left": 14, "top": 2, "right": 2, "bottom": 2},
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
    "title": {"color": "var(--muted)", "fontSize": 12, "fontWeight": "normal", "offset": 6},
    "text": {"fontSize": 12},
}


def _time_range(start: float, step: float) -> str:
    if step >= 60:
        time_format = "%H:%M"
    elif step >= 1:
        time_format = "%H:%M:%S"
    else:
        time_format = "%H:%M:%S.%f"
    first, last = (datetime.fromtimestamp(moment, UTC) for moment in (start, start + step))
    return f"{first.strftime(time_format)} to {last.strftime(time_format)}"
