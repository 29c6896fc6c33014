/* compare.html: two evaluations side by side. */

const told = readData("told"), differences = readData("differences");
const LETTERS = ["A", "B"];
let current = 0;
const signed = (value, digits = 1) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(digits);
const most = Math.max(1, ...differences.flatMap((one) => [one.difference, ...(one.interval || [])].map(Math.abs))) * 1.08;
const place = (value) => 50 + (50 * value) / most + "%";

const heads = ["benchmark", "A", "B", "B − A", null, "n", "B better / worse", "p", "p (Holm)", "verdict"];
const unit = (one) => (one.unit === "percent" ? " %" : "");

function row(one, n) {
  const way = !one.significant ? "" : one.difference > 0 ? "up" : "down";
  const line = el("tr", { "aria-selected": "false", onclick: () => show(n) },
    el("td", {}, el("button", { type: "button" }, one.benchmark)),
    el("td", { class: "num" }, one.first.toFixed(1) + unit(one)), el("td", { class: "num" }, one.second.toFixed(1) + unit(one)),
    el("td", { class: "num" }, el("b", {}, signed(one.difference)), one.interval ? el("div", { class: "small muted" }, `${signed(one.interval[0])} to ${signed(one.interval[1])}`) : null),
    el("td", { class: "plot" }, el("div", { class: "axis", role: "img", "aria-label": `difference ${signed(one.difference)}` + (one.interval ? `, from ${signed(one.interval[0])} to ${signed(one.interval[1])}` : "") },
      el("div", { class: "zero" }),
      one.interval ? el("div", { class: "spread", style: { left: place(one.interval[0]), width: `calc(${place(one.interval[1])} - ${place(one.interval[0])})` } }) : null,
      el("div", { class: "dot " + way, style: { left: place(one.difference) } }))),
    el("td", { class: "num" }, count(one.n)),
    el("td", { class: "num" }, `${count(one.better)} / ${count(one.worse)}`),
    el("td", { class: "num" }, one.p < 0.0001 ? "< 0.0001" : one.p.toFixed(4)),
    el("td", { class: "num" }, one.p_holm < 0.0001 ? "< 0.0001" : one.p_holm.toFixed(4)),
    el("td", {}, el("span", { class: "chip " + (way === "up" ? "good" : way === "down" ? "bad" : "") }, one.significant ? (one.difference > 0 ? "B is better" : "B is worse") : "no clear difference")));
  [...line.children].forEach((cell, m) => { cell.dataset.name = heads[m] ?? "A better · B better"; });
  return line;
}

const change = (one) => Math.sign((one.answers[1].score ?? 0) - (one.answers[0].score ?? 0));
const bothRight = (one) => one.answers.every((answer) => answer.outcome === "right");
const browser = caseBrowser(byId("answers"), {
  views: [
    ["changed", "", (one) => change(one) !== 0],
    ["B better", "good", (one) => change(one) > 0],
    ["B worse", "bad", (one) => change(one) < 0],
    ["both right", "", bothRight],
    ["alike, not right", "", (one) => change(one) === 0 && !bothRight(one)],
    ["all", "", () => true],
  ],
  text: (one) => [one.id, one.prompt, one.expected, ...one.answers.map((answer) => answer.answer)].join("\n"),
  line: (one) => [
    pictureOf(one),
    el("div", { style: { minWidth: "0" } }, el("div", { class: "q" }, one.prompt || "(no question)"),
      el("div", { class: "a" }, "A ", el("b", {}, one.answers[0].answer.trim() || "(nothing)"), " · B ", el("b", {}, one.answers[1].answer.trim() || "(nothing)"))),
    el("div", { class: "marks" }, one.answers.map((answer) => outcomeChip(answer.outcome, answer.score))),
  ],
  full: (one) => [
    el("div", { class: "head" }, el("h3", {}, one.id), one.category ? el("span", { class: "chip" }, one.category) : null),
    shotsOf(one),
    said("question", one.prompt),
    said("expected", one.expected),
    el("div", { class: "pair-of-answers" }, one.answers.map((answer, n) => el("div", {},
      said(`answer of ${LETTERS[n]}`, answer.answer, tones[answer.outcome], outcomeChip(answer.outcome, answer.score)),
      el("p", { class: "figures-line" }, `understood as ${answer.extracted || "nothing"} · score ${answer.score === null ? "–" : +answer.score.toFixed(4)}`),
      answer.error ? said("failed because", answer.error, "bad") : null))),
    one.media.length ? el("p", { class: "figures-line" }, one.media.join(" · ")) : null,
  ],
});

function show(n) {
  current = n;
  document.querySelectorAll("#forest tbody tr").forEach((line, m) => line.setAttribute("aria-selected", String(m === n)));
  browser.show(differences[n].cases);
}

byId("forest").append(
  el("thead", {}, el("tr", {}, heads.map((name, n) => el("th", { class: n && name !== null && name !== "verdict" ? "num" : "", scope: "col" },
    name === null ? el("div", { class: "ends" }, el("span", {}, "A better"), el("span", {}, "B better")) : name)))),
  el("tbody", {}, differences.map(row)));
byId("names").append(...told.names.map((one, n) => el("div", { class: "side panel" },
  el("h2", {}, el("span", { class: "letter" }, LETTERS[n]), one.directory),
  el("p", { class: "small muted" }, Object.entries(one.checkpoint).map(([name, value]) => `${name} ${short(value)}`).join(" · ")))));
const left = differences.filter((one) => one.only_first || one.only_second).map((one) => `${one.benchmark}: ${one.only_first} cases of A alone and ${one.only_second} of B are left out.`);
const asked = differences.filter((one) => one.other_prompts).map((one) => `${one.benchmark}: ${count(one.other_prompts)} cases were asked in other words.`);
byId("how").textContent = [
  "A and B are mean scores over the cases that both have answered, B − A is their difference, in percentage points where they are percentages; a metric that is no such mean (POPE's F1) stands in the reports alone.",
  "Differences are taken case by case; lines are 95 % intervals by Student's t, with standard errors clustered by media.",
  `p by ${[...new Set(differences.map((one) => one.test))].join(" and ")}, two-sided; p (Holm) allows for ${several(differences.length, "benchmark")} compared; a clear difference is one with p (Holm) below 0.05.`,
  ...left, ...asked].join(" ");
byId("facts").textContent = told.names.map((one, n) => `${LETTERS[n]} ${one.directory}`).join(" · ");
bindKeys(["]"], "Next benchmark", () => show((current + 1) % differences.length));
bindKeys(["["], "Benchmark before", () => show((current - 1 + differences.length) % differences.length));
bindCommonKeys();
show(Math.max(0, differences.findIndex((one) => one.cases.some(change))));
document.documentElement.dataset.ready = "true";
