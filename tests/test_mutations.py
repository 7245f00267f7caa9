"""One thing changed in a gold answer: refused. The gold spelled in another way: accepted.

The golds are not ours: sympy makes them (factored, expanded, derived, integrated; solved for sets
and intervals) and prints them, and its own tests of a LaTeX parser hold others. sympy changes them
too, and numbers put in show that a mutant differs. `pytest -m slow -s tests/test_mutations.py`
prints the tables.
"""

import itertools
import random
import re
import string
from collections import Counter
from tokenize import TokenError

import pytest
from conftest import ROOT

from nanomerci.tasks import math
from nanomerci.tasks.graders.pool import Pool

sympy = pytest.importorskip("sympy")
parser = pytest.importorskip("sympy.parsing.sympy_parser")
PER_CELL = 100  # of each form and mutation
x, y, k, t, W, X, Y, K, T = sympy.symbols("x y k t w X Y K T")
CASES = {x: X, y: Y, k: K, t: T}
SWAPS = {
    sympy.sin: sympy.cos,
    sympy.cos: sympy.sin,
    sympy.tan: sympy.sin,
    sympy.exp: sympy.cos,
    sympy.log: sympy.cos,
    sympy.Abs: sympy.cos,
}
F = sympy.Function("f")

# ---- golds


def expression(rng):
    """What a student might be asked for: the result of a calculation that sympy does."""
    a, b, c = (rng.choice([-1, 1]) * rng.randint(2, 19) for _ in range(3))
    n, u, v = rng.randint(2, 4), *rng.sample([x, y, k, t], 2)
    return rng.choice(
        [
            lambda: sympy.factor((u + a) * (u + b) * c),
            lambda: sympy.expand((u + a) * (v + b) * (u + c)),
            lambda: sympy.diff(sympy.sin(a * u) * u**n, u),
            lambda: sympy.integrate(u * sympy.exp(a * u) + b, u),
            lambda: sympy.apart((a * u + b) / ((u + a) * (u + b + 40)), u),
            lambda: a + b * sympy.sqrt(u**2 + abs(c)),
            lambda: sympy.Rational(a, abs(b) + 1) * u**n + sympy.log(v + abs(c)),
            lambda: sympy.Abs(u + a) ** n / (v + b),
            lambda: sympy.sin(u) ** 2 + a * sympy.cos(v) + sympy.sqrt(abs(c)),
            lambda: sympy.integrate(u**n * v + a, u),
            lambda: sympy.tan(u + a) + sympy.exp(-v / abs(b)),
        ]
    )()


def value(rng):
    n, d = rng.randint(-300, 300) or 7, rng.randint(2, 40)
    roots = sympy.sqrt(rng.choice([2, 3, 5, 7, 11]))
    return rng.choice(
        [
            sympy.Integer(n),
            sympy.Rational(n, d),
            n * sympy.pi / d,
            n + d * roots,
            sympy.Rational(n, d) * roots,
            sympy.Float(n / 8, 12) if n % 8 else sympy.Integer(n),
        ]
    )


def number(item):
    return f"{float(item):g}" if isinstance(item, sympy.Float) else sympy.latex(item)


def values(rng, count):
    found = {}
    while len(found) < count:
        one = value(rng)
        found.setdefault(float(one), one)
    return found


def made(form, rng):
    """-> the parts of a gold, what is printed from them, and whether their order matters."""
    if form == "number":
        return [value(rng)]
    if form == "expression":
        return [expression(rng)]
    if form in ("interval", "union"):
        return [found for _, found in sorted(values(rng, 2 if form == "interval" else 4).items())]
    if form == "equation":
        return [rng.choice([y, F(x), x**2 + y**2, x * y]), expression(rng)]
    if form == "inequality":
        return [rng.choice([x + y, x**2, 2 * x - y]), expression(rng)]
    if form in ("matrix", "named"):
        return list(values(rng, 4 if form == "matrix" else 2).values())
    return list(values(rng, rng.randint(2, 4)).values())


