/* A browser of many cases, shared by the pages of evaluations. */

const tones = { right: "good", partial: "warn", wrong: "bad", unparsed: "odd", failed: "dim" };
const pictures = readData("pictures");
/** A hash by its first digits; whatever else as it is. */
const short = (value) => (/^[0-9a-f]{40,}$/.test(String(value)) ? String(value).slice(0, 12) + "…" : String(value));
const outcomeChip = (outcome, score) =>
  el("span", { class: "chip " + tones[outcome] }, outcome + (score !== null && score > 0 && score < 1 ? " " + score.toFixed(2) : ""));

function pictureOf(one) {
  const source = one.pictures.length ? pictures[one.pictures[0]] : one.files[0];
  if (source) return el("img", { class: "thumb", src: source, alt: "", loading: "lazy", decoding: "async" });
  return el("span", { class: "thumb" }, one.media.length ? "no copy" : "text");
}
function shotsOf(one) {
  const sources = one.pictures.length ? one.pictures.map((number) => pictures[number]) : one.files;
  return sources.length ? el("div", { class: "shots" }, sources.map((source, n) => el("img", { src: source, alt: `picture ${n + 1} of the question` }))) : null;
}
const said = (name, text, tone = "", more = null) =>
  el("dl", { class: "said" + (tone ? " boxed " + tone : "") }, el("dt", {}, name, more ? [" ", more] : null), el("dd", {}, text === "" ? el("span", { class: "muted" }, "(nothing)") : text));

/**
 * A browser in `host`.
 * `views` are [name, tone, test]; `line` and `full` give the children of a case's line and of the case in full;
 * `text` is what a search looks through. Returns a function that shows other cases.
 */
function caseBrowser(host, { views, line, full, text }) {
  let cases = [], shown = [], chosen = -1, view = 0, words = null, category = "";
  const search = el("input", { type: "search", placeholder: "Search question, answer, id", "aria-label": "Search the cases", oninput: () => later(() => filter()) });
  const categories = el("select", { "aria-label": "Category", onchange: () => { category = categories.value; filter(); } });
  const buttons = views.map(([name, tone], n) => el("button", { type: "button", class: "button small", "aria-pressed": String(n === 0), onclick: () => choose(n) },
    tone ? el("i", { style: { background: `var(--${tone}-mark)` } }) : null, name, " ", el("span", { class: "muted num" })));
  const told = el("span", { class: "muted small", role: "status" });
  const viewport = el("div", { class: "viewport", tabindex: "0", role: "listbox", "aria-label": "Cases", onkeydown: walk });
  const detail = el("div", { class: "full", "aria-live": "polite" });
  const shelf = el("div", { class: "shelf panel" }, viewport, detail);
  host.append(el("div", { class: "browser" }, el("div", { class: "filters", role: "search" }, buttons, categories, search, told), shelf));
  const list = virtualList(viewport, 76, (n) => {
    const one = shown[n];
    return el("div", { class: "case", role: "option", id: "case-" + n, "aria-selected": String(n === chosen), "data-id": one.id, onclick: () => select(n) }, line(one));
  });
  let waiting = 0;
  function later(action) { clearTimeout(waiting); waiting = setTimeout(action, 120); }
  function choose(n) { view = n; filter(); }
  function filter() {
    const wanted = search.value.trim().toLowerCase();
    if (wanted && !words) words = cases.map((one) => text(one).toLowerCase());
    const among = cases.filter((one, n) => (!category || one.category === category) && (!wanted || words[n].includes(wanted)));
    shown = among.filter(views[view][2]);
    buttons.forEach((button, n) => {
      button.setAttribute("aria-pressed", String(n === view));
      button.querySelector(".num").textContent = count(among.reduce((sum, one) => sum + (views[n][2](one) ? 1 : 0), 0));
    });
    told.textContent = shown.length === cases.length ? several(cases.length, "case") : `${count(shown.length)} of ${several(cases.length, "case")}`;
    chosen = -1;
    shelf.classList.toggle("none", !shown.length);
    list.show(shown.length);
    select(shown.length ? 0 : -1);
  }
  function select(n) {
    list.line(chosen)?.setAttribute("aria-selected", "false");
    chosen = n;
    viewport.removeAttribute("aria-activedescendant");
    if (n < 0) { detail.replaceChildren(el("p", { class: "empty" }, "No case is like this.")); return; }
    list.reveal(n);
    list.line(n)?.setAttribute("aria-selected", "true");
    viewport.setAttribute("aria-activedescendant", "case-" + n);
    detail.replaceChildren(...full(shown[n]).filter(Boolean));
    detail.scrollTop = 0;
  }
  function step(by) { if (shown.length) select(Math.min(shown.length - 1, Math.max(0, chosen + by))); }
  function walk(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -shown.length, End: shown.length }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  }
  bindKeys(["j"], "Next case", () => step(1));
  bindKeys(["k"], "Case before", () => step(-1));
  bindKeys(["/"], "Search", () => { search.focus(); search.select(); });
  bindKeys(["f"], "Next filter", () => choose((view + 1) % views.length));
  return {
    show(others) {
      cases = others; words = null; category = ""; search.value = "";
      const names = [...new Set(cases.map((one) => one.category))].filter(Boolean).sort();
      categories.replaceChildren(el("option", { value: "" }, "all categories"), ...names.map((name) => el("option", { value: name }, name)));
      categories.hidden = names.length < 2;
      view = 0;
      filter();
    },
    category(name) { category = name; categories.value = name; filter(); },
  };
}
