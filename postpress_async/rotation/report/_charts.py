"""
The report's charts, rendered by Vega-Lite to SVG when the page is written.

SVG needs no script, prints sharply, and takes its colours from the page's style sheet, so one drawing serves
light mode, dark mode and paper. Each chart is rendered twice, for wide and narrow screens, because a
scaled-down drawing would be illegible.
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
from postpress_async.rotation.report._findings import Bar, Findings, Latency

Spec: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]

WIDE: Final = 880
NARROW: Final = 290
"""Width of the plot area in pixels; labels to its left are added."""
ERRORS_DRAWN: Final = 12

_COUNT: Final = {
    "title": None,
    "tickCount": 3,
    "labelExpr": "format(datum.value, datum.value < 10 ? '~g' : ',')",
}
_BARS: Final[Spec] = {"type": "bar", "orient": "vertical"}
_LABEL: Final[Spec] = {"type": "text", "align": "left", "color": "var(--ink)"}
_STATES: Final = [State.FAILED.value, State.UNKNOWN.value, State.SKIPPED.value]


@frozen
class Chart:
    """
    A chart of the page.

    Attributes:
        description: A text for screen readers.
        wide: The SVG for wide screens and paper.
        narrow: The SVG for phones.
    """

    description: str
    wide: Markup
    narrow: Markup


def throughput(findings: Findings) -> Chart | None:
    """Accounts per second over time, with a separate scale for those not patched; None without accounts."""
    if not findings.bars:
        return None
    peak = max(bar.accounts for bar in findings.bars) / findings.step
    states = {bar.state for bar in findings.bars}
    if State.PATCHED not in states:
        which = "None of them was patched."
    elif len(states) > 1:
        which = "Accounts that were not patched are shown below."
    else:
        which = "All of them were patched."
    description = f"Completed accounts per second, over time: at most {peak:,.1f}. {which}"
    return _chart(description, lambda width: _over_time(findings.bars, findings.step, width))


def latency(found: Latency) -> Chart:
    """The distribution of the time per account, on a logarithmic scale."""
    description = f"Accounts by duration: half within {found.p50:g} s, 95% within {found.p95:g} s."
    return _chart(description, lambda width: _distribution(found, width))


def errors(found: Iterable[ErrorCount]) -> Chart:
    """Accounts by error; the colour shows the error's scope."""
    rows: list[Row] = [
        {
            "error": _cut(error.error_type.removeprefix("errors/"), 44),
            "accounts": error.accounts,
            "scope": error.scope or "none",
            "description": f"{_cut(error.error_type, 120)}: {error.accounts:,} accounts",
        }
        for error in islice(found, ERRORS_DRAWN)
    ]
    description = "Accounts by error: " + "; ".join(str(row["description"]) for row in rows)
    return _chart(description, lambda width: _ranking(rows, width))