FORMS = {
    "number": "{}",
    "expression": "{}",
    "list": "{}, ",
    "tuple": "({}, )",
    "set": "\\left\\{{{}, \\right\\}}",
    "interval": "\\left[{}, {}\\right)",
    "union": "\\left({}, {}\\right] \\cup \\left[{}, {}\\right)",
    "equation": "{} = {}",
    "inequality": "{} < {}",
    "matrix": "\\left[\\begin{{matrix}}{} & {}\\\\{} & {}\\end{{matrix}}\\right]",
    "named": "x = {}, y = {}",
}


def written(form, parts):
    texts = [number(part) for part in parts]
    if form in ("list", "tuple", "set"):
        return FORMS[form].replace("{}, ", "{}", 1).format(", ".join(texts))
    return FORMS[form].format(*texts)


# ---- mutations of one part


def replaced(tree, rng, wanted, change):
    """The tree with one of its wanted nodes changed, or None."""
    nodes = [node for node in sympy.preorder_traversal(tree) if wanted(node)]
    if not nodes:
        return None
    node = rng.choice(nodes)
    return tree.xreplace({node: change(node)})


def digit(n):
    """One digit of a whole number another, the first not 0."""
    text = str(abs(n))
    return sympy.Integer(int(text[:-1] + str((int(text[-1]) + 1) % 10)) * (-1 if n < 0 else 1))


MUTATIONS = {
    "sign": lambda tree, rng: replaced(
        tree, rng, lambda n: n == tree or n in tree.args, lambda n: -n
    ),
    "digit": lambda tree, rng: replaced(
        tree, rng, lambda n: n.is_Rational and n.p not in (0, 1, -1),
        lambda n: sympy.Rational(digit(n.p), n.q),
    ),
    "exponent": lambda tree, rng: replaced(
        tree, rng, lambda n: n.is_Pow and n.exp.is_number, lambda n: n.base ** (n.exp + 1)
    ),
    "letter": lambda tree, rng: replaced(tree, rng, lambda n: n.is_Symbol, lambda n: W),
    "case": lambda tree, rng: replaced(tree, rng, lambda n: n in CASES, lambda n: CASES[n]),
    "function": lambda tree, rng: replaced(
        tree, rng, lambda n: n.func in SWAPS, lambda n: SWAPS[n.func](*n.args)
    ),
}  # fmt: skip
SHAPES = {
    "side": {"equation", "inequality"},
    "order": {"tuple", "interval", "matrix", "named"},
    "bracket": {"interval", "union"},
    "missing": {"list", "tuple", "set", "union"},
}


def mutant(form, parts, mutation, rng):
    """-> the text of a changed gold, or None if there is nothing to change or nothing changed."""
    if mutation in SHAPES:
        return reshaped(form, parts, mutation, rng) if form in SHAPES[mutation] else None
    at = rng.randrange(len(parts))
    if isinstance(parts[at], sympy.Float):
        return None
    changed = MUTATIONS[mutation](parts[at], rng)
    if changed is None or not differ(parts[at], changed):
        return None
    return written(form, [*parts[:at], changed, *parts[at + 1 :]])


def reshaped(form, parts, mutation, rng):
    if mutation == "side":
        left, right = parts
        name = left in (y, F(x))  # then the right side alone is an answer
        other = rng.choice([left**2, left + 1, sympy.sin(left), W, *([] if name else [right])])
        return written(form, [other, right]) if other != right else number(right)
    if mutation == "order":
        return written(form, parts[1:] + parts[:1])
    if mutation == "missing":
        return written("list" if form == "union" else form, parts[1:])
    text = written(form, parts)
    return (
        text.replace("left[", "left(", 1) if "left[" in text else text.replace("right)", "right]")
    )


