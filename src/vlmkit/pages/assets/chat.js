/* The page of vlmkit-chat. A turn is {role, text, media: [medium]}; a medium is what the server said of it. */
const told = readData("chat");
const turns = [];
let pending = [], answering = null;

byId("facts").textContent = told.model + " · answers of at most " + several(told.maxNewTokens, "token");

function problem(message) {
  byId("problem").textContent = message || "";
  byId("problem").hidden = !message;
}

async function ask(path, body, headers) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body, headers: { "X-Vlmkit-Token": told.token, ...headers }, signal: answering?.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is vlmkit-chat still running?");
  }
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

/* --- media ---------------------------------------------------------------------------------------------------------- */

async function add(files) {
  problem();
  for (const file of files) {
    try {
      const answer = await ask("/media", file, { "X-Vlmkit-Name": encodeURIComponent(file.name) });
      const medium = await answer.json();
      pending.push(medium);
      showSeen(medium);
    } catch (error) { problem(file.name + ": " + error.message); }
  }
  showPending();
  byId("question").focus();
}

const picture = (medium) => el("img", { src: medium.frames[0], alt: medium.name });

function showPending() {
  byId("pending").replaceChildren(...pending.map((medium) => el("figure", {}, picture(medium), el("button", {
    type: "button", class: "tool", "aria-label": "Take " + medium.name + " away",
    onclick: () => { pending = pending.filter((one) => one !== medium); byId("seen-" + medium.id)?.remove(); showPending(); showEmpty(); },
  }, "×"))));
}

function showSeen(medium) {
  const frames = medium.kind === "video"
    ? el("div", { class: "frames" }, medium.frames.map((frame, n) => el("figure", {}, el("img", { src: frame, alt: "at " + medium.stamps[n] + " s" }), el("figcaption", { class: "small muted num" }, medium.stamps[n] + " s"))))
    : picture(medium);
  byId("seen").prepend(el("div", { class: "item", id: "seen-" + medium.id },
    el("p", { class: "name small" }, medium.name), frames, el("p", { class: "small muted num" }, medium.line)));
  showEmpty();
}

function showEmpty() {
  byId("seen-empty").hidden = byId("seen").childElementCount > 0;
  byId("empty").hidden = turns.length > 0;
}

/* --- talk ----------------------------------------------------------------------------------------------------------- */

function draw(turn) {
  const bubble = el("div", { class: "bubble" }, turn.text);
  const facts = el("p", { class: "facts" });
  const drawn = el("div", { class: "turn " + turn.role },
    turn.media.length ? el("div", { class: "media" }, turn.media.map(picture)) : null, bubble, facts);
  byId("said").append(drawn);
  showEmpty();
  drawn.scrollIntoView({ block: "end" });
  return { drawn, bubble, facts };
}

const seconds = (number) => (number < 10 ? number.toFixed(2) : number.toFixed(1)) + " s";

function inWords(figures) {
  const read = several(figures.num_prompt_tokens, "token") + " read"
    + (figures.num_visual_tokens ? ", " + count(figures.num_visual_tokens) + " of them visual" : "");
  const speed = figures.tokens_per_second ? ", " + figures.tokens_per_second.toFixed(1) + " tokens/s" : "";
  const ends = { limit: " · cut at the limit", stopped: " · stopped", end: "" };
  return `${read} · first token after ${seconds(figures.seconds_to_encode + figures.seconds_to_first)} · `
    + `${several(figures.num_tokens, "token")} in ${seconds(figures.seconds)}${speed}${ends[figures.ended]}`;
}

async function submit() {
  const text = byId("question").value.trim();
  if (!text || answering) return;
  problem();
  const asked = { role: "user", text, media: pending };
  turns.push(asked);
  pending = [];
  showPending();
  byId("question").value = "";
  const shown = draw(asked);
  const answer = { role: "assistant", text: "", media: [] };
  const place = draw(answer);
  place.drawn.classList.add("waiting");
  answering = new AbortController();
  busy(true);
  try {
    const sent = turns.map((turn) => ({ role: turn.role, text: turn.text, media: turn.media.map((medium) => medium.id) }));
    const stream = await ask("/ask", JSON.stringify({ turns: sent }), { "Content-Type": "application/json" });
    for await (const line of linesOf(stream.body)) {
      if (line.error) throw new Error(line.error);
      if (line.text) { answer.text += line.text; place.bubble.append(el("span", { class: "token" }, line.text)); }
      if (line.told) place.facts.textContent = inWords(line.told);
    }
  } catch (error) {
    if (error.name === "AbortError") place.facts.textContent = "stopped";
    else if (!answer.text) {
      problem(error.message);
      turns.pop();
      shown.drawn.remove();
      place.drawn.remove();
      byId("question").value = text;
      pending = asked.media;
      showPending();
    } else problem(error.message);
  }
  place.drawn.classList.remove("waiting");
  if (turns.at(-1) === asked) turns.push(answer);
  answering = null;
  busy(false);
  showEmpty();
}

/** Objects out of a stream of lines of JSON. */
async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

function busy(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  byId("clear").disabled = is;
  document.documentElement.dataset.busy = String(is);
  if (!is) byId("question").focus();
}

function clear() {
  turns.length = 0;
  pending = [];
  byId("said").replaceChildren(byId("empty"));
  byId("seen").replaceChildren();
  showPending();
  showEmpty();
  problem();
  byId("question").focus();
}

function markTokens() {
  const marked = byId("tokens").getAttribute("aria-pressed") !== "true";
  byId("tokens").setAttribute("aria-pressed", String(marked));
  byId("said").classList.toggle("marked", marked);
}

/* --- hands ---------------------------------------------------------------------------------------------------------- */

byId("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
byId("question").addEventListener("paste", (event) => { if (event.clipboardData.files.length) add(event.clipboardData.files); });
byId("file").addEventListener("change", () => { add([...byId("file").files]); byId("file").value = ""; });
byId("stop").addEventListener("click", () => answering?.abort());
byId("clear").addEventListener("click", clear);
byId("tokens").addEventListener("click", markTokens);
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); byId("drop").hidden = false; });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").hidden = true;
  add([...event.dataTransfer.files]);
});
bindKeys(["/"], "Write a question (Enter asks, Shift+Enter is a new line)", () => byId("question").focus());
bindKeys(["n"], "New conversation", () => { if (!answering) clear(); });
bindKeys(["t"], "Mark the tokens of answers", markTokens);
bindCommonKeys();
showEmpty();
document.documentElement.dataset.busy = "false";
document.documentElement.dataset.ready = "true";