def _over_time(bars: Iterable[Bar], step: float, width: int) -> Spec:
    rows: list[Row] = [
        {
            "from": bar.at * 1000,
            "to": (bar.at + step) * 1000,
            "state": bar.state.value,
            "rate": bar.accounts / step,
            "description": f"{_clock(bar.at, step)}: {bar.accounts:,} {bar.state}",
        }
        for bar in bars
    ]
    first, last = min(row["from"] for row in rows), max(row["to"] for row in rows)
    minutes, ticks = (last - first) / 60_000, max(3, width // 100)
    clock = "%H:%M:%S" if minutes < 10 else "%H:%M" if minutes < 2 * 1440 else "%d %b %H:%M"
    if last - first < 1_000 * ticks:  # more than one tick per second
        clock = "%H:%M:%S.%L"
    time = {
        "field": "from",
        "type": "temporal",
        # Both plots must share the time axis.
        "scale": {"type": "utc", "domain": [first, last], "nice": False},
        "axis": {"format": clock, "title": None, "grid": False, "tickCount": ticks},
    }

    def bars_of(states: list[str], colours: list[str], height: int, title: str) -> Spec:
        return {
            "width": width,
            "height": height,
            "title": {"text": title, "anchor": "start", "frame": "group"},
            "transform": [{"filter": {"field": "state", "oneOf": states}}],
            "mark": _BARS | {"binSpacing": 0.5 if width < WIDE else 1},
            "encoding": {
                "x": time,
                "x2": {"field": "to"},
                "y": {"field": "rate", "type": "quantitative", "axis": _COUNT},
                "color": {"field": "state", "scale": {"domain": states, "range": colours}, "legend": None},
                "order": {"field": "state"},
                "description": {"field": "description"},
            },
        }

    parts = []
    if any(row["state"] == State.PATCHED.value for row in rows):
        parts.append(bars_of([State.PATCHED.value], ["var(--patched)"], 150, "patched accounts per second"))
    if any(row["state"] in _STATES for row in rows):
        colours = [f"var(--{state})" for state in _STATES]
        height = 60 if parts else 150
        parts.append(bars_of(_STATES, colours, height, "accounts per second that were not patched"))
    scale = {"color": "independent"}
    return {"data": {"values": rows}, "vconcat": parts, "spacing": 18, "resolve": {"scale": scale}}


def _distribution(found: Latency, width: int) -> Spec:
    rows = [
        {"from": low, "to": high, "accounts": n, "description": f"{low:.2g} to {high:.2g} s: {n:,} accounts"}
        for low, high, n in found.buckets
    ]
    # Leave room for the labels of the two marks.
    edges = [min(found.buckets[0][0], found.p50 / 4), max(found.buckets[-1][1], found.p95 * 4)]
    digits = (1,) if width == NARROW else (1, 2, 5)
    ticks = [digit * 10.0**n for n in range(-4, 7) for digit in digits]
    axis = {"title": None, "grid": False, "labelExpr": "format(datum.value, '~g') + ' s'", "values": ticks}
    scale = {"type": "log", "domain": edges, "nice": False}
    bars: Spec = {
        "data": {"values": rows},
        "mark": _BARS | {"binSpacing": 1, "color": "var(--accent)"},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "scale": scale, "axis": axis},
            "x2": {"field": "to"},
            "y": {"field": "accounts", "type": "quantitative", "axis": _COUNT},
            "description": {"field": "description"},
        },
    }
    layers = [bars]
    # The labels are on opposite sides, because the marks may be close together.
    for name, second, align in (("p50", found.p50, "right"), ("p95", found.p95, "left")):
        at = {"field": "at", "type": "quantitative"}
        layers.append(
            {
                "data": {"values": [{"at": second, "mark": f"{name} {second:g} s"}]},
                "encoding": {"x": at, "description": {"field": "mark"}},
                "layer": [
                    {"mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [3, 3]}},
                    {
                        "mark": _LABEL | {"align": align, "fontWeight": 600},
                        "encoding": {"y": {"value": -8}, "text": {"field": "mark"}},
                    },
                ],
            }
        )
    return {"width": width, "height": 150, "layer": layers}


def _ranking(rows: list[Row], width: int) -> Spec:
    narrow = width == NARROW
    # On a phone there is no space beside the bars, so put the names above them.
    axis = None if narrow else {"labelLimit": 300, "ticks": False, "domain": False}
    offset = 8 if narrow else 0
    length = {"field": "accounts", "type": "quantitative", "axis": None}
    position = {"field": "error", "type": "nominal", "sort": None, "title": None, "axis": axis}
    names = [*(scope.value for scope in Scope), "none", "unknown"]
    colours = [f"var(--{name})" for name in [*names[:-1], "other"]]
    scale = {"domain": names, "range": colours}
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": 10 if narrow else 14, "yOffset": offset},
            "encoding": {
                "color": {"field": "scope", "scale": scale, "legend": None},
                "description": {"field": "description"},
            },
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
        "encoding": {"x": length, "y": position},
        "layer": layers,
    }


def _chart(description: str, spec: Callable[[int], Spec]) -> Chart:
    return Chart(description, _draw(spec(WIDE)), _draw(spec(NARROW)))


def _draw(spec: Spec) -> Markup:
    # Imported here because it contains a JavaScript engine, and the specs can be tested without it.
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


def _clock(at: float, step: float) -> str:
    start, end = (datetime.fromtimestamp(moment, UTC) for moment in (at, at + step))
    form = "%H:%M" if step >= 60 else "%H:%M:%S" if step >= 1 else "%H:%M:%S.%f"
    return f"{start.strftime(form)} to {end.strftime(form)}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
