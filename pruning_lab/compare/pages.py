"""Write a comparison to a folder: figures, tables, and one page that needs no other file."""

import base64
import io
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from pruning_lab.compare.report import Section
from pruning_lab.compare.style import style_of
from pruning_lab.compare.table import markdown
from pruning_lab.compare.words import p_value
from pruning_lab.tasks.task import Measure


def write_report(folder: Path, title: str, about: list[str], parts: list[Section]) -> Path:
    """Write figures as PNG and SVG, tables as CSV, and everything as report.md and report.html.

    ``about`` has the introductory sentences. Return the path of report.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for section in parts:
        for name, figure in section.figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        for name, table in section.tables.items():
            table.to_csv(folder / f"{name}.csv", index=table.index.name is not None)
    (folder / "report.md").write_text(_as_markdown(title, about, parts), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_as_html(title, about, parts), encoding="utf-8")
    return page


def _as_markdown(title: str, about: list[str], parts: list[Section]) -> str:
    lines = [f"# {title}", *about]
    for section in parts:
        lines += [f"## {section.title}", *section.words]
        lines += [f"![{name.replace('_', ' ')}]({name}.png)" for name in section.figures]
        lines += [
            markdown(readable(table, section.measure)).rstrip() for table in section.tables.values()
        ]
    return "\n\n".join(lines) + "\n"


def _as_html(title: str, about: list[str], parts: list[Section]) -> str:
    """Render one page with its figures embedded, so that it needs no other file."""
    environment = Environment(
        loader=PackageLoader("pruning_lab.compare", "."), autoescape=True, undefined=StrictUndefined
    )
    shown = [
        {
            "title": section.title,
            "words": section.words,
            "figures": {name: _inline(figure) for name, figure in section.figures.items()},
            "tables": [
                readable(table, section.measure).reset_index() for table in section.tables.values()
            ],
        }
        for section in parts
    ]
    return environment.get_template("report.html").render(title=title, about=about, parts=shown)


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return base64.b64encode(buffer.getvalue()).decode()


def _label(criterion: str) -> str:
    return style_of(criterion).label


def readable(table: pd.DataFrame, measure: Measure | None) -> pd.DataFrame:
    """Format a table for readers: values by ``measure``, short p values, labels of criteria."""
    if "spearman" in table:
        criteria = [column for column in ("metric", "one", "other") if column in table]
        named = table.assign(**{column: table[column].map(_label) for column in criteria})
        first = named.set_index(criteria[0])
        return first.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v)
    if measure is None:
        return table
    if table.index.name == "pair":
        return table.map(measure.number).rename(columns=_label)
    if "p_holm" not in table:
        return table
    unit = f", {measure.points}" if measure.points else ""
    rows = [
        {
            "pair": f"{style_of(row.better).label} − {style_of(row.worse).label}",
            f"difference{unit}": measure.number(row.difference),
            "95 % interval": f"{measure.number(row.low)} to {measure.number(row.high)}",
            "p": p_value(row.p).removeprefix("= "),
            "p, exact": p_value(row.p_exact).removeprefix("= "),
            "p, Holm": p_value(row.p_holm).removeprefix("= "),
            f"detectable{unit}": measure.number(row.detectable),
        }
        for row in table.sort_values("difference", ascending=False).itertuples()
    ]
    return pd.DataFrame(rows).set_index("pair")
