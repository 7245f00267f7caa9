// The heat map of one prompt's samples, and the bonus microscope: the filters one after another, and sliders that recompute.
const STAGES = {
  kept: ["kept", "its 1/n counts for the bonus"], below: ["1 percentile", "not among the response's top tokens"],
  spike: ["2 coherence", "a spike: its run of kept tokens is too short"], noise: ["3 noise", "nothing to do with the task"],
};
const LOOKS = {  // a colour and one more sign each, for those who do not see colours apart
  kept: "background:#ca3630;color:#fff;font-weight:bold", below: "color:var(--soft)",
  spike: "background:#4384c4;color:#101418;text-decoration:underline dotted", noise: "background:#a2487d;color:#fff;text-decoration:line-through",
};
const o = {...data.options, suppress: data.options.noise_filter}, view = {group: 0, sample: null, by: "invn", log: true, stage: 3};
const MEASURES = {
  invn: ["1/n: novelty of the state", s => s.invn], surprisal: ["surprisal: -log p, nats", s => s.logp.map(v => v === null ? null : -v)], entropy: ["entropy of the next token, nats", s => s.entropy],
};
const detail = el("code"), places = {map: el("div", {class: "columns"}), bar: el("div"), prompt: el("div"), micro: el("div", {class: "card"}), table: el("div", {class: "scroll"}), pick: el("span")};
let rows = [], selected = null;
const group = () => data.groups[view.group];

function describe(i, t) {
  const s = group().samples[i], stage = STAGES[rows[i].stage[t]];
  detail.textContent = `${JSON.stringify(text(s.tokens[t]))} · 1/n ${number(s.invn[t])} · pseudo-count n ${number(1 / s.invn[t])} · log-prob ${number(s.logp[t])}` +
    ` (p ${number(Math.exp(s.logp[t]))}), entropy ${number(s.entropy[t])} · filter: ${stage[0]}`;
}
// the tokens of a response as spans; look(node, t) colours one
function tokens(i, look) {
  const spans = group().samples[i].tokens.map((word, t) => {
    const node = el("span", {class: "tok", "data-t": t}, text(word).replace(/\n/g, "⏎\n"));
    look(node, t);
    return node;
  });
  const box = el("div", {class: "text", dir: "auto", tabindex: 0}, ...spans);
  const choose = t => { selected?.classList.remove("on"); selected = spans[t]; selected.classList.add("on"); describe(i, t); };
  for (const kind of ["pointerover", "click"]) box.addEventListener(kind, e => e.target.dataset?.t && choose(+e.target.dataset.t));
  box.addEventListener("keydown", e => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key], at = spans.indexOf(selected);
    if (step) { choose(Math.max(0, Math.min(spans.length - 1, at < 0 ? 0 : at + step))); e.preventDefault(); }
  });
  return box;
}
function mark(i) {  // right, wrong or unknown; a click changes it by hand
  const s = group().samples[i], [kind, sign] = s.reward === null ? ["unknown", "?"] : s.reward >= 1 ? ["right", "✓"] : ["wrong", "✗"];
  return el("button", {class: `mark ${kind}`, title: "click: right, wrong", onclick: () => { s.reward = s.reward >= 1 ? 0 : 1; s.outcome = s.reward ? "right" : "wrong"; draw(); }},
    `${sign} ${text(s.outcome ?? "unknown")}`);
}
const mean = values => values.reduce((s, x) => s + x, 0) / Math.max(1, values.length);

