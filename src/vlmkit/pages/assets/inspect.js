/* The page of vlmkit-inspect: rows as they are trained, packs as bars, rows that are not trained, settings. */

const [TEXT, SPECIAL, MEDIUM] = [0, 1, 2];
const told = readData("told"), plan = readData("plan"), samples = readData("samples");
const root = document.documentElement;
let current = -1, cursor = -1;

/* --- the list of rows ---------------------------------------------------------------------------------------------- */

const supervisedOf = (sample) => sample.supervised.reduce((sum, [first, end]) => sum + end - first, 0);
const isTrained = (sample) => sample.verdict === "trained";
const named = (reason) => reason.replaceAll("_", " ");

function shareBar(sample, name) {
  const parts = [["cool", sample.num_visual_tokens], ["good", supervisedOf(sample)]];
  const rest = sample.ids.length - parts[0][1] - parts[1][1];
  return el("span", { class: name, "aria-hidden": "true" }, [parts[0], ["dim", rest], parts[1]].map(([tone, tokens]) =>
    el("i", { style: { width: (100 * tokens) / Math.max(1, sample.ids.length) + "%", background: `var(--${tone}-mark)` } })));
}

function entry(sample, n) {
  const medium = sample.media[0];
  const thumb = medium ? el("img", { class: "thumb", src: medium.frames[0], alt: "" }) : el("span", { class: "thumb" }, sample.ids.length ? "text" : "–");
  const what = sample.ids.length
    ? [`${count(sample.ids.length)} tokens`, shareBar(sample, "share"), isTrained(sample) ? null : el("span", { class: "chip bad", title: "not trained: " + named(sample.verdict) }, "out")]
    : [el("span", { class: "chip bad" }, named(sample.verdict))];
  return el("li", {}, el("button", { type: "button", class: "entry", onclick: () => show(n), title: sample.where },
    thumb, el("span", { class: "where" }, el("bdi", {}, sample.file)), el("span", { class: "what" }, what)));
}

/* --- one row ------------------------------------------------------------------------------------------------------- */

const switches = [
  ["grid", "g", "Patch grid", "Patch grid: thin lines are patches, strong ones visual tokens"],
  ["edges", "b", "Token borders", "Borders between tokens"],
  ["ids", "i", "Token ids", "Token ids behind each token"],
  ["positions", "p", "Position ids", "Position ids behind each token (time, height, width where they differ)"],
  ["media", "m", "Unfold media", "Unfold the tokens that stand for media"],
];
const isOn = (name) => root.classList.contains("show-" + name);
function flip(name) {
  root.classList.toggle("show-" + name);
  for (const button of document.querySelectorAll(`[data-switch="${name}"]`)) button.setAttribute("aria-pressed", String(isOn(name)));
  if (name === "media") for (const fold of document.querySelectorAll(".fold")) unfold(fold, isOn("media"));
}