def differ(a, b):
    """Do two trees differ where numbers are put in? By sympy alone."""
    rng, symbols = random.Random(5), sorted((a.free_symbols | b.free_symbols), key=str)
    for _ in range(5):
        numbers = {s: sympy.Rational(rng.randint(11, 97), 31) for s in symbols}
        left, right = (
            complex(side.xreplace(numbers).replace(F, sympy.cosh).evalf(20)) for side in (a, b)
        )
        if abs(left - right) > 1e-9 * (abs(left) + abs(right)):
            return True
    return False


def cells():
    """{(form, mutation): [(gold, mutant), ...]}, PER_CELL each where the mutation applies."""
    table = {}
    for form in FORMS:
        for mutation in (*MUTATIONS, *SHAPES):
            rng, found = random.Random(f"{form}/{mutation}"), []
            for tries in range(60 * PER_CELL):
                parts = made(form, rng)
                if changed := mutant(form, parts, mutation, rng):
                    found.append((written(form, parts), changed))
                if len(found) == PER_CELL or tries == 200 and not found:
                    break
            if found:
                table[form, mutation] = found
    return table


# ---- other spellings

SPELLINGS = {
    "dfrac": lambda text: text.replace("\\frac", "\\dfrac"),
    "dollars": lambda text: f"${text}$",
    "brackets": lambda text: f"\\({text}\\)",
    "display": lambda text: f"\\displaystyle {text}",
    "cdot": lambda text: re.sub(r"(\d) (?=[a-z]|\\(?!right))", r"\1 \\cdot ", text),
    "spaces": lambda text: text.replace(" ", "\\, "),
    "no spaces": lambda text: re.sub(r"(?<=[+=,-]) | (?=[+=-])", "", text),
    "no left": lambda text: re.sub(r"\\(left|right)(?![a-z])", "", text),
    "full stop": lambda text: text + ".",
    "matrix rows": lambda text: text.replace("\\\\", "\\\\[4pt] "),
    "big": lambda text: text.replace("\\left", "\\Big").replace("\\right", "\\Big"),
}
BY_FORM = {
    "number": {
        "unit": "{}\\text{{ cm}}",
        "unit squared": "{}\\,\\mathrm{{cm}}^2",
        "approx": "{} \\approx 1.5",
        "name": "x = {}",
        "long name": "A_{{\\max}} = {}",
        "chain": "x = {0} = {0}",
        "angle": "\\angle ABC = {}",
        "swapped": "{} = x",
    },
    "expression": {
        "name": "f(x) = {}",
        "units": "{} \\text{{ square units}}",
        "for all": "{} \\text{{ for all }} x",
    },
    "tuple": {"name": "(x, y) = {}"},
    "interval": {"in": "x \\in {}"},
    "union": {"in": "x \\in {}"},
}


def respelled(form, parts):
    """(name of the spelling, text)."""
    text = written(form, parts)
    for name, change in SPELLINGS.items():
        if change(text) != text:
            yield name, change(text)
    for name, pattern in BY_FORM.get(form, {}).items():
        if not (form == "tuple" and len(parts) != 2):
            yield name, pattern.format(text)
    if form == "interval":
        yield "inequality", "{} \\leqslant x < {}".format(*map(number, parts))
    if form in ("list", "set"):
        yield "order", written(form, parts[::-1])
        yield "set or list", written("set" if form == "list" else "list", parts)
    if form == "list":
        yield "and", written(form, parts).replace(", ", " \\text{ and } ")
    if form == "expression":
        yield "expanded", sympy.latex(sympy.expand(parts[0]))
        yield "factored", sympy.latex(sympy.factor(parts[0]))
    if form == "equation":
        yield "sides", "{1} = {0}".format(*map(number, parts))
        yield "zero", "{1} - \\left({0}\\right) = 0".format(*map(number, parts))


