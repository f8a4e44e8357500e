"""The report as one HTML file: everything inline, readable on a phone."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from speechbrain_ser.evaluation.table import Table


@dataclass(frozen=True)
class Picture:
    """A saved SVG and what it shows."""

    path: Path
    caption: str

    def html(self) -> str:
        """The figure, inlined: as an image, so that two SVGs cannot share IDs."""
        content = base64.b64encode(self.path.read_bytes()).decode()
        caption = html.escape(self.caption)
        return (
            f'<figure><img src="data:image/svg+xml;base64,{content}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 4rem; background: #fff; color: #1c1c1c;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .4rem 0; overflow-wrap: anywhere; }
section p { color: #4a4a4a; font-size: .9rem; }
.warning { border-left: 4px solid #b3261e; background: #fdf3f2; padding: .5rem .75rem; color: #7a1710; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem;
  border-top: 2px solid #1c1c1c; border-bottom: 2px solid #1c1c1c; }
thead th { border-bottom: 1px solid #1c1c1c; vertical-align: bottom; max-width: 9rem; font-weight: 600; }
td, th { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
thead th { white-space: normal; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0; }
tbody th { font-weight: 400; white-space: normal; }
tbody th div { width: max-content; max-width: 18rem; overflow-wrap: break-word; }
tbody tr:nth-child(even) :is(td, th) { background: #f6f7f9; }
.figures { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #4a4a4a; font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: .5rem .9rem 3rem; }
  h1 { font-size: 1.25rem; }
  tbody th div { max-width: 8.5rem; }
  td, th { padding: .3rem .5rem; }
}
</style>
</head>
<body>
<h1>$title</h1>
$lead
$body
</body>
</html>
""")


def render_page(
    title: str, lead: Sequence[str], warnings: Sequence[str], tables: Sequence[Table], pictures: Sequence[Picture]
) -> str:
    """The whole page.

    Arguments
    ---------
    title : str
        Its first line.
    lead : sequence of str
        Paragraphs below it.
    warnings : sequence of str
        What leaks, what is missing: before everything else.
    tables : sequence of Table
        In their order.
    pictures : sequence of Picture
        Shown after the first table.

    Returns
    -------
    str
        HTML without any reference to another file.
    """
    opening = [f'<p class="warning">{html.escape(w)}</p>' for w in warnings] + [
        f"<p>{html.escape(p)}</p>" for p in lead
    ]
    figures = '<h2>Figures</h2>\n<div class="figures">\n' + "\n".join(p.html() for p in pictures) + "\n</div>"
    sections = [t.html() for t in tables]
    body = "\n".join([*sections[:2], figures if pictures else "", *sections[2:]])
    return PAGE.substitute(title=html.escape(title), lead="\n".join(opening), body=body)
