"""The pages in a real browser: headless Chromium draws them, a script at their end works the
sliders and reads what it sees.

Skipped where there is no Chromium. The dark scheme and a phone's width are set from the command
line; an error, a blocked request or anything wider than the window fails the page.
"""

import functools
import json
import re
import shutil
import subprocess
import tempfile
import time
from html import escape, unescape
from pathlib import Path

import pytest
import torch

from nanomerci import counts
from nanomerci.view import report
from tests.test_heatmap import WILD, contrast, wild_group
from tests.test_plots import HOSTILE, evaluation, sample, step, write_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
WATCH = """<script>
    window.wrong = [];
    onerror = (...e) => wrong.push(e[0]);
    console.error = (...e) => wrong.push(e.join(" "));
    alert = () => wrong.push("alert");
    addEventListener("securitypolicyviolation", e => wrong.push(e.blockedURI));
</script>"""
DRIVE = """<script>
    const $ = q => document.querySelector(q);
    const all = q => [...document.querySelectorAll(q)].map(e => e.textContent);
    const set = (q, v, kind = "input") => { $(q).value = v; $(q).dispatchEvent(new Event(kind)); };
    const seen = {};
    try { %s } catch (e) { wrong.push(String(e)); }
    document.title = JSON.stringify({...seen, wrong, width: innerWidth,
        wide: document.documentElement.scrollWidth - innerWidth,
        dark: matchMedia("(prefers-color-scheme: dark)").matches,
        ground: getComputedStyle(document.body).backgroundColor});
</script>"""


def open_page(html, width=1280, dark=False):
    """Let Chromium open a page in a frame (a window is never narrower than 500 pixels). -> its
    title after the scripts.
    """
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f"""<!doctype html><title></title><iframe id="frame" width="{width}"
            height="900" style="border:0" srcdoc="{escape(html)}"
            onload="document.title = frame.contentDocument.title"></iframe>""")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=3000",
        ]
        flags += [f"--user-data-dir={folder}/profile", "--window-size=1400,1000"]
        flags += [
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom",
            page.as_uri(),
        ]
        done = subprocess.run(
            [CHROMIUM, *flags], capture_output=True, text=True, timeout=120, errors="replace"
        )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title and title[1], f"Chromium drew nothing: {done.stderr[-500:]}"
    return unescape(title[1])


def drive(html, script="", **how):
    """Open one of our pages, run a script in it that fills `seen`. -> what was seen; nothing may
    have gone wrong.
    """
    page = open_page(
        html.replace("<style>", WATCH + "<style>", 1).replace(
            "</body>", DRIVE % script + "</body>"
        ),
        **how,
    )
    seen = json.loads(page)
    assert seen["wrong"] == [] and seen["wide"] <= 0, seen
    assert seen["width"] == how.get("width", 1280)
    assert (
        seen["dark"] == how.get("dark", False)
        and (seen["ground"] == "rgb(255, 255, 255)") != seen["dark"]
    )
    return seen


@functools.cache
def report_page():
    with tempfile.TemporaryDirectory() as folder:
        more = {
            "merci/kept_top": 0.3,
            "merci/kept": 0.2,
            "merci/share": 0.1,
            "merci/on_wrong": 0.5,
            "oracle/spearman": 0.9,
        }
        metrics = [
            evaluation(0),
            *(step(n, **more, **{"merci/novelty_right": n / 100}) for n in range(1, 21)),
        ]
        metrics[-1] |= evaluation(20, 0.1)
        samples = [
            sample(1, HOSTILE),
            sample(2, ["second", "x" * 100_000]),
            sample(3, ["ab"])
            | {"tokens": [["a", "b"]], "invn": [[0.5, 0.01]], "kept": ["x-"], "cut": [7]},
        ]
        run = write_run(Path(folder) / "run", metrics, samples, steps=20, out=HOSTILE[0])
        n_N = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
        exact = counts.calibration(
            n_N, torch.tensor([0.8, 0.8, 0.9, 0.9, 0.5, 0.5, 0.2, 0.25, 0.25, 0.3])
        )
        (run / "calibration.jsonl").write_text(json.dumps({"step": 20} | exact) + "\n")
        report.report(run)
        return (run / "report.html").read_text()


