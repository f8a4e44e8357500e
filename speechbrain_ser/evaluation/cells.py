"""How tables print figures: shares in percent, a reconstruction error in 1e-4."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

NONE = "none"  # nothing to measure there
ABSENT = "-"  # the variant has no such head
ORACLE = "ORACLE/leaky"


class Unit(NamedTuple):
    """What a figure is printed in, with one decimal.

    Arguments
    ---------
    symbol : str
        Behind the figure's name, above its column.
    per_one : float
        How many of it make 1.

    Example
    -------
    >>> share, error = Unit("%", 100), Unit("e-4", 1e4)
    >>> share.text(0.78154), error.text(5.34e-4), share.text(None)
    ('78.2', '5.3', 'none')
    >>> share.change(0.034), error.change(-2e-5), share.change(-0.0001)
    ('+3.4', '-0.2', '0.0')
    """

    symbol: str
    per_one: float

    def text(self, value: float | None) -> str:
        """A value; 'none' where there is nothing to measure."""
        return NONE if value is None or pd.isna(value) else f"{self.per_one * value:.1f}"

    def change(self, value: float) -> str:
        """A difference of two values, signed."""
        text = f"{self.per_one * value:+.1f}"
        return "0.0" if float(text) == 0 else text


PERCENT = Unit("%", 100)
UNITS = {"MSE": Unit("e-4", 1e4)}  # every other figure is a share, or a rate like one
SYMBOLS = tuple(unit.symbol for unit in (PERCENT, *UNITS.values()))


def unit_of(figure: str) -> Unit:
    """The unit of a figure.

    Example
    -------
    >>> unit_of("MSE").symbol, unit_of("WER").symbol
    ('e-4', '%')
    """
    return UNITS.get(figure, PERCENT)


def heading(figure: str) -> str:
    """A figure's name with its unit.

    Example
    -------
    >>> heading("WA"), heading("MSE")
    ('WA %', 'MSE e-4')
    """
    return f"{figure} {unit_of(figure).symbol}"


def with_interval(value: str, ends: Sequence[str] | None) -> str:
    """A figure and its interval.

    Example
    -------
    >>> with_interval("78.2", ("71.0", "83.9")), with_interval("78.2", None)
    ('78.2 [71.0, 83.9]', '78.2')
    """
    return value if ends is None else f"{value} [{', '.join(ends)}]"


def marked(text: str, selection: str) -> str:
    """A number that the test part chose says so.

    Example
    -------
    >>> marked("78.2", "test"), marked("78.2", "last"), marked("none", "test")
    ('78.2 ORACLE/leaky', '78.2', 'none')
    """
    return f"{text} {ORACLE}" if selection == "test" and text not in (ABSENT, NONE) else text


def p_value(p: float | None) -> str:
    """A p-value.

    Example
    -------
    >>> p_value(0.0312), p_value(0.00001), p_value(None)
    ('0.031', '<0.001', 'none')
    """
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"
