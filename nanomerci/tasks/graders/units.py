"""The unit behind a value: "36\\pi\\text{ cm}^2" -> "36\\pi", "cm^2". Which units are compared, and
which words are labels: docs/graders.md.
"""

import re
from functools import lru_cache

NAMES = """m meter metre;g gram;s sec second;min minute;h hr hour;day;week;month;year yr;in inch;
ft foot feet;yd yard;mi mile;lb pound;oz ounce;L l liter litre;gal gallon;qt quart;pint;cup;acre;
ha hectare;dollar USD;euro EUR;pounds;cent;rupee Rs rs;rad radian;deg degree;N newton;J joule;
W watt;Pa pascal;V volt;A ampere amp;ohm Omega;Hz hertz;K kelvin;C;F;mol mole;M molar;eV;T tesla;
Wb;H;erg;dyn dyne;atm;bar;AU;pc parsec;ly;M_odot Msun;L_odot Lsun;R_odot Rsun;Ang angstrom;u;unit;
mph;knot;bit;byte;cal calorie;ton tonne"""
PREFIXES = "k c m u n p M G d kilo:k centi:c milli:m micro:u nano:n mega:M"
PREFIXED = """m g s L l N J W Pa V A Hz eV pc mol ohm Omega bit byte cal meter metre gram liter
litre watt joule volt"""
NUMBERS = re.compile(  # words for numbers and operations; they end as plurals do
    r".*(?:ths|rds|llions?)|halves|dozens?|scores?|hundreds?|thousands?|googols?|tens|ones|twos|threes"
    r"|fours|fives|sixes|sevens|eights|nines|quarters?|pairs?|couples?|roots?|squares|cubes|logs?"
    r"|bases?|powers?|times|plus|minus|numbers?|infs|sins|coss",
    re.IGNORECASE,
)
OTHERS = frozenset(  # words that say more than what was counted
    """and or not if to at the a an of in is but either except point more than half over mod with
    for from by about no any all where when negative less this its was has does versus unless 
    perhaps always thus various as us answers one two three four five six seven eight nine ten
    twenty""".split()
)
LABELS = frozenset("people children men women mice way person student".split())  # else: a plural


def _table():
    known = {}
    for line in NAMES.replace("\n", "").split(";"):
        first, *others = line.split()
        for name in (first, *others):
            known[name] = known[name + "s"] = known[name + "es"] = first
    for prefix in PREFIXES.split():
        long, _, short = prefix.partition(":")
        for name in PREFIXED.split():
            for plural in ("", "s"):
                known.setdefault(long + name + plural, (short or long) + known[name])
    return known


KNOWN = _table()
_TEXT = r"\\text\{[A-Za-z](?:[A-Za-z\s./^'()-]|\\cdot)*\}"
_BARE = (
    r"(?:\\mu\s*(?:\\text\{[A-Za-z]+\}|[A-Za-z](?![A-Za-z]))|[MLR]_\{?\\odot\}?"
    r"|(?<![A-Za-z\\{_])[A-Za-z]+(?![A-Za-z{(_]))"
)
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_NEXT = r"(?:\s*(?:\\cdot|/)\s*|\s*)"
TAIL = re.compile(
    r"(?<=[\d})\]%|a-zA-Z\s])\s*(?:\^\s*\{?\\circ\s*\}?\s*(?:\\text\{)?[CF]\}?"
    rf"|{_TEXT}{_POWER}(?:{_NEXT}(?:{_TEXT}|{_BARE}){_POWER})*"
    rf"|{_BARE}{_POWER}(?:{_NEXT}{_BARE}{_POWER})*)\s*$",
    re.ASCII,
)
PLAIN = re.compile(r"(?:[-\d.,/\s%{}^]|\\(?:frac|times|cdot))+", re.ASCII)
BASE = re.compile(r"\(?(\d+)\)?_\{?(\d+)\}?", re.ASCII)
MODULUS = re.compile(r"\s*(?:\(\s*\\mod\s*(\d+)\s*\)|\\pmod\s*\{?(\d+)\}?)$", re.ASCII)
PIECE = re.compile(r"[A-Za-z_\\]+|/|\^\s*\{?\s*(-?\d)\s*\}?|.", re.ASCII | re.DOTALL)
AREAS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


@lru_cache(4096)
def split_unit(text):
    """Value and unit of an expression; the unit is "" if it has none, and if it is a label."""
    if text[-1:] not in "}0123456789)" and not text[-1:].isalpha() or text.isdigit():
        return text, ""
    if "_" in text and (base := BASE.fullmatch(text)):  # 52_8: digits in a base
        return f"\\text{{base {int(base[2])} }}{base[1]}", ""
    if "mod" in text and (modulus := MODULUS.search(text)):
        return text[: modulus.start()], f"mod {modulus[1] or modulus[2]}"
    tail = TAIL.search(text)
    body = text[: tail and tail.start()].strip()
    if not tail or not body:
        return text, ""
    if "\\text" not in tail[0]:
        glued = re.fullmatch("[A-Za-z]", tail[0])
        if glued or not PLAIN.fullmatch(body):  # 5m and 2\pi m are products, 5 m is not
            return text, ""
    unit = _unit(tail[0])
    if unit is None:
        return text, ""
    return body, unit


def _unit(text):
    """Canonical spelling of a unit, "" for a label, None if it is neither."""
    if "\\circ" in text:
        return "deg" + text.strip("} ")[-1]
    text = re.sub(r"\bof (?:the|all|a|an) [a-z ]+(?=\}?$)", "", text)
    text = re.sub(r"\\mu\s*(?:\\text\{)?", "u", text)
    text = re.sub(r"\\text|\\cdot|[{}](?![\d-])|[().]", " ", text)
    powers, sign, times, label, last = {}, 1, 1, "", None
    for match in PIECE.finditer(text):
        piece = match[0].replace("\\", "")
        if match[1] and last:
            powers[last] *= int(match[1])
        elif piece in ("/", "per"):
            sign = -1
        elif piece in AREAS:
            times = AREAS[piece]
        elif piece in KNOWN:
            last = KNOWN[piece]
            powers[last] = powers.get(last, 0) + sign * times
            times = 1
        elif piece.isalpha() and piece.lower() not in OTHERS and not NUMBERS.fullmatch(piece):
            label = piece
        elif not (piece.isspace() or piece in "{}"):
            return None
    if powers and not label:
        return " ".join(
            f"{name}^{power}" for name, power in sorted(powers.items()) if name != "unit"
        )
    plural = label in LABELS or len(label) > 3 and label.endswith("s")
    if not powers and (plural or not text.strip()):
        return ""
    return None
