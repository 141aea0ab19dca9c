"""Parts of a Grafana dashboard as plain dicts, and where they go on the page.

The names are those of Grafana's dashboard JSON model, schema version 39:
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Panel = dict[str, Any]
Kind = Literal["timeseries", "stat", "bargauge", "table", "state-timeline"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
HEIGHTS = {"stat": 4}
GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True)
class Query:
    """A PromQL expression; `legend` names its series by their labels, as `{{model}}`."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Limits:
    """Where a value turns yellow and red; `falling`: the smaller, the worse."""

    yellow: float
    red: float
    falling: bool = False

    def steps(self) -> list[dict[str, Any]]:
        colours = (RED, YELLOW, GREEN) if self.falling else (GREEN, YELLOW, RED)
        edges = (None, *sorted((self.yellow, self.red)))
        return [
            {"color": colour, "value": edge} for colour, edge in zip(colours, edges, strict=True)
        ]


@dataclass(frozen=True)
class Chart:
    """One panel. `unit` is Grafana's id of it (`s`, `reqps`, `percentunit`, `bytes`, `short`)."""

    title: str
    about: str
    unit: str
    queries: Sequence[Query]
    limits: Limits | None = None
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False

    def panel(self) -> Panel:
        instant = self.kind in ("stat", "bargauge", "table")
        steps = self.limits.steps() if self.limits else [{"color": GREEN, "value": None}]
        return {
            "type": self.kind,
            "title": self.title,
            "description": self.about,
            "datasource": SOURCE,
            "targets": [
                {
                    "refId": chr(ord("A") + number),
                    "datasource": SOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    "instant": instant,
                    "range": not instant,
                    "format": "table" if self.kind == "table" else "time_series",
                }
                for number, query in enumerate(self.queries)
            ],
            "fieldConfig": {
                "defaults": {
                    "unit": self.unit,
                    "color": {"mode": "palette-classic" if not instant else "thresholds"},
                    "thresholds": {"mode": "absolute", "steps": steps},
                    "custom": self._custom(),
                },
                "overrides": [],
            },
            "options": OPTIONS[self.kind],
        }

    def _custom(self) -> dict[str, Any]:
        if self.kind != "timeseries":
            return {}
        return {
            "drawStyle": "line",
            "fillOpacity": 20 if self.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if self.limits else "off"},
            # Zero is on the page, or a ripple looks like a wave.
            "axisSoftMin": 0,
        }


_REDUCE = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "lastNotNull"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _REDUCE, "colorMode": "background", "textMode": "auto"},
    "bargauge": {"reduceOptions": _REDUCE, "displayMode": "basic", "orientation": "horizontal"},
    "table": {"showHeader": True},
    "state-timeline": {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "mergeValues": True,
    },
}


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the page: the values of a label. `.*` stands for all of them."""

    name: str
    series: str
    title: str

    def json(self) -> dict[str, Any]:
        query = f"label_values({self.series}, {self.name})"
        return {
            "name": self.name,
            "label": self.title,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": self.name},
            "definition": query,
            "refresh": 2,  # with the time range: models come and go
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
            "sort": 1,
        }


@dataclass
class Board:
    """A dashboard: rows of charts, placed from left to right."""

    uid: str
    title: str
    about: str
    variables: Sequence[Variable]
    rows: list[tuple[str, Sequence[Chart]]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["thinking-gateway"],
            "schemaVersion": 39,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,  # one crosshair in all panels
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "browser",
            "links": [
                {
                    "type": "dashboards",
                    "tags": ["thinking-gateway"],
                    "title": "Gateway",
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [_DATASOURCE, *(each.json() for each in self.variables)]},
            "annotations": {"list": []},
            "panels": self._panels(),
        }

    def _panels(self) -> list[Panel]:
        panels: list[Panel] = []
        y = 0
        for title, charts in self.rows:
            place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
            panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": place})
            y += 1
            x = tallest = 0
            for chart in charts:
                if x + chart.width > WIDTH:
                    x, y, tallest = 0, y + tallest, 0
                height = HEIGHTS.get(chart.kind, 8)
                place = {"x": x, "y": y, "w": chart.width, "h": height}
                panels.append({**chart.panel(), "gridPos": place})
                x, tallest = x + chart.width, max(tallest, height)
            y += tallest
        return [{"id": number, **panel} for number, panel in enumerate(panels, start=1)]


_DATASOURCE = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
    "current": {"text": "Prometheus", "value": "prometheus"},
}
