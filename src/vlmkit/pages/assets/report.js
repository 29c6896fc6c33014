/* report.html of an evaluation. */

const told = readData("told"), benchmarks = readData("benchmarks");
let current = 0;
const NORMAL_95 = 1.96;

/** Score with its interval on a scale that ends at `most`; marks are scores that need no model. */
function scale(figures, most, marks = {}) {
  const place = (value) => (100 * Math.min(most, Math.max(0, value))) / most + "%";
  const spread = figures.stderr ? [figures.score - NORMAL_95 * figures.stderr, figures.score + NORMAL_95 * figures.stderr] : null;
  return el("div", { class: "scale", "aria-hidden": "true" },
    el("div", { class: "value", style: { width: place(figures.score) } }),
    spread ? el("div", { class: "spread", style: { left: place(spread[0]), width: `calc(${place(spread[1])} - ${place(spread[0])})` } }) : null,
    Object.entries(marks).map(([name, value]) => el("div", { class: "mark", title: `${name.replaceAll("_", " ")} ${value.toFixed(1)}`, style: { left: place(value) } })));
}
const topOf = (figures) => (figures.unit === "percent" ? 100 : Math.max(1, figures.score + NORMAL_95 * (figures.stderr || 0)));
const spreadOf = (figures) => (figures.stderr ? ` ± ${(NORMAL_95 * figures.stderr).toFixed(1)}` : "");

function card(benchmark, n) {
  const { figures, cases, name } = benchmark;
  const outcomes = told.outcomes.map((outcome) => [outcome, cases.reduce((sum, one) => sum + (one.outcome === outcome ? 1 : 0), 0)]);
  return el("button", { type: "button", class: "card panel", "aria-pressed": "false", onclick: () => show(n) },
    el("span", { class: "top-line" }, el("span", { class: "name" }, name),
      el("span", { class: "score" }, figures.score.toFixed(1), el("small", {}, spreadOf(figures) + (figures.unit === "percent" ? " %" : " " + figures.unit)))),
    scale(figures, topOf(figures), figures.baselines),
    el("span", { class: "stack", "aria-hidden": "true" }, outcomes.map(([outcome, number]) =>
      number ? el("i", { style: { flex: String(number), background: `var(--${tones[outcome]}-mark)` } }) : null)),
    el("span", { class: "legend" }, outcomes.filter(([, number]) => number).map(([outcome, number]) =>
      el("span", {}, el("i", { class: "swatch", style: { background: `var(--${tones[outcome]}-mark)` } }), `${outcome} ${count(number)}`))),
    figures.judging ? el("span", { class: "small muted" }, `judged by ${figures.judge.model}`,
      figures.judging.failed ? `; ${count(figures.judging.failed)} of ${count(figures.judging.failed + figures.judging.judged)} judgements failed` : `; ${several(figures.judging.judged, "judgement")}`) : null,
    el("span", { class: "small muted" }, [several(figures.n, "case"), `${percent(figures.parsed, 1)} parsed`, figures.metric.replaceAll("_", " ")].join(" · ")),
    el("span", { class: "small muted" }, [`protocol ${figures.protocol}`, figures.preset ? `preset ${figures.preset}` : ""].filter(Boolean).join(" · ")),
    Object.entries(figures.baselines || {}).map(([baseline, score]) => el("span", { class: "small muted" }, el("i", { class: "tick" }), ` ${baseline.replaceAll("_", " ")}: ${score.toFixed(1)}`)));
}

