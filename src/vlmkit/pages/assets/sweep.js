/* sweep.html: the runs of a sweep, ranked. */

const told = readData("told"), runs = readData("runs");
const LOSS = /loss$/;
let selected = null, order = { by: "rank", down: false };
const figure = (name, value) => (value === undefined || value === null ? "–" : name.startsWith("eval/") ? value.toFixed(1) : Math.abs(value) >= 1e4 ? value.toExponential(2) : value.toFixed(4));
const between = (interval) => interval.map((end) => figure(told.metric, end).replace("-", "−")).join(" to ");
const scoreOf = (run) => run.scores[told.metric];
const isBest = (run) => run.rank === 1;
const tones = { finished: "good", failed: "bad", pruned: "odd", running: "cool", interrupted: "warn", waiting: "" };
function duration(seconds) {
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${minutes % 60} min` : minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

/* --- scales -------------------------------------------------------------------------------------------------------- */

/** A scale from values to pixels; by the logarithm where values are positive and span more than `factor`. */
function scaleOf(values, from, to, factor, room = 0.06) {
  const least = Math.min(...values), most = Math.max(...values);
  const byLog = least > 0 && most / least > factor;
  const turn = byLog ? Math.log : (value) => value, back = byLog ? Math.exp : (value) => value;
  let low = turn(least), high = turn(most);
  const margin = (high - low || Math.abs(high) || 1) * room;
  low -= margin; high += margin;
  const at = (value) => from + ((turn(value) - low) / (high - low)) * (to - from);
  return { at, ticks: ticksOf(back(low), back(high), byLog) };
}
function ticksOf(low, high, byLog) {
  if (byLog) {
    const tens = [], first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const step = Math.max(1, Math.ceil((last - first + 1) / 4));
    for (let power = first; power <= last; power += step) tens.push(10 ** power);
    return tens.length > 1 ? tens : [low * 1.0001, Math.sqrt(low * high), high * 0.9999].map((value) => +value.toPrecision(2));
  }
  const rough = (high - low) / 6, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * size).find((one) => one >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(+value.toPrecision(10));
  return found;
}
const short = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential().replace("e+", "e") : String(+value.toPrecision(4)));
const clipped = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

/** A drawing that is made anew whenever its place gets another width. */
function drawn(place, draw) {
  let width = 0;
  function paint() {
    const now = Math.floor(place.clientWidth);
    if (now && now !== width) { width = now; place.replaceChildren(draw(width)); mark(); }
  }
  new ResizeObserver(paint).observe(place);
  paint();
  return () => { width = 0; paint(); };
}
const text = (x, y, content, anchor = "middle", more = {}) => svg("text", { x, y, "text-anchor": anchor, ...more }, content);
const line = (x1, y1, x2, y2, kind, more = {}) => svg("line", { x1, y1, x2, y2, class: kind, ...more });

/* --- a strip for each setting -------------------------------------------------------------------------------------- */

const measured = runs.filter((run) => scoreOf(run) && ["finished", "pruned", "running"].includes(run.state));
const ranked = measured.filter((run) => run.rank !== null);
/** The values that set the scale: a pruned or diverged run must not press the others together. */
const scaled = (ranked.length ? ranked : measured).flatMap((run) => [scoreOf(run).value, ...(scoreOf(run).interval || [])]);

function strip({ key, label }) {
  const values = [...new Set(measured.map((run) => run.settings[key] ?? "–"))];
  const numbers = values.map(Number);
  const numeric = values.every((value, n) => value.trim() !== "" && Number.isFinite(numbers[n]));
  values.sort((one, other) => (numeric ? one - other : 0));
  const continuous = numeric && values.length > 6;
  const place = el("div", {});
  const panel = el("div", { class: "effect panel" },
    el("div", { class: "plot-head" }, el("h2", {}, label), label === key ? null : el("span", { class: "small muted mono" }, key)),
    el("p", { class: "small muted" }, breakable(told.metric), told.lower ? ", lower is better" : ", higher is better"), place);
  byId("effects").append(panel);
  drawn(place, (width) => {
    const left = 52, right = width - 10, top = 10, bottom = 176, height = 206;
    const y = scaleOf(scaled, bottom - 4, top, 60);
    const across = continuous ? scaleOf(values.map(Number), left + 12, right - 12, 20) : null;
    const band = (right - left) / values.length;
    const at = (run) => (continuous ? across.at(+run.settings[key]) : left + (values.indexOf(run.settings[key] ?? "–") + 0.5) * band + nudge(run));
    function nudge(run) {
      const alike = ranked.filter((other) => other.settings[key] === run.settings[key]);
      const size = Math.min(3, alike.length), spread = Math.min(16, (band * 0.5) / size); // neighbours by score stand side by side
      return alike.includes(run) ? ((alike.indexOf(run) % size) - (size - 1) / 2) * spread : 0;
    }
    const inside = (value) => Math.max(top - 4, Math.min(bottom + 4, y.at(value)));
    const grid = y.ticks.map((value) => [line(left, y.at(value), right, y.at(value), "grid"), text(left - 8, y.at(value) + 4, short(value), "end")]);
    const ends = continuous
      ? across.ticks.map((value) => text(Math.max(left + 10, Math.min(right - 14, across.at(value))), height - 8, short(value)))
      : values.map((value, n) => text(left + (n + 0.5) * band, height - 8, clipped(value, Math.max(4, Math.floor(band / 6.8)))));
    const marks = [...measured].reverse().map((run) => {
      const { value, interval } = scoreOf(run), x = at(run);
      return svg("g", { "data-run": run.name, onclick: () => select(run.name) },
        svg("title", {}, `${run.name}: ${told.metric} ${figure(told.metric, value)}` + (interval ? ` (95 %: ${between(interval)})` : "")),
        interval && run.rank ? line(x, inside(interval[0]), x, inside(interval[1]), "whisker") : null,
        svg("circle", { cx: x, cy: inside(value), r: isBest(run) ? 6 : 5, class: "dot" + (isBest(run) ? " best" : run.rank ? "" : " pruned") }));
    });
    const others = continuous ? [] : links(key).map((group) => svg("polyline", { class: "between", points: group.sort((one, other) => at(one) - at(other)).map((run) => `${at(run)},${inside(scoreOf(run).value)}`).join(" ") }));
    return svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${told.metric} by ${key}` }, grid, others, ends, marks);
  });
}
/** Runs that differ in this setting alone. */
function links(key) {
  const groups = new Map();
  for (const run of ranked) {
    const rest = JSON.stringify(told.keys.filter((one) => one.key !== key).map((one) => run.settings[one.key]));
    groups.set(rest, [...(groups.get(rest) || []), run]);
  }
  return [...groups.values()].filter((group) => group.length > 1 && group.length <= 8);
}

