"""The report of a run: made from whatever is there, small, and safe whatever a model wrote."""

import dataclasses
import json
import shlex
from html.parser import HTMLParser

import pytest

from nanomerci.runtime import config
from nanomerci.view import report

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "NUL \0 ESC \x1b[31m",
    "\u202eright to left\u2066",
    "\u2028 line \u2029",
    "{data} {script} {title}",
    "'\"`${1}\\u003c\\",
    "\ud800 lone surrogate",
    "&lt;b&gt; &amp;",
]


def step(n, **more):
    values = {
        "reward/mean": 0.5,
        "entropy": 1.0,
        "length/mean": 20.0,
        "cfn/invn": 0.1,
        "merci/bonus": 0.2,
    }
    groups = {"groups/mixed": 0.5, "groups/all_right": 0.25, "groups/all_wrong": 0.25}
    return {"step": n} | values | groups | {"time/sample": 0.5, "time/step": 0.6} | more


def evaluation(n, shift=0.0):
    values = {
        "eval/mean@4": 0.3 + shift,
        "eval/pass@2": 0.4 + shift,
        "eval/pass@4": 0.5 + shift,
        "eval/greedy": 0.35 + shift,
    }
    return {
        "step": n,
        **values,
        **{f"{k}_ci": [v - 0.1, v + 0.1] for k, v in values.items()},
        "eval/problems": 10,
        "eval/solved": 5,
    }


def write_run(folder, metrics=(), samples=(), **options):
    folder.mkdir(exist_ok=True)
    config.write(config.Config(**options), folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    return folder


def sample(n, answers):
    return {
        "step": n,
        "id": "a",
        "prompt": "what?",
        "answers": answers,
        "outcomes": ["right"] * len(answers),
        "advantage": [0.5] * len(answers),
        "bonus": [0.1] * len(answers),
    }


class Blocks(HTMLParser):
    """The page as a browser's parser cuts it: start tags, and the text of every <script>."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, text):
        if self.inside:
            self.scripts[-1] += text


def read_report(run):
    report.report(run)
    blocks = Blocks((run / "report.html").read_text())
    return json.loads(blocks.scripts[0]), blocks


HALF_FINISHED = [
    [],
    [{"step": 0}],
    [evaluation(0)],
    [evaluation(0), step(1)],
    [step(1)],
    [step(1, entropy=float("nan"))],
    [step(1), {"step": 2, "reward/mean": 0.1}, step(3, extra="text", flag=True)],
]


@pytest.mark.parametrize("metrics", HALF_FINISHED)
def test_a_half_finished_run_has_a_report(tmp_path, metrics):
    data, _ = read_report(write_run(tmp_path / "run", metrics))
    assert data["last"] == (metrics[-1]["step"] if metrics else 0)


def test_an_empty_folder_and_a_half_written_line(tmp_path):
    (tmp_path / "empty").mkdir()
    assert read_report(tmp_path / "empty")[0]["step"] == []
    run = write_run(tmp_path / "run", [step(1), step(2)])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "reward/me')
    assert read_report(run)[0]["step"] == [1, 2]


def test_curves_are_png_files(tmp_path):
    run = write_run(tmp_path / "run", [evaluation(0), step(1), step(2) | evaluation(2, 0.1)])
    report.report(run)
    for name in ("reward", "entropy", "length", "bonus", "eval", "pass_at_k"):
        assert (run / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", name
    assert not list(run.glob(".*")), "scratch files left"


def test_before_and_after_reach_the_page(tmp_path):
    data, _ = read_report(
        write_run(
            tmp_path / "run",
            [evaluation(0), *map(step, range(1, 9)), step(9) | evaluation(9, 0.25)],
        )
    )
    assert [e["step"] for e in data["evals"]] == [0, 9]
    assert data["evals"][1]["eval/pass@4"] == 0.75 and data["evals"][1]["eval/pass@4_ci"] == [
        0.65,
        0.85,
    ]
    assert data["series"]["entropy"] == [1.0] * 9 and not any(
        name.startswith("eval/") for name in data["series"]
    )


def test_hostile_answers_stay_text(tmp_path):
    run = write_run(
        tmp_path / "run",
        [step(1)],
        [sample(1, HOSTILE) | {"prompt": HOSTILE[0], "id": HOSTILE[1]}],
        out=HOSTILE[0],
    )
    data, blocks = read_report(run)
    assert data["samples"][0]["answers"] == HOSTILE and data["samples"][0]["prompt"] == HOSTILE[0]
    assert [tag for tag, _ in blocks.tags].count("script") == 2 and "img" not in [
        tag for tag, _ in blocks.tags
    ]
    assert (
        not set("<>&\0\u2028") & set(report.embed(HOSTILE))
        and json.loads(report.embed(HOSTILE)) == HOSTILE
    )
    source = (run / "report.html").read_text()
    assert "alert(1)</script>" not in source and "\0" not in source and "\u202e" not in source


def test_the_page_loads_nothing(tmp_path):
    _, blocks = read_report(write_run(tmp_path / "run", [step(1)]))
    policy = [
        a["content"] for tag, a in blocks.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy and policy[0].startswith("default-src 'none'")
    assert not [a for _, a in blocks.tags if "src" in a or "href" in a]
    source = (tmp_path / "run/report.html").read_text().replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in source and "https://" not in source and "innerHTML =" not in source


def test_the_report_stays_below_5_megabytes(tmp_path):
    answers = ["x" * 100_000, "<" * 100_000, "\0" * 100_000, "é" * 100_000]
    run = write_run(
        tmp_path / "run",
        [step(n) for n in range(1, 5001)],
        [sample(n, answers) for n in range(1, 41)],
    )
    data, _ = read_report(run)
    assert (run / "report.html").stat().st_size < 5_000_000
    steps = [s["step"] for s in data["samples"]]
    assert steps[0] == 1 and steps[-1] == 40 and len(steps) > 5
    assert data["samples"][0]["answers"][0].endswith("[... 96000 more characters in samples.jsonl]")
    assert (
        len(data["step"]) == report.STEPS
        and data["step"][0] == 1
        and data["step"][-1] == 5000
        and data["thinned"] == 4500
    )


def test_the_commands_make_the_same_run(tmp_path):
    c = config.parse(
        ["toy_sql", "--gamma", "0.25", "--noise_filter", "False", "--out", str(tmp_path / "a run")]
    )
    data, _ = read_report(write_run(tmp_path / "a run", [step(1)], **dataclasses.asdict(c)))
    for command in data["commands"]:
        words = shlex.split(command)
        assert words[:2] == ["python", "train.py"]
        assert dataclasses.replace(config.parse(words[2:]), out=c.out) == c, command
    assert data["commands"][1] == "python train.py toy_sql --gamma 0.25 --noise_filter False"


def test_tokens_for_the_heat_map_are_shown_or_left_out_whole(tmp_path):
    with_tokens = sample(1, ["ab"]) | {"tokens": [["a", "b"]], "invn": [[0.5, 0.1]]}
    long = sample(2, ["ab"]) | {"tokens": [["a"] * 5000], "invn": [[0.5] * 5000]}
    short, cut = read_report(write_run(tmp_path / "run", [step(1)], [with_tokens, long]))[0][
        "samples"
    ]
    assert (
        short["invn"] == [[0.5, 0.1]]
        and "tokens" not in cut
        and "invn" not in cut
        and cut["answers"] == ["ab"]
    )