function drawCategories(benchmark) {
  const names = Object.entries(benchmark.figures.by_category || {});
  if (names.length < 2) return [];
  const most = benchmark.figures.unit === "percent" ? 100 : Math.max(...names.map(([, figures]) => topOf(figures)));
  return [el("div", { class: "panel categories" }, el("h2", {}, benchmark.name, " by category", benchmark.figures.unit === "percent" ? el("small", { class: "muted" }, ", in %") : null),
    el("div", { class: "grow" + (names.length > 8 ? " many" : "") }, names.map(([name, figures]) => el("button", {
      type: "button", class: "category", "aria-pressed": "false", title: "Show the cases of this category", onclick: (event) => pick(event.currentTarget, name),
    }, el("span", { class: "name" }, breakable(name)), scale(figures, most),
    el("span", { class: "num" }, el("b", {}, figures.score.toFixed(1)), spreadOf(figures), ` · n ${count(figures.n)}`)))))];
}
/** What made the score, as `summary.json` tells it. */
function drawMade({ name, figures }) {
  if (!("preset" in figures)) return [];
  const pairs = (found) => (found ? Object.entries(found).filter(([, value]) => value !== null).map(([key, value]) => `${key.replaceAll("_", " ")} ${typeof value === "number" ? count(value) : value}`).join(", ") : null);
  const judge = figures.judge && typeof figures.judge === "object" ? figures.judge.model : figures.judge;
  const told = [["preset", figures.preset], ["protocol", figures.protocol], ["prompt id", figures.prompt_id], ["backend", figures.backend],
    ["chat template", figures.template], ["pixel limits", pairs(figures.pixel_limits)], ["decoding", pairs(figures.decoding)],
    ["rules", figures.parser], ["judge", judge || "none"], ["n", count(figures.n)], ["unparsed", percent(figures.parse_failures, 1)]];
  return [el("details", { class: "panel made" }, el("summary", {}, "How the score of ", name, " was made"),
    el("dl", {}, told.map(([key, value]) => [el("dt", {}, key), el("dd", {}, value === null || value === undefined ? el("span", { class: "muted" }, "unknown") : value)])))];
}
function pick(button, name) {
  const on = button.getAttribute("aria-pressed") !== "true";
  for (const other of document.querySelectorAll(".category")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", String(on));
  browser.category(on ? name : "");
}

const browser = caseBrowser(byId("answers"), {
  views: [["all", "", () => true], ...told.outcomes.map((outcome) => [outcome, tones[outcome], (one) => one.outcome === outcome])],
  text: (one) => [one.id, one.prompt, one.answer, one.expected, one.extracted].join("\n"),
  line: (one) => [
    pictureOf(one),
    el("div", { style: { minWidth: "0" } }, el("div", { class: "q" }, one.prompt || one.error || "(no question)"),
      el("div", { class: "a" }, el("b", {}, one.answer.trim() || "(nothing)"), one.outcome === "right" ? "" : ` · expected ${one.expected.replaceAll("\n", " / ") || "–"}`)),
    el("div", { class: "marks" }, outcomeChip(one.outcome, one.score)),
  ],
  full: (one) => [
    el("div", { class: "head" }, el("h3", {}, one.id), outcomeChip(one.outcome, one.score), one.category ? el("span", { class: "chip" }, one.category) : null),
    shotsOf(one),
    said("question", one.prompt),
    said("answer", one.answer, tones[one.outcome]),
    said("expected", one.expected),
    one.judged ? said("the judge replied", one.judged) : null,
    said("understood as", one.extracted || "(nothing was understood)"),
    one.error ? said("failed because", one.error, "bad") : null,
    el("p", { class: "figures-line" }, [`score ${one.score === null ? "–" : +one.score.toFixed(4)}`, one.tokens === null ? "" : several(one.tokens, "token"),
      one.seconds === null ? "" : `${one.seconds.toFixed(2)} s`, ...one.media].filter(Boolean).join(" · ")),
  ],
});

function show(n) {
  current = n;
  document.querySelectorAll(".card").forEach((button, m) => button.setAttribute("aria-pressed", String(m === n)));
  byId("one").replaceChildren(...drawCategories(benchmarks[n]), ...drawMade(benchmarks[n]));
  byId("one").hidden = !byId("one").firstChild;
  browser.show(benchmarks[n].cases);
  history.replaceState(null, "", "#" + encodeURIComponent(benchmarks[n].name));
}

byId("facts").textContent = [told.checkpoint.path, several(benchmarks.length, "benchmark"),
  several(benchmarks.reduce((sum, one) => sum + one.cases.length, 0), "case")].filter(Boolean).join(" · ");
byId("origin").textContent = Object.entries(told.checkpoint).map(([name, value]) => `${name} ${short(value)}`).join(" · ");
byId("scores").append(...benchmarks.map(card));
byId("how").textContent = [
  "± and the thin lines are 95 % intervals: 1.96 standard errors to each side; there is none where every case scored the same.",
  benchmarks.some(({ figures }) => figures.baselines) ? "A dashed mark is what is reached without a model." : "",
  "Unparsed: an answer was given, but none that the rules can read; it counts as wrong. Failed: no answer was given, or no judgement."].filter(Boolean).join(" ");
bindKeys(["]"], "Next benchmark", () => show((current + 1) % benchmarks.length));
bindKeys(["["], "Benchmark before", () => show((current - 1 + benchmarks.length) % benchmarks.length));
bindCommonKeys();
if (benchmarks.length) show(Math.max(0, benchmarks.findIndex((one) => "#" + encodeURIComponent(one.name) === location.hash)));
document.documentElement.dataset.ready = "true";