function show(n) {
  if (!samples.length) return;
  current = (n + samples.length) % samples.length;
  cursor = -1;
  const sample = samples[current];
  byId("sample").replaceChildren(...drawSample(sample, current));
  document.querySelectorAll(".entry").forEach((button, m) => {
    button.setAttribute("aria-current", String(m === current));
    if (m === current) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  read(null);
  if (isOn("media")) for (const fold of document.querySelectorAll(".fold")) unfold(fold, true);
  history.replaceState(null, "", "#" + (current + 1));
}

function drawSample(sample, n) {
  const steps = el("div", { class: "steps" },
    el("button", { type: "button", class: "button", "aria-label": "Row before", onclick: () => show(current - 1) }, "←"),
    el("button", { type: "button", class: "button", "aria-label": "Next row", onclick: () => show(current + 1) }, "→"));
  const chips = [
    el("span", { class: "chip " + (isTrained(sample) ? "good" : "bad") }, isTrained(sample) ? "trained" : "not trained: " + named(sample.verdict)),
    sample.note ? el("span", { class: "chip warn" }, sample.note) : null,
  ];
  const parts = [
    el("div", { class: "head" }, el("h2", { title: sample.where }, sample.file), chips,
      el("span", { class: "muted small" }, `${n + 1} of ${samples.length}`), steps),
    sample.finding ? el("p", { class: "banner bad", style: { margin: 0 } }, sample.finding) : null,
  ];
  if (!sample.ids.length) {
    parts.push(el("section", { class: "panel", "aria-label": "The row as written" }, el("pre", { class: "raw", tabindex: "0" }, sample.raw)));
    return parts.filter(Boolean);
  }
  const supervised = supervisedOf(sample);
  parts.push(
    el("dl", { class: "stats" },
      stat("tokens", count(sample.ids.length)),
      stat("supervised", count(supervised), percent(supervised / sample.ids.length)),
      stat("visual tokens", count(sample.num_visual_tokens), sample.num_visual_tokens ? percent(sample.num_visual_tokens / sample.ids.length) : ""),
      stat("patches", count(sample.num_patches)),
      stat("media", count(sample.media.length)),
      isTrained(sample) && plan ? stat("packs", packsOf(sample)) : null),
    shareBar(sample, "bar-of-tokens"),
    el("div", { class: "switches", role: "group", "aria-label": "What to show" }, switches.map(([name, key, title, meaning]) =>
      el("button", { type: "button", class: "button small", title: meaning, "data-switch": name, "aria-pressed": String(isOn(name)), onclick: () => flip(name) },
        title, el("kbd", {}, key))),
      el("span", { class: "legend", style: { marginLeft: "auto" } },
        el("span", {}, el("i", { class: "swatch good" }), "supervised"), el("span", {}, el("i", { class: "swatch cool" }), "media"),
        el("span", {}, el("i", { class: "swatch" }), "read only"))),
    el("div", { class: "split" + (sample.media.length ? " with-media" : "") },
      sample.media.length ? el("div", { class: "media" }, sample.media.map((medium, m) => drawMedium(sample, medium, m))) : null,
      drawTalk(sample)),
  );
  return parts.filter(Boolean);
}

function packsOf(sample) {
  const places = plan.places[sample.row] || [];
  if (!places.length) return "none";
  const shown = places.filter((number) => number < plan.bars.length);
  const name = places.slice(0, 3).map((number) => "#" + (number + 1)).join(", ") + (places.length > 3 ? ", …" : "");
  return shown.length ? el("a", { href: "#packs", onclick: (event) => { event.preventDefault(); goToPack(shown[0], sample.row); } }, name) : name;
}

/* --- media --------------------------------------------------------------------------------------------------------- */

function drawMedium(sample, medium, m) {
  const [pairs, rows, columns] = medium.grid;
  const visual = medium.runs.reduce((sum, [first, end]) => sum + end - first, 0);
  const was = medium.original[0] === medium.height && medium.original[1] === medium.width
    ? "as on disk" : `from ${medium.original[1]} × ${medium.original[0]}`;
  const size = medium.kind === "video" ? `${several(pairs, "frame pair")} of ${rows} × ${columns} patches` : `${rows} × ${columns} patches`;
  return el("figure", { class: "medium panel", "data-medium": m },
    medium.kind === "video" ? drawFilm(sample, medium) : drawPicture(sample, medium, medium.frames[0], medium.runs[0], "image " + (m + 1)),
    el("figcaption", {}, el("b", {}, `${medium.width} × ${medium.height}`), ` ${was} · ${size} · ${several(visual, "visual token")}`,
      el("br"), el("span", { class: "mono" }, medium.name)));
}

function drawPicture(sample, medium, source, run, name) {
  const { width, height } = medium, token = sample.token_pixels;
  const scale = width < 120 ? 4 : width < 240 ? 2 : 1;
  const cell = svg("rect", { class: "cell", width: token, height: token });
  const canvas = el("div", {
    class: "canvas" + (scale > 1 ? " small" : ""), "data-first": run[0],
    style: { width: medium.kind === "video" ? "auto" : `min(100%, ${width * scale}px)` },
    onpointermove: (event) => point(event), onpointerleave: () => { lightCell(cell, null); read(null); },
  },
  el("img", { src: source, width, height, alt: `${name}, ${width} by ${height} pixels, as the model sees it` }),
  svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("g", { class: "lines" },
      svg("path", { class: "patch", d: gridPath(width, height, sample.patch_pixels) }),
      svg("path", { class: "under", d: gridPath(width, height, token) }),
      svg("path", { class: "token", d: gridPath(width, height, token) })), cell));
  canvas.cellAt = (index) => lightCell(cell, index === null ? null : [index % (width / token), Math.floor(index / (width / token))], token);
  function point(event) {
    const box = canvas.getBoundingClientRect();
    const column = Math.min(width / token - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * (width / token))));
    const row = Math.min(height / token - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * (height / token))));
    const index = row * (width / token) + column;
    lightCell(cell, [column, row], token);
    read(sample, run[0] + index, 1, `visual token ${index + 1} of ${run[1] - run[0]}, row ${row + 1}, column ${column + 1}`);
  }
  return canvas;
}