def shipped():
    """(LaTeX, sympy's reading of it) from the tests that sympy ships: of what has a
    value. A \\quad is taken for a comma, and x!! for no double factorial.
    """
    tests = pytest.importorskip("sympy.parsing.tests.test_latex")
    odd = (
        r"quad|!!|\|\||100!|d}{d|int|sum|prod|lim|mathrm|dx|bra|ket|operator|log|overline|f\(|h_|'"
    )
    for text, tree in getattr(tests, "GOOD_PAIRS", []):
        if isinstance(tree, sympy.Expr) and not re.search(odd, text):
            yield text, tree


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=2, deadline=20.0) as pool:
        yield pool


def grades(pool, pairs):
    jobs = [(math.grade, gold, f"\\boxed{{{answer}}}") for gold, answer in pairs]
    return [grade.outcome for grade in pool.grade(jobs)]


@pytest.mark.slow
def test_mutants_are_refused(pool):
    table, total, paid = cells(), 0, []
    for (form, mutation), pairs in table.items():
        outcomes = grades(pool, pairs)
        wrong = [pair for pair, outcome in zip(pairs, outcomes, strict=False) if outcome == "right"]
        errors = Counter(outcomes)["error"]
        print(
            f"{form:11s} {mutation:9s} {len(pairs):4d} mutants, {len(wrong)} paid, {errors} errors"
        )
        assert not errors, pool.last_error
        total, paid = total + len(pairs), paid + wrong
    print(
        f"{total} mutants, {len(paid)} paid: {1 - len(paid) / total:.2%} refused", *paid, sep="\n"
    )
    assert min(map(len, table.values())) >= PER_CELL and len(table) > 50
    assert len({gold for pairs in table.values() for gold, _ in pairs}) >= 500
    assert len(paid) < 0.005 * total


@pytest.mark.slow
def test_other_spellings_are_accepted(pool):
    counts, refused = Counter(), []
    for form in FORMS:
        rng, pairs, kinds = random.Random(form), [], []
        for _ in range(PER_CELL):
            parts = made(form, rng)
            for kind, text in respelled(form, parts):
                kinds.append(kind)
                pairs.append((written(form, parts), text))
        for kind, pair, outcome in zip(kinds, pairs, grades(pool, pairs), strict=False):
            counts[form, kind] += 1
            if outcome != "right":
                refused.append((form, kind, outcome, *pair))
    for cell in counts:
        count = sum(one[:2] == cell for one in refused)
        print(f"{cell[0]:11s} {cell[1]:13s} {counts[cell]:4d}, {count} refused")
    print(f"{len(refused)} of {counts.total()} refused", *refused[:40], sep="\n")
    assert len(refused) < 0.02 * counts.total()


def test_what_sympy_ships_reads_as_sympy_reads_it(pool):
    """Its tests' LaTeX against its own printing of what they say it means."""
    pairs = [(text, sympy.latex(tree.doit(), ln_notation=True)) for text, tree in shipped()]
    assert len(pairs) > 60
    wrong = [pair for pair, got in zip(pairs, grades(pool, pairs), strict=False) if got != "right"]
    print(f"{len(pairs)} pairs, {len(wrong)} refused", *wrong, sep="\n")
    assert len(wrong) < 0.02 * len(pairs)


# ---- golds of others: the answers of the MATH data set's test problems (Hendrycks et al. 2021)

READINGS = (
    (r"\\[dt]frac", r"\\frac"),
    (r"\\left|\\right|\\,|\\!", ""),
    (r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\pi", " pi "),
    (r"\\cdot", "*"),
    (r"\^\{([^{}]*)\}", r"**(\1)"),
    (r"\^(\d)", r"**\1"),
    (r"(?<![a-z])([a-z])(?=[a-z])(?!pi|qrt)", r"\1 "),
)


def numbers_in(text):
    """What a gold says, by sympy's parser of Python and without ours: the values of its parts at
    fixed numbers, sorted, and its outer brackets.
    """
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r" sqrt(\1) ", text)
    for pattern, put in READINGS:
        text = re.sub(pattern, put, text)
    outer = "".join(c for c in (text[0], text[-1]) if c in "[]()")
    parts = re.split(r",|\\cup", re.sub(r"^[\[(](.*,.*)[\])]$", r"\1", text))
    how = (*parser.standard_transformations, parser.implicit_multiplication)
    trees = [parser.parse_expr(part.strip(" []"), transformations=how) for part in parts]
    at = {
        sympy.Symbol(c): sympy.Rational(31 + 2 * i, 17)
        for i, c in enumerate(string.ascii_lowercase)
    }
    values = [complex(tree.xreplace(at).evalf(20)) for tree in trees]
    return outer, sorted((round(v.real, 9), round(v.imag, 9)) for v in values)


