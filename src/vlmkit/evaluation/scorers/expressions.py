"""The value of an arithmetic expression written in LaTeX or plainly, worked out without `eval`.

The references hand model output to `eval` and to a LaTeX parser; here a small grammar is read and nothing is executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

Value = Fraction | float
"""Exact while it can be; a float once a root, a constant or a function has made it irrational."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>\d+(?:,\d{3})+(?:\.\d+)?|\d+\.\d*|\.\d+|\d+)
      | (?P<command>\\[a-zA-Z]+|\\[%,!;: ])
      | (?P<letter>[a-zA-Z])
      | (?P<mark>\*\*|[-+*/^(){}\[\]|=<>,])
    )""",
    re.VERBOSE,
)
_SPACING = {"\\,", "\\!", "\\;", "\\:", "\\ ", "\\left", "\\right", "\\displaystyle"}
_TIMES = {"*", "\\times", "\\cdot"}
_OVER = {"/", "\\div"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac"}
_WRAPPERS = {"\\boxed", "\\text", "\\mathrm", "\\mathbf"}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "\\sin": math.sin,
    "\\cos": math.cos,
    "\\tan": math.tan,
    "\\ln": math.log,
    "\\log": math.log,
    "\\exp": math.exp,
}
_CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|"}
_MAX_BITS = 4096  # larger powers are refused: no answer needs them, and they would take for ever
_MAX_TOKENS = 100  # keeps the recursion shallow


def value_of(text: str) -> Value | None:
    r"""The value of `text`, or None if it is no expression.

    Known: numbers (`1,000` too), `+ - * / ^ **`, juxtaposition (`2\pi`), `\frac`, `\sqrt[n]`, brackets, `\times`,
    `\cdot`, `\div`, `\pi`, `\%`, `\boxed` and elementary functions.
    """
    try:
        return _Parser(text.strip().strip("$")).parse()
    except (ArithmeticError, ValueError):  # what the parser raises, and division by zero or overflow
        return None


class _Parser:
    """Recursive descent over the tokens; raises ValueError at the first that does not fit."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokenise(text)
        if len(self._tokens) > _MAX_TOKENS:
            raise ValueError("too long")
        self._place = 0

    def parse(self) -> Value:
        value = self._sum()
        if self._place < len(self._tokens):
            raise ValueError(f"unexpected {self._peek()!r}")
        return value

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, wanted: str | None = None) -> str:
        token = self._peek()
        if not token or (wanted is not None and token != wanted):
            raise ValueError(f"wanted {wanted!r}, found {token!r}")
        self._place += 1
        return token

    def _sum(self) -> Value:
        value = self._product()
        while self._peek() in {"+", "-"}:
            sign = self._take()
            other = self._product()
            value = value + other if sign == "+" else value - other
        return value

    def _product(self) -> Value:
        value = self._signed()
        while token := self._peek():
            if token in _TIMES:
                self._take()
                value = value * self._signed()
            elif token in _OVER:
                self._take()
                value = value / self._signed()
            elif token in {"+", "-", ")", "}", "]", "|", "=", "<", ">", ","}:
                break
            else:
                value = value * self._power()
        return value

    def _signed(self) -> Value:
        negative = False
        while self._peek() in {"+", "-"}:
            negative ^= self._take() == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Value:
        base = self._atom()
        while self._peek() == "\\%":
            self._take()
            base = base / 100
        if self._peek() in {"^", "**"}:
            self._take()
            return _power(base, self._signed())
        return base

    def _atom(self) -> Value:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token.replace(",", ""))
        if token in _CLOSING:
            return self._enclosed(token)
        if token in _FRACTIONS:
            return self._argument() / self._argument()
        if token == "\\sqrt":
            return self._root()
        if token in _WRAPPERS:
            return self._argument()
        if token in {"\\pi", "π"}:
            return math.pi
        if token in _FUNCTIONS:
            return _FUNCTIONS[token](float(self._power()))
        raise ValueError(f"unknown {token!r}")

    def _enclosed(self, opening: str) -> Value:
        value = self._sum()
        self._take(_CLOSING[opening])
        return abs(value) if opening == "|" else value

    def _root(self) -> Value:
        degree: Value = Fraction(2)
        if self._peek() == "[":
            degree = self._enclosed(self._take())
        return _power(self._argument(), 1 / degree)

    def _argument(self) -> Value:
        r"""What a command applies to: a group, or as in `\frac12` a single digit or symbol."""
        token = self._peek()
        if token == "{":
            return self._enclosed(self._take())
        if len(token) > 1 and token.isdigit():
            self._tokens[self._place] = token[1:]
            return Fraction(token[0])
        return self._atom()


def _tokenise(text: str) -> list[str]:
    tokens: list[str] = []
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if not found:
            raise ValueError(f"unexpected {text[place:]!r}")
        token = found[0].strip() or found[0]
        if token not in _SPACING:
            tokens.append(token)
        place = found.end()
    return tokens


def _power(base: Value, exponent: Value) -> Value:
    exact = _exact_power(base, exponent)
    if exact is not None:
        return exact
    value = float(base) ** float(exponent)
    if isinstance(value, complex):
        raise ValueError("not a real number")
    return value


def _exact_power(base: Value, exponent: Value) -> Fraction | None:
    """The power as a fraction, or None where it is none, as for the root of two."""
    if isinstance(base, float) or isinstance(exponent, float):
        return None
    if abs(exponent.numerator) * max(base.numerator.bit_length(), base.denominator.bit_length()) > _MAX_BITS:
        raise ValueError("the power is too large")
    if exponent.denominator == 1:
        return base**exponent.numerator
    numerator, denominator = _exact_root(base.numerator, exponent), _exact_root(base.denominator, exponent)
    return None if numerator is None or denominator is None else Fraction(numerator, denominator) ** exponent.numerator


def _exact_root(number: int, exponent: Fraction) -> int | None:
    if number < 0:
        return None
    root = round(number ** (1 / exponent.denominator))
    return root if root**exponent.denominator == number else None
