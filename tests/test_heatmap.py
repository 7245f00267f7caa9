"""Heat map and microscope: the numbers on the page are those of Python and of the model; sample.py
as a command.
"""

import functools
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from nanomerci import cfn, grpo, merci, sample, tasks
from nanomerci.kernels.cfn_score import cfn_score
from nanomerci.loop.model import StateReader, encode, load, tiny
from nanomerci.loop.saved_run import Run
from nanomerci.loop.text import token_texts
from nanomerci.runtime import checkpoint, config
from nanomerci.view import ask, heatmap, report
from tests.conftest import ROOT

WILD = [
    "plain",
    " $\\frac{$ 10 %",
    "\u65e5\u672c \U0001f642",
    "\x00\x1b[2J\x1b]0;title\x07",
    "\u202eoverride",
    "\n",
    "  tabs\tand\nlines",
    "\ud800",
    "w" * 200,
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of toy_sql as train.py leaves it after 2 steps, of an untrained tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOMERCI_CACHE", str(folder.parent))
        task = tasks.load(config.Config())
    model, tokenizer = tiny(task.words)
    c = config.Config(max_new_tokens=12, cfn_hidden=16, coins=8, top=0.5, run=2)
    counter = cfn.Counter(model.config.hidden_size, coins=8, hidden=16, seed=5)
    counter.pretrain(torch.randn(64, model.config.hidden_size), torch.arange(64), 2)
    models = SimpleNamespace(policy=model, actor=model, tokenizer=tokenizer)
    for step in (0, 2):
        checkpoint.save(folder, step, models, {"bonus": counter}, 2)
        with torch.no_grad():
            model.lm_head.weight.mul_(3.0)  # the trained policy is another one than the trunk
    config.write(c, folder / "config.yaml")
    return folder


def sampler_of(folder, longest=12):
    return sample.Sampler(*load(folder), longest)


def draw(sampler, prompt, n, **how):
    return sampler([encode(sampler.tokenizer, prompt)], n, **how)


def invn_of(features, net, rollout):
    read = StateReader(features, partial(cfn_score, net=net))
    return read(rollout, torch.zeros_like(rollout.tokens_BT))[0]


# ---- the page computes what Python computes
def javascript(expression):
    """A value of page/merci.js, as JSON, from node or else from headless Chromium."""
    code = (report.PAGE / "merci.js").read_text()
    if node := shutil.which("node"):
        out = subprocess.run(
            [node, "-"],
            input=f"{code}\nconsole.log(JSON.stringify({expression}))",
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(out.stdout)
    from tests.test_browser import open_page

    return open_page(f"<script>{code}\ndocument.title = JSON.stringify({expression})</script>")


def make_groups():
    torch.manual_seed(0)
    groups = []
    for G, tops in ((1, [0.3]), (4, [0.05, 0.3, 0.5, 1.0]), (8, [0.1, 0.7])):
        for top in tops:
            rows = []
            for g in range(G):
                length = int(torch.randint(1, 60, ()))
                invn = (
                    (torch.rand(length) ** 3 * 2).mul(16).round().div(16)
                    if g % 2
                    else torch.rand(length) ** 4
                )  # with ties, without
                rows.append(
                    {
                        "invn": [float(f"{x:.9g}") for x in invn.tolist()],
                        "noise": (torch.rand(length) < 0.2).tolist(),
                        "reward": float(g % 3 == 0),
                    }
                )
            groups.append(
                (
                    rows,
                    {
                        "top": top,
                        "run": 1 + len(groups) % 4,
                        "gamma": 0.3 * len(groups),
                        "alpha": 0.1 * len(groups),
                    },
                )
            )
    alike = [
        {"invn": [0.5, 0.5 + g * 1e-4], "noise": [False] * 2, "reward": float(g)} for g in range(2)
    ]  # the floor under std
    return [*groups, (alike, {"top": 1.0, "run": 1, "gamma": 0.1, "alpha": 0.9})]


def test_the_microscope_holds_to_python():
    groups = make_groups()
    pages = javascript(f"{json.dumps(groups)}.map(([rows, o]) => merci.microscope(rows, o))")
    for (rows, o), page in zip(groups, pages, strict=True):
        length = max(len(r["invn"]) for r in rows)
        pads = [[0.0] * (length - len(r["invn"])) for r in rows]
        invn_BT, noise_BT, mask_BT = (
            torch.tensor([values + pad for values, pad in zip(column, pads, strict=True)])
            for column in (
                [r["invn"] for r in rows],
                [r["noise"] for r in rows],
                [[1.0] * len(r["invn"]) for r in rows],
            )
        )
        noise_BT = noise_BT.bool()
        top_BT = merci.percentile(invn_BT, mask_BT, o["top"])
        run_BT = merci.coherent(top_BT, o["run"])
        kept_BT = merci.suppress(run_BT, noise_BT)
        bonus_PG = merci.trajectory_bonus(invn_BT, kept_BT, mask_BT)[None]
        expl_PG = merci.exploration_advantage(bonus_PG)
        before_PG = (
            grpo.advantage(torch.tensor([[r["reward"] for r in rows]]))
            if len(rows) > 1
            else torch.zeros(1, 1)
        )
        after_PG = merci.merge(before_PG, expl_PG, o["gamma"], o["alpha"])
        for g, shown in enumerate(page):
            stage = [
                "kept" if k else "noise" if r else "spike" if t else "below"
                for k, r, t in zip(kept_BT[g], run_BT[g], top_BT[g], strict=True)
            ]
            assert shown["stage"] == stage[: len(rows[g]["invn"])]
            wanted = [x[0, g].item() for x in (bonus_PG, expl_PG, before_PG, after_PG)]
            assert [shown[k] for k in ("bonus", "expl", "before", "after")] == pytest.approx(
                wanted, rel=1e-4, abs=1e-5
            )


def test_the_percentile_rounds_as_python_does():
    tops, lengths = (
        [0.05, 0.1, 0.15, 0.2, 0.3, 0.35, 0.55, 0.6, 0.7, 0.9, 1.0],
        [*range(1, 201), 1000, 4096],
    )
    page = javascript(
        f"{tops}.map(top => {lengths}.map(l => merci.percentile([...Array(l).keys()], "
        "top).filter(k => k).length))"
    )
    for top, counts in zip(tops, page, strict=True):
        python = [
            int(merci.percentile(torch.arange(n).float()[None], torch.ones(1, n), top).sum())
            for n in lengths
        ]
        assert counts == python, top


# ---- the numbers are those of the model
def test_the_numbers_are_those_of_the_counter_and_the_model(run):
    sampler = sampler_of(run)
    model, tokenizer = sampler.model, sampler.tokenizer
    features, net = Run.of(run).counter(model, "cpu")
    roll = draw(sampler, "who is oldest in 'ops' ?", 2)
    counter, noise_B = heatmap.Counter(features, net, ""), [[(0, 3)], []]
    shown = heatmap.group(sampler, roll, "", counter, [None, None], noise_B)["samples"]
    invn_BT = invn_of(features, net, roll)
    for row, s in enumerate(shown):
        columns = roll.mask_BT[row].nonzero()[:, 0]
        ids = roll.tokens_BT[row, : columns[-1] + 1]
        with torch.no_grad():
            hidden_TD = features(ids[None], output_hidden_states=True).hidden_states[-1][0]
            logits_TV = model(ids[None]).logits[0].log_softmax(-1)
        expected = cfn.inverse_count(net(hidden_TD[columns[:-1]])).tolist()
        assert s["invn"] == pytest.approx([*expected, 0], rel=1e-4)  # the last state is terminal
        assert s["logp"] == pytest.approx(
            logits_TV[columns - 1].gather(1, ids[columns, None])[:, 0].tolist(), rel=2e-3, abs=1e-3
        )
        assert s["entropy"] == pytest.approx(
            (-logits_TV.exp() * logits_TV).sum(-1)[columns - 1].tolist(), rel=2e-3, abs=1e-3
        )
        assert torch.equal(torch.tensor(s["invn"]), invn_BT[row, columns])
        assert "".join(s["tokens"]) == tokenizer.decode(ids[columns])
    assert shown[0]["noise"][0] and not any(shown[0]["noise"][1:]) and not any(shown[1]["noise"])


def test_a_run_counts_on_its_initial_policy(run):
    source = Run.of(run)
    model, _ = load(run)
    assert source.checkpoint.name == "step_000002" and source.options.coins == 8
    features, _ = source.counter(model, "cpu")
    assert not torch.equal(features.lm_head.weight, model.lm_head.weight)
    assert Run.of(run / "checkpoints/step_000000/model").checkpoint.name == "step_000000"
    assert Run.of(ROOT) is None and Run.of("someone/some-model") is None


def test_a_counter_made_now_knows_the_beaten_track(run):
    folder, asked = run / "checkpoints/step_000002/model", "who is oldest in 'ops' ?"
    sampler = sampler_of(folder, 4)
    net = heatmap.count_now(sampler, encode(sampler.tokenizer, asked), 32)
    common = draw(sampler_of(folder, 2), asked, 32, seed=9)
    strange = draw(sampler, "where live people from 'oslo' under 50 years ?", 32, seed=9)
    rolls = common, strange
    means = [invn_of(sampler.model, net, roll)[roll.visited_BT].mean() for roll in rolls]
    assert means[0] < 0.5 * means[1]


def test_pieces_of_a_byte_level_tokenizer_join_to_the_text():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)
    ids = tokenizer("née 🙂 日本\n!")["input_ids"]
    words = token_texts(tokenizer, ids)
    assert "".join(words) == "née 🙂 日本\n!" and len(words) == len(ids)
    assert words[0] == "n" and words[1:3] == ["", "é"]
    broken = [b for b in ids if b != ids[-1]][:5] + ids[
        1:2
    ] * 20  # a lead byte again and again never becomes a character
    assert len(token_texts(tokenizer, broken)) == len(broken)


# ---- pictures
def wild_group():
    n = len(WILD)
    one = {
        "tokens": WILD,
        "invn": [0.01 * 2**t for t in range(n)],
        "logp": [-0.5] * n,
        "entropy": [0.1] * n,
        "noise": [False] * n,
    }
    return {
        "prompt": "\n".join(WILD[:5]),
        "note": "",
        "samples": [
            one | {"outcome": o, "reward": r}
            for o, r in (("right", 1.0), ("wrong", 0.0), (None, None))
        ],
    }


@pytest.fixture
def truecolor(monkeypatch):
    """A terminal of 24-bit colour, whatever the suite is run in."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


COLOURS = r"\x1b\[(38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+|0)m"


def test_a_terminal_gets_no_control_characters_of_the_model(truecolor):
    painted = heatmap.ansi(wild_group()["samples"][0], lambda x: 0.5)
    bare = re.sub(COLOURS, "", painted)
    assert len(re.findall(COLOURS, painted)) >= 2 * (len(WILD) - 1)  # each token but "\n": on, off
    assert re.sub(" +", " ", bare) == re.sub("[ \t]+", " ", heatmap.visible("".join(WILD)))
    assert (
        not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", bare)
        and "␛[2J" in bare
        and "⟨202e⟩" in bare
    )
    bare.encode()


def test_a_colour_in_the_terminal_is_that_of_the_place(truecolor):
    _, _, place = heatmap.scale([{"samples": [{"invn": [0.01, 0.1, 1.0]}]}])
    assert [place(x) for x in (0.001, 0.01, 0.1, 1.0, 2.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    text = heatmap.ansi({"tokens": ["a", "b"], "invn": [0.01, 0.1]}, place)
    for rgb, part in zip((heatmap.LOW, heatmap.MIDDLE), text.split("\x1b[0m"), strict=False):
        assert "48;2;{};{};{}m".format(*rgb) in part
    flat = heatmap.scale([{"samples": [{"invn": [0.0, 0.0]}]}])
    assert flat[2](0.0) == 0.5


def contrast(one, other):
    """Of two (r, g, b) 0..255, as WCAG defines it; it asks for 4.5 for text."""

    def luminance(rgb):
        r, g, b = (
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
            for v in (x / 255 for x in rgb)
        )
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = max(map(luminance, (one, other))), min(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_can_be_read_on_every_colour():
    assert min(contrast(*heatmap.colour(i / 100)) for i in range(101)) >= 4.5
    low, middle, high = (heatmap.colour(x)[0] for x in (0, 0.5, 1))
    assert low[2] > low[0] and high[0] > high[2] and min(middle) > 240  # blue, white, red


# ---- the command
def command(monkeypatch, capsys, *words, stdin=""):
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    ask.answer(ask.arguments(list(map(str, words))), sample.Sampler, sample.check_model)
    return capsys.readouterr().out


load_once = functools.cache(tasks.load)


@pytest.fixture
def cached(run, monkeypatch):
    """The task's database lies beside the run, and the task is built once, not in every command."""
    monkeypatch.setenv("NANOMERCI_CACHE", str(run.parent))
    monkeypatch.setattr(tasks, "load", load_once)


def test_answers_of_a_run(run, cached, monkeypatch, capsys, tmp_path):
    first = command(monkeypatch, capsys, run)  # its first held-out problem, graded
    assert re.fullmatch(r".*\n--- (right|wrong|unparsable|error)\n", first)
    words = (run, "who is oldest ?", "-n", 3, "--max_new_tokens", 5)
    several = command(monkeypatch, capsys, *words)
    assert several.count("--- response") == 3 and several == command(monkeypatch, capsys, *words)
    assert several != command(monkeypatch, capsys, *words, "--seed", 1)
    piped = command(
        monkeypatch, capsys, run, "-n", 2, stdin="who is oldest ?\n\nwho earns most ?\n"
    )
    assert re.findall("=== (.*)", piped) == ["who is oldest ?", "who earns most ?"]
    (tmp_path / "p.txt").write_text("who is oldest ?\nwho earns most ?\n")
    assert command(monkeypatch, capsys, run, "-n", 2, "--file", tmp_path / "p.txt") == piped
    greedy = [
        command(monkeypatch, capsys, run, "who is oldest ?", "--temperature", 0, "--seed", s)
        for s in (0, 1)
    ]
    assert greedy[0] == greedy[1]


def test_one_answer_is_typed_as_it_is_drawn(run, cached, monkeypatch, capsys):
    words = (run, "who is oldest in 'ops' ?")
    several = command(monkeypatch, capsys, *words, "-n", 2)
    typed, real = [], heatmap.Typewriter.type
    monkeypatch.setattr(
        heatmap.Typewriter, "type", lambda self, text: typed.append(text) or real(self, text)
    )
    assert several.split("\n")[1] == command(monkeypatch, capsys, *words).split("\n")[0]
    assert len([text for text in typed if text]) > 5


def test_a_model_that_writes_escape_codes(monkeypatch, capsys, tmp_path):
    for part in tiny(["hi", "\x1b[2J"]):
        part.save_pretrained(tmp_path / "model")
    out = command(monkeypatch, capsys, tmp_path / "model", "hi", "-n", 20, "--max_new_tokens", 9)
    assert "\u241b[2J" in out and "\x1b" not in out


def test_the_company_does_not_change_a_sample(run, cached, monkeypatch, capsys):
    alone = command(monkeypatch, capsys, run, "who is oldest ?", "-n", 2).split("\n")
    many = command(
        monkeypatch, capsys, run, "-n", 2, stdin="who is oldest ?\n" + "who earns most ?\n" * 40
    )
    assert many.split("\n")[2 : 1 + len(alone)] == alone[:-1]
    same = command(monkeypatch, capsys, run, "-n", 2, stdin="who is oldest ?\n" * 33).split(
        "\n=== "
    )
    assert same[1] != same[33]  # nor do samples come again in the next batch (of 32 prompts)


def test_heat_maps_of_a_run_and_of_a_plain_model(
    run, cached, truecolor, monkeypatch, capsys, tmp_path
):
    prompt = "who is oldest in 'ops' ?"
    out = command(
        monkeypatch,
        capsys,
        run,
        prompt,
        "--heatmap",
        tmp_path / "a.html",
        "--color",
    )
    assert out.count(";48;2;") > 20 and "1/n" in out
    data = page_data(tmp_path / "a.html")
    assert data["options"] == {
        "top": 0.5,
        "run": 2,
        "gamma": 0.5,
        "alpha": 0.5,
        "noise_filter": True,
    }
    (group,) = data["groups"]
    assert (
        group["prompt"] == prompt
        and len(group["samples"]) == 4
        and "counter of toy, step_000002" in group["note"]
    )
    plain = tmp_path / "plain"
    shutil.copytree(run / "checkpoints/step_000002/model", plain)
    command(
        monkeypatch,
        capsys,
        plain,
        prompt,
        "-n",
        2,
        "--heatmap",
        tmp_path / "b.html",
        "--count",
        8,
        "--gold",
        "7",
        "--max_new_tokens",
        6,
    )
    (group,) = page_data(tmp_path / "b.html")["groups"]
    assert "made now, from 8 further responses" in group["note"]
    assert [s["outcome"] for s in group["samples"]] == ["unparsable"] * 2


def page_data(path):
    return json.loads(
        re.search(
            '<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
        )[1]
    )


WRONG = [
    ("", "sample.py: too many or too few arguments"),
    ("RUN hi -n 0", "-n 0: expected 1 or more"),
    ("RUN hi -n two", "-n two: expected a whole number"),
    ("RUN hi --top_p 0", "--top_p 0.0"),
    ("RUN hi --heatmap a.png", "ends in .html; for a picture take a screenshot"),
    ("RUN hi --heatmap /nowhere/a.html", "there is no folder /nowhere"),
    ("RUN ''", "is empty"),
    ("RUN --file /nowhere.txt", "/nowhere.txt: cannot be read"),
    ("RUN 'who is oldest ?' --max_new_tokens 999", "exceeds the model's context"),
    ("PLAIN", "no prompt"),
    ("/nowhere/model hi", "cannot be loaded"),
    ("RUN hi --colour-all", "unknown option --colour-all; did you mean --color?"),
    ("RUN --device foo hi", "--device foo: expected auto|cpu|cuda"),
    ("RUN hi --file /dev/null", "--file /dev/null: a prompt is given too"),
]


@pytest.mark.parametrize("words, message", WRONG)
def test_what_a_user_gets_wrong(run, cached, monkeypatch, capsys, words, message):
    plain = run.parent / "plain"
    shutil.copytree(run / "checkpoints/step_000002/model", plain, dirs_exist_ok=True)
    names = {"RUN": run, "PLAIN": plain}
    with pytest.raises(config.UserError, match=re.escape(message)):
        command(monkeypatch, capsys, *(names.get(w, w) for w in shlex.split(words)))


def test_an_error_is_one_line_and_status_2(run):
    done = subprocess.run(
        [sys.executable, str(ROOT / "sample.py"), str(run), "hi", "-n", "0"],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr == "error: -n 0: expected 1 or more\n"
        and done.stdout == ""
    )


def test_a_broken_counter_is_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "checkpoints/step_000002/state.pt").write_bytes(b"not a checkpoint")
    model, _ = load(copy)
    with pytest.raises(config.UserError, match="state.pt: its counter cannot be read"):
        Run.of(copy).counter(model, "cpu")