function gridPath(width, height, step) {
  let path = "";
  for (let x = step; x < width; x += step) path += `M${x} 0V${height}`;
  for (let y = step; y < height; y += step) path += `M0 ${y}H${width}`;
  return path;
}
function lightCell(cell, place, token) {
  cell.classList.toggle("on", place !== null);
  if (place) { cell.setAttribute("x", place[0] * token); cell.setAttribute("y", place[1] * token); }
}

function drawFilm(sample, medium) {
  const per = medium.frames_per_pair, pairs = [];
  for (let pair = 0; pair * per < medium.frames.length; pair++) {
    const frames = medium.frames.slice(pair * per, pair * per + per);
    const numbers = medium.numbers.slice(pair * per, pair * per + per);
    pairs.push(el("div", { class: "pair" },
      el("div", {}, frames.map((source, f) => drawPicture(sample, medium, source, medium.runs[pair], `frame ${numbers[f] ?? numbers.at(-1)}`))),
      el("p", {}, el("b", {}, medium.stamps[pair] + " s"), ` · frames ${numbers.join(", ")}`)));
  }
  const hidden = medium.num_pairs - pairs.length;
  return el("div", { class: "film" }, pairs, hidden > 0 ? el("p", { class: "muted small" }, `… and ${several(hidden, "frame pair")} more`) : null);
}

/* --- the conversation ---------------------------------------------------------------------------------------------- */

function drawTalk(sample) {
  const labelled = new Uint8Array(sample.ids.length);
  for (const [first, end] of sample.supervised) labelled.fill(1, first, end);
  const talk = el("section", { class: "talk panel", "aria-label": "Conversation as rendered" });
  let token = 0, run = 0;
  sample.turns.forEach((first, n) => {
    const units = sample.units.slice(first, sample.turns[n + 1] ?? sample.units.length);
    const role = units[0] && units[0][2] === SPECIAL && units[1] ? units[1][1].trim() : "";
    const text = el("div", { class: "text", tabindex: "0", onkeydown: walk, "aria-label": `${role || "text"} turn; arrow left and right step through its tokens` });
    let taught = false;
    for (const unit of units) {
      if (unit[2] === MEDIUM) { text.append(...drawFold(sample, token, unit, run)); run++; }
      else { text.append(drawToken(sample, token, unit, labelled[token])); taught = taught || labelled[token]; }
      token += unit[0];
    }
    talk.append(el("section", { class: "turn" + (taught ? " taught" : "") }, el("h3", {}, role || "text", taught ? " · supervised" : ""), text));
  });
  talk.addEventListener("pointerover", (event) => {
    const at = event.target.closest(".tok");
    if (at) readToken(sample, at);
    else lightMedium(event.target.closest(".fold"));
  });
  talk.addEventListener("pointerleave", () => { read(null); lightMedium(null); });
  return talk;
}

function drawToken(sample, token, [length, text, kind], labelled) {
  const ids = sample.ids.slice(token, token + length);
  const told = { "data-id": ids.join(" "), "data-at": positionOf(sample, token, kind === MEDIUM) };
  const lines = text.split("\n"), ends = lines.length > 1 && !lines.at(-1);
  // What is said behind a token that ends its line stands before the break.
  const pieces = lines.flatMap((piece, n) =>
    n ? [el("span", { class: "nl", ...(ends && n === lines.length - 1 ? told : {}) }, "\n"), piece] : [piece]);
  return el("span", {
    class: "tok" + (labelled ? " sup" : "") + (kind === SPECIAL ? " special" : "") + (ends ? " ends" : ""),
    "data-token": token, "data-length": length, ...told,
  }, pieces);
}

/** Position of a token: one number where time, height and width are alike, as for text. */
function positionOf(sample, token, inFull) {
  const [time, high, wide] = sample.positions.map((axis) => axis[token]);
  return time === high && high === wide && !inFull ? String(time) : `${time},${high},${wide}`;
}

function drawFold(sample, token, [length, text], run) {
  const rest = el("span", { class: "unfolded", hidden: true });
  const fold = el("button", {
    type: "button", class: "fold", "aria-expanded": "false", "data-run": run, "data-token": token, "data-length": length,
    onclick: () => unfold(fold, fold.getAttribute("aria-expanded") !== "true"),
  }, `${text} × ${count(length)}`);
  fold.fill = () => {
    for (let n = token; n < token + length; n++) rest.append(drawToken(sample, n, [1, text, MEDIUM], 0), "​");
  };
  fold.rest = rest;
  return [fold, rest];
}
function unfold(fold, open) {
  if (open && !fold.rest.firstChild) fold.fill();
  fold.rest.hidden = !open;
  fold.setAttribute("aria-expanded", String(open));
}

