"""Are two mathematical answers the same?

An answer is read into lists, tuples, intervals, sets, unions, equations and single expressions
(graders/latex.py says when two of these are equal). What is not understood is kept and compared as
text, never dropped. The rules, of names, units, rounding and so on: docs/graders.md.
"""

import re
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from nanomerci.tasks.graders import latex
from nanomerci.tasks.graders.latex import NotMathematics, TooLarge
from nanomerci.tasks.graders.units import split_unit

MAX_TEXT, MAX_DEPTH, MAX_ITEMS = 1000, 12, 50


class Leaf(NamedTuple):
    text: str  # LaTeX, without its unit
    unit: str = ""
    value: Fraction | None = None  # of a plain number
    places: int = 0  # digits behind the point, if it is a decimal
    mark: str = ""  # "%" or "^\\circ" behind a plain number


class Group(NamedTuple):
    text: str
    # "()" "[)" ... as written; "{}" set; "," bare list; "|" union
    kind: str
    items: tuple


class Equation(NamedTuple):
    text: str
    left: str
    relation: str  # "=" "<" "\\le" "\\ne"; turned so that there is no > and \ge
    right: str
    name: str = ""  # the left side, if it only says what the right side is
    content: Leaf | Group | None = None  # what has that name: 5 of x = 5, (2, oo) of x > 2


# ---- one spelling

SYMBOLS = str.maketrans(
    dict(zip("−–⟨⟩\u00a0\u2009\n", "--()   ", strict=False))
    | {"×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "√": "\\sqrt ", "½": "\\frac{1}{2}"}
    | {"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∈": "\\in ", "∪": "\\cup "}
    | {"∞": "\\infty ", "±": "\\pm ", "°": "^\\circ ", "²": "^2", "³": "^3", "∅": "\\emptyset "}
    | {"π": "\\pi ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "μ": "\\mu "}
    | {"€": "\\euro ", "£": "\\pounds ", "ℝ": "\\mathbb{R}"}
)
SPELT = {
    "\\frac": "dfrac tfrac cfrac",
    "\\binom": "dbinom tbinom",
    "\\emptyset": "varnothing",
    "\\text": "mathrm mathbf mathit mathsf mbox operatorname textbf textit textrm textnormal",
    "\\le": "leq leqq leqslant",
    "\\ge": "geq geqq geqslant",
    "\\ne": "neq",
    "\\approx": "simeq",
    "\\infty": "infin",
    "\\pm": "mp",
    "\\setminus": "backslash",
    "\\quad": "quad qquad",
    "\\$": "dollar",
    "^\\circ": "degree",
    "<": "lt",
    ">": "gt",
    "=": "equiv",
    ",": "lor vee",
    "|": "lvert rvert vert mid",
    "(": "langle",
    ")": "rangle",
    "[": "lbrack",
    "]": "rbrack",
    "\\{": "lbrace",
    "\\}": "rbrace",
    "i": "imath",
    "": "left right displaystyle textstyle large Large LARGE small normalsize huge "
    "bigl bigr Bigl Bigr big Big bigg Bigg limits nolimits boldsymbol thinspace medspace "
    "thickspace negthinspace negmedspace negthickspace",
}
COMMANDS = {}
for _new, _names in SPELT.items():
    COMMANDS |= dict.fromkeys(_names.split(), _new)


def _command(match):
    if match[1] in COMMANDS:
        return COMMANDS[match[1]] + " "
    return match[0]


REWRITES = [  # (what the text must hold, pattern, what stands instead)
    (key, re.compile(pattern, re.ASCII), new)
    for key, pattern, new in [
        ("~", r"~", " "),
        ("\\\\", r"\\\\\s*\[[\d.\s]*(?:pt|em|ex|mm|cm)\]", r"\\\\"),  # \\[4pt]
        ("$", r"(?<!\\)\$", " "),
        ("\\", r"(?<!\\)\\[()\[\]]", " "),
        ("\\", r"\\([A-Za-z]+)\*?", _command),
        ("\\text", r"\\text\s*\{\s*([^{}]*?)[\s.]*\}", r"\\text{\1}"),
        ("\\text", rf"\\text\{{({'|'.join(latex.FUNCTIONS)})\}}", r"\\\1 "),
        ("\\text", r"\\text\{([^{}]*\d[^{}]*)\}|^\s*\\text\{([^{}]*)\}\s*$", r"\1\2"),
        ("{,}", r"(?<=\d)\s*\{,\}\s*(?=\d{3}(?!\d))", ""),  # 10{,}000
        ("\\", r"(?<=\d)\s*(?:,\s*\\!|\\[!,;: ])\s*(?=\d{3}(?!\d))", ""),  # 10,\! 000
        ("\\", r"(?<!\\)\\[,;:!> ]", " "),
        ("or", r",?\s*(?:\\text\{,?\s*or\}|\bor\b|(?<=\))or(?=\())\s*,?", ","),
        ("and", r",?\s*(?:\\text\{,?\s*and\}|\band\b)\s*,?", ","),
        ("\\prime", r"\^\s*\{?((?:\s*\\prime)+)\s*\}?", lambda m: "'" * m[1].count("p")),
        ("\\$", r"\\\$\s*(-?[\d.,]*\d)", r"\1\\text{dollars}"),
        ("\\", r"\\(euro|pounds)\s*([\d.,]*\d)", r"\2\\text{\1}"),
        ("\\%", r"\\%", "%"),
        ("p", r"\\text\{\s*(?:percent|percentage|pct)\s*\}", "%"),
        ("p", r"(?<![A-Za-z])(?:percent|percentage|pct)\b", "%"),
        ("\\quad", r"[,\s]*\\quad[,\s]*(?:\\quad[,\s]*)*", r"\\quad "),
        ("!=", r"!=", r"\\ne "),
        ("C_", r"C_\{?(\w+)\}?\^\{?(\w+)\}?", r"\\binom{\1}{\2}"),
    ]
]
BARE = re.compile(r"[-+\d.,;/()\[\] ]*", re.ASCII)  # has one spelling
BRACKET = re.compile(r"[(\[{)\]}]")
STEPS = dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)
THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?![\d,])", re.ASCII)