def heat_page(groups=None):
    start = {"top": 0.3, "run": 1, "gamma": 0.5, "alpha": 0.5, "noise_filter": True}
    return report.page(
        "heat",
        HOSTILE[0],
        {"title": HOSTILE[0], "options": start, "groups": groups or [wild_group(), wild_group()]},
    )


@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False), (390, True)])
def test_pages_draw_without_error(width, dark):
    script = 'seen.heads = all("h2"); seen.charts = all("svg.plot").length; seen.cells = all("td")'
    seen = drive(report_page(), script, width=width, dark=dark)
    heads = (
        "Before and after|Held-out problems|Training|Bonus ledger|Counter|Cost|Samples|"
        "Make it again|Configuration"
    )
    assert seen["heads"] == heads.split("|") and seen["charts"] == 13
    assert "0.500 [0.400, 0.600]" in seen["cells"] and "0.600 [0.500, 0.700]" in seen["cells"]
    script = """seen.tokens = all("main .columns .tok").length;
        seen.samples = all(".columns > .card").length;
        const shades = [...Array(101).keys()].map(i => shade(i / 100));
        seen.ramp = shades.map(s => [s.background, s.color])"""
    seen = drive(heat_page(), script, width=width, dark=dark)
    assert seen["tokens"] == 3 * len(WILD) and seen["samples"] == 3
    backs = [tuple(map(int, re.findall(r"\d+", back))) for back, _ in seen["ramp"]]
    texts = [tuple(bytes.fromhex(text[1:])) for _, text in seen["ramp"]]
    assert min(map(contrast, backs, texts)) >= 4.5
    assert (
        (max(backs[50]) < 80 if dark else min(backs[50]) > 240)
        and backs[0][2] > backs[0][0]
        and backs[100][0] > backs[100][2]
    )


def test_the_sample_browser_shows_hostile_text_as_text():
    seen = drive(
        report_page(),
        """set("#step", 0); seen.first = all(".columns .text");
        seen.tags = document.querySelectorAll("img").length;
        set("#step", 1); seen.second = all(".columns .text"); set("#step", 2);
        seen.kept = all(".tok.kept"); seen.cut = all(".columns .text .soft");
        seen.colours = [...document.querySelectorAll(".tok")].map(e => e.style.background);
        seen.step = $("main b + .soft").previousSibling.textContent""",
    )
    assert seen["first"][:2] == HOSTILE[:2] and seen["tags"] == 0
    assert seen["first"][3] == "NUL ␀ ESC ␛[31m" and seen["first"][4] == "⟨202e⟩right to left⟨2066⟩"
    assert seen["second"][0] == "second" and "96000 more characters" in seen["second"][1]
    assert seen["kept"] == ["a"] and seen["cut"] == [" [… 7 more tokens]"]
    red, blue = (list(map(int, re.findall(r"\d+", c))) for c in seen["colours"])
    assert red[0] > red[2] and blue[2] > blue[0]


def test_the_ledger_sets_the_first_steps_beside_the_last():
    seen = drive(
        report_page(),
        """const cells = row => [...row.children].slice(0, 3).map(c => c.textContent);
        seen.rows = [...document.querySelectorAll(".ledger tr")].map(cells);
        const cards = [...document.querySelectorAll(".card")];
        const card = cards.find(c => c.textContent.includes("calibration"));
        seen.calibration = card.querySelector(".keys").textContent;
        seen.fresh = card.querySelector("p").textContent""",
    )
    assert ["merci/novelty_right", "0.015", "0.195"] in seen["rows"] and [
        "merci/on_wrong",
        "0.5",
        "0.5",
    ] in seen["rows"]
    assert [name for name, *_ in seen["rows"]].index(
        "merci/kept_top"
    ) == 2 and "merci/kept_run" not in str(seen["rows"])
    # visited 4 to 7 times; 1/n is 0.25 [0.2375, 0.2625], so n is 2 to the power of 2
    assert seen["calibration"] == "counter 2 [1.93, 2.07]exact 2.46 [2, 2.81]at log2 n 2"
    assert seen["fresh"].endswith("never visited: 1/n 0.8")


