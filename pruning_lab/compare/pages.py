"""Write a comparison to a folder: figures, tables, and one page that needs no other file."""

import base64
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from pruning_lab.compare.report import Section
from pruning_lab.compare.style import style_of
from pruning_lab.compare.words import p_value
from pruning_lab.tasks.task import Measure


def write_report(folder: Path, title: str, about: list[str], parts: list[Section]) -> Path:
    """Write figures as PNG and SVG, tables as CSV, and everything as report.md and report.html.

    All files are written to the ``folder``. The page has the ``title``, the introductory sentences
    ``about``, and the ``parts``, from ``sections`` for example. Return the path of report.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for section in parts:
        for name, figure in section.figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        for name, table in section.tables.items():
            table.to_csv(folder / f"{name}.csv", index=table.index.name is not None)
    (folder / "report.md").write_text(_as_markdown(title, about, parts), encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("pruning_lab.compare", "."), autoescape=True, undefined=StrictUndefined
    )

    def inline(name: str) -> str:  # so that the page needs no other file
        return base64.b64encode((folder / f"{name}.png").read_bytes()).decode()

    html = environment.get_template("report.html").render(
        title=title, about=about, parts=parts, inline=inline, readable=readable
    )
    page = folder / "report.html"
    page.write_text(html, encoding="utf-8")
    return page


def _as_markdown(title: str, about: list[str], parts: list[Section]) -> str:
    lines = [f"# {title}", *about]
    for section in parts:
        lines += [f"## {section.title}", *section.words]
        lines += [f"![{name.replace('_', ' ')}]({name}.png)" for name in section.figures]
        tables = (readable(table, section.measure) for table in section.tables.values())
        lines += [markdown(table).rstrip() for table in tables]
    return "\n\n".join(lines) + "\n"


def markdown(table: pd.DataFrame) -> str:
    """Return the ``table`` in Markdown, its index as the first column."""
    rows = table.reset_index().astype(str)
    lines = [list(rows.columns), ["---", *["---:"] * (rows.shape[1] - 1)], *rows.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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