def spots(text, pattern, put):
    """The text with one match replaced, for each match."""
    for found in re.finditer(pattern, text):
        yield text[: found.start()] + put(found[0]) + text[found.end() :]


UNREADABLE = (
    SyntaxError,
    TokenError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    IndexError,
)
TEXT_MUTATIONS = {
    "sign": lambda text: (
        [text[1:] if text[0] == "-" else f"-{text}"] if text[0] not in "([" else []
    ),
    "digit": lambda text: spots(text, r"\d", lambda d: str((int(d) + 1) % 10)),
    "exponent": lambda text: spots(text, r"(?<=\^)\d", lambda d: str(int(d) + 1)),
    "letter": lambda text: spots(text, r"(?<![\\a-z])[a-z](?![a-z])", lambda c: "w"),
    "case": lambda text: spots(text, r"(?<![\\a-z])[a-z](?![a-z])", str.upper),
    "bracket": lambda text: spots(text, r"^\\left\[|^\[", lambda b: b.replace("[", "(")),
    "missing": lambda text: spots(text, r",[^,()\[\]]*(?=[)\]]?$)", lambda part: ""),
}


def outside():
    """(gold, mutation, mutant) whose readings differ: by case and bracket they do by themselves."""
    for gold in (ROOT / "tests/outside_golds.txt").read_text().splitlines():
        for mutation, change in TEXT_MUTATIONS.items():
            for mutant in change(gold):
                try:
                    differs = mutation in ("case", "bracket") or numbers_in(gold) != numbers_in(
                        mutant
                    )
                except UNREADABLE:
                    continue  # no answer any more
                if differs:
                    yield gold, mutation, mutant
    rng = random.Random(0)
    for gold, tree in shipped():
        for mutation, change in MUTATIONS.items():
            changed = change(tree.doit(), rng)
            try:
                differs = changed is not None and differ(tree.doit(), changed)
            except UNREADABLE:  # no numbers
                continue
            if differs:
                yield gold, mutation, sympy.latex(changed, ln_notation=True)


@pytest.mark.slow
def test_mutants_of_golds_of_others_are_refused(pool):
    cases = list(outside())
    pairs = [(gold, mutant) for gold, _, mutant in cases]
    outcomes = grades(pool, pairs)
    assert "error" not in outcomes, pool.last_error
    paid = [case for case, outcome in zip(cases, outcomes, strict=True) if outcome == "right"]
    total = Counter(mutation for _, mutation, _ in cases)
    print(f"{len(cases)} mutants {dict(total)}, {len(paid)} paid", *paid, sep="\n")
    golds = sorted({gold for gold, *_ in cases})
    assert len(golds) >= 500 and len(paid) < 0.005 * len(cases)
    assert {*grades(pool, zip(golds, golds, strict=True))} == {"right"}  # each is its own answer


@pytest.mark.slow
def test_other_spellings_of_golds_of_others_are_accepted(pool):
    golds = (ROOT / "tests/outside_golds.txt").read_text().splitlines()
    pairs = [
        (gold, change(gold))
        for gold, change in itertools.product(golds, SPELLINGS.values())
        if change(gold) != gold
    ]
    refused = [pair for pair, got in zip(pairs, grades(pool, pairs), strict=True) if got != "right"]
    print(f"{len(refused)} of {len(pairs)} refused", *refused, sep="\n")
    assert len(refused) < 0.02 * len(pairs)
