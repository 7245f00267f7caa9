"""Every kind of fault that public suites, issue threads and real files have shown in graders of
mathematics: members of ours for each kind, and the cases themselves (math_cases.jsonl).
"""

import json
import re
from pathlib import Path

import pytest

from nanomerci.tasks import math
from nanomerci.tasks.graders.pool import Pool

LINES = Path(__file__).with_name("math_cases.jsonl").read_text().splitlines()
CASES = [json.loads(line) for line in LINES]
FALSE_CHAIN = "the chain is false: 5+5+1 is not 1/3. Two values in one box are a hedge"
TO_DO = "a sum or limit still to be worked out repeats the question; it is no final answer"
SAME_NUMBER = "2.19e6 and 2.19E6 are one number; e and E only differ as letters of mathematics"
DISAGREED = {  # (gold, answer): why we keep our verdict
    ("$x = 1/3$", "x = 5+5+1 = 1/3 \\approx 11"): FALSE_CHAIN,
    ("7", "T:\\boxed{\\approx 7}"): "about 7 is not 7: a model unsure of the digits could say so",
    ("\\frac{n(n+1)}{2}", "\\sum_{k=1}^n k"): TO_DO,
    ("3", "\\lim_{x\\to 3} x"): TO_DO,
    ("3", "3\\pm 0"): "a list of two values is not a value",
    ("2.19e6", "2.19E6"): SAME_NUMBER,
    ("5.3e3", "5.3E3"): SAME_NUMBER,
}

