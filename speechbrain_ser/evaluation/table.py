"""One table, written four ways: console, Markdown, LaTeX (booktabs), HTML."""

import html
import re
from dataclasses import dataclass, field

import pandas as pd

from speechbrain_ser.evaluation.cells import SYMBOLS


@dataclass(frozen=True, eq=False)
class Table:
    """What a report prints, and the numbers in full.

    Attributes
    ----------
    name : str
        Of its CSV file.
    title : str
        Above it.
    text : pandas.DataFrame
        Strings, as printed; the first column names the row.
    values : pandas.DataFrame
        The same figures in full, whatever their printed unit: shares between 0 and 1.
    notes : tuple of str
        What a reader must know, below it.
    """

    name: str
    title: str
    text: pd.DataFrame
    values: pd.DataFrame
    notes: tuple[str, ...] = field(default=())

    def console(self) -> str:
        """Aligned columns of plain text."""
        columns = [[str(c), *map(str, self.text[c])] for c in self.text]
        widths = [max(map(len, c)) for c in columns]
        is_first = [True] + [False] * (len(columns) - 1)
        lines = [
            "  ".join(v.ljust(w) if f else v.rjust(w) for v, w, f in zip(row, widths, is_first, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([self.title, rule, lines[0], rule, *lines[1:], rule, *self.notes])

    def markdown(self) -> str:
        """A pipe table under a heading."""
        rows = [list(self.text), ["---"] + ["---:"] * (self.text.shape[1] - 1), *self.text.to_numpy().tolist()]
        lines = ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *lines, *(f"\n{note}" for note in self.notes)])

    def latex(self) -> str:
        """A booktabs table with a caption."""
        head, *rows = (" & ".join(map(escape_latex, row)) + r" \\" for row in [list(self.text), *self.text.to_numpy()])
        return "\n".join(
            [
                r"\begin{table}[ht]",
                r"\centering",
                rf"\caption{{{escape_latex('. '.join([self.title, *(n.rstrip('.') for n in self.notes)]))}.}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{l{'r' * (self.text.shape[1] - 1)}}}",
                r"\toprule",
                head,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    def html(self) -> str:
        """A section with a heading; the table scrolls sideways where the screen is narrow."""
        head = "".join(f'<th scope="col">{_unbroken(html.escape(str(c)))}</th>' for c in self.text)
        rows = "\n".join(
            f'<tr><th scope="row"><div>{_breakable(html.escape(str(first)))}</div></th>'
            + "".join(f"<td>{html.escape(str(v))}</td>" for v in rest)
            + "</tr>"
            for first, *rest in self.text.to_numpy().tolist()
        )
        notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f'<section id="{self.name}">\n<h2>{html.escape(self.title)}</h2>\n'
            f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{notes}\n</section>"
        )


def _unbroken(heading: str) -> str:
    """A column's heading whose unit stays on the line of its figure."""
    return re.sub(rf" ({'|'.join(map(re.escape, SYMBOLS))})(?!\w)", r"&nbsp;\1", heading)


def _breakable(name: str) -> str:
    """A variant's name that may break after a comma or an equals sign."""
    return name.replace(",", ",<wbr>").replace("=", "=<wbr>")


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {c: rf"\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "<": "$<$", ">": "$>$", "…": r"\ldots{}"}


def escape_latex(text: object) -> str:
    """Text for LaTeX.

    Example
    -------
    >>> escape_latex("alpha_0 & 5 %")
    'alpha\\\\_0 \\\\& 5 \\\\%'
    """
    escaped = re.sub("|".join(map(re.escape, LATEX)), lambda m: LATEX[m[0]], str(text))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen
