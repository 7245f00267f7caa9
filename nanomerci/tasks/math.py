"""math: mathematics with a final answer; needs --train_data.

Prompts, data sets, extraction, noise. Which answers are the same: graders/math_answers.py.
"""

import contextlib
import json
import re
import sys
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from nanomerci.runtime.config import UserError
from nanomerci.tasks import Task, data, needed
from nanomerci.tasks.graders.math_answers import TooLarge, same
from nanomerci.tasks.graders.pool import Grade

# ---- the answer in a response

ANSWER_LINE = re.compile(r"(?:answer[ \t]*(?:is)?[ \t*]*:|####)[ \t*]*([^\n]+)", re.IGNORECASE)
BOX = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[^\s{}$\\][^\s{}$]*)))|\\.|[{}]", re.DOTALL
)
APPROXIMATE = re.compile(r"(?:\\approx|≈)[\s$]*\\boxed\s*\{|\\boxed\s*\{\s*(?:\\approx|≈)")
GAP = 60  # characters between two boxes of one list, at most
_GAP = r"(?:[\s$]|\\[()\[\]]|\\q?quad)*"
LISTED = re.compile(
    _GAP + r"(?:[,;]|,?\s*(?:and|or)|\\text\s*\{[,\s]*(?:and|or)\s*\})" + _GAP
    + r"(?:[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?"
)  # fmt: skip
INNER = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")


def boxes(text):
    """(start, end, content's start, content's end) of every \\boxed{...} that is closed and stands
    in no other; \\boxed 7 counts. One pass: a response of ten thousand open braces must not cost
    their square.
    """
    opened, found = [], []
    for token in BOX.finditer(text):
        if token["bare"]:
            found.append((*token.span(), *token.span("bare")))
        elif token[0][-1] == "{" and token[0] != "\\{":
            opened.append(token)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start["box"]:
                while found and found[-1][0] > start.start():
                    found.pop()
                found.append((start.start(), token.end(), start.end(), token.start()))
    return found


def answer(text):
    """The final answer: the last \\boxed{} that is not empty (all, if several form one list; the
    exact one, if an approximation follows), else the last "Answer: ..." or "#### ..." line, else
    None.
    """
    found = [box for box in boxes(text) if text[box[2] : box[3]].strip()]
    if not found:
        line = next(iter(ANSWER_LINE.findall(text)[-1:]), "")
        return line.strip("* ").rstrip("*. ") or None
    if len(found) > 1:
        start = max(found[-2][1], found[-1][0] - GAP)
        if APPROXIMATE.search(text, start, found[-1][2] + GAP):
            found.pop()
    parts = [found.pop()]
    while found and parts[-1][0] - found[-1][1] < GAP:
        if not LISTED.fullmatch(text, found[-1][1], parts[-1][0]):
            break
        parts.append(found.pop())
    contents = [INNER.sub("", text[a:b]) for *_, a, b in parts[::-1]]
    return ", ".join(map(str.strip, contents))


def grade(gold, text, tolerance=0.0):
    """Grade of a response against a gold answer. tolerance: relative, for numbers that are measured
    or rounded.
    """
    found = answer(text)
    if found is None:
        return Grade(0.0, "unparsable")
    try:
        return Grade(1.0, "right") if same(gold, found, tolerance) else Grade(0.0, "wrong")
    except TooLarge:
        return Grade(0.0, "unsafe")


# ---- noise, for MERCI's third filter

ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffd\ue000-\uf8ff]+")


def noise(text):
    """Character spans that no proof needs: fenced code and its output block (there are no tools to
    run it), whatever follows the final answer, verbatim repetition, characters of no language.
    Fences: figure 2 of the paper; the rest is ours.
    """
    spans = repeated(text)
    spans += [fence.span() for fence in re.finditer(r"```.*?(?:```|\Z)", text, re.DOTALL)]
    spans += [odd.span() for odd in ODD.finditer(text)]
    if found := boxes(text):  # the closing $ and full stop belong to the answer
        spans.append((re.compile(r"[^\w\n]*").match(text, found[-1][1]).end(), len(text)))
    return sorted((start, end) for start, end in spans if start < end)


def repeated(text, window=12, run=20):
    """Character spans of words in a window of 12 that stood in the text before, and of 20 times the
    same character.
    """
    words = list(re.finditer(r"\S+", text))
    seen, spans = set(), [found.span() for found in re.finditer(rf"(\S)\1{{{run - 1},}}", text)]
    for i in range(len(words) - window + 1):
        key = tuple(word[0] for word in words[i : i + window])
        if key in seen:
            start, end = words[i].start(), words[i + window - 1].end()
            if spans and spans[-1][0] <= start <= spans[-1][1]:  # grow it: not thousands of them
                start, _ = spans.pop()
            spans.append((start, end))
        seen.add(key)
    return spans


# ---- data


class Source(NamedTuple):
    hub: str
    split: str
    config: str | None = None
    k: int = 1  # samples a problem in the paper's evaluation
    tolerance: float = 0.0


