"use strict";
/* Shared by every page. Text reaches the document through textContent only, never as markup. */

const faults = [];
function noteFault(message) {
  faults.push(String(message));
  document.documentElement.dataset.faults = JSON.stringify(faults);
  const banner = document.getElementById("fault");
  if (banner) { banner.textContent = "This page's script failed: " + faults[0]; banner.hidden = false; }
}
document.documentElement.dataset.faults = "[]";
addEventListener("error", (event) => { if (event.message) noteFault(event.message); });
addEventListener("unhandledrejection", (event) => noteFault(event.reason));
addEventListener("securitypolicyviolation", (event) => noteFault("refused by the page's policy: " + event.blockedURI));

const byId = (id) => document.getElementById(id);
const readData = (id) => JSON.parse(byId("data-" + id).textContent);

/** An element with properties (`class`, `on...` functions, attributes) and children (elements or text). */
function el(name, properties, ...children) { return filled(document.createElement(name), properties, children); }
function svg(name, properties, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}
function filled(element, properties, children) {
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(element.style, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const grouped = new Intl.NumberFormat("en");
const count = (number) => grouped.format(number);
const percent = (share, digits = 0) => (100 * share).toFixed(digits) + " %";
const several = (number, word, plural) => count(number) + " " + (number === 1 ? word : plural || word + "s");
/** A name that may break where its parts join: `Basic_Medical_Science`, `eval/shapes/exact_match`. */
const breakable = (name) => name.split(/(?<=[_/])/).map((part, n) => [n ? el("wbr") : null, part]);
const stat = (name, value, more) =>
  el("div", { class: "stat" }, el("dt", {}, name), el("dd", {}, value, more ? [" ", el("small", {}, more)] : null));

/* --- keys ---------------------------------------------------------------------------------------------------------- */

const keyActions = new Map();
/** Bind keys (of `event.key`) to an action and list them in the help. */
function bindKeys(keys, meaning, action) {
  for (const key of keys) keyActions.set(key, action);
  const shown = { ArrowDown: "↓", ArrowUp: "↑", ArrowLeft: "←", ArrowRight: "→" };
  byId("help-keys").append(
    el("tr", {}, el("td", {}, keys.map((key, n) => [n ? " " : "", el("kbd", {}, shown[key] || key)])), el("td", {}, meaning)),
  );
}
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || byId("help").open) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const action = keyActions.get(event.key);
  if (action && action(event) !== false) event.preventDefault();
});

/* --- theme and help ------------------------------------------------------------------------------------------------ */

const themes = { auto: ["◐", "as the system has it"], light: ["☀", "light"], dark: ["☾", "dark"] };
function kept(name, value) {
  try { return value === undefined ? localStorage.getItem(name) : localStorage.setItem(name, value); } catch { return null; }
}
function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = themes[theme][0];
  byId("theme").setAttribute("aria-label", "Colours: " + themes[theme][1]);
  byId("theme").title = "Colours: " + themes[theme][1];
}
function nextTheme() {
  const names = Object.keys(themes);
  const theme = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  showTheme(theme);
  kept("vlmkit-theme", theme);
}
showTheme(kept("vlmkit-theme") in themes ? kept("vlmkit-theme") : "auto");
byId("theme").addEventListener("click", nextTheme);
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("help").addEventListener("click", (event) => { if (event.target === byId("help")) byId("help").close(); });

/** Keys that every page ends its help with. */
function bindCommonKeys() {
  bindKeys(["d"], "Light, dark, or as the system has it", nextTheme);
  bindKeys(["?"], "This help", () => byId("help").showModal());
}

/* --- tabs ---------------------------------------------------------------------------------------------------------- */

/** Tabs over sections: `parts` are [id, title]; sections are the elements of these ids. */
function makeTabs(parts, shown) {
  const buttons = parts.map(([id, title, note]) =>
    el("button", {
      type: "button", class: "tab", role: "tab", id: "tab-" + id, "aria-controls": id,
      onclick: () => show(id), onkeydown: (event) => step(event, id),
    }, title, note ? [" ", el("span", { class: "chip " + (note[1] || "") }, note[0])] : null));
  byId("tabs").append(...buttons);
  parts.forEach(([id], n) => {
    byId(id).setAttribute("role", "tabpanel");
    byId(id).setAttribute("aria-labelledby", "tab-" + id);
    bindKeys([String(n + 1)], parts[n][1], () => show(id));
  });
  function show(id) {
    parts.forEach(([one], n) => {
      buttons[n].setAttribute("aria-selected", String(one === id));
      buttons[n].tabIndex = one === id ? 0 : -1;
      byId(one).hidden = one !== id;
    });
    shown(id);
  }
  function step(event, id) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const n = (parts.findIndex(([one]) => one === id) + by + parts.length) % parts.length;
    show(parts[n][0]);
    buttons[n].focus();
  }
  return show;
}

/* --- long lists ---------------------------------------------------------------------------------------------------- */

/** A list of any length whose lines are in the document only while they are seen; every line has the same height. */
function virtualList(viewport, height, draw) {
  const spacer = el("div", { class: "spacer" });
  viewport.append(spacer);
  let size = 0, drawn = new Map(), asked = false;
  function paint() {
    asked = false;
    const first = Math.max(0, Math.floor(viewport.scrollTop / height) - 6);
    const last = Math.min(size, Math.ceil((viewport.scrollTop + viewport.clientHeight) / height) + 6);
    for (const [n, line] of drawn) if (n < first || n >= last) { line.remove(); drawn.delete(n); }
    for (let n = first; n < last; n++) {
      if (drawn.has(n)) continue;
      const line = draw(n);
      line.classList.add("line");
      line.style.top = n * height + "px";
      line.style.height = height + "px";
      drawn.set(n, line);
      spacer.append(line);
    }
  }
  function ask() { if (!asked) { asked = true; requestAnimationFrame(paint); } }
  viewport.addEventListener("scroll", ask, { passive: true });
  new ResizeObserver(ask).observe(viewport);
  return {
    /** Show so many lines, drawn anew. */
    show(length, keepPlace = false) {
      size = length;
      for (const line of drawn.values()) line.remove();
      drawn = new Map();
      spacer.style.height = size * height + "px";
      if (!keepPlace) viewport.scrollTop = 0;
      paint();
    },
    /** Bring a line into view. */
    reveal(n) {
      const top = n * height;
      if (top < viewport.scrollTop) viewport.scrollTop = top;
      else if (top + height > viewport.scrollTop + viewport.clientHeight) viewport.scrollTop = top + height - viewport.clientHeight;
      paint();
    },
    line: (n) => drawn.get(n),
  };
}
