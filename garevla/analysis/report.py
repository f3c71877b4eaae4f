"""A page with everything that analyses found, in one file that needs no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from garevla.analysis.measures import MEASURES
from garevla.analysis.plots import Plot, plots_of, plots_over_epochs

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2127; --soft: #5c636d; --page: #f6f7f8;
  --card: #ffffff; --line: #dfe2e6; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e4e7eb; --soft: #a3abb6; --page: #15181c;
  --card: #1e2228; --line: #343a42; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 2.25rem 0 .75rem; }}
h3 {{ font-size: 1rem; margin: 0 0 .5rem; }}
p {{ margin: 0 0 .5rem; max-width: 60rem; }}
.soft {{ color: var(--soft); }}
.plots {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
figure {{ margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }}
figure svg {{ display: block; width: 100%; height: auto; }}
figure svg text {{ font-family: system-ui, sans-serif !important; }}
figcaption {{ margin-top: .75rem; color: var(--soft); font-size: .9rem; }}
.table {{ overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; }}
th, td {{ padding: .3rem .8rem; text-align: left; border-bottom: 1px solid var(--line); }}
tr:last-child > * {{ border-bottom: 0; }}
th {{ font-weight: 600; }} tbody th {{ font-weight: 400; }}
td, thead th + th {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def report(
    title: str,
    notes: Sequence[str],
    analyses: Mapping[str, Mapping[str, Any]],
    over_epochs: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page, as HTML.

    Args:
        title: of the page.
        notes: sentences under it, such as what was analysed.
        analyses: by a name such as that of a checkpoint, as
            :meth:`garevla.analysis.Analysis.as_dict`.
        over_epochs: the same with an ``epoch``, of a run's log.

    Raises:
        ImportError: matplotlib is not installed.
    """
    parts = [f"<h1>{escape(title)}</h1>", *(_paragraph(note) for note in notes)]
    if any(each["corrects"] is None for each in analyses.values()):
        parts.append(
            _paragraph(
                "There is no network of increments: what is said is of features alone, and of "
                "ideal increments."
            )
        )
    parts.append("<h2>Over epochs</h2>")
    if over_epochs:
        parts.append(_figures(plots_over_epochs(over_epochs)))
    else:
        parts.append(
            _paragraph(
                "The run's log has no analyses. Runs trained with --evaluation.analyse true note "
                "one at each evaluation."
            )
        )
    for number, (name, analysis) in enumerate(analyses.items()):
        parts += [f"<h2>{escape(name)}</h2>", _figures(plots_of(f"analysis{number}", analysis))]
    parts += ["<h2>Figures</h2>", _table(analyses)]
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def _paragraph(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _figures(plots: Sequence[Plot]) -> str:
    figures = "\n".join(
        f'<figure id="{plot.name}">\n<h3>{escape(plot.title)}</h3>\n{plot.svg}\n'
        f"<figcaption>{escape(plot.look_for)}</figcaption>\n</figure>"
        for plot in plots
    )
    return f'<div class="plots">\n{figures}\n</div>'


def _table(analyses: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in analyses)
    rows = []
    for key, words in MEASURES.items():
        values = [analysis["scalars"].get(key) for analysis in analyses.values()]
        if any(value is not None for value in values):
            cells = "".join(f"<td>{_number(value)}</td>" for value in values)
            rows.append(f"<tr><th>{escape(words)}</th>{cells}</tr>")
    return (
        f'<div class="table"><table>\n<thead><tr><th>figure</th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}".replace("-", "−")