def normalise(text):
    """One spelling for what LaTeX spells in many ways. Raises TooLarge."""
    if len(text) > MAX_TEXT:
        raise TooLarge(f"{len(text)} characters")
    if not text.isascii():
        text = text.translate(SYMBOLS)
    if "\\\\" in text and "\\begin" not in text:
        text = text.replace("\\\\", "\\")  # escaped twice
    if not BARE.fullmatch(text):
        for key, pattern, new in REWRITES:
            if key in text:
                text = pattern.sub(new, text)
    text = text.strip().rstrip(".,;:").strip()
    deepest = max(depths(text))
    if deepest > MAX_DEPTH:
        raise TooLarge(f"{deepest} nested brackets")
    return text


def depths(text):
    """How many brackets are open, before the text and behind each of its brackets."""
    return list(accumulate((STEPS[c] for c in BRACKET.findall(text)), initial=0))


# ---- reading

PLAIN = re.compile(r"-?\d{1,40}", re.ASCII)
FRACTION = re.compile(
    r"([-+]?)(?:(\d+(?:\.\d*)?|\.\d+)(?:\s*/\s*(\d+))?|\\frac\{(\d+)\}\{(\d+)\})", re.ASCII
)
MARKED = re.compile(r"(.*?)\s*(%|\^\s*\{?\\circ\}?)\s*", re.ASCII)
DECIMAL = re.compile(r"[-+]?\d*\.(\d+)", re.ASCII)
_LETTER = (
    r"(?:\\(?!in |le |ge |ne |pi|cup|set|frac|sqrt|pm|text)[A-Za-z]+|[A-Za-z]|\\text\{\w+\})"
    r"(?:_(?:\w|\\\w+|\{[^{}=]*\}))?'*"
)
NAME = re.compile(  # A_{max}; f(x), P(X>2); f^{-1}(x), A^T; (x, y); area; \angle ABC; AB:BC; \tan x
    rf"\s*(?:{_LETTER}|{_LETTER}(?:\^\{{-1\}})?\s*\([^()]*\)|[A-Z]\^\{{?(?:-1|T)\}}?"
    rf"|\((?:\s*{_LETTER}\s*,)+\s*{_LETTER}\s*\)|[A-Z]{{2,4}}|[A-Za-z]{{4,}}|\\text\{{[A-Za-z ]+\}}"
    r"|m?\\(?:angle|measuredangle|triangle|overline|vec)\s*\{?[A-Za-z]+\}?|\|[A-Z]{2}\|"
    r"|[A-Z_0-9{}]+\s*:\s*[A-Z_0-9{}]+|\\frac\{[A-Z]{2}\}\{[A-Z]{2}\}"
    rf"|\\(?:sin|cos|tan)\s*(?:{_LETTER}|\(\s*{_LETTER}\s*\)))\s*",
    re.ASCII,
)
SUM = re.compile(rf"[-+\s]*{_LETTER}(?:\s*[-+]?\s*{_LETTER})*\s*", re.ASCII)
PLUS_MINUS = re.compile(r"\\pm(?![a-z])")
RELATION = re.compile(r"<=?|>=?|=|\\(?:le|ge|ne|in)(?![A-Za-z])")
TURNED = {">": "<", ">=": "\\le", "\\ge": "\\le"}
_MEMBERS = r"[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\\in\s*\\mathbb\s*\{?[A-Z]\}?[\^_+*0-9{}>=\s]*"
CONDITION = re.compile(  # , k in Z; for all x
    r"\s*(?:(?:[,(]|\\quad|\\text\{,?\s*(?:for|where|with)?\s*\})\s*\(?\s*" + _MEMBERS + r"\)?"
    r"|,?\s*\\forall[^=]*|,?\s*\\text\{,?\s*(?:for (?:all|any|every)|where)\b[^{}]*\}[^=]*)$",
    re.ASCII,
)
INTERVALS = frozenset(["()", "[)", "(]", "[]"])
BRACKETED = re.compile(r"(\\\{|[(\[\]])(.+)(\\\}|[)\[\]])", re.DOTALL)
BRACKETS = {one: one for one in INTERVALS} | {"\\{\\}": "{}", "[[": "[)", "][": "()", "]]": "(]"}


