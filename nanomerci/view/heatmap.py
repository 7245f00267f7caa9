"""The picture of count-based exploration: a response coloured by 1/n, and the bonus microscope
under it.

    python sample.py MODEL_OR_RUN "prompt" -n 4 --heatmap out.html        (or out.png; in the terminal: --color)

Which counter: a run with a CFN has one, and its 1/n says how rarely training came through here. Any
other model has none, so one is made on the spot from further samples of that model to the same
prompt; its 1/n says how unusual this way is among the answers the model would give anyway. The page
says which. Answers are marked right or wrong where that is known (a problem of the run's task, or
--gold); elsewhere the reader can set the marks by hand, and the advantages follow.

Axes: n samples a prompt, B = n rows, T token positions, N tokens, D hidden width.
"""

import textwrap
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from nanomerci import cfn
from nanomerci.address import address, seed
from nanomerci.kernels.cfn_score import cfn_score
from nanomerci.loop.model import eos_ids, load, look_at, token_logp
from nanomerci.loop.rollout import noise_mask, pieces
from nanomerci.runtime import checkpoint
from nanomerci.runtime.config import Config, UserError, read
from nanomerci.runtime.log import bar
from nanomerci.sample import generate
from nanomerci.view import report

LOW, MIDDLE, HIGH = (
    (67, 132, 196),
    (247, 247, 247),
    (202, 54, 48),
)  # blue, white, red, as in page/common.js
OPTIONS = ("top", "run", "gamma", "alpha", "noise_filter")


@dataclass(frozen=True)
class Run:
    """Where a model came from, if from a run of ours: its options and checkpoint. `problems` maps
    prompts to problems.
    """

    folder: Path
    checkpoint: Path
    options: Config

    @classmethod
    def of(cls, name):
        """A run folder, or checkpoints/step_000040/model inside one -> Run; anything else -> None."""
        path = Path(name)
        place = checkpoint.newest(path) if (path / "checkpoints").is_dir() else path.parent
        if not (place / "state.pt").exists():
            return None
        folder = place.parent.parent
        return cls(folder, place, Config(**read(folder / "config.yaml")))

    def counter(self, policy, device):
        """-> trunk, CoinFlipNet; (policy, None) of a run without."""
        c = self.options
        if c.bonus != "cfn":
            return policy, None
        path = self.checkpoint / "state.pt"
        try:
            weights = torch.load(path, map_location=device, weights_only=True, mmap=True)[
                "counter"
            ]["net"]  # mmap: and no more
            net = cfn.CoinFlipNet(policy.config.hidden_size, c.coins, c.cfn_hidden, c.cfn_prior).to(
                device
            )
            net.load_state_dict(weights)
        except (OSError, RuntimeError, KeyError, EOFError) as error:
            raise UserError(
                f"{path}: its counter cannot be read ({type(error).__name__}: {str(error)[:120]!r})"
            ) from None
        first = self.folder / "checkpoints/step_000000/model"
        return load(first, device, policy.dtype)[
            0
        ] if c.cfn_features == "frozen" and first.exists() else policy, net


