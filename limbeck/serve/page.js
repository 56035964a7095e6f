"use strict";
// What a model, a card or another server wrote becomes text by textContent, never markup. The key lives in `key` alone.

let key = "";
let house = null;
let running = null;
const totals = { own: 0, theirs: 0, cost: 0, would: 0, priced: false };
const $ = (id) => document.getElementById(id);

function make(tag, { text, kind, ...rest } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  for (const [name, value] of Object.entries(rest)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function ask(path, options = {}) {
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
}

async function said(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

// ---- numbers ----

const count = (value) => value.toLocaleString("en");
function short(value) {
  for (const [limit, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (value >= limit) return `${(value / limit).toFixed(1)}${unit}`;
  return String(value);
}
function bytes(value) {
  let unit = 0;
  while (value >= 1023.5 && unit < 4) { value /= 1024; unit += 1; }
  return `${unit === 0 || value >= 99.5 ? value.toFixed(0) : value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}
const within = (score) => [score.value, score.low, score.high].every((one) => one === null || (one >= 0 && one <= 1));
const shown = (score) => (within(score) ? score.value.toFixed(3) : Number(score.value.toPrecision(4)).toString());

// ---- experts ----

const ROLES = [["student", "expert"], ["teacher", "teacher"], ["twin", "twin"]];

function track(score) {
  const low = score.low ?? score.value, high = score.high ?? score.value;
  const bar = make("div", { "aria-hidden": "true" }, make("i"), make("b"));
  for (const [name, value] of [["--low", low], ["--high", high], ["--at", score.value]]) bar.style.setProperty(name, `${100 * value}%`);
  return bar;
}

function scores(expert) {
  const metrics = [...new Set(ROLES.flatMap(([role]) => Object.keys(expert.scores[role] ?? {})))];
  return metrics.slice(0, 4).map((metric) => {
    const told = ROLES.filter(([role]) => expert.scores[role]?.[metric]);
    const isShare = metric !== "kl" && told.every(([role]) => within(expert.scores[role][metric]));
    const rows = told.map(([role, name]) => {
      const score = expert.scores[role][metric];
      const range = score.low === null ? "" : ` (${shown({ ...score, value: score.low })} to ${shown({ ...score, value: score.high })})`;
      const number = make("td", { kind: "number", text: shown(score) }, make("span", { kind: "note", text: range }));
      const head = make("th", { scope: "row" }, make("span", { kind: `model ${role}` }, make("i"), name));
      return make("tr", { kind: role }, head, make("td", { kind: "track" }, ...(isShare ? [track(score)] : [])), number);
    });
    const n = expert.scores.student?.[metric]?.n;
    return make("table", { kind: "scores" }, make("caption", { text: n ? `${metric}, ${count(n)} rows` : metric }), make("tbody", {}, ...rows));
  });
}

function facts(expert) {
  const rows = [
    ["size", bytes(expert.bytes)],
    ["memory", bytes(expert.memory_bytes)],
    ["parameters", short(expert.parameters)],
    ["tokens/s", expert.tokens_per_second.toFixed(0)],
    ["format", [expert.format, expert.quant].filter(Boolean).join(" ")],
    ["languages", expert.languages.join(", ")],
    ["licence", expert.licence ?? "not stated"],
  ].filter(([, value]) => value);
  return make("dl", { kind: "facts" }, ...rows.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
}

function card(expert) {
  const tags = make("span", { kind: "row" }, make("span", { kind: "tag", text: expert.version }));
  if (expert.open) tags.append(make("span", { kind: "tag open", text: "in memory" }));
  if (expert.backend) tags.append(make("span", { kind: "tag open", text: "backend" }));
  const tries = expert.examples.map((text) => {
    const button = make("button", { type: "button", text: text.length > 90 ? `${text.slice(0, 90)}…` : text });
    button.addEventListener("click", () => {
      $("prompt").value = text;
      $("prompt").focus();
    });
    return make("li", {}, button);
  });
  const made = make("article", { kind: "card expert" }, make("div", { kind: "top" }, make("h3", { text: expert.name }), tags));
  made.append(make("p", { text: [expert.domain, expert.description].filter(Boolean).join(": ") }));
  if (tries.length) made.append(make("ul", { kind: "try", "aria-label": "Examples" }, ...tries));
  if (expert.counter_examples.length) made.append(make("p", { kind: "note", text: `Not for: ${expert.counter_examples.map((one) => one.slice(0, 90)).join(" · ")}` }));
  made.append(...scores(expert), facts(expert));
  if (expert.machine) made.append(make("p", { kind: "note", text: `Speed and memory on ${expert.machine}. Taught by ${expert.teacher || "an unnamed teacher"}.` }));
  return made;
}

function show() {
  const { experts, damaged, auto, upstream } = house;
  $("state").textContent = `${experts.length} experts${damaged.length ? `, ${damaged.length} damaged` : ""}${upstream ? `, teacher ${upstream.model}` : ""}`;
  $("experts").replaceChildren(...experts.map(card));
  $("damaged").replaceChildren(...damaged.map(({ name, reason }) =>
    make("article", { kind: "card broken" }, make("h3", { text: `${name}: damaged, not served` }), make("p", { kind: "note", text: reason }))));
  const names = [...(auto ? ["auto"] : []), ...experts.map((one) => one.name)];
  $("model").replaceChildren(...names.map((name) => make("option", { value: name, text: name === "auto" ? "auto (the router chooses)" : name })));
  $("go").disabled = names.length === 0 && !upstream;
  if (names.length === 0 && upstream) $("model").replaceChildren(make("option", { value: upstream.model, text: upstream.model }));
  for (const id of ["playground", "listed"]) $(id).hidden = false;
  $("base").textContent = `${location.origin}/v1`;
}

async function load() {
  let response;
  try {
    response = await ask("/v1/experts");
  } catch {
    $("state").textContent = "the server does not answer";
    return;
  }
  if (response.status === 401) {
    $("state").textContent = "locked";
    $("unlock").hidden = false;
    $("wrong").textContent = key ? "That is not a key of this server." : "";
    $("key").focus();
    return;
  }
  if (!response.ok) {
    $("state").textContent = await said(response);
    return;
  }
  $("unlock").hidden = true;
  house = await response.json();
  show();
}

// ---- playground ----

function column(name, role) {
  const who = make("span", { kind: `model ${role}` }, make("i"), make("span", { text: name }));
  const speed = make("span", { kind: "note" });
  const text = make("pre"), reason = make("p", { kind: "note", role: "status" });
  const place = make("div", { kind: "answer", "aria-busy": "true" }, make("div", { kind: "top" }, who, speed), reason, text);
  $("answers").append(place);
  return { place, speed, text, reason, name: who.lastChild, role };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

function decided(place, route, model) {
  place.name.textContent = model;
  if (!route || route.route === "pinned") return;
  const sure = route.confidence === null ? "" : ` (${(100 * route.confidence).toFixed(0)} %)`;
  place.reason.textContent = `${route.route}: ${route.expert ?? model}${sure}. ${route.reason}`;
  place.reason.className = `note reason ${route.expert ? "" : "teacher"}`;
}

async function answer(model, role, body, signal) {
  const place = column(model, role), begun = performance.now();
  let first = 0, pieces = 0, usage = null, remote = role === "teacher";
  try {
    const response = await ask("/v1/chat/completions", { method: "POST", signal, body: JSON.stringify({ ...body, model }) });
    if (!response.ok) throw new Error(await said(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.limbeck) {
        decided(place, event.limbeck, event.model);
        remote = !event.limbeck.expert;
      }
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) {
        first ||= performance.now();
        pieces += 1;
        place.text.textContent += piece;
      }
      usage = event.usage ?? usage;
    }
  } catch (error) {
    place.reason.className = "bad";
    place.reason.textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
  place.place.setAttribute("aria-busy", "false");
  const tokens = usage?.completion_tokens ?? pieces;
  if (first) {
    const rate = tokens > 1 ? ` · ${((tokens - 1) / Math.max((performance.now() - first) / 1000, 1e-3)).toFixed(0)} tokens/s` : "";
    place.speed.textContent = `first after ${((first - begun) / 1000).toFixed(2)} s${rate}`;
  }
  note(usage, tokens, remote, role);
}

function note(usage, tokens, remote, role) {
  const upstream = house.upstream;
  const price = upstream?.input_price !== null && upstream ? (usage?.prompt_tokens ?? 0) * upstream.input_price / 1e6 + tokens * upstream.output_price / 1e6 : null;
  if (remote) totals.theirs += tokens; else totals.own += tokens;
  if (price !== null) {
    totals.priced = true;
    if (remote) totals.cost += price;
    if (!remote && role !== "teacher") totals.would += price;
  }
  const rows = [["tokens of experts", count(totals.own)]];
  if (upstream) rows.push(["tokens of the teacher", count(totals.theirs)]);
  if (totals.priced) rows.push(["cost so far", totals.cost.toFixed(6)], ["the experts' tokens at the teacher's price", totals.would.toFixed(6)]);
  $("totals").replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
}

async function play() {
  if (running || !$("ask").reportValidity()) return;
  running = new AbortController();
  $("go").disabled = true;
  $("stop").disabled = false;
  $("answers").replaceChildren();
  const body = {
    messages: [{ role: "user", content: $("prompt").value }],
    max_tokens: Number($("most").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  const model = $("model").value, teacher = house.upstream?.model;
  const asked = [answer(model, model === teacher ? "teacher" : "student", body, running.signal)];
  if (teacher && model !== teacher) asked.push(answer(teacher, "teacher", body, running.signal));
  await Promise.all(asked);
  running = null;
  $("go").disabled = false;
  $("stop").disabled = true;
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  load();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  play();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && house) {
    event.preventDefault();
    play();
  }
  if (event.key === "Escape") running?.abort();
});
load();
