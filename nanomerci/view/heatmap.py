"""The picture of count-based exploration: a response coloured by 1/n, and the bonus microscope
under it.

    python sample.py MODEL_OR_RUN "prompt" -n 4 --heatmap out.html        (in the terminal: --color)

Which counter: a run with a CFN has one, and its 1/n says how rarely training came through here. Any
other model has none, so one is fitted on the spot to further responses of that model to the same
prompt; its 1/n says how unusual this way is among the responses the model would give anyway. The
page says which. Responses are marked right or wrong where that is known (a problem of the run's
task, or --gold); elsewhere the reader can set the marks by hand, and the advantages follow.

Axes: n responses per prompt, B = n rows, T token positions, N tokens, D hidden width.
"""

import math
import re
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.text import Text

from nanomerci import cfn
from nanomerci.address import address, seed
from nanomerci.kernels.cfn_score import cfn_score
from nanomerci.loop.model import StateReader, token_logp
from nanomerci.loop.rollout import SampleOptions
from nanomerci.loop.text import StreamingDetokenizer, noise_mask, token_texts
from nanomerci.runtime.config import Config
from nanomerci.runtime.log import progress_bar
from nanomerci.view import report

# blue, white, red, as in page/common.js
LOW, MIDDLE, HIGH = (67, 132, 196), (247, 247, 247), (202, 54, 48)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# control characters, and those that turn the direction of text around, as in page/common.js
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def count_now(sampler, ids, samples, *, run_seed=0, progress=None):
    """A counter for a model that has none, fitted to so many of its own responses to the prompt
    `ids`. -> CoinFlipNet.
    """
    model, options = sampler.model, SampleOptions(progress=progress)
    how = {"temperature": sampler.temperature or 1.0, "seed": seed("count now", run_seed)}
    rollout = sampler([ids], samples, options=options, **how)
    row_B1 = torch.arange(samples, device=model.device)[:, None]
    column_T = torch.arange(rollout.tokens_BT.shape[1], device=model.device)
    address_BT = address("count now", row_B1, column_T)
    _, _, hidden_ND, address_N = StateReader(model)(rollout, address_BT)
    counter = cfn.Counter(model.config.hidden_size, device=model.device)
    counter.pretrain(hidden_ND, address_N, max(3, 20000 // max(len(address_N), 1)))
    return counter.net


class Counter(NamedTuple):
    """What reads 1/n: a feature model and a CoinFlipNet, and where they come from."""

    features: torch.nn.Module
    net: cfn.CoinFlipNet
    note: str


def counter_for(a, sampler, run, ids):
    """The run's counter, or one made now for this prompt. a: a Request; run: a Run or None."""
    if run:
        features, net = run.counter(sampler.model, sampler.model.device)
        if net:
            note = f"1/n: the counter of {run.folder.name}, {run.checkpoint.name}."
            return Counter(features, net, note)
    with progress_bar(a.count, "count: further responses", "response") as progress:
        net = count_now(sampler, ids, a.count, run_seed=a.seed, progress=progress.update)
    note = (
        f"1/n: this model has no counter of its own, so one was made now, from {a.count} further "
        "responses of it to this prompt: red is unusual among its own responses."
    )
    return Counter(sampler.model, net, note)


def rounded(values, digits):
    return [float(f"{x:.{digits}g}") for x in values.tolist()]


@torch.no_grad()
def group(sampler, rollout, prompt, counter, grades, noise_B):
    """The responses to one prompt as plain data: a dict per response, with a value per token.

    noise_B: character spans per response that the third filter drops. 1/n is kept to 9 digits, so
    that the page computes with the very float32 numbers Python has; log-prob and entropy are those
    at the sampler's temperature, in nats.
    """
    tokens_BT, mask_BT, tokenizer = rollout.tokens_BT, rollout.mask_BT, sampler.tokenizer
    reader = StateReader(counter.features, partial(cfn_score, net=counter.net))
    invn_BT = reader(rollout, torch.zeros_like(tokens_BT))[0]
    temperature = sampler.temperature or 1.0
    logp_BT, entropy_BT = token_logp(sampler.model, tokens_BT, mask_BT, temperature)
    noise_BT = noise_mask(tokenizer, rollout, noise_B)
    samples = []
    for row, grade in enumerate(grades):
        at = row, mask_BT[row] > 0
        sample = {
            "tokens": token_texts(tokenizer, tokens_BT[at].tolist()),
            "invn": rounded(invn_BT[at], 9),
            "logp": rounded(logp_BT[at], 4),
            "entropy": rounded(entropy_BT[at], 4),
            "noise": noise_BT[at].tolist(),
            "outcome": grade and grade.outcome,
            "reward": grade and grade.reward,
        }
        samples.append(sample)
    return {"prompt": prompt, "note": counter.note, "samples": samples}


def draw(path, title, groups, run):
    """Write what group() said of some prompts as an HTML page, whose sliders start from the run's
    options or, if run is None, the defaults.
    """
    c = run.options if run else Config()
    start = {name: getattr(c, name) for name in ("top", "run", "gamma", "alpha", "noise_filter")}
    data = {"title": title, "options": start, "groups": groups}
    report.write(Path(path), report.page("heat", title, data))


# ---- in the terminal
def scale(groups):
    """Positions 0..1 of 1/n on a logarithmic scale from the 2nd to the 98th percentile of all
    tokens. -> (low, high, place).
    """
    samples = chain.from_iterable(g["samples"] for g in groups)
    invn = chain.from_iterable(sample["invn"] for sample in samples)
    values = sorted(x for x in invn if x > 0) or [1.0]
    low, high = (values[round(q * (len(values) - 1))] for q in (0.02, 0.98))

    def place(x):
        return math.log(min(max(x, low), high) / low) / math.log(high / low) if low < high else 0.5

    return low, high, place


def colour(place):
    """0..1 -> (r, g, b) 0..255 from blue over white to red, and black or white, whichever reads
    better on it.
    """
    end = LOW if place < 0.5 else HIGH
    rgb = blend_rgb(ColorTriplet(*MIDDLE), ColorTriplet(*end), abs(2 * place - 1))
    r, g, b = ((v / 255) ** 2.2 for v in rgb)
    return tuple(rgb), BLACK if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else WHITE


def visible(text):
    """Model output made harmless for a terminal: characters that would be obeyed are shown."""

    def show(match):
        code = ord(match[0])
        return chr(0x2400 + code) if code < 32 else f"\u27e8{code:04x}\u27e9"

    return HIDDEN.sub(show, text)


def painted(parts):
    """[(text, place 0..1)] -> one string in as many colours as the terminal has."""
    text = Text()
    for part, place in parts:
        back, front = (Color.from_rgb(*rgb) for rgb in colour(place))
        text.append(part, Style(color=front, bgcolor=back))
    console = Console(force_terminal=True)
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()


def ansi(sample, place):
    """One response for the terminal, every token on the colour of its 1/n."""
    words = map(visible, sample["tokens"])
    return painted(zip(words, map(place, sample["invn"]), strict=True))


def show(a, texts, grades, shown):
    """Print the responses to one prompt. a: a Request; shown: group() of them, for --color."""
    low, high, place = scale([shown]) if a.color else (0, 0, None)
    for g, (text, grade) in enumerate(zip(texts, grades, strict=True)):
        if a.n > 1 or grade:
            print(f"--- response {g + 1}" + (f": {grade.outcome}" if grade else ""))
        print(ansi(shown["samples"][g], place) if place else visible(text), flush=True)
    if place:
        print(f"1/n {low:.2g} {painted((' ', i / 23) for i in range(24))} {high:.2g}")


class Typewriter:
    """Prints a response token by token, made harmless for a terminal."""

    def __init__(self, tokenizer):
        self.add, self.typed = StreamingDetokenizer(tokenizer, skip_special_tokens=True), ""

    def __call__(self, row, token):
        self.type(self.add(token))

    def type(self, text):
        self.typed += text
        print(visible(text), end="", flush=True)

    def end(self, text, grade):
        """The response is whole: what still waits of it, half a character perhaps, follows."""
        self.type(text[len(self.typed) :])
        print(f"\n--- {grade.outcome}" if grade else "")