WRONG = {  # kind: [(gold, answer), ...], none to be paid
    "letter case": [
        ("\\frac{kQq}{r}", "\\frac{kqq}{r}"),
        ("Vv+v", "VV+v"),
        ("e^{-Rt}", "e^{-rt}"),
        ("\\Delta x", "\\delta x"),
        ("A", "a"),
        ("P\\cap p", "p\\cap P"),
    ],
    "only the right side of an equation": [
        ("x=2", "x^3=2"),
        ("ab=6", "6"),
        ("x^2+y^2=9", "9"),
        ("f(x)=2x", "f(2x)=2x"),
        ("8", "2x=8"),
        ("y=\\sin x", "y^2=\\sin x"),
        ("5", "9=5"),
        ("x=3", "3=3"),
        ("2", "x^2=2"),
    ],
    "named values in any order": [
        ("a=1,b=2", "a=2,b=1"),
        ("p=3 \\text{ and } q=5", "p=5,q=3"),
        ("x=1,y=2", "2,1"),
        ("x=1,y=2,z=3", "z=1,y=2,x=3"),
        ("u=0,v=1", "v=0,u=1"),
        ("x=1,2", "y=1,2"),
    ],
    "thousands in brackets": [
        ("(7,300)", "7300"),
        ("5123", "(5,123)"),
        ("(2,120)\\cup(120,345)", "(2,120345)"),
        ("[1,500]", "1500"),
        ("\\{2,400\\}", "2400"),
    ],
    "base": [
        ("77_8", "77_9"),
        ("101_2", "101"),
        ("43_5", "43_6"),
        ("12_{3}", "12_{10}"),
        ("a_1", "a_2"),
    ],
    "any word as a unit": [
        ("4", "4 halves"),
        ("4", "4 dozen"),
        ("4", "4 \\text{ point two}"),
        ("4", "4 gazillion"),
        ("4", "4 \\text{ millions}"),
        ("4", "4 \\text{ or so}"),
        ("4", "4 tens"),
        ("4", "4 \\text{ thirds}"),
    ],
    "units that differ": [
        ("5\\text{ kg}", "5\\text{ g}"),
        ("2\\text{ days}", "2\\text{ weeks}"),
        ("9\\text{ m}^2", "9\\text{ m}^3"),
        ("3\\text{ m/s}", "3\\text{ m}"),
        ("\\$4", "4\\text{ cents}"),
        ("2\\pi\\text{ in}", "2\\pi\\text{ ft}"),
        ("6\\text{ km/h}", "6\\text{ km}\\cdot\\text{h}"),
    ],
    "long names": [
        ("\\theta=40", "\\phi=40"),
        ("\\angle A=70", "\\angle B=70"),
        ("AB=5", "AC=5"),
        ("x_1=3", "x_2=3"),
        ("f(x)=x^2", "g(x)=x^2"),
        ("P(A)=0.5", "P(B)=0.5"),
    ],
    "spaces vanish": [
        ("45", "4 5"),
        ("45", "4\\,5"),
        ("123", "1 23"),
        ("7", "7 7"),
        ("3.14", "3. 14"),
    ],
    "behind a newline": [
        ("5", "5\nor 6"),
        ("5", "5\n+1"),
        ("x", "x\n+y"),
        ("(1,2)", "(1,2)\n,(3,4)"),
    ],
    "two choices": [
        ("B", "B) or C)"),
        ("A", "A, C"),
        ("D", "D or A"),
        ("B", "(B),(C)"),
        ("J", "-J"),
        ("C", "C: or D."),
    ],
    "sides of chains": [("x=4", "x=3+2=4"), ("9", "y=8=9"), ("k=2\\ln 2", "k=\\ln 3=2\\ln 2")],
}
RIGHT = {
    "unit behind a symbol": [
        ("9\\pi", "9\\pi\\text{ m}^2"),
        ("\\sqrt{7}", "\\sqrt7\\,\\mathrm{cm}"),
        ("2\\sqrt3+1", "1+2\\sqrt{3}\\text{ square feet}"),
        ("5\\pi\\text{ in}^3", "5\\pi\\text{ cubic inches}"),
        ("3^{n}", "3^n\\text{ ways}"),
    ],
    "named tuples": [
        ("(2,3)", "(a,b)=(2,3)"),
        ("(1,\\pi)", "(r,\\theta)=(1,\\pi)"),
        ("(1,2),(2,1)", "(m,n)=(1,2),(2,1)"),
        ("(x,y,z)=(1,2,3)", "(1,2,3)"),
        ("(1,2)", "x=1,y=2"),
    ],
    "tails and chains": [
        ("\\sqrt{5}", "\\sqrt5\\approx 2.236"),
        ("\\frac23", "x=\\frac46=\\frac23"),
        ("x=2\\pi", "x=2\\pi\\approx 6.28"),
        ("\\frac{\\pi}{4} \\approx 0.785", "\\frac{\\pi}{4}"),
        ("10", "2+8=10"),
        ("y \\approx 1.25", "y=1.25"),
    ],
    "named results": [
        ("12", "S_{\\max}=12"),
        ("0.25", "P(X>2)=\\frac14"),
        ("40", "\\angle PQR=40^\\circ"),
        ("7", "a_{10}=7"),
        ("7", "a+b+c=7"),
        ("\\sqrt2", "|AB|=\\sqrt2"),
        ("x^2", "f(x)=x^2"),
        ("6", "AB=6"),
        ("\\frac12", "\\cos\\theta=\\frac12"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "A^{-1}=\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ],
    "inequality for an interval": [
        ("[3,\\infty)", "t\\geqslant 3"),
        ("(0,1)", "0<p<1"),
        ("(-\\infty,2]", "2\\ge x"),
        ("x\\geq 4", "x \\geqq 4"),
        ("(-\\infty,0)\\cup(5,\\infty)", "m<0 \\text{ or } m>5"),
        ("[-1,1]", "\\{x \\mid -1\\leq x\\leq 1\\}"),
        ("y<2x+1", "2x+1>y"),
        ("-2x<4", "x>-2"),
    ],
    "physical units": [
        ("3\\mathrm{~m}\\mathrm{~s}^{-1}", "3\\text{ m/s}"),
        ("7", "7\\,\\mu \\mathrm{m}"),
        ("2", "2 M_\\odot"),
        ("8", "8 km/h"),
        ("1.5e-3", "1.5\\times 10^{-3}\\mathrm{~kg}"),
        ("4", "4\\ \\mathrm{N}\\cdot\\mathrm{m}"),
        ("60\\text{ mph}", "60\\text{ mph}"),
        ("9", "9 \\text{ miles per hour}"),
        ("25", "25^\\circ\\text{C}"),
        ("12", "12ft"),
    ],
    "matrix rows": [
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\[6pt]2\\end{pmatrix}"),
        (
            "\\begin{bmatrix}1&0\\\\0&2\\end{bmatrix}",
            "\\begin{pmatrix}1&0\\\\[1ex]0&2\\end{pmatrix}",
        ),
        ("\\begin{pmatrix}2\\\\4\\end{pmatrix}", "2\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("\\begin{pmatrix}1\\\\3\\end{pmatrix}", "(1,3)"),
        (
            "\\begin{pmatrix}4&6\\end{pmatrix}",
            "\\begin{pmatrix}1&2\\end{pmatrix}+\\begin{pmatrix}3&4\\end{pmatrix}",
        ),
    ],
    "false alarms of a budget": [
        ("5^3+2^6", "189"),
        ("120^\\circ-45^\\circ", "75^\\circ"),
        ("\\frac{(2n)!}{n!n!}", "\\binom{2n}{n}"),
        ("2^{2023}-1", "-1+2^{2023}"),
        ("\\frac{m!}{(m-2)!}", "m(m-1)"),
        ("(x^3)^{12}", "x^{36}"),
        ("3^{1000}\\sqrt2", "\\sqrt{2}\\cdot 3^{1000}"),
    ],
    "trailing conditions": [
        ("n\\pi", "n\\pi, n\\in\\mathbb{Z}"),
        ("2k+1", "2k+1 \\text{ for all } k"),
        ("(t,2t)", "(t,2t), t\\in\\mathbb{R}"),
        ("f(x)=cx", "f(x)=cx \\text{ where } c\\in\\mathbb{R}"),
        ("3", "x\\equiv 3\\pmod 5"),
        ("3\\pmod 5", "x \\equiv 3 \\pmod{5}"),
    ],
    "letters in dollars": [
        ("F", "$F$"),
        ("D", "\\(D\\)"),
        ("A", "\\[A\\]"),
        ("\\text{(C)}", "$\\text{C}$"),
        ("E", "**E**"),
    ],
    "equation forms": [
        ("3x-y=5", "y=3x-5"),
        ("x=7", "7=x"),
        ("y=\\frac{x}{2}", "2y-x=0"),
        ("x^2+y^2=4", "4-x^2-y^2=0"),
        ("a=b+1", "b+1-a=0"),
        ("\\frac{x}{3}+\\frac{y}{2}=1", "2x+3y=6"),
    ],
    "extraction": [
        ("7", "\\boxed 7"),
        ("7", "$\\boxed{7}$ and so on. $\\boxed{ }$"),
        ("1,2", "$\\boxed{1}$ and $\\boxed{2}$"),
        ("12", "The answer is: **12**."),
        ("x=1,y=2", "$x=\\boxed{1}$, $y=\\boxed{2}$"),
        ("1,2,3", "\\boxed{1}, \\boxed{2}, \\boxed{3}"),
        ("\\frac17", "\\boxed{\\frac17}\\approx\\boxed{0.1429}"),
        ("12", "so \\boxed12."),
    ],
    "space behind a thin space": [
        ("5000", "5,\\! 000"),
        ("1234567", "1,\\! 234,\\! 567"),
        ("10000", "10\\, 000"),
        ("2300", "2{,} 300"),
    ],
    "degrees": [
        ("45^\\circ", "\\frac{\\pi}{4}"),
        ("\\pi", "180^\\circ"),
        ("\\sin 30^\\circ", "\\frac12"),
        ("(2,60^\\circ)", "(2,\\frac{\\pi}{3})"),
    ],
    "repeating decimals": [
        ("\\frac13", "0.\\bar3"),
        ("\\frac16", "0.1\\overline{6}"),
        ("\\frac{7}{11}", "0.\\overline{63}"),
    ],
    "without": [
        ("(-\\infty,0)\\cup(0,\\infty)", "\\mathbb{R}\\setminus\\{0\\}"),
        ("(-\\infty,1)\\cup(1,2)\\cup(2,\\infty)", "\\mathbb{R}\\setminus\\{2,1\\}"),
        ("(-\\infty,-1]\\cup[1,\\infty)", "\\mathbb R\\setminus(-1,1)"),
        ("(-\\infty,4)\\cup(4,\\infty)", "x\\neq 4"),
    ],
    "plain text": [
        ("2\\pi", "2pi"),
        ("\\sqrt{5}", "sqrt(5)"),
        ("\\frac{\\pi}{3}", "pi/3"),
        ("x^2", "x**2"),
        ("2\\sqrt3", "2*sqrt(3)"),
        ("\\infty", "infinity"),
    ],
    "percent": [
        ("15\\%", "15 pct"),
        ("15\\%", "15 percent"),
        ("0.3", "30\\%"),
        ("7\\%", "7\\%\\text{ of the students}"),
        ("\\frac14", "25 \\text{ percent}"),
    ],
    "old commands": [
        ("\\frac25", "{2\\over 5}"),
        ("\\binom{9}{4}", "{9\\choose 4}"),
        ("\\binom{7}{2}", "C_7^2"),
        ("\\log_e 3", "\\ln 3"),
    ],
    "complex": [
        ("2-i", "-i(2i+1)"),
        ("i", "\\frac{-1}{i}"),
        ("-4", "(1+i)^4"),
        ("\\cos 40^\\circ+i\\sin 40^\\circ", "e^{2\\pi i/9}"),
    ],
}


def whole(answer):
    return answer if re.search(r"\\boxed|answer", answer, re.IGNORECASE) else f"\\boxed{{{answer}}}"


@pytest.fixture(scope="module")
def outcomes():
    """(gold, answer) -> outcome, of everything here."""
    tables = [pair for table in (WRONG, RIGHT) for kind in table for pair in table[kind]]
    pairs = list(dict.fromkeys(tables + [(case["gold"], case["answer"]) for case in CASES]))
    with Pool(workers=2, deadline=20.0) as pool:
        grades = pool.grade([(math.grade, gold, whole(answer)) for gold, answer in pairs])
        assert pool.last_error is None, pool.last_error
    return {pair: grade.outcome for pair, grade in zip(pairs, grades, strict=False)}


@pytest.mark.parametrize("kind", WRONG)
def test_no_wrong_answer_is_paid(outcomes, kind):
    assert len(WRONG[kind]) >= 3
    assert [pair for pair in WRONG[kind] if outcomes[pair] == "right"] == []


@pytest.mark.parametrize("kind", RIGHT)
def test_no_right_answer_is_refused(outcomes, kind):
    assert len(RIGHT[kind]) >= 3
    assert [pair for pair in RIGHT[kind] if outcomes[pair] != "right"] == []


def test_the_members_are_not_from_the_file():
    ours = {pair for table in (WRONG, RIGHT) for kind in table for pair in table[kind]}
    assert not ours & {(case["gold"], case["answer"]) for case in CASES}


def test_the_cases_as_expected_or_disagreed_with_in_writing(outcomes):
    differ = set()
    for case in CASES:
        pair = case["gold"], case["answer"]
        if (outcomes[pair] == "right") != (case["expected"] == "right"):
            differ.add(pair)
    assert len(CASES) == 254 and differ == set(DISAGREED)


def test_every_gold_equals_itself(outcomes):
    golds = {case["gold"] for case in CASES} | {gold for kind in RIGHT.values() for gold, _ in kind}
    assert [g for g in golds if math.grade(g, f"\\boxed{{{g}}}").outcome != "right"] == []
