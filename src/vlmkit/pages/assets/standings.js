/* compare.html of a sweep: each run against the best. */

const told = readData("told"), rows = readData("rows");
const digits = told.metric.startsWith("eval/") ? 1 : 4;
const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(digits);
const chance = (p) => (p < 0.0001 ? "< 0.0001" : p.toFixed(4));
const ends = [0, ...rows.flatMap((row) => [row.difference, ...(row.interval || [])])];
const room = (Math.max(...ends) - Math.min(...ends) || 1) * 0.05, low = Math.min(...ends) - room, high = Math.max(...ends) + room;
const place = (value) => (100 * (value - low)) / (high - low) + "%";

function axis(row) {
  return el("div", { class: "axis", role: "img", "aria-label": row ? `difference ${signed(row.difference)}` + (row.interval ? `, from ${signed(row.interval[0])} to ${signed(row.interval[1])}` : "") : "the best" },
    el("div", { class: "zero", style: { left: place(0) } }),
    row && row.interval ? el("div", { class: "spread", style: { left: place(row.interval[0]), width: `calc(${place(row.interval[1])} - ${place(row.interval[0])})` } }) : null,
    el("div", { class: "dot " + (row ? (row.clear ? "worse" : "") : "best"), style: { left: place(row ? row.difference : 0) } }));
}
const heads = ["#", "run", told.metric, "from the best", "", "n", "better / worse", "p", "p (Holm)", "verdict"];
const kinds = ["num", "name", "num", "num", "plot", "num", "num", "num", "num", ""];
function line(cells) {
  return el("tr", {}, cells.map((cell, n) => el("td", { class: kinds[n] + (cell === null ? " empty" : ""), "data-name": heads[n] || "from the best" }, cell)));
}
byId("runs").append(
  el("thead", {}, el("tr", {}, heads.map((head, n) => el("th", { scope: "col", class: kinds[n] === "num" ? "num" : "" }, head || el("div", { class: "ends" }, el("span", {}, told.lower ? "" : "worse"), el("span", {}, told.lower ? "worse" : "")))))),
  el("tbody", {},
    line(["1", told.best, told.score.toFixed(digits), null, axis(null), null, null, null, null, el("span", { class: "chip good" }, "the best")]),
    rows.map((row, n) => line([String(n + 2), row.name, row.score.toFixed(digits),
      el("div", {}, el("b", {}, signed(row.difference)), row.interval ? el("div", { class: "small muted" }, `${signed(row.interval[0])} to ${signed(row.interval[1])}`) : null),
      axis(row), count(row.n), `${count(row.better)} / ${count(row.worse)}`, chance(row.p), chance(row.p_holm),
      el("span", { class: "chip " + (row.clear ? "bad" : "") }, row.verdict)]))));
byId("stats").append(stat("runs", count(rows.length + 1)), stat(`best ${told.metric}`, told.score.toFixed(digits)),
  stat("clearly worse", count(rows.filter((row) => row.clear).length)), stat("no clear difference", count(rows.filter((row) => !row.clear).length)));
byId("notes").textContent = told.notes.join(" ");
byId("facts").textContent = `${told.title} · ${told.metric}, ${told.lower ? "lower" : "higher"} is better`;
bindCommonKeys();
document.documentElement.dataset.ready = "true";
