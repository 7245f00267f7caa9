"""Are two mathematical answers the same? Exactly where possible; by sympy, through math-verify,
where not.

Most answers are numbers, or lists, tuples, intervals, sets and matrices of numbers. Those are read
here into fractions and compared exactly, in microseconds. Only what is left (roots, symbols,
equations) reaches math-verify, which takes 10 to 100 ms and, given a power tower, for ever: so a
budget on size comes first, and all of it runs in a worker that can be killed. Text reaches sympy as
LaTeX through a grammar, never through `eval` (which is what sympy's own string parser does).
"""

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from nanomerci.tasks.graders.worker import load

MAX_TEXT, MAX_DEPTH, MAX_ITEMS, MAX_DIGITS = 1000, 12, 50, 40


class TooLarge(Exception):
    """An answer whose evaluation could take for ever; not evaluated."""


class Number(NamedTuple):
    text: str
    value: Fraction  # of 50% this is 50
    percent: bool = False
    places: int | None = None  # digits behind the point if written as a decimal


class Group(NamedTuple):
    text: str
    # "()" "[)" ... as written; "{}" set; "," bare list; "|" union; "m" matrix, rows as items
    kind: str
    items: tuple


class Leaf(NamedTuple):
    text: str  # anything else, LaTeX


# ---- reading

SYMBOLS = {
    "−": "-",
    "–": "-",
    "×": "\\times ",
    "·": "\\cdot ",
    "÷": "\\div ",
    "π": "\\pi ",
    "∞": "\\infty ",
    "±": "\\pm ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "≠": "\\ne ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "°": "^\\circ ",
    "√": "\\sqrt ",
    "½": "\\frac{1}{2}",
    "\u00a0": " ",
    "\u2009": " ",
    "θ": "\\theta ",
    "⟨": "(",
    "⟩": ")",
    "∅": "\\emptyset ",
}
REWRITES = [
    (re.compile(pattern, re.ASCII), new)
    for pattern, new in [
        (
            r"(?<!\\)\$|\\\$|\\[()]|\\\[|\\\]|\\displaystyle|\\left(?![a-z])|\\right(?![a-z])|\\[bB]igg?[lr]?(?![a-z])",
            "",
        ),
        (r"\\[lr]angle", lambda m: "()"[m[0] == "\\rangle"]),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\varnothing", r"\\emptyset"),
        (
            r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|mbox)\s*\{\s*([^{}]*?)[\s.]*\}",
            r"\\text{\1}",
        ),
        (r"\\text\{([^{}]*\d[^{}]*)\}", r"\1"),
        (r",?\s*(?:\\text\{,?\s*(?:or|and)\}|\b(?:or|and)\b)\s*", ","),
        (r"(?<=\d)(?:\{,\}|,\\!|\\[,;! ])(?=\d{3}(?!\d))", ""),  # 10{,}000  10,\!000  10\,000
        (r"(?<!\\)\\[,;:!> ]|~|\\q?quad", " "),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\\%|\bpercent\b", "%"),
    ]
]
UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
NUMBERS = [
    re.compile(pattern, re.ASCII)
    for pattern in (  # sign outside; groups: whole, numerator, denominator, exponent
        rf"(?P<whole>{UNSIGNED})",
        rf"(?P<whole>\d+)?\s*\\frac\{{\s*(?P<top>-?{UNSIGNED})\s*\}}\{{\s*(?P<bottom>{UNSIGNED})\s*\}}",
        rf"(?:(?P<whole>\d+)\s+)?(?P<top>{UNSIGNED})\s*/\s*(?P<bottom>{UNSIGNED})",
        rf"(?P<whole>{UNSIGNED})\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?P<ten>-?\d|\{{\s*-?\d{{1,3}}\s*\}})",
        rf"(?P<whole>{UNSIGNED})[eE](?P<ten>[+-]?\d{{1,3}})",
        r"(?P<base>\d{1,6})\s*\^\s*(?P<power>\d|\{\s*-?\d{1,2}\s*\})",
        r"(?P<whole>\d*)\.(?P<start>\d*)\\overline\{(?P<loop>\d+)\}",
    )
]
UNIT = (
    r"(?:\\text\{[A-Za-z\s./%-]*\}|(?:cm|mm|km|kg|mg|ft|lb|oz|hrs?|min|sec|mph|ml|deg|units?)(?![A-Za-z])|"
    r"(?<=[\s/])[A-Za-z]{4,})\.?(?:\^\{?-?[23]\}?)?"
)  # 2ab is no number with a unit
PLAIN = re.compile(rf"-?\d{{1,{MAX_DIGITS}}}", re.ASCII)
TAIL = re.compile(
    rf"\s*(?:%|\^\{{?\\circ\}}?\s*(?:[CF]|\\text\{{[CF]\}})?|\\degree|{UNIT}(?:[\s/]+{UNIT})*)\s*$",
    re.ASCII,
)
NOT_UNITS = re.compile(
    r"pi|sqrt|frac|sin|cos|tan|log|ln|exp|mod|inf|infinity|million|billion|thousand|hundred|dozen|over|plus|"
    r"minus|times|squared|cubed|half|halves|thirds?|base|not|is|if|for|to|where|or|and|undefined",
    re.I,
)