SOURCES = {
    "dapo_math_17k": Source("BytedTsinghua-SIA/DAPO-Math-17k", "train"),
    "math": Source("DigitalLearningGmbH/MATH-lighteval", "train"),
    "gsm8k": Source("openai/gsm8k", "train", "main"),
    "aime24": Source("HuggingFaceH4/aime_2024", "train", k=256),
    "aime25": Source("math-ai/aime25", "test", k=256),
    "math500": Source("HuggingFaceH4/MATH-500", "test", k=16),
    "olympiadbench": Source("math-ai/olympiadbench", "test", k=16),
    # physics: rounded values (tolerance ours)
    "minerva": Source("math-ai/minervamath", "test", k=16, tolerance=1e-4),
    "college_math": Source("realtreetune/college_math", "test", k=8),
    "gpqa": Source("Idavidrein/gpqa", "train", "gpqa_diamond", k=16),
    "mmlu_pro": Source("TIGER-Lab/MMLU-Pro", "test", k=1),
}
ANSWERS = ("reward_model", "final_answer", "answer", "Correct Answer", "solution")
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTER = "\nPlease reason step by step, and put the letter of the right choice within \\boxed{}."
DAPO_WRAPPER = re.compile(
    r"\A\s*Solve the following math problem step by step\..*?\n\n|"
    r'\n\nRemember to put your answer on its own line after "Answer:"\.\s*\Z',
    re.DOTALL,
)


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str
    tolerance: float = 0.0


def read_problems(
    name, folder=None, question=None, answer=None, split=None, limit=None, strict=False, template=""
):
    """Problems of a data set, in its order, each question once (DAPO-Math-17k repeats every
    question 100 times).

    name, folder: one of SOURCES, or as in data.records. question, answer: column names, if they
    are not recognised. limit: at most so many. strict: the first bad record is an error; else bad
    records are left out and counted, in a line to stderr. template: a prompt in place of ours, with
    {question} in it. The layouts of DAPO-Math-17k (chat messages, reward_model), MATH (\\boxed in
    the solution), GSM8K (#### at the end), OlympiadBench (list of answers), MMLU-Pro (options) and
    GPQA (incorrect answers) are recognised. ValueError: one line.
    """
    source = SOURCES.get(name, Source("", "train"))
    records = data.records(name, folder, split or source.split, source.hub, source.config)
    problems, seen, bad = [], set(), []
    for i, record in enumerate(records):
        try:
            text, gold, choices = _fields(record, question, answer, f"{name}, record {i}")
        except ValueError as error:
            if strict:
                raise
            bad.append(error)
            continue
        if text not in seen:
            seen.add(text)
            prompt = text.strip() + (LETTER if choices else BOXED)
            if template:
                prompt = template.replace("{question}", text.strip())
            problems.append(Problem(f"{name}/{i}", prompt, gold, source.tolerance))
        if limit and len(problems) == limit:
            break
    if not problems:
        raise [*bad, ValueError(f"{name}: has no records")][0]
    if bad:
        print(f"{name}: {len(bad)} bad records left out; the first: {bad[0]}", file=sys.stderr)
    return problems


def _fields(record, question, answer_, where):
    """Question, gold answer, and whether it is a choice of letters."""
    text = DAPO_WRAPPER.sub("", data.question(record, question, where))
    gold = data.column(record, answer_, ANSWERS, "answer", where)
    choices = list(record.get("options") or ())
    if "Incorrect Answer 1" in record:  # GPQA: an order that depends on the text alone
        choices = [gold, *(record[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
        choices.sort(key=lambda choice: zlib.crc32((text + choice).encode()))
        gold = "ABCD"[choices.index(gold)]
    lettered = zip("ABCDEFGHIJ", choices, strict=False)
    lines = [text, *(f"{letter}. {str(one).strip()}" for letter, one in lettered)]
    return "\n".join(lines), _gold(gold, where), bool(choices)


def _gold(gold, where):
    """The final answer, from a value, a list, a solution, or JSON of one of them."""
    if isinstance(gold, dict):
        gold = gold.get("ground_truth")
    if isinstance(gold, str) and gold.startswith('["'):  # a list as text; [1, 2] is an interval
        with contextlib.suppress(ValueError):
            gold = json.loads(gold)
    if isinstance(gold, list):
        gold = ", ".join(str(one).strip("$ ") for one in gold)
    if isinstance(gold, str) and ("####" in gold or "\\boxed" in gold):
        gold = answer(gold)
    if data.missing(gold):
        raise ValueError(f"{where}: has no final answer; expected a value, \\boxed{{}} or ####")
    return str(gold).strip()


class Math(Task):
    """Problems with a gold answer, graded by what stands in the last \\boxed{}."""

    answer = staticmethod(answer)

    def noise(self, problem, text):
        return noise(text)

    def job(self, problem, text):
        return grade, problem.gold, text, problem.tolerance


def load(c):
    """--train_data, --test_data: sets of SOURCES, hub ids, files or folders. -> Math."""
    columns = [name.strip() or None for name in c.columns.split(",")] if c.columns else [None, None]
    if len(columns) != 2:
        raise UserError(f"--columns {c.columns}: expected two names, QUESTION,ANSWER")
    train, how = needed(c), {"template": c.prompt_template, "strict": c.strict_data}
    test = c.test_data and read_problems(c.test_data, c.data_folder, **how)
    return Math(read_problems(train, c.data_folder, *columns, **how), test or ())
