"""The unit behind a value: "36\\pi\\text{ cm}^2" -> "36\\pi", "cm^2". Which units are compared, and
which words are labels: see math_answers.py.
"""

import re
from functools import lru_cache

NAMES = """m meter metre;g gram;s sec second;min minute;h hr hour;day;week;month;year yr;ft foot feet;in inch;
yd yard;mi mile;lb pound;oz ounce;L l liter litre;gal gallon;acre;dollar USD;euro EUR;pounds;cent;rupee Rs rs;
rad radian;deg degree;N newton;J joule;W watt;Pa pascal;V volt;A ampere amp;ohm Omega;Hz hertz;K kelvin;C;F;
mol mole;eV;T tesla;erg;dyn dyne;AU;pc parsec;ly;M_odot Msun;L_odot Lsun;R_odot;unit;mph;bit;byte;cal calorie;
M molar;atm;bar;Ang angstrom;Ci;Wb;H;u;hectare ha;knot;quart qt;pint;cup;ton tonne"""
PREFIXES = dict(zip("k c m u n p M G d kilo centi milli micro nano mega".split(),
                    "k c m u n p M G d k c m u n M".split()))  # fmt: skip
PREFIXED = "m g s L l N J W Pa V A Hz eV pc mol ohm Omega meter metre gram liter litre watt joule volt bit byte cal".split()
NUMBER_WORDS = re.compile(
    r"(?:.*(?:ths|rds|illions?|halves|dozens?|scores?|hundreds?|thousands?|googols?|tens|ones|twos|threes|fours|fives|"
    r"sixes|sevens|eights|nines|quarters?|pairs?|couples?|roots?|squares|cubes|logs?|bases?|powers?|times|plus|minus|"
    r"less|this|is|its|was|has|does|versus|unless|plus|perhaps|always|thus|various|numbers?|as|us|answers|infs|sins|coss))"
)
FILLERS = (
    NUMBER_WORDS.pattern
    + r"|and|or|not|if|to|at|the|a|an|of|in|is|but|either|except|point|more|than|half|over|mod|with|for|from|by|about|no|any|all|"
    r"one|two|three|four|five|six|seven|eight|nine|ten|twenty|negative|where|when"
)
LABELS = frozenset(
    "people children men women way ways person student unit units time mice".split()
) - {"time"}


def _table():
    known = {}
    for line in NAMES.replace("\n", "").split(";"):
        first, *others = line.split()
        for name in (first, *others):
            known[name] = known[name + "s"] = known[name + "es"] = first
    for prefix, short in PREFIXES.items():
        for name in PREFIXED:
            known.setdefault(prefix + name, short + known[name])
            known.setdefault(prefix + name + "s", short + known[name])
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
MODULUS = re.compile(r"\s*(?:\(\s*\\mod\s*(\d+)\s*\)|\\pmod\s*\{?(\d+)\}?)$", re.ASCII)
PIECE = re.compile(r"[A-Za-z_\\]+|/|\^\s*\{?\s*(-?\d)\s*\}?|.", re.ASCII | re.DOTALL)


@lru_cache(4096)
def split_unit(text):
    """Value and unit of an expression; "" if it has none, and for a label."""
    if text[-1:] not in "}0123456789)" and not text[-1:].isalpha() or text.isdigit():
        return text, ""
    if "_" in text and (base := re.fullmatch(r"\(?(\d+)\)?_\{?(\d+)\}?", text)):
        return f"\\text{{base {int(base[2])} }}{base[1]}", ""
    if "mod" in text and (modulus := MODULUS.search(text)):
        return text[: modulus.start()], f"mod {modulus[1] or modulus[2]}"
    tail = TAIL.search(text)
    if not tail:
        return text, ""
    body = text[: tail.start()].strip()
    unit = _unit(
        tail[0],
        bare="\\text" not in tail[0],
        number=bool(re.fullmatch(r"(?:[-\d.,/\s%{}^]|\\(?:frac|times|cdot))+", body)),
        spaced=tail[0][0] == " ",
    )
    return (text, "") if unit is None or not body else (body, unit)


def _unit(text, bare, number, spaced):
    """Canonical spelling of a unit, "" for a label, None if it is neither."""
    if "\\circ" in text:
        return "deg" + text.strip("} ")[-1]
    text = re.sub(r"\bof (?:the|all|a|an) [a-z ]+(?=\}?$)", "", text)
    text = re.sub(r"\\mu\s*(?:\\text\{)?", "u", text)
    text = re.sub(r"\\text|\\cdot|[{}](?![\d-])|[().]", " ", text)
    words = text.split()
    if bare and not number:
        return None  # 2\pi m is a product
    powers, sign, times, label = {}, 1, 1, ""
    for match in PIECE.finditer(text):
        piece = match[0]
        if piece.isspace() or piece in "{}":
            continue
        if match[1]:
            if not powers:
                return None
            last = list(powers)[-1]
            powers[last] *= int(match[1])
        elif piece in ("/", "per"):
            sign = -1
        elif piece in ("square", "sq", "cubic", "cu"):
            times = 2 if piece[0] == "s" else 3
        elif unit := KNOWN.get(piece.replace("\\", "")):
            if bare and len(words) == 1 and len(piece) == 1 and not spaced:
                return None  # 5x, 5m
            powers[unit] = powers.get(unit, 0) + sign * times
            times = 1
        elif piece.isalpha() and not re.fullmatch(FILLERS, piece, re.IGNORECASE):
            label = piece
        else:
            return None
    if powers:
        names = (f"{name}^{power}" for name, power in sorted(powers.items()) if name != "unit")
        return None if label else " ".join(names)
    plural = label in LABELS or len(label) > 3 and label.endswith("s")
    return "" if plural or not text.strip() or times > 1 else None
