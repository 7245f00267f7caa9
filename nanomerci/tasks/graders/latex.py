"""LaTeX expressions: text -> a tree, and the value of a tree at a point.

A value is a Fraction as long as all is rational, else a number of mpmath, else (matrices) a tuple
of rows. Nothing is rewritten symbolically: two expressions are the same if their values agree at
points (the identity test of Schwartz and Zippel). So the cost is bounded by what is written: every
power, factorial and product is measured before it is computed, and one too large raises TooLarge.
A command that is not known here raises NotMathematics; nothing is ever dropped.

Here: single expressions.   Not here: lists, equations, units, names (math_answers.py).
"""

import math
import re
import zlib
from fractions import Fraction
from functools import lru_cache

from nanomerci.tasks.graders.worker import load

MAX_TOKENS, MAX_DIGITS = 300, 40  # of an expression; of a number in it
MAX_BITS, MAX_FACTORIAL = 1 << 16, 5000  # of one exact number; 2022! has 19,300
POINTS = 6
DIGITS = 50  # of an inexact number; more where large terms cancel


class TooLarge(Exception):
    """An answer whose evaluation could take for ever; not evaluated."""


class NotMathematics(Exception):
    """Text that the grammar below does not know."""


FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot exp ln log lg".split()
)
INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
LETTERS = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi
    rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi
    Psi Omega pi circ infty emptyset ell hbar odot star""".split()
)
ACCENTS = frozenset("overline bar vec hat tilde widehat overrightarrow mathbb mathcal".split())
CONSTANTS = frozenset(["\\pi", "e", "i", "°"])
WORDS = {"pi": "\\pi", "infty": "\\infty", "infinity": "\\infty", "\\infinity": "\\infty"}
ASCII = "|".join(sorted(["sqrt", "pi", "infty", "infinity", "abs", *FUNCTIONS], key=len)[::-1])
TOKEN = re.compile(
    r"(?P<loop>\d*\.\d*)\\(?:overline|bar|dot)\s*(?:\{(?P<digits>\d+)\}|(?P<digit>\d))"
    r"|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\\text\{[^{}]*\}|\\[A-Za-z]+|\\\\|\\[{}|]"
    rf"|(?<![A-Za-z])(?:{ASCII})(?![A-Za-z])|\*\*|[A-Za-z]|[-+*/^_!%|(){{}}\[\]&']|\s+|(?P<bad>.)",
    re.ASCII | re.DOTALL,
)
CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "|": "|"}
CLOSING |= {"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
AROUND = {"|": "abs", "\\lfloor": "floor", "\\lceil": "ceiling"}
TIMES = {"*": "*", "\\cdot": "*", "\\times": "*", "/": "/", "\\div": "/"}
PLUS = frozenset("+-")
INFIX = {"\\over": "/", "\\choose": "binom"}
ENDS = frozenset([*TIMES, *PLUS, *INFIX, *CLOSING.values(), *"^_!%&'", "\\\\", "\\end", "**", None])
ENDS -= {"|"}  # which may open, too


@lru_cache(4096)
def parse(text):
    """A tree: (operation, ...) with "number" and "name" at its leaves. Raises NotMathematics,
    TooLarge.
    """
    try:
        parser = _Parser(text)
        tree = parser.sum()
        if parser.next is not None:
            raise NotMathematics(text)
        return tree
    except RecursionError:
        raise TooLarge(text[:60]) from None


class _Parser:
    """Recursive descent. `next` is the token at hand."""

    def __init__(self, text):
        self.tokens, self.at, self.bars, self.next = [], -1, 0, None
        for match in TOKEN.finditer(text):
            if match["bad"]:
                raise NotMathematics(text)
            if len(match[0]) > MAX_DIGITS and match[0][0] in ".0123456789":
                raise TooLarge(f"a number of {len(match[0])} digits")
            if match["loop"]:
                self.tokens.append(match)
            elif not match[0].isspace():
                self.tokens.append(match[0])
        if len(self.tokens) > MAX_TOKENS:
            raise TooLarge(f"{len(self.tokens)} tokens")
        self.tokens += [None] * 4  # the end, and what is looked at behind it
        self.advance()

    def advance(self):
        token, self.at = self.next, self.at + 1
        self.next = self.tokens[self.at]
        return token

    def take(self, token):
        if self.next != token:
            raise NotMathematics(f"wanted {token}, got {self.next}")
        return self.advance()

    def sum(self):
        tree = self.signed(self.product)
        while self.next in PLUS:
            tree = self.advance(), tree, self.signed(self.product)
        return tree

    def signed(self, read):
        minus = False
        for _ in range(2):
            if self.next in PLUS:
                minus ^= self.advance() == "-"
        tree = read()
        if minus:
            tree = "*", ("number", Fraction(-1)), tree
        return tree

    def product(self):
        tree, last = self.power(), self.tokens[self.at - 1]
        while True:
            if self.next in TIMES:
                tree = TIMES[self.advance()], tree, self.signed(self.power)
            elif self.starts():
                right, before = self.next, tree
                tree = "*", before, self.power()
                if _digits(right) and _digits(last):  # 1 2 is not 12, and not 1 times 2
                    raise NotMathematics("two numbers side by side")
                if right == "\\frac" and before[0] == "number" and _plain(tree[2]):
                    tree = "+", before, tree[2]  # a mixed number
            else:
                return tree
            last = self.tokens[self.at - 1]

    def starts(self):
        """Does a factor start here?"""
        return self.next not in ENDS and not (self.next == "|" and self.bars)

    def power(self):
        tree = self.atom()
        while self.next in ("^", "!", "%", "**"):
            sign = self.advance()
            if sign == "!":
                tree = "!", tree
            elif sign == "%":
                tree = "/", tree, ("number", Fraction(100))
            elif (exponent := self.argument(whole=True)) == ("name", "\\circ"):
                tree = "*", tree, ("name", "°")
            elif self.next == "^":  # a tower
                self.advance()
                return "^", tree, ("^", exponent, self.argument(whole=True))
            else:
                return "^", tree, exponent
        return tree

    def argument(self, whole=False):
        """What a command or ^ takes: a group in braces, or one token. whole: of a number all its
        digits, also a sign (10^33, 10^-3); \\frac12 takes a digit each.
        """
        if whole and self.next in PLUS:
            return self.signed(lambda: self.argument(True))
        if not whole and isinstance(self.next, str) and self.next.isdigit() and len(self.next) > 1:
            digit, self.tokens[self.at] = self.next[0], self.next[1:]
            self.next = self.tokens[self.at]
            return "number", Fraction(digit)
        return self.atom()

    def group(self, closing):
        """What stands before a closing bracket, which is consumed."""
        bars, self.bars = self.bars, closing == "|"
        tree = self.sum()
        if self.next in INFIX:
            tree = INFIX[self.advance()], tree, self.sum()
        self.take(closing)
        self.bars = bars
        return tree

    def atom(self):
        token = self.advance()
        if token in ENDS:
            raise NotMathematics(f"unexpected {token}")
        if isinstance(token, re.Match):
            return "number", _repeating(token["loop"], token["digits"] or token["digit"])
        if _digits(token):
            if "e" in token.lower() and len(re.split("[eE]", token)[1]) > 4:
                raise TooLarge(token)
            return "number", Fraction(token)
        if token in CLOSING:
            tree = self.group(CLOSING[token])
            if token in AROUND:
                tree = AROUND[token], tree
            return tree
        name = token.lstrip("\\")
        if name in FUNCTIONS:
            return self.function(name)
        if name == "frac":
            return "/", self.argument(), self.argument()
        if name == "binom":
            return "binom", self.argument(), self.argument()
        if name == "sqrt":
            return self.root()
        if name == "abs":
            return "abs", self.atom()
        if name == "begin":
            return self.matrix()
        return self.name(WORDS.get(token, token))

    def root(self):
        index = "number", Fraction(2)
        if self.next == "[":
            self.advance()
            index = self.group("]")
        return "root", self.argument(), index

    def name(self, name):
        """A variable with its subscript and primes; one of f g h before a bracket is a function."""
        if name.startswith("\\text{"):
            name = name[6:-1].strip()
        elif name[1:] in ACCENTS:
            name += self.raw()
        elif name[0] == "\\" and name[1:] not in LETTERS:
            raise NotMathematics(name)
        if self.next == "_":
            self.advance()
            name += "_" + self.raw()
        while self.next == "'":
            name += self.advance()
        if self.next == "(":
            _, inner, end = self.tokens[self.at : self.at + 3]
            if re.fullmatch("[fghFGH].?", name) or _digits(inner) and end == ")":  # f(x), I(0)
                self.advance()
                return "call", name, self.group(")")
        return "name", name

    def raw(self):
        """The text of a subscript."""
        text, depth = "", 0
        while True:
            token = self.advance()
            if not isinstance(token, str):
                raise NotMathematics("a subscript that does not end")
            depth += (token == "{") - (token == "}")
            text += token.removeprefix("\\text{").strip("\\{} ")
            if depth <= 0:
                return text

    def function(self, name):
        base, power = (), None
        while self.next in ("^", "_"):
            if self.advance() == "^":
                power = self.argument()
            else:
                base = (self.argument(),)
        if power == ("*", ("number", Fraction(-1)), ("number", Fraction(1))) and name in INVERSE:
            name, power = INVERSE[name], None
        if self.next in ("(", "{", "["):
            argument = self.atom()
        else:  # \sin 2x, \ln\frac12; it ends before the next function
            argument = self.power()
            while self.starts() and self.next not in CLOSING:
                if str(self.next).lstrip("\\") in FUNCTIONS:
                    break
                argument = "*", argument, self.power()
        tree = name, argument, *base
        if power:
            tree = "^", tree, power
        return tree

    def matrix(self):
        kind = self.raw()
        if not re.fullmatch(r"[pb]?matrix|smallmatrix|array", kind):
            raise NotMathematics(kind)
        if kind == "array":
            self.raw()
        rows = [[]]
        while self.next != "\\end":
            rows[-1].append(self.sum())
            if self.next not in ("&", "\\\\", "\\end"):
                raise NotMathematics("a matrix")
            if self.next != "\\end" and self.advance() == "\\\\" and self.next != "\\end":
                rows.append([])
        self.advance()
        if self.raw() != kind:
            raise NotMathematics("a matrix")
        return "matrix", *(("row", *row) for row in rows)


def _digits(token):
    return isinstance(token, str) and token[0] in ".0123456789"


def _plain(tree):
    """Is it a fraction of two whole numbers?"""
    return tree[0] == "/" and all(x[0] == "number" and x[1].denominator == 1 for x in tree[1:])


def _repeating(start, digits):
    whole, _, places = start.partition(".")
    rest = Fraction(int(digits), 10 ** len(digits) - 1)
    return (int((whole + places) or 0) + rest) / 10 ** len(places)


# ---- values


@lru_cache(4096)
def names(tree):
    """The variables of a tree."""
    found, todo = set(), [tree]
    while todo:
        kind, *rest = todo.pop()
        if kind == "name":
            found.add(rest[0])
        else:
            todo += [x for x in rest if isinstance(x, tuple)]
    return frozenset(found - CONSTANTS)


def point(name, number):
    """Value of a variable at one of the points: first in (0, 1), then (1, 10), then of any sign."""
    hashed = zlib.crc32(f"{name}/{number}".encode()) % 9973
    return Fraction(hashed + 1, 9974) * (1, 9, 12)[number % 3] + (0, 1, -6)[number % 3]


class Evaluation:
    """Values of trees at one point. scale: the largest inexact term that was added; a zero is
    measured against it. degree: what ° stands for, if not for pi/180.
    """

    def __init__(self, number=0, degree=None, digits=DIGITS):
        self.number, self.degree, self.digits, self.scale = number, degree, digits, 0

    def __call__(self, tree):
        """None where it is not defined."""
        try:
            return self.value(tree)
        except (ZeroDivisionError, ValueError, TypeError):
            return None
        except RecursionError:
            raise TooLarge("a deep tree") from None

    def value(self, tree):
        kind, *rest = tree
        if kind == "number":
            return rest[0]
        if kind == "name":
            return self.name(rest[0])
        if kind == "call":  # a function that is not known: a wild one of its argument
            name, argument = rest
            return self.mp.sin(self.inexact(7 * self.value(argument) + point(name, 0)))
        values = [self.value(x) for x in rest]
        if kind in OPERATIONS:
            return OPERATIONS[kind](self, *values)
        return self.function(kind, *map(self.inexact, values))

    @property
    def mp(self):
        mp = load("mpmath").mp
        mp.dps = self.digits
        return mp

    def inexact(self, value):
        if isinstance(value, Fraction):
            return self.mp.mpf(value.numerator) / value.denominator
        return value

    def name(self, name):
        if name == "°":
            return self.degree or self.mp.pi / 180
        if name in CONSTANTS:
            return {"\\pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.mpc(0, 1)}[name]
        return point(name, self.number)

    def add(self, a, b):
        if isinstance(a, tuple):
            return tuple(tuple(map(self.add, *rows)) for rows in zip(a, b, strict=True))
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return _small(a + b)
        a, b = self.inexact(a), self.inexact(b)
        self.scale = max(self.scale, abs(a), abs(b))
        return a + b

    def subtract(self, a, b):
        return self.add(a, self.multiply(Fraction(-1), b))

    def multiply(self, a, b):
        for matrix, factor in ((a, b), (b, a)):
            if isinstance(matrix, tuple):
                return tuple(tuple(self.multiply(factor, x) for x in row) for row in matrix)
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return _small(a * b)
        return self.inexact(a) * self.inexact(b)

    def divide(self, a, b):
        return self.multiply(a, 1 / b)

    def power(self, a, b):
        if isinstance(a, Fraction) and _whole(b):
            if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > MAX_BITS:
                raise TooLarge("a power")
            return a ** int(b)
        a, b = self.inexact(a), self.inexact(b)
        if a and abs(b * self.mp.log(a)) > MAX_BITS:
            raise TooLarge("a power")
        return a**b

    def root(self, a, index):
        if isinstance(a, Fraction) and index == 2 and a >= 0:
            exact = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
            if exact * exact == a:
                return exact
        if _real(a) and a < 0 and index % 2 == 1:  # of the real roots
            return -self.power(-a, 1 / index)
        return self.power(a, 1 / index)

    def factorial(self, n):
        if _whole(n):
            if n > MAX_FACTORIAL:
                raise TooLarge("a factorial")
            return Fraction(math.factorial(int(n)))
        if abs(n) > 1000:
            raise TooLarge("a factorial")
        return self.mp.gamma(self.inexact(n) + 1)

    def binomial(self, n, k):
        if _whole(n) and _whole(k) and abs(n) <= MAX_FACTORIAL:
            return Fraction(math.comb(int(n), int(k)))
        if max(abs(n), abs(k)) > 1000:
            raise TooLarge("a binomial coefficient")
        return self.mp.binomial(self.inexact(n), self.inexact(k))

    def floor(self, a):
        if isinstance(a, Fraction):
            return Fraction(math.floor(a))
        return self.mp.floor(a + self.mp.mpf(10) ** (-self.digits // 2))  # of 2.999... at 3

    def ceiling(self, a):
        return -self.floor(-a)

    def function(self, name, a, base=None):
        mp = self.mp
        self.scale = max(self.scale, 1)
        if name in ("exp", "sinh", "cosh", "tanh", "coth") and abs(a) > MAX_BITS:
            raise TooLarge(name)
        if name in ("ln", "log", "lg"):
            base = base or {"ln": +mp.e}.get(name, mp.mpf(10))
            return mp.log(a) / mp.log(base)
        return getattr(mp, re.sub("^arc", "a", name))(a)


OPERATIONS = {
    "+": Evaluation.add,
    "-": Evaluation.subtract,
    "*": Evaluation.multiply,
    "/": Evaluation.divide,
    "^": Evaluation.power,
    "root": Evaluation.root,
    "!": Evaluation.factorial,
    "binom": Evaluation.binomial,
    "row": lambda self, *values: values,
    "matrix": lambda self, *rows: rows,
    "abs": lambda self, a: abs(a),
    "floor": Evaluation.floor,
    "ceiling": Evaluation.ceiling,
}


def _whole(value):
    return isinstance(value, Fraction) and value.denominator == 1


def _real(value):
    return not isinstance(value, tuple) and value.imag == 0


def _small(value):
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLarge("a number")
    return value


def samples(*trees, degree=None):
    """[(values, error), ...] at points where all the trees are defined: those where they are real,
    if there are such. Raises TooLarge.
    """
    found, real = [], []
    for number in range(POINTS if any(map(names, trees)) else 1):
        run = Evaluation(number, degree)
        values = [run(tree) for tree in trees]
        if run.scale > 10**15:  # large terms may cancel: so many digits more
            if run.scale > 10**1500:
                raise TooLarge("a term")
            run = Evaluation(number, degree, DIGITS + 2 * int(run.mp.log10(run.scale)))
            values = [run(tree) for tree in trees]
        flat = [x for value in values for x in _flat(value)]
        if all(x is not None and abs(x) < math.inf for x in flat):
            error = run.scale and run.scale * run.mp.mpf(10) ** (10 - run.digits)
            found.append((values, error))
            if all(abs(x.imag) <= error for x in flat):
                real.append(found[-1])
    return real or found


def _flat(value):
    if not isinstance(value, tuple):
        return [value]
    return sum(map(_flat, value), [])


def alike(*values):
    """All inexact, unless all are exact."""
    if all(isinstance(value, Fraction) for value in values):
        return values
    return tuple(map(Evaluation().inexact, values))


def close(a, b, error=0):
    """Two values. error: absolute, what cancelled terms have left."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(close(x, y, error) for x, y in pairs)
    if isinstance(a, tuple) or isinstance(b, tuple):
        return False
    a, b = alike(a, b)
    if isinstance(a, Fraction):
        return a == b
    return abs(a - b) <= max(abs(a), abs(b)) / 10**25 + error


def equal(a, b, degree=None):
    """Do two trees agree wherever both are defined?"""
    found = samples(a, b, degree=degree)
    return bool(found) and all(close(*values, error) for values, error in found)


def ratio(a, b):
    """a / b, if it is the same everywhere, neither is zero, and both depend on all their variables;
    else None.
    """
    if names(a) != names(b) or not names(a):
        return None
    found = [values for values, _ in samples(a, b)]
    flat = sum(found, [])
    if len(found) < 3 or not all(flat) or any(isinstance(x, tuple) for x in flat):
        return None
    flat = alike(*flat)
    (first, second), *rest = zip(flat[::2], flat[1::2], strict=False)
    if any(not close(a * second, b * first) for a, b in rest):
        return None
    if any(equal(a, _renamed(a, name)) for name in names(a)):
        return None
    return first / second


def _renamed(tree, name):
    if not isinstance(tree, tuple):
        return tree
    if tree == ("name", name):
        return "name", name + "'"
    return tuple(_renamed(x, name) for x in tree)