function drawMap() {
  const [name, measure] = MEASURES[view.by], s = scale(group().samples.flatMap(measure), view.log && view.by === "invn");
  places.prompt.replaceChildren(el("div", {class: "text card", dir: "auto"}, text(group().prompt)), el("p", {class: "soft"}, text(group().note)));
  places.bar.replaceChildren(colourBar(s.low, s.high, name));
  places.map.replaceChildren(...group().samples.map((sample, i) => el("div", {class: "card"}, el("h3", {}, `response ${i + 1} `, mark(i)),
    el("p", {class: "soft"}, `${sample.invn.length} tokens, mean 1/n ${number(mean(sample.invn))}, log-prob ${number(sample.logp.reduce((a, b) => a + b, 0))}`),
    tokens(i, (node, t) => paint(node, s.at(measure(sample)[t]))))));
}
function drawMicroscope() {
  const names = ["kept", "below", "spike", "noise"], order = {below: 1, spike: 2, noise: 3, kept: 9}, r = rows[view.sample], sample = group().samples[view.sample];
  const count = n => r.stage.filter(s => s === n).length, top = Math.max(...sample.invn);
  places.micro.replaceChildren(
    el("p", {class: "keys"}, ...names.map(n => el("span", {title: STAGES[n][1]}, el("span", {class: "tok", style: LOOKS[n]}, n === "kept" ? "kept" : `cut by ${STAGES[n][0].slice(2)}`), ` ${count(n)}`)), el("span", {}, `of ${r.stage.length} tokens`)),
    tokens(view.sample, (node, t) => {
      const shown = order[r.stage[t]] <= view.stage ? r.stage[t] : "kept";
      node.setAttribute("style", LOOKS[shown] + (shown === "kept" ? `;font-size:${Math.round(90 + 45 * sample.invn[t] / top)}%` : ""));
    }));
  const cell = (v, id) => el("td", id ? {id} : {}, typeof v === "number" || v === null ? number(v, 4) : v);
  places.table.replaceChildren(el("table", {}, el("tr", {}, ...["response", "", "tokens l", "kept", "bonus B", "A_expl", "A before", "A after merge"].map(h => el("th", {}, h))),
    ...rows.map((r, i) => el("tr", {style: i === view.sample ? "font-weight:bold" : ""}, el("td", {}, el("button", {onclick: () => { view.sample = i; draw(); }}, i + 1)), cell(mark(i)), cell(r.stage.length),
      cell(r.kept.filter(k => k).length), cell(r.bonus, `bonus${i}`), cell(r.expl, `expl${i}`), cell(r.before, `before${i}`), cell(r.after, `after${i}`)))));
}
function draw() {
  rows = merci.microscope(group().samples, o);
  view.sample ??= rows.reduce((best, r, i) => r.bonus > rows[best].bonus ? i : best, 0);
  selected = null;
  drawMap();
  drawMicroscope();
}
const select = (choices, change) => el("select", {onchange: e => { change(e.target.value); draw(); }}, ...choices.map(([value, name]) => el("option", {value}, name)));
function slider(name, low, high, step, help) {
  const out = el("b", {}, number(o[name])), input = el("input", {type: "range", min: low, max: high, step, value: o[name], id: name});
  input.addEventListener("input", () => { o[name] = +input.value; out.textContent = number(o[name]); draw(); });
  return el("label", {title: help}, `${name} `, input, " ", out);
}
const box = (name, checked, change) => { const b = el("input", {type: "checkbox", id: name}); b.checked = checked; b.addEventListener("change", () => { change(b.checked); draw(); }); return el("label", {}, b, ` ${name}`); };

main.append(el("h1", {}, text(data.title)),
  el("label", {}, "colour by ", select(Object.entries(MEASURES).map(([k, v]) => [k, v[0]]), v => view.by = v)), box("log scale of 1/n", true, v => view.log = v),
  data.groups.length > 1 ? el("label", {}, "prompt ", select(data.groups.map((g, i) => [i, `${i + 1}: ${text(g.prompt).slice(0, 60)}`]), v => { view.group = +v; view.sample = null; })) : "",
  places.prompt, el("p", {class: "soft"}, "Blue: frequently visited. Red: novel. Point at a token, or tap it, for its numbers; arrow keys walk."), places.bar, el("br"), places.map,
  el("h2", {}, "Bonus microscope"), el("p", {class: "soft"}, "Three filters decide which tokens' 1/n count; the bonus is B = sqrt(sum of kept 1/n / l). A_expl = max(0, (B - mean) / std) within the group, and A after = min(A + gamma A_expl, A + alpha |A|). Move a slider: everything is computed anew in this page."),
  slider("top", .05, 1, .05, "first filter: share of a response's tokens kept"), slider("run", 1, 10, 1, "second filter: shortest run of adjacent kept tokens"), box("noise filter", o.suppress, v => o.suppress = v),
  slider("gamma", 0, 2, .05, "weight of the exploration advantage"), slider("alpha", 0, .95, .05, "cap: largest change of an advantage, as a share of its size"),
  el("label", {}, "show ", select([[3, "all three filters"], [2, "after 2 coherence"], [1, "after 1 percentile"], [0, "before the filters"]], v => view.stage = +v)), places.table, el("br"), places.micro,
  el("div", {class: "stick"}, detail));
detail.textContent = "Point at a token.";
dark.addEventListener("change", draw);
draw();