def count_now(
    model, tokenizer, ids, samples, *, max_new_tokens, temperature, run_seed=0, progress=None
):
    """A counter for a model that has none, from `samples` of its own answers to the prompt `ids`.
    -> CoinFlipNet.
    """
    roll = generate(
        model,
        [ids],
        samples,
        max_new_tokens=max_new_tokens,
        eos_id=eos_ids(model, tokenizer),
        temperature=temperature or 1.0,
        seed=seed("count now", run_seed),
        progress=progress,
    )
    address_BT = address(
        "count now",
        torch.arange(samples, device=model.device)[:, None],
        torch.arange(roll.tokens_BT.shape[1], device=model.device),
    )
    hidden_ND, address_N = look_at(model, roll, address_BT)[2]
    counter = cfn.Counter(model.config.hidden_size, device=model.device)
    counter.pretrain(hidden_ND, address_N, passes=max(3, 20000 // max(len(address_N), 1)))
    return counter.net


@torch.no_grad()
def examine(model, tokenizer, roll, *, trunk, net, noise_B, temperature=1.0):
    """Everything the pictures show of the samples of one prompt, as plain data: a dict a response,
    with a value a token.

    noise_B: character spans a response that the third filter drops. 1/n is kept to 9 digits, so
    that the page computes with the very float32 numbers Python has; log-prob and entropy are those
    at `temperature`, in nats.
    """
    invn_BT = look_at(
        trunk, roll, torch.zeros_like(roll.tokens_BT), score=partial(cfn_score, net=net)
    )[0]
    logp_BT, entropy_BT = token_logp(model, roll.tokens_BT, roll.mask_BT, temperature or 1.0)
    noise_BT = noise_mask(tokenizer, roll, noise_B)
    out = []
    for row, ids in enumerate(roll.responses()):
        at = roll.mask_BT[row] > 0
        exact, short = (
            [float(f"{x:.{d}g}") for x in values]
            for d, values in (
                (9, invn_BT[row, at].tolist()),
                (4, [*logp_BT[row, at].tolist(), *entropy_BT[row, at].tolist()]),
            )
        )
        out.append(
            {
                "tokens": pieces(tokenizer, ids),
                "invn": exact,
                "logp": short[: len(ids)],
                "entropy": short[len(ids) :],
                "noise": noise_BT[row, at].tolist(),
            }
        )
    return out


def group(model, tokenizer, roll, prompt, ids, run, grades, noise_B, longest, a):
    """The samples of one prompt -> what draw() wants of them. ids: the prompt's tokens; a: the
    arguments of sample.py.
    """
    trunk, net = run.counter(model, model.device) if run else (model, None)
    note = f"1/n: the counter of {run.folder.name}, {run.checkpoint.name}." if net else ""
    if net is None:
        with bar(a.count, "count: further samples", "answer") as progress:
            net = count_now(
                model,
                tokenizer,
                ids,
                a.count,
                max_new_tokens=longest,
                temperature=a.temperature,
                run_seed=a.seed,
                progress=progress.update,
            )
        note = (
            f"1/n: this model has no counter of its own, so one was made now, from {a.count} "
            "further samples of it to this "
            "prompt: red is unusual among its own answers."
        )
    samples = examine(
        model, tokenizer, roll, trunk=trunk, net=net, noise_B=noise_B, temperature=a.temperature
    )
    marks = [{"outcome": g and g.outcome, "reward": g and g.reward} for g in grades]
    return {"prompt": prompt, "note": note, "samples": [s | m for s, m in zip(samples, marks)]}


def options(run):
    """What the sliders start from: the run's options, or the defaults."""
    return {name: asdict(run.options if run else Config())[name] for name in OPTIONS}


def draw(path, title, groups, start):
    """Write groups [{prompt, note, samples: [{tokens, invn, ..., outcome, reward}]}] as .html or
    .png. start: options().
    """
    path = Path(path)
    if path.suffix == ".html":
        report.write(
            path, report.page("heat", title, {"title": title, "options": start, "groups": groups})
        )
    else:
        picture(path, groups)


# ---- where there is no browser
def scale(groups):
    """Positions 0..1 of 1/n on a logarithmic scale from the 2nd to the 98th percentile of all
    tokens. -> (low, high, place).
    """
    values = sorted(x for g in groups for s in g["samples"] for x in s["invn"] if x > 0) or [1.0]
    low, high = (values[round(q * (len(values) - 1))] for q in (0.02, 0.98))
    log = lambda x: float(torch.tensor(x).clamp(min=low, max=high).log())
    return low, high, lambda x: 0.5 if low == high else (log(x) - log(low)) / (log(high) - log(low))


def colour(place):
    """0..1 -> (r, g, b) 0..255 from blue over white to red, and black or white, whichever reads
    better on it.
    """
    end, far = (LOW if place < 0.5 else HIGH), abs(2 * place - 1)
    rgb = tuple(round(m + (e - m) * far) for m, e in zip(MIDDLE, end))
    light = sum(share * (v / 255) ** 2.2 for share, v in zip((0.2126, 0.7152, 0.0722), rgb))
    return rgb, ((0, 0, 0) if light > 0.179 else (255, 255, 255))


def visible(text, keep="\n\t"):
    """Model output made harmless for a terminal: control characters, and those that turn text
    around, are shown, not obeyed.
    """

    def show(c):
        code = ord(c)
        if c in keep or not (
            code < 32
            or 127 <= code < 160
            or 0x200B <= code <= 0x200F
            or 0x2028 <= code <= 0x202E
            or 0x2060 <= code <= 0x206F
            or code == 0xFEFF
            or 0xD800 <= code <= 0xDFFF
        ):
            return c
        return chr(0x2400 + code) if code < 32 else f"\u27e8{code:04x}\u27e9"

    return "".join(map(show, text))


def ansi(sample, place):
    """One response for a terminal of 24-bit colour."""
    out = []
    for word, invn in zip(sample["tokens"], sample["invn"]):
        back, front = colour(place(invn))
        start, end = "\x1b[48;2;{};{};{}m\x1b[38;2;{};{};{}m".format(*back, *front), "\x1b[0m"
        out.append(
            "\n".join(f"{start}{part}{end}" if part else "" for part in visible(word).split("\n"))
        )
    return "".join(out)


def ansi_bar(low, high):
    cells = "".join("\x1b[48;2;{};{};{}m \x1b[0m".format(*colour(i / 23)[0]) for i in range(24))
    return f"1/n {low:.2g} {cells} {high:.2g}"


def picture(path, groups, columns=2, width=58):
    """The heat map as a PNG: responses in columns, monospace, a colour bar below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import NullLocator

    low, high, place = scale(groups)
    font = get_font(findfont("DejaVu Sans Mono"))
    plain = lambda word: "".join(
        c if c == "\n" or font.get_char_index(ord(c)) else "\u25a1"
        for c in visible(word, keep="\n")
    )
    cells, y = [], 0.0  # (column, line, text, background, colour), in characters
    unit = lambda rgb: tuple(v / 255 for v in rgb)
    for group in groups:
        for line in wrapped(plain(group["prompt"]), columns * width):
            cells.append((0, y, line, None, (0.1, 0.1, 0.1)))
            y += 1.2
        y += 0.4
        for first in range(0, len(group["samples"]), columns):
            heights = []
            for k, sample in enumerate(group["samples"][first : first + columns]):
                left, x, line = k * (width + 2), 0, 1.2
                outcome, sign = (
                    sample["outcome"],
                    "\u2713" if sample["outcome"] == "right" else "\u2717",
                )
                mark = f"{sign} {outcome}" if outcome else f"sample {first + k + 1}"
                cells.append((left, y, mark, None, (0.35, 0.35, 0.35)))
                for word, invn in zip(sample["tokens"], sample["invn"]):
                    back, front = map(unit, colour(place(invn)))
                    for i, part in enumerate(plain(word).split("\n")):
                        if i:
                            x, line = 0, line + 1.2
                        while part:
                            if x and x + len(part) > width:
                                x, line = 0, line + 1.2
                            shown, part = part[:width], part[width:]
                            cells.append((left + x, y + line, shown, back, front))
                            x += len(shown)
                heights.append(line + 1.8)
            y += max(heights)
    em, row = 0.087, 0.165  # inches a character and a line at 10 points
    wide, tall = (columns * (width + 2)) * em + 0.3, (y + 2.5) * row + 0.2
    figure = Figure(figsize=(wide, tall), facecolor="white")
    axes = figure.add_axes((0.15 / wide, 0, 1 - 0.3 / wide, 1))
    axes.set(xlim=(0, columns * (width + 2)), ylim=(y + 2.5, -0.8))
    axes.axis("off")
    for x, line, words, back, front in cells:
        if back:
            axes.add_patch(Rectangle((x, line - 0.62), len(words), 1.2, color=back, linewidth=0))
        axes.text(
            x,
            line,
            words,
            color=front,
            family="DejaVu Sans Mono",
            size=em * 72 / 0.602,
            va="center",
            parse_math=False,
        )
    bar = figure.add_axes((0.3 / wide, 0.3 / tall, 0.3, 0.12 / tall))
    ramp = LinearSegmentedColormap.from_list("novelty", [unit(LOW), unit(MIDDLE), unit(HIGH)])
    high = high if high > low else low * 1.01
    ticks = [
        low,
        (low * high) ** 0.5,
        high,
    ]  # matplotlib's own, on a range below a decade, run into each other
    marks = figure.colorbar(
        ScalarMappable(LogNorm(low, high), ramp), cax=bar, orientation="horizontal", ticks=ticks
    )
    marks.ax.xaxis.set_minor_locator(NullLocator())
    marks.set_ticklabels([f"{tick:.2g}" for tick in ticks])
    bar.set_title("1/n: blue = often been here, red = new ground", fontsize=8, loc="left")
    report.save(figure, Path(path))


def wrapped(text, width):
    return [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