def normalise(text):
    """One spelling for what LaTeX spells in many ways. Raises TooLarge."""
    if len(text) > MAX_TEXT:
        raise TooLarge(f"{len(text)} characters")
    for old, new in SYMBOLS.items():
        text = text.replace(old, new)
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    text = text.strip().rstrip(".,;:").strip()
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise TooLarge(f"{deepest} nested brackets")
    return text


def number(text):
    """Integers, decimals, fractions, mixed numbers, percentages, powers of ten, small powers,
    repeating decimals; a unit behind the number is dropped. Number, or None if it is not one.
    """
    tail = TAIL.search(text) if not text[-1:].isdigit() or "^" in text else None
    body = text[: tail.start()] if tail else text
    words = re.findall("[A-Za-z]+", tail[0].replace("\\text", "")) if tail else []
    if len(words) > 5 or any(map(NOT_UNITS.fullmatch, words)):  # prose, or part of the value
        return None
    sign, body = (-1, body[1:]) if body[:1] == "-" else (1, body.removeprefix("+"))
    body = re.sub(r"^\(([^()]*)\)$", r"\1", body.strip()).strip()  # -(1/2)
    if not body or len(body) > MAX_DIGITS + 30:
        return None
    match = next(filter(None, (pattern.fullmatch(body) for pattern in NUMBERS)), None)
    if not match:
        return None
    part = {k: v.replace(",", "").strip("{} ") for k, v in match.groupdict().items() if v}
    try:
        value = Fraction(part.get("whole") or 0)
        if "top" in part:
            value += Fraction(part["top"]) / Fraction(part["bottom"])
        if "ten" in part:
            value *= Fraction(10) ** int(part["ten"])
        if "base" in part:
            value = Fraction(part["base"]) ** int(part["power"])
        if "loop" in part:
            start, loop = part.get("start", ""), part["loop"]
            value += (
                Fraction(int(start or 0)) + Fraction(int(loop), 10 ** len(loop) - 1)
            ) / 10 ** len(start)
    except (ZeroDivisionError, ValueError):  # 1/0; an empty number such as "" or "."
        return None
    places = (
        len(part["whole"].partition(".")[2])
        if "." in part.get("whole", "") and "top" not in part
        else None
    )
    return Number(text, sign * value, bool(tail) and "%" in tail[0], places)