def split(text, separator):
    """At the separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for token in re.finditer(rf"{BRACKET.pattern}|{re.escape(separator)}", text):
        depth += STEPS.get(token[0], 0)
        if token[0] == separator and depth <= 0:
            parts.append(text[start : token.start()])
            start = token.end()
    return [part.strip() for part in (*parts, text[start:])]


@lru_cache(4096)
def read(text):
    """Text -> Leaf, Group or Equation. Raises TooLarge."""
    if PLAIN.fullmatch(text):  # most answers of arithmetic and competitions, in a microsecond
        return Leaf(text, value=Fraction(int(text)))
    text = CONDITION.sub("", normalise(text))
    if not any(bracket in text for bracket in ("(", "[", "\\{")):
        text = THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    return _read(text)


def _read(text):
    if FRACTION.fullmatch(text):
        return _leaf(text)
    for separator, kind in (("\\cup", "|"), (";", ","), ("\\quad", ","), (",", ",")):
        if separator in text and len(parts := split(text, separator)) > 1:
            return _separated(text, kind, parts)
    if "\\approx" in text:
        exact, rounded, *_ = split(text, "\\approx") + [""]
        if rounded and (not exact or NAME.fullmatch(exact)):
            name = _spell(exact) or "\\approx"
            return Equation(text, exact, "\\approx", rounded, name, _read(rounded))
        text = exact or text
    relation = RELATION.search(text)
    if relation and ((found := _relation(text)) or relation.start() == 0):
        return found or Leaf(text)
    if len(both := PLUS_MINUS.split(text)) == 2:
        signs = (sign.join(both).strip().removeprefix("+").strip() for sign in "+-")
        return _list(text, ",", _items(signs))
    if "\\setminus" in text and (found := _without(*text.split("\\setminus", 1))):
        return found
    grouped = text.startswith("{") and text.endswith("}") and _balanced(text[1:-1])
    if grouped and not re.search(r"\\(?:over|choose)", text):
        return _read(text[1:-1].strip())  # TeX's own grouping
    if (match := BRACKETED.fullmatch(text)) and (found := _bracketed(*match.groups())):
        return found
    return _leaf(text)


def _separated(text, kind, parts):
    name = kind == "|" and re.match(rf"({_LETTER})\s*\\in\s*", parts[0])
    if name:  # x in A or B
        parts[0] = parts[0][name.end() :]
    items = _items(filter(None, parts))
    if not items:
        return Leaf(text)
    found = _list(text, kind, items)
    if name:
        return Equation(text, name[1], "\\in", text, _spell(name[1]), found)
    return found


def _items(parts):
    parts = list(parts)
    if len(parts) > MAX_ITEMS:
        raise TooLarge(f"{len(parts)} items")
    return tuple(_read(part) for part in parts)


def _list(text, kind, items):
    """A list whose items are lists (of +-) is one list; x = 1, 2 and (x, y) = (1, 2), (3, 4) name
    all of them.
    """
    flat = []
    for item in items:
        if isinstance(item, Group) and item.kind == kind and ";" not in text:
            flat += item.items
        else:
            flat.append(item)
    first, *rest = flat
    named = isinstance(first, Equation) and first.name and first.relation == "="
    if kind == "," and named and not any(isinstance(x, Equation) for x in rest):
        flat = [first] + [first._replace(text=x.text, content=x) for x in rest]
    found = {isinstance(x, Equation) and x.relation in ("<", "\\le") and x.name for x in flat}
    if kind == "," and len(found) == 1 and "" not in found and False not in found:
        union = Group(text, "|", tuple(x.content for x in flat))  # x < 1 or x > 3
        return Equation(text, flat[0].left, "\\in", text, *found, union)
    return Group(text, kind, tuple(flat))


def _bracketed(start, inner, end):
    """A set, tuple or interval; None if it is not one."""
    text, kind = start + inner + end, BRACKETS.get(start + end)
    if not kind or not _balanced(inner):
        return None
    if kind == "{}" and (such := re.match(r"\s*(\w)\s*[|:](.*)", inner)):
        found = _read(such[2].strip())  # {x | x > 3}
        if isinstance(found, Equation) and found.name == such[1]:
            return found.content
        return Leaf(text)
    parts = split(inner, ";")
    if len(parts) == 1:
        parts = split(inner, ",")
    if len(parts) > 1:
        return Group(text, kind, _items(parts))
    if kind == "{}":
        return _read(inner.strip())
    return None


def _balanced(text):
    """Does it hold whole pairs of brackets? What is inside of (1)(2) does not."""
    found = depths(text)
    return min(found) == found[-1] == 0


def _leaf(text):
    body, unit = split_unit(text)
    if " " in body and (mixed := re.fullmatch(r"(-?)(\d+) (\d+/\d+)", body)):
        body = f"{mixed[1]}({mixed[2]}+{mixed[3]})"
    plain, mark = body, ""
    if marked := MARKED.fullmatch(body):
        plain, mark = marked[1], marked[2].strip("{}")
    places = len(body.partition(".")[2]) * bool(DECIMAL.fullmatch(body))
    return Leaf(body, unit, _number(plain), places, mark)


def _number(text):
    """The value of a number of digits and / or \\frac alone, or None."""
    match = FRACTION.fullmatch(text)
    if not match or len(text) > latex.MAX_DIGITS:
        return None
    sign, whole, below, top, bottom = match.groups()
    digits, _, places = (whole or top).partition(".")
    below = int(below or bottom or 1) * 10 ** len(places)
    if not below:
        return None
    return Fraction(int(sign + digits + places), below)


# ---- equations and inequalities


def _relation(text):
    """Equation, or None if there is no relation outside all brackets, or an odd one."""
    parts, relations, start = [], [], 0
    for match in RELATION.finditer(text):
        if _balanced(text[start : match.start()]):
            parts.append(text[start : match.start()].strip())
            relations.append(match[0])
            start = match.end()
    parts.append(text[start:].strip())
    if not relations or not all(parts):
        return None
    if set(relations) == {"="}:
        return _chain(text, parts)
    if all(one in TURNED for one in relations):  # from left to right, the smaller first
        parts, relations = parts[::-1], [TURNED[one] for one in relations[::-1]]
    return _inequality(text, parts, [one.replace("<=", "\\le") for one in relations])


def _chain(text, parts):
    """x = 2+3 = 5. All values have to agree, or it is no answer."""
    if NAME.fullmatch(parts[-1]) and not NAME.fullmatch(parts[0]):
        parts = parts[::-1]
    left, *values = parts
    content = _read(values[-1])
    if any(not _same(content, _read(value), 0.0) for value in values[:-1]):
        return None
    name = ""
    if NAME.fullmatch(left):
        name = _spell(left)
    elif _same(_read(left), content, 0.0):
        name = "="  # of what is true anyhow, log 100 = 2, only the value says something
    return Equation(text, left, "=", values[-1], name, content)


def _inequality(text, parts, relations):
    """a < x <= b as the interval (a, b], with the name x; x in A as A."""
    names = [bool(NAME.fullmatch(part)) for part in parts]
    left, relation, *_, right = parts[0], relations[0], parts[-1]
    if relations == ["\\in"] and names[0]:
        return Equation(text, left, relation, right, _spell(left), _read(right))
    if relations == ["\\ne"] and names[0] and (rest := _without("\\mathbb{R}", f"\\{{{right}\\}}")):
        return Equation(text, left, relation, right, _spell(left), rest)
    if relations == ["\\ne"]:
        return Equation(text, left, relation, right)
    if not {*relations} <= {"<", "\\le"} or len(parts) > 3:
        return None
    if len(parts) == 3 and names[1]:
        low, name, high = parts
        left = text  # it has no two sides
    elif names == [True, False]:
        low, name, high = "-\\infty", left, right
        relations = ["<", *relations]
    elif names == [False, True]:
        low, name, high = left, right, "\\infty"
        relations = [*relations, "<"]
    elif len(parts) == 2:
        return Equation(text, left, relation, right)
    else:
        return None
    kind = "(["[relations[0] == "\\le"] + ")]"[relations[1] == "\\le"]
    content = Group(text, kind, (_read(low), _read(high)))
    return Equation(text, left, relation, right, _spell(name), content)


def _without(whole, part):
    """R without points or intervals whose ends are numbers, as a union; None if it is not that."""
    if not re.fullmatch(r"\s*\\mathbb\s*\{?R\}?\s*", whole):
        return None
    found, holes = _read(part.strip()), []
    items = [found]
    if isinstance(found, Group) and not _interval(found):
        items = found.items
    for item in items:
        hole = item, item, "[]"
        if _interval(item):
            hole = *item.items, item.kind
        if not all(isinstance(end, Leaf) and end.value is not None for end in hole[:2]):
            return None
        holes.append(hole)
    holes.sort(key=lambda hole: hole[0].value)
    low, bracket, pieces = Leaf("-\\infty"), "(", []
    for start, end, kind in [*holes, (Leaf("\\infty"), None, "[]")]:
        close = ")]"[kind[0] == "("]
        pieces.append(
            Group(f"{bracket}{low.text},{start.text}{close}", bracket + close, (low, start))
        )
        low, bracket = end, "(["[kind[1] == ")"]
    return Group(part, "|", tuple(pieces))


def _interval(item):
    return isinstance(item, Group) and item.kind in INTERVALS and len(item.items) == 2


def _spell(name):
    return re.sub(r"\\text|\\(?=[a-z]{3})|[\s{}\\]", "", name)


# ---- comparing

CHOICE = re.compile(r"[\s({]*(?:\\text\s*\{)?[\s({]*([A-J])[\s)}.]*")
CHOSEN = re.compile(r"[\s({*]*(?:\\text\s*\{)?[\s({*]*([A-J])(?:[)}.:*\s]*$|[)}]*[.:)](?P<why>.*))")
LETTER = re.compile("[A-J]")


def same(gold, got, tolerance=0.0):
    """Two texts. tolerance: relative, for answers that are measured or rounded. Raises TooLarge."""
    if LETTER.search(gold, 0, 30) and (letter := CHOICE.fullmatch(normalise(gold))):  # (C)
        chosen = CHOSEN.match(normalise(got))
        if not chosen or chosen[1] != letter[1]:
            return False
        return not re.search(r"\b[A-J][).:]|,\s*\(?[B-J]\b", chosen["why"] or "")
    return _same(read(gold), read(got), tolerance)


def _same(gold, got, tolerance):
    if type(gold) is type(got) is not Leaf and _squeeze(gold.text) == _squeeze(got.text):
        return True
    if isinstance(gold, Equation) and isinstance(got, Equation):
        return _same_equation(gold, got, tolerance)
    if isinstance(got, Equation):
        value = got.name or got.relation == "=" and SUM.fullmatch(got.left)
        return bool(value and got.relation != "\\approx") and _same(gold, got.content, tolerance)
    if isinstance(gold, Equation):
        return bool(gold.name) and _same(gold.content, got, tolerance)
    if isinstance(gold, Group) and isinstance(got, Group):
        return _same_group(gold, got, tolerance)
    if isinstance(gold, Group) and gold.kind == "()" or isinstance(got, Group) and got.kind == "()":
        return _same_column(gold, got)
    if isinstance(gold, Group) or isinstance(got, Group):
        return False
    return _same_leaf(gold, got, tolerance)


def _same_leaf(gold, got, tolerance):
    if gold.unit and got.unit and gold.unit != got.unit:
        return False
    if None not in (gold.value, got.value) and not tolerance:
        if gold.value == got.value:
            return True
        if gold.mark != got.mark:
            hundredths = [x.value / (1 + 99 * (x.mark == "%")) for x in (gold, got)]
            if hundredths[0] == hundredths[1]:
                return True
        if max(gold.places, got.places) < 6:  # 60 degrees are no rational number of radians
            return False
    texts = _squeeze(gold.text), _squeeze(got.text)
    if texts[0] == texts[1] != "":
        return True
    try:
        return _same_value(gold, got, tolerance)
    except NotMathematics:
        return False


def _same_value(gold, got, tolerance):
    """Expressions. If only one has %, or degrees, it may also stand for 1 of them."""
    trees = [latex.parse(x.text) for x in (gold, got)]
    percent = ["%" in x.text for x in (gold, got)]
    degrees = ["\\circ" in x.text for x in (gold, got)]
    if _near(trees, gold, got, tolerance):
        return True
    degree = None
    if degrees[0] != degrees[1]:
        degree = Fraction(1)
        if _near(trees, gold, got, tolerance, degree):
            return True
    if percent[0] == percent[1]:
        return False
    trees[percent[0]] = "/", trees[percent[0]], ("number", Fraction(100))
    return _near(trees, gold, got, tolerance, degree)


def _near(trees, gold, got, tolerance, degree=None):
    """Equal, or within the tolerance, or one is the other rounded to 6 places or more."""
    if latex.equal(*trees, degree=degree):
        return True
    places = max(gold.places, got.places)
    rounded = places >= 6 and 0 in (gold.places, got.places)
    if not (tolerance or rounded) or any(map(latex.names, trees)):
        return False
    for values, _ in latex.samples(*trees, degree=degree):
        if any(isinstance(x, tuple) for x in values):
            return False
        a, b, bound = latex.alike(*values, Fraction(1, 2 * 10**places))
        return abs(a - b) <= max(abs(a) * tolerance, bound * rounded)
    return False


def _same_equation(gold, got, tolerance):
    if gold.name and gold.name == got.name:
        return _same(gold.content, got.content, tolerance)
    if gold.relation != got.relation:
        return False
    try:
        trees = [("-", latex.parse(x.left), latex.parse(x.right)) for x in (gold, got)]
        factor = latex.ratio(*trees)
    except NotMathematics:
        return _squeeze(gold.text) == _squeeze(got.text)
    return factor is not None and (
        gold.relation in ("=", "\\ne") or factor.imag == 0 and factor.real > 0
    )


def _same_group(gold, got, tolerance):
    kinds = {gold.kind, got.kind}
    if gold.kind == "|" and got.kind == "," and all(map(_interval, got.items)):
        kinds = {"|"}
    if len(gold.items) != len(got.items) or not (
        len(kinds) == 1 or kinds in ({",", "{}"}, {",", "()"})
    ):
        return False
    named = [{x.name for x in y.items if isinstance(x, Equation)} for y in (gold, got)]
    ordered = len(named[0]) > 1 and not named[1]  # 1, 2 for x = 1, y = 2
    if ordered or "()" in kinds or not kinds <= {",", "{}", "|"}:
        return all(_same(a, b, tolerance) for a, b in zip(gold.items, got.items, strict=False))
    left = list(got.items)
    for item in gold.items:
        found = next((i for i, other in enumerate(left) if _same(item, other, tolerance)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _same_column(gold, got):
    """A column vector and a tuple."""
    group, leaf = sorted((gold, got), key=lambda x: isinstance(x, Leaf))
    if "matrix" not in leaf.text or not all(isinstance(item, Leaf) for item in group.items):
        return False
    try:
        column = "matrix", *(("row", latex.parse(item.text)) for item in group.items)
        return latex.equal(column, latex.parse(leaf.text))
    except NotMathematics:
        return False


WORDS = frozenset("yes no true false odd even".split())


def _squeeze(text):
    """Spelling that does not matter: spaces, \\text, braces round one character; the case of a word
    that is written as words are.
    """
    text = re.sub(r"\\text|\s+|\\(?=[A-Z])", " ", text).strip()
    text = re.sub(r"\{\s*(\w)\s*\}|^\{([^{}]*)\}$", r"\1\2", text)
    text = re.sub(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.])", "", text)
    word = text.strip("{} ")
    lower = len(word) > 3 or word.lower() in WORDS
    if lower and re.fullmatch(r"[A-Za-z]?[a-z ]+|[A-Z ]+|[A-Z][a-z]+(?: [A-Z][a-z]+)*", word):
        return word.lower()
    return text
