// compare.html: the conclusions, paired differences with their intervals, the table, curves with bands, every run.
const shown = (name, v) => !v ? "" : data.primary.includes(name) ? `${v[0].toFixed(3)} [${v[1].toFixed(3)}, ${v[2].toFixed(3)}]` : number(v[0]);
const signed = x => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(3);
const meaning = name => data.meaning[name] ?? data.meaning[name.replace(/@.*/, "@")] ?? null;
function table(head, rows) {
  const cells = (kind, row) => el("tr", {}, ...row.map(c => typeof c === "object" ? c : el(kind, {title: meaning(String(c))}, c)));
  return el("div", {class: "scroll"}, el("table", {}, cells("th", head), ...rows.map(row => cells("td", row))));
}
function means(arms, before) {
  const names = Object.keys(Object.values(arms)[0] ?? {}), line = (arm, v) => [arm, ...names.map(n => shown(n, v[n]))];
  return table(["arm", ...names], [...(before ? [line("before", before)] : []), ...Object.entries(arms).map(([arm, v]) => line(arm, v))]);
}

// a difference as a dot in its interval; all on one scale
function interval(d, most) {
  const W = 260, X = v => W / 2 + v / most * (W / 2 - 6), colour = `var(--c${data.primary.indexOf(d.metric)})`;
  return el("td", {}, el("svg", {width: W, height: 14, role: "img", "aria-label": `${signed(d.mean)} from ${signed(d.low)} to ${signed(d.high)}`},
    el("line", {x1: X(0), x2: X(0), y1: 0, y2: 14, style: "stroke:var(--soft)"}), el("line", {x1: X(d.low), x2: X(d.high), y1: 7, y2: 7, style: `stroke:${colour};stroke-width:2`}),
    el("circle", {cx: X(d.mean), cy: 7, r: 4, style: `stroke:${colour};stroke-width:1.5;fill:${d.p_holm < .05 ? colour : "var(--paper)"}`})));
}
function differences(found) {
  const most = Math.max(1e-9, ...found.flatMap(d => [Math.abs(d.low), Math.abs(d.high), Math.abs(d.mean)]));
  return table(["difference", "in", "mean", "95 %", "", "p", "corrected", "on each warm start"], found.map(d => [`${d.arm} − ${d.base}`, d.metric, signed(d.mean),
    `[${signed(d.low)}, ${signed(d.high)}]`, interval(d, most), number(d.p, 2), number(d.p_holm, 2), d.by_warm_start.map(signed).join(", ")]));
}
const part = (title, help, ...nodes) => main.append(el("h2", {}, title), el("p", {class: "soft"}, help), ...nodes);

main.append(el("h1", {}, data.name), el("pre", {}, data.command), ...data.conclusions.map(line => el("p", {}, line)));
part("Paired differences", "Dots: means; filled where significant after correction. Lines: 95 % intervals.", differences(data.differences));
part("After an equal number of responses", "Point at a column's name for its meaning.", means(data.table, data.before));
if (data.differences_seconds.length) part("After equal seconds", `At ${number(data.seconds)} s of training.`, means(data.table_seconds), differences(data.differences_seconds));

const curves = el("div"), drawn = Object.entries(data.curves), picked = new Map(data.arms.map(arm => [arm, el("input", {type: "checkbox"})]));
function draw() {
  const arms = data.arms.filter(arm => picked.get(arm).checked);
  const cards = drawn.map(([name, c]) => chart(name, data.primary.includes(name) ? meaning(name) : null, c.x, arms.map(arm => ({name: arm, ...c.arms[arm]})), {unit: "response"}));
  curves.replaceChildren(el("div", {class: "grid"}, ...cards.filter(c => c)));
}
data.arms.forEach((arm, i) => {  // seven colours: more arms are drawn when they are asked for
  picked.get(arm).checked = i < 7;
  picked.get(arm).addEventListener("change", draw);
});
if (drawn.length) part("Curves", "Over the responses sampled in training; means and 95 % bootstrap bands over runs.", el("p", {}, ...data.arms.map(arm => el("label", {}, picked.get(arm), ` ${arm}`))), curves);
draw();

part("How it was made", data.notes.join(" "), el("details", {}, el("summary", {}, `Every run: ${data.cells.length}`),
  table(["arm", "warm start", "seed", ...data.primary, "seconds", "command"], data.cells.map(c => [c.arm, c.warm_start, c.seed, ...data.primary.map(n => number(c[n])), number(c.seconds), c.command]))));