def split(text, separator):
    """At the separators outside all brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth <= 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i = i + len(separator)
        else:
            i += 1
    return [part.strip() for part in (*parts, text[start:])]


NAME = re.compile(
    r"(?:\\?[A-Za-z]+|\\text\{\w*\})(?:_(?:\w|\{\w+\}))?(?:\(\w\))?\s*(?:=|\\in(?![a-z]))\s*",
    re.ASCII,
)
MATRIX = re.compile(
    r"\\begin\{([pb]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.ASCII | re.DOTALL
)


@lru_cache(4096)
def read(text):
    """Text -> Number, Group or Leaf. Raises TooLarge."""
    if PLAIN.fullmatch(text):  # most answers of arithmetic and competitions, in a microsecond
        return Number(text, Fraction(int(text)))
    return _read(unnamed(normalise(text))[1])


def unnamed(text):
    """ "x = 5" -> "x", "5"; what names no single thing -> "", text."""
    name = NAME.match(text)
    if not name or len(split(text, "=")) > 2 or len(split(text, ",")) > 1:
        return "", text
    return name[0].rstrip("= "), text[name.end() :]


def _read(text):
    if found := number(text):
        return found
    if text.count("\\pm") == 1:
        return Group(
            text,
            ",",
            tuple(_read(text.replace("\\pm", sign).removeprefix("+").strip()) for sign in "+-"),
        )
    if matrix := MATRIX.fullmatch(text):
        rows = [Group(row, "m", _items(split(row, "&"))) for row in split(matrix[2], "\\\\") if row]
        return Group(text, "m", tuple(rows))
    for separator, kind in (("\\cup", "|"), (";", ","), (",", ",")):
        parts = split(text, separator)
        if len(parts) > 1:
            return Group(text, kind, _items([NAME.sub("", part, count=1) for part in parts]))
    for start, end in ("\\{", "\\}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]"), ("{", "}"):
        if text.startswith(start) and text.endswith(end) and len(text) > len(start + end):
            inner = text[len(start) : -len(end)]
            depth = low = 0
            for (
                character
            ) in inner:  # "(1)(2)" starts and ends with brackets that do not belong together
                depth += (character in "([{") - (character in ")]}")
                low = min(low, depth)
            if low >= 0 and depth == 0 and not inner.endswith("\\"):
                if start == "{":  # TeX's own grouping
                    return _read(unnamed(inner.strip())[1])
                items = _items(split(inner, ","))
                if len(items) == 1:
                    return items[0]
                return Group(text, (start + end).replace("\\", ""), items)
    return Leaf(text)


def _items(parts):
    if len(parts) > MAX_ITEMS:
        raise TooLarge(f"{len(parts)} items")
    return tuple(_read(part) for part in parts)


# ---- comparing


def same(gold, got, tolerance=0.0):
    """Two texts. tolerance: relative, for answers that are measured or rounded. Raises TooLarge."""
    if letter := re.fullmatch(
        r"[\s(]*(?:\\(?:text|math)[a-z]*\s*\{)?[\s(]*([A-J])[\s)}.]*", gold
    ):  # a choice: (C)
        choice = re.match(r"\W*(?:(?:text|math)[a-z]*\s*\{\W*)?([A-J])(?:[.:)}]|\s*$)", got)
        return bool(choice) and choice[1] == letter[1]
    names = {unnamed(normalise(text))[0] for text in (gold, got) if "=" in text}
    if len(names) == 2 and all(len(name) == 1 for name in names):
        return False  # x = 5 is not y = 5, but y = 2x and f(x) = 2x may be
    return _same(read(gold), read(got), tolerance)


def _same(gold, got, tolerance):
    if isinstance(gold, Number) and isinstance(got, Number):
        return same_number(gold, got, tolerance)
    if isinstance(gold, Group) and isinstance(got, Group):
        return _same_group(gold, got, tolerance)
    if isinstance(gold, Group) or isinstance(gold, Number) and isinstance(got, Group):
        return False
    texts = squeeze(gold.text), squeeze(got.text)
    if texts[0] == texts[1] != "":
        return True
    if all(map(str.isalpha, texts)):  # words and names; n is not N
        return False
    return algebra(gold.text, got.text)


def same_number(gold, got, tolerance):
    """50% is 50, and is 1/2. A decimal of 6 or more places stands for a fraction that rounds to it;
    0.33 is not 1/3.
    """
    if gold.percent != got.percent:
        scaled = [
            x._replace(value=x.value / 100, percent=False) if x.percent else x for x in (gold, got)
        ]
        if same_number(*scaled, tolerance):
            return True
    if gold.value == got.value:
        return True
    if tolerance:
        return math.isclose(gold.value, got.value, rel_tol=tolerance)
    places = [x.places for x in (gold, got)]
    if None in places and max(p or 0 for p in places) >= 6:
        return 2 * abs(gold.value - got.value) <= Fraction(1, 10 ** max(p or 0 for p in places))
    return False


def _same_group(gold, got, tolerance):
    kinds = {gold.kind, got.kind}
    if len(gold.items) != len(got.items) or not (
        len(kinds) == 1 or kinds in ({",", "{}"}, {",", "()"})
    ):
        return False
    if "()" in kinds or not kinds <= {
        ",",
        "{}",
        "|",
    }:  # order counts, also for a tuple without its brackets
        return all(_same(a, b, tolerance) for a, b in zip(gold.items, got.items, strict=False))
    left = list(got.items)
    for item in gold.items:
        found = next((i for i, other in enumerate(left) if _same(item, other, tolerance)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def squeeze(text):
    """Spelling that does not matter for texts: spaces, \\text, braces round one character; case of
    whole words.
    """
    text = re.sub(r"\\text(?:bf|rm|it)?|\s|\\(?=[A-Z])", "", text)
    text = re.sub(r"\{(\w)\}|^\{([^{}]*)\}$", r"\1\2", text)
    return text.lower() if re.fullmatch(r"[A-Za-z]{2,}|\{[A-Za-z ]+\}", text) else text


COMMANDS = frozenset(
    """frac sqrt pi sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp theta alpha beta
    gamma delta epsilon lambda mu nu omega phi varphi psi rho sigma tau xi eta kappa zeta infty cdot times div pm mp le leq ge
    geq ne neq lt gt in cup cap mathbb begin end text operatorname binom circ emptyset varnothing setminus lfloor rfloor lceil
    rceil overline det Re Im arg max min vert lvert rvert mid to""".split()
)


def affordable(text):
    """A budget, so that what reaches sympy is small; what slips through meets the deadline. Raises
    TooLarge; False: not mathematics that we send to sympy at all.
    """
    exponents = [
        (int(e), text[m.start() - 1 : m.start()])
        for m in re.finditer(r"\^\s*\{?\s*[-+(]*(\d+)", text, re.ASCII)
        for e in [m[1][:6]]
    ]
    power = math.prod(e or 1 for e, base in exponents if not base.isalpha())
    if (
        max(map(len, re.findall(r"\d+", text)), default=0) > MAX_DIGITS
        or power > 1000
        or any(e > 999 for e, _ in exponents)
        or re.search(r"\^\s*\{?[^{}^]*\d\}?\s*\^|\^\s*\{[^}]*\d\s*[)}]*\s*\^", text)  # a tower
        or "!" in text
        and (re.search(r"[)}\]!]\s*!|\d{4}|\^", text) or text.count("!") > 2)
        or "\\binom" in text
        and re.search(r"\d{4}|\^", text)
    ):
        raise TooLarge(text[:60])
    prose = re.search(
        r"\\text\{[^{}]*[^A-Za-z{}]", text
    )  # math-verify would drop it: "7 \\text{or anything}"
    return (
        text.isascii()
        and not prose
        and "__" not in text
        and len(text) <= 400
        and all(command in COMMANDS for command in re.findall(r"\\([A-Za-z]+)", text))
    )


@lru_cache(4096)  # the samples of a prompt repeat each other
def algebra(gold, got):
    """math-verify's judgement of two LaTeX texts. Raises TooLarge."""
    if not (affordable(got) and affordable(gold)):
        return False
    a, b = _parse(gold), _parse(got)
    if a is None or b is None:
        return False
    verify = load("math_verify", warm).verify
    return verify(a, b, timeout_seconds=None) and not _far(
        a, b
    )  # no alarm signal here: the pool holds the watch


def warm():
    """What the first answers would pay for, a second together: sympy's lazy imports, the tables of
    the LaTeX parser.
    """
    for gold, got in (
        ("a\\sqrt{2}", "\\sqrt{2a^2}"),
        ("x^2+5x+6", "(x+2)(x+3)"),
        ("\\sin^2 x+4", "5-\\cos^2 x"),
    ):
        algebra(gold, got)


@lru_cache(1024)
def _parse(text):
    library, latex = load("math_verify", warm), load("latex2sympy2_extended")
    spelling = latex.NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    config = library.LatexExtractionConfig(
        boxed_match_priority=-1, normalization_config=spelling
    )  # no units: 2ab is not 2
    found = library.parse(
        f"${text}$", extraction_config=[config], parsing_timeout=None, fallback_mode="no_fallback"
    )
    return found[0] if found and not isinstance(found[0], str) else None


def _far(a, b):
    """math-verify rounds to 6 places, so that 1e-8 pi equals 2e-8 pi; numbers have to agree
    relative to their size too.
    """
    if not (getattr(a, "is_number", False) and getattr(b, "is_number", False)):
        return False
    a, b = (complex(x.evalf(15)) for x in (a, b))
    return abs(a - b) > 1e-6 * max(abs(a), abs(b))