/* --- curves -------------------------------------------------------------------------------------------------------- */

let curveOf = null, repaint = () => {};
function curves(width) {
  const with_ = runs.filter((run) => (run.curves[curveOf] || []).length);
  const points = with_.flatMap((run) => run.curves[curveOf]);
  if (!points.length) return el("p", { class: "small muted" }, "Nothing was logged yet.");
  const left = 52, right = width - 34, top = 10, height = width < 600 ? 220 : 280, bottom = height - 30;
  const x = scaleOf(points.map(([step]) => step), left, right, Infinity, 0.01);
  const y = scaleOf(points.map(([, value]) => value), bottom, top, 60);
  const grid = [
    ...y.ticks.map((value) => [line(left, y.at(value), right, y.at(value), "grid"), text(left - 8, y.at(value) + 4, short(value), "end")]),
    ...x.ticks.filter((step) => Number.isInteger(step) && step >= 0 && x.at(step) >= left - 1 && x.at(step) <= right - 45).map((step) => text(x.at(step), height - 8, count(step))),
    text(right, height - 8, "steps", "end"),
  ];
  const paths = [...with_].reverse().map((run) => {
    const own = run.curves[curveOf], [step, value] = own[own.length - 1];
    return svg("g", { "data-run": run.name, onclick: () => select(run.name) },
      svg("title", {}, run.name),
      own.length > 1
        ? svg("polyline", { class: "curve" + (isBest(run) ? " best" : ""), points: own.map(([s, v]) => `${x.at(s).toFixed(1)},${y.at(v).toFixed(1)}`).join(" ") })
        : svg("circle", { cx: x.at(step), cy: y.at(value), r: 4, class: "dot" + (isBest(run) ? " best" : "") }),
      run.rank ? text(Math.min(right, x.at(step)) + 6, y.at(value) + 4, "#" + run.rank, "start", { class: "end" + (isBest(run) ? " best" : ""), hidden: run.rank > 1 || null }) : null);
  });
  return svg("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${curveOf} over the steps` }, grid, paths);
}

/* --- table --------------------------------------------------------------------------------------------------------- */

const names = [...new Set(runs.flatMap((run) => Object.keys(run.scores)))].filter((name) => name !== told.metric);
const byValue = (value) => (value === undefined || value === null ? null : value);
const setting = (value) => (value !== undefined && value.trim() !== "" && Number.isFinite(+value) ? +value : value ?? null);
const columns = [
  { id: "rank", head: "#", num: true, value: (run) => byValue(run.rank), show: (run) => run.rank ?? "–" },
  ...told.keys.map(({ key, label }) => ({ id: key, head: label, value: (run) => setting(run.settings[key]), show: (run) => el("span", { class: (run.settings[key] || "").length > 24 ? "long" : "" }, run.settings[key] ?? "–") })),
  { id: told.metric, head: told.metric, num: true, value: (run) => byValue(scoreOf(run)?.value), show: (run) => el("span", { class: "score" }, figure(told.metric, scoreOf(run)?.value)) },
  { id: "interval", head: "95 % interval", num: true, value: (run) => byValue(scoreOf(run)?.interval?.[0]), show: (run) => (scoreOf(run)?.interval ? between(scoreOf(run).interval) : "–") },
  ...names.map((name) => ({ id: name, head: name, num: true, value: (run) => byValue(run.scores[name]?.value), show: (run) => figure(name, run.scores[name]?.value) })),
  { id: "steps", head: "steps", num: true, value: (run) => run.steps, show: (run) => count(run.steps) },
  { id: "time", head: "time", num: true, value: (run) => run.seconds, show: (run) => (run.seconds ? duration(run.seconds) : "–") },
  { id: "state", head: "state", value: (run) => run.state, show: (run) => el("span", { class: "chip " + tones[run.state] }, run.state) },
  { id: "name", head: "run", value: (run) => run.name, show: (run) => [run.state === "waiting" ? run.name : el("a", { href: run.href, class: "mono small" }, run.name), el("div", { class: "links" }, run.links.map(([name, href]) => el("a", { href }, name))), run.error ? el("div", { class: "why" + (run.state === "failed" ? "" : " plain") }, run.error) : null] },
];
function compare(one, other) {
  const { value } = columns.find((column) => column.id === order.by);
  const a = value(one), b = value(other);
  if (a === null || b === null) return (a === null) - (b === null); // what is not known stands last either way
  const found = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return order.down ? -found : found;
}
function fill() {
  const rows = order.by === "rank" && !order.down ? runs : [...runs].sort(compare);
  byId("runs").querySelector("tbody").replaceChildren(...rows.map((run) =>
    el("tr", { "data-run": run.name, "aria-selected": "false", onclick: () => select(run.name) },
      columns.map((column) => el("td", { class: (column.num ? "num" : "") + (column.value(run) === null ? " empty" : ""), "data-name": column.head }, el("div", {}, column.show(run)))))));
  for (const head of document.querySelectorAll("#runs th")) {
    const own = head.dataset.id === order.by;
    if (own) head.setAttribute("aria-sort", order.down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
  }
  byId("sort-by").value = order.by;
  mark();
}
function sortBy(id) {
  order = { by: id, down: order.by === id ? !order.down : false };
  fill();
}

/* --- what is selected ---------------------------------------------------------------------------------------------- */

function mark() {
  for (const one of document.querySelectorAll("[data-run]")) {
    const on = one.dataset.run === selected;
    if (one.tagName === "TR") one.setAttribute("aria-selected", String(on));
    for (const part of one.querySelectorAll(".dot, .whisker, .curve, .end")) part.classList.toggle("on", on);
    for (const end of one.querySelectorAll(".end")) if (selected ? on : end.classList.contains("best")) end.removeAttribute("hidden"); else end.setAttribute("hidden", "");
    if (on && one.tagName === "g") one.parentNode.append(one); // above the others
  }
}
function select(name) {
  selected = selected === name ? null : name;
  mark();
}
function move(by) {
  const shown = [...document.querySelectorAll("#runs tbody tr")];
  const now = shown.findIndex((row) => row.dataset.run === selected);
  const next = shown[Math.max(0, Math.min(shown.length - 1, now + by))];
  if (next.dataset.run !== selected) select(next.dataset.run);
  next.scrollIntoView({ block: "nearest" });
}

const best = ranked[0], alike = ranked.filter(isBest).length;
const failed = runs.filter((run) => run.state === "failed").length;
byId("stats").append(
  stat("runs", count(runs.length), ["finished", "pruned", "running", "interrupted", "waiting"].map((state) => [runs.filter((run) => run.state === state).length, state]).filter(([number]) => number).map(([number, state]) => `${number} ${state}`).join(", ")),
  ...(failed ? [stat("failed", count(failed), "")] : []),
  ...(best ? [stat(`best ${told.metric}`, figure(told.metric, scoreOf(best).value), scoreOf(best).interval ? `95 %: ${between(scoreOf(best).interval)}` : ""), ...told.keys.map(({ key, label }) => stat(`its ${label}`, best.settings[key] ?? "–")), ...(alike > 1 ? [stat("as good", several(alike - 1, "other run"))] : [])] : []),
  stat("time of all runs", duration(runs.reduce((sum, run) => sum + run.seconds, 0))));
byId("notes").textContent = told.notes.join(" ");
byId("legend").append(
  ...[["best", "the best"], ["", "other runs"], ["chosen", "chosen: click a dot, a curve or a line of the table"], ["pruned", "ended early"]]
    .filter(([kind]) => kind !== "pruned" || measured.some((run) => run.rank === null))
    .map(([kind, meaning]) => el("span", {}, svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, svg("circle", { cx: 7, cy: 7, r: 5, class: ("dot key " + kind).trim() })), meaning)),
  el("span", {}, "Upright lines are 95 % intervals; fine lines join runs that differ in this setting alone."));
byId("legend").hidden = !measured.length;
byId("facts").textContent = `${told.directory} · ranked by ${told.metric}, ${told.lower ? "lower" : "higher"} is better`;
if (measured.length) told.keys.forEach(strip);
byId("effects").hidden = !byId("effects").firstChild;

const kinds = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))].filter((name) => runs.some((run) => run.curves[name].length));
curveOf = kinds.includes(told.metric) && runs.some((run) => (run.curves[told.metric] || []).length > 1) ? told.metric : kinds.find((name) => name === "train/loss") || kinds[0] || told.metric;
byId("curve-of").append(...kinds.map((name) => el("option", { value: name, selected: name === curveOf }, name)));
byId("curve-of").addEventListener("change", (event) => { curveOf = event.target.value; repaint(); });
byId("runs").append(
  el("thead", {}, el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.num ? "num" : "", "data-id": column.id }, el("button", { type: "button", onclick: () => sortBy(column.id) }, column.head))))),
  el("tbody", {}));
byId("sort-by").append(...columns.map((column) => el("option", { value: column.id }, column.head)));
byId("sort-by").addEventListener("change", (event) => { order = { by: event.target.value, down: false }; fill(); });
fill();
repaint = drawn(byId("curves"), curves);
bindKeys(["j", "ArrowDown"], "Next run", () => move(1));
bindKeys(["k", "ArrowUp"], "Run before", () => move(-1));
bindKeys(["Escape"], "No run", () => { selected = null; mark(); });
bindCommonKeys();
document.documentElement.dataset.ready = "true";