function lightMedium(fold) {
  let run = fold ? Number(fold.dataset.run) : -1;
  document.querySelectorAll(".medium").forEach((figure, m) => {
    const length = samples[current].media[m].runs.length;
    figure.classList.toggle("lit", run >= 0 && run < length);
    run -= length;
  });
}

/* --- what stands under the pointer ---------------------------------------------------------------------------------- */

function read(sample, token, length = 1, name = "") {
  const bar = byId("reading");
  if (!sample) { bar.replaceChildren(); return; }
  const ids = sample.ids.slice(token, token + length);
  const labelled = sample.supervised.some(([first, end]) => first <= token && token < end);
  const [time, high, wide] = sample.positions.map((axis) => axis[token]);
  bar.replaceChildren(
    el("b", {}, name), el("span", {}, `id ${ids.join(" ")}`), el("span", {}, length > 1 ? `tokens ${token}–${token + length - 1}` : `token ${token}`),
    el("span", {}, time === high && high === wide ? `position ${time}` : `position t ${time}, h ${high}, w ${wide}`),
    el("span", {}, labelled ? "supervised" : "read only"));
}
function readToken(sample, at) {
  const token = Number(at.dataset.token), length = Number(at.dataset.length);
  read(sample, token, length, JSON.stringify(at.textContent).slice(1, -1) || "''");
  for (const canvas of document.querySelectorAll(".canvas")) canvas.cellAt(null);
  const folded = at.closest(".unfolded");
  const first = folded ? Number(folded.previousSibling.dataset.token) : -1;
  if (folded) for (const canvas of document.querySelectorAll(`.canvas[data-first="${first}"]`)) canvas.cellAt(token - first);
}
/** Arrow keys inside a turn step through its tokens. */
function walk(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const tokens = [...event.currentTarget.querySelectorAll(".tok")].filter((one) => one.offsetParent !== null);
  const place = tokens.findIndex((one) => Number(one.dataset.token) === cursor);
  const at = tokens[place < 0 ? (by > 0 ? 0 : tokens.length - 1) : Math.min(tokens.length - 1, Math.max(0, place + by))];
  if (!at) return;
  for (const other of document.querySelectorAll(".tok.at")) other.classList.remove("at");
  at.classList.add("at");
  at.scrollIntoView({ block: "nearest" });
  cursor = Number(at.dataset.token);
  readToken(samples[current], at);
}

/* --- packs --------------------------------------------------------------------------------------------------------- */

function drawPacks() {
  if (!plan) return [el("p", { class: "muted" }, "There is no row to train on, so there are no packs.")];
  const width = plan.capacity || plan.most_tokens;
  const shares = { fill: plan.fill, supervised: plan.num_supervised_tokens / plan.num_tokens };
  return [
    el("dl", { class: "stats" },
      stat("packs", count(plan.num_packs)), stat("samples", count(plan.num_samples)), stat("epochs", count(plan.num_epochs)),
      stat("tokens", count(plan.num_tokens)), stat("supervised", percent(shares.supervised, 1)),
      stat("patches", count(plan.num_patches)),
      shares.fill === null ? stat("longest pack", count(plan.most_tokens), "tokens") : stat("fill", percent(shares.fill, 1), `of ${count(plan.capacity)} tokens a pack`)),
    el("div", { class: "panel packs-panel" },
      el("div", { class: "legend" },
        el("span", {}, el("i", { class: "swatch cool" }), "visual tokens"), el("span", {}, el("i", { class: "swatch" }), "text that is read only"),
        el("span", {}, el("i", { class: "swatch good" }), "supervised tokens"),
        el("span", {}, plan.capacity ? "Hatched: left empty." : "There is no token budget: bars are drawn against the longest pack.")),
      el("div", {},
        el("div", { class: "pack names", "aria-hidden": "true" }, el("span", {}, "pack"), el("span", {}),
          el("span", { class: "figures" }, ["samples", "tokens", "full", "supervised"].map((name) => el("span", {}, name)))),
        plan.bars.map((bar) => drawPack(bar, width))),
      plan.bars.length < plan.num_packs ? el("p", { class: "muted small" }, `The first ${count(plan.bars.length)} of ${several(plan.num_packs, "pack")}; inspect.num_packs shows more.`) : null),
  ];
}