def test_a_run_that_goes_on_is_read_again():
    going = report_page().replace('"steps":20', '"steps":60')
    assert going != report_page()
    going = re.sub(r'"at":[\d.]+', f'"at":{time.time() - 3600}', going)
    pages = [
        drive(page, 'seen.labels = all("label"); seen.head = all("p")[0]')
        for page in (going, report_page())
    ]
    assert [page["labels"] for page in pages] == [
        [" read this page again every 30 s while the run goes on"],
        [],
    ]
    assert "60 min ago; has it stopped?" in pages[0]["head"] and "ago" not in pages[1]["head"]


def test_sliders_recompute():
    group = wild_group()
    group["samples"] = group["samples"][:2]
    group["samples"][1] = {**group["samples"][1], "invn": [0.01] * len(WILD)}
    group["samples"][0] = {**group["samples"][0], "noise": [False] * (len(WILD) - 1) + [True]}
    seen = drive(
        heat_page([group]),
        """const cells = ["bonus0", "expl0", "before0", "after0", "after1"];
        const read = name => seen[name] = cells.map(i => +$("#" + i).textContent);
        read("start"); set("#top", 1); read("top"); set("#run", 10); read("run");
        set("#run", 1); $("[id='noise filter']").click(); read("noise");
        set("#gamma", 0); read("gamma"); set("#gamma", 2); set("#alpha", .25); read("alpha");
        $(".columns .mark").click(); read("marked");
        $(".columns .tok").click(); seen.detail = $(".stick").textContent""",
    )
    invn, l = [0.01 * 2**t for t in range(len(WILD))], len(WILD)
    half = 0.5**0.5

    def root(values):
        return (sum(values) / l) ** 0.5

    def near(values):
        return pytest.approx(values, rel=1e-3, abs=2e-4)

    # the top 30 % of 9 tokens are 3, one of them is noise; the cap holds
    assert seen["start"] == near([root(invn[-3:-1]), 1.0, half, half * 1.5, -half])
    assert (
        seen["top"][0] == near(root(invn[:-1])) and seen["run"][0] == 0
    )  # no run of ten among nine
    assert seen["noise"][0] == near(root(invn))
    assert seen["gamma"] == near([root(invn), 1.0, half, half, -half])
    assert seen["alpha"] == near([root(invn), 1.0, half, half * 1.25, -half])
    assert seen["marked"][2:] == [
        0,
        0,
        0,
    ]  # both wrong: nothing to learn, and the bonus adds nothing
    assert "1/n 0.01 · pseudo-count n 100 · log-prob -0.5 (p 0.607), entropy 0.1" in seen["detail"]


def test_heat_map_controls():
    seen = drive(
        heat_page(),
        """const colours = () => [...$(".columns .text").children].map(e => e.style.background);
        seen.log = colours(); $("[id='log scale of 1/n']").click(); seen.linear = colours();
        set("select", "entropy", "change"); seen.entropy = colours();
        const right = new KeyboardEvent("keydown", {key: "ArrowRight"});
        const press = () => $(".columns .text").dispatchEvent(right);
        press(); press();
        seen.walked = $(".stick").textContent""",
    )
    assert (
        len(set(seen["log"])) == len(WILD)
        and seen["linear"] != seen["log"]
        and len(set(seen["entropy"])) == 1
    )
    assert seen["walked"].startswith('" $\\\\frac{$ 10 %" · 1/n 0.02')