function drawPack(bar, width) {
  const sum = (name) => bar.segments.reduce((total, segment) => total + segment[name], 0);
  const tokens = sum("tokens"), supervised = sum("supervised");
  return el("div", { class: "pack", id: "pack-" + bar.number },
    el("span", { class: "num" }, el("b", {}, "#" + (bar.number + 1)), plan.num_epochs > 1 ? el("span", { class: "muted" }, ` epoch ${bar.epoch + 1}`) : null),
    el("div", { class: "held", role: "group", "aria-label": `Pack ${bar.number + 1}: ${several(bar.segments.length, "sample")}, ${count(tokens)} tokens, ${percent(supervised / tokens)} supervised` },
      bar.segments.map((segment) => drawSegment(segment, width))),
    el("span", { class: "num figures" }, [count(bar.segments.length), count(tokens), plan.capacity ? percent(tokens / width) : "–", percent(supervised / tokens)].map((figure) => el("span", {}, figure))));
}

function drawSegment(segment, width) {
  const { tokens, visual, supervised } = segment;
  const n = samples.findIndex((sample) => sample.row === segment.row);
  const name = `${segment.where}: ${several(tokens, "token")}, ${count(visual)} visual, ${count(supervised)} supervised`;
  const parts = [["visual", visual], ["", tokens - visual - supervised], ["supervised", supervised]];
  const open = n < 0 ? {} : { href: "#" + (n + 1), "aria-label": name, onclick: (event) => { event.preventDefault(); openTab("samples"); show(n); } };
  return el(n < 0 ? "span" : "a", { class: "segment", title: name, "data-row": segment.row, style: { width: (100 * tokens) / width + "%" }, ...open },
    parts.map(([kind, size]) => (size ? el("i", { class: kind, style: { width: (100 * size) / tokens + "%" } }) : null)));
}

function goToPack(number, row) {
  openTab("packs");
  byId("pack-" + number).scrollIntoView({ block: "center" });
  for (const segment of document.querySelectorAll(".segment")) segment.classList.toggle("lit", Number(segment.dataset.row) === row);
}

/* --- rows that are not trained, settings ---------------------------------------------------------------------------- */

function drawRefused() {
  if (!told.refused.length) return [el("p", { class: "muted" }, `All ${several(told.num_rows, "row")} are trained on.`)];
  const total = told.refused.reduce((sum, reason) => sum + reason.count, 0);
  return [
    el("p", {}, `${several(total, "row")} of ${count(told.num_rows)} are not trained on.`),
    el("div", { class: "panel packs-panel" }, el("div", {}, told.refused.map((reason) => el("div", { class: "reason" },
      el("h3", {}, named(reason.reason), el("span", { class: "chip bad" }, count(reason.count))),
      el("div", { class: "scroll" }, el("table", { class: "findings" }, reason.first.map((row) =>
        el("tr", {}, el("td", { class: "mono break" }, row.where), el("td", { class: "break" }, row.finding))))),
      reason.first.length < reason.count ? el("p", { class: "muted small" }, `… and ${several(reason.count - reason.first.length, "row")} more`) : null)))),
  ];
}

function drawSettings() {
  return [
    el("dl", { class: "settings panel" }, Object.entries(told.settings).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("details", { class: "panel" }, el("summary", {}, "Chat template"), el("pre", { class: "raw" }, told.template)),
  ];
}

/* --- the whole ------------------------------------------------------------------------------------------------------ */

const refusedRows = told.refused.reduce((sum, reason) => sum + reason.count, 0);
const openTab = makeTabs(
  [["samples", "Rows"], ["packs", "Packs"], ["refused", "Not trained", [count(refusedRows), refusedRows ? "bad" : ""]], ["settings", "Settings"]],
  (id) => { read(null); if (id !== "samples") history.replaceState(null, "", "#" + id); else if (current >= 0) history.replaceState(null, "", "#" + (current + 1)); });
byId("facts").textContent = [
  told.name, several(told.num_rows, "row"), `${count(told.counts.trained || 0)} trained`, plan ? several(plan.num_packs, "pack") : null,
].filter(Boolean).join(" · ");
byId("stops").textContent = told.stops;
byId("stops").hidden = !told.stops;
byId("rows").append(...samples.map(entry));
byId("packs").append(...drawPacks());
byId("refused").append(...drawRefused());
byId("settings").append(...drawSettings());
bindKeys(["j", "ArrowRight"], "Next row", () => { openTab("samples"); show(current + 1); });
bindKeys(["k", "ArrowLeft"], "Row before", () => { openTab("samples"); show(current - 1); });
for (const [name, key, , meaning] of switches) bindKeys([key], meaning, () => flip(name));
bindCommonKeys();
function follow() {
  const name = location.hash.slice(1), n = Number(name);
  const part = ["packs", "refused", "settings"].includes(name) ? name : "samples";
  show(n >= 1 && n <= samples.length ? n - 1 : Math.max(0, current));
  openTab(part);
}
addEventListener("hashchange", follow);
follow();
root.dataset.ready = "true";
