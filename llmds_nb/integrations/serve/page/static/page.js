// The page of a server: searches, shows why each hit is one, and follows the server's metrics.
//
// Whatever comes from the server is put into the page as text (textContent), never as markup.

const $ = (id) => document.getElementById(id);
const KEY_NEEDED = document.documentElement.dataset.key === "yes";
const HAS_DOCUMENTS = document.documentElement.dataset.documents === "yes";
const SHOWN_CHARACTERS = 2000; // of a text, until the hit is opened
const OPENED_CHARACTERS = 200000;
const EVERY_MS = 2000; // between two looks at the metrics
const SLOWEST_MS = 30000; // the same while the server does not answer
const WINDOW_MS = 60000;

let key = ""; // the API key: in this variable alone, so that it ends with the page
let searching = null; // the AbortController of the search under way

// ---- the server -------------------------------------------------------------------------------

class Refusal extends Error {
  constructor(status, message, param, wait) {
    super(message);
    Object.assign(this, { status, param, wait });
  }
}

// Integers beyond 2**53 keep their digits where the browser tells them.
function exact(name, value, context) {
  const rounded = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return rounded && context?.source ? context.source : value;
}

async function ask(path, body, signal) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal, cache: "no-store", credentials: "omit", redirect: "error" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const answer = await fetch(path, options);
  const text = await answer.text();
  let value = null;
  try {
    value = JSON.parse(text, exact);
  } catch {
    throw new Refusal(answer.status, `The answer of status ${answer.status} is not JSON.`);
  }
  if (answer.ok) return value;
  const error = value?.error ?? {};
  const wait = Number(answer.headers.get("retry-after")) || 0;
  throw new Refusal(answer.status, error.message ?? `status ${answer.status}`, error.param, wait);
}

// ---- making elements --------------------------------------------------------------------------

function made(name, text = "", className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

const number = (value, digits = 3) =>
  value === null || value === undefined
    ? "–"
    : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const whole = (value) => (value ?? 0).toLocaleString("en");
const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function table(caption, heads, rows) {
  const element = made("table");
  element.append(made("caption", caption));
  const head = element.createTHead().insertRow();
  for (const text of heads) {
    const cell = made("th", text);
    cell.scope = "col";
    head.append(cell);
  }
  const body = element.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((text, i) => {
      const cell = made(i ? "td" : "th", text);
      if (!i) cell.scope = "row";
      line.append(cell);
    });
  }
  const scroll = made("div", "", "scroll");
  scroll.append(element);
  return scroll;
}

// ---- hits -------------------------------------------------------------------------------------

function characters(text, most) {
  if (text.length <= most) return text;
  const end = /[\uD800-\uDBFF]/.test(text[most - 1]) ? most - 1 : most; // no half of a pair
  return `${text.slice(0, end)} … (${whole(text.length - end)} more characters)`;
}

function shown(hit, place) {
  const item = $("hit").content.firstElementChild.cloneNode(true);
  const [head, why] = [item.querySelector(".head"), item.querySelector(".why")];
  item.querySelector(".id").textContent = `${place}. ${plain(hit.id)}`;
  item.querySelector(".score").textContent = number(hit.score);
  item.querySelector(".text").textContent = characters(hit.text, SHOWN_CHARACTERS);
  for (const [name, value] of Object.entries(hit.metadata)) {
    const entry = made("div");
    entry.append(made("dt", name), made("dd", plain(value)));
    item.querySelector(".metadata").append(entry);
  }
  why.id = `why-${place}`;
  why.setAttribute("aria-label", `Why hit ${place}`);
  why.append(made("p", "The reasons are on their way.", "help"));
  head.setAttribute("aria-controls", why.id);
  head.addEventListener("click", () => open(item, hit, why.hidden));
  return item;
}

function open(item, hit, wanted) {
  item.classList.toggle("open", wanted);
  item.querySelector(".why").hidden = !wanted;
  item.querySelector(".head").setAttribute("aria-expanded", String(wanted));
  const most = wanted ? OPENED_CHARACTERS : SHOWN_CHARACTERS;
  item.querySelector(".text").textContent = characters(hit.text, most);
}

function explain(item, why, answer, top) {
  const dense = why.weight * why.dense_score;
  const sparse = (1 - why.weight) * why.sparse_score;
  item.querySelector(".halves").textContent = `= ${number(dense)} dense + ${number(sparse)} BM25`;
  for (const [name, part] of [[".dense", dense], [".sparse", sparse]]) {
    const share = top > 0 ? Math.max(0, part) / top : 0;
    item.querySelector(`.bar ${name}`).style.width = `${100 * share}%`;
  }
  const rank = (place) => (place === null ? "–" : String(place));
  const halves = table(
    `Score ${number(why.score, 4)} of both halves (fusion: ${answer.fusion}; vectors: ${answer.metric ?? "none"} distance)`,
    ["Half", "Value", "Rank", "Scaled", "Weight", "Adds"],
    [
      ["Distance", number(why.distance, 4), rank(why.dense_rank),
        number(why.dense_score), number(why.weight, 2), number(dense)],
      ["BM25", number(why.bm25, 4), rank(why.sparse_rank), number(why.sparse_score),
        number(1 - why.weight, 2), number(sparse)],
    ],
  );
  halves.querySelectorAll("tbody th").forEach((cell, i) => {
    cell.className = i ? "key-sparse" : "key-dense";
  });
  const terms = why.terms.length
    ? table(
      "Words of the query: how often here (tf), in how many documents (df)",
      ["Word", "In query", "tf", "df", "idf", "Score"],
      why.terms.map((term) => [term.term, whole(term.count), whole(term.tf), whole(term.df),
        number(term.idf), number(term.score)]),
    )
    : made("p", "No word of the query is in any document.", "help");
  item.querySelector(".why").replaceChildren(halves, terms);
}

function unexplained(items, text) {
  for (const item of items) item.querySelector(".why").replaceChildren(made("p", text, "help"));
}

// ---- searching --------------------------------------------------------------------------------

class Mistake extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

function filterOf(text) {
  if (!text.trim()) return undefined;
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Mistake("where", `The filter is not JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new Mistake("where", 'The filter must be an object, such as {"year": {"$gte": 2020}}.');
  }
  return value;
}

function wanted() {
  const [count, most] = [$("count").value.trim(), Number($("count").max)];
  if (!/^\d+$/.test(count) || Number(count) < 1 || Number(count) > most) {
    throw new Mistake("count", `Hits must be a number from 1 to ${whole(most)}.`);
  }
  return { query: $("query").value, k: Number(count), where: filterOf($("where").value) };
}

function mistake(field, message) {
  $("where-error").textContent = message;
  for (const name of ["where", "count"]) {
    $(name).setAttribute("aria-invalid", String(name === field));
  }
  if (field) $(field).focus();
}

function told(error) {
  if (!(error instanceof Refusal)) {
    connection(false);
    return "The server does not answer.";
  }
  const again = error.wait ? ` Try again in ${error.wait} s.` : "";
  const end = /[.!?]$/.test(error.message) ? "" : ".";
  return `${error.message[0]?.toUpperCase() ?? ""}${error.message.slice(1)}${end}${again}`;
}

function failed(error) {
  if (error instanceof Mistake) return mistake(error.field, error.message);
  if (error.status === 401) return needKey(told(error));
  const param = /^\w+/.exec(error.param ?? "")?.[0];
  const aboutFilter = error.status === 400 && (param === "where" || /\bwhere\b|\$\w/.test(error.message));
  if (aboutFilter && $("where").value.trim()) return mistake("where", `The filter: ${told(error)}`);
  if (param === "k") return mistake("count", told(error));
  $("problem").textContent = told(error);
}

async function search() {
  searching?.abort();
  const own = (searching = new AbortController());
  mistake(null, "");
  $("problem").textContent = "";
  let body;
  try {
    body = wanted();
  } catch (error) {
    return failed(error);
  }
  if (!body.query.trim()) {
    $("message").textContent = "Type what to search for.";
    $("hits").replaceChildren();
    return;
  }
  remember();
  $("message").textContent = "Searching…";
  $("hits").setAttribute("aria-busy", "true");
  try {
    const begun = performance.now();
    const { hits, by_words: byWords } = await ask("search", body, own.signal);
    const ms = performance.now() - begun;
    const items = hits.map((hit, i) => shown(hit, i + 1));
    $("hits").replaceChildren(...items);
    const found = hits.length === 1 ? "1 hit" : `${whole(hits.length)} hits`;
    const how = byWords ? " Words alone were searched: the server has no encoder." : "";
    $("message").textContent = hits.length
      ? `${found} in ${number(ms, 1)} ms.${how}`
      : `No document fits.${how}`;
    connection(true);
    if (hits.length) await explainAll(body, hits, items, own.signal);
  } catch (error) {
    if (own.signal.aborted) return;
    $("message").textContent = "";
    $("hits").replaceChildren();
    failed(error);
  } finally {
    if (searching === own) $("hits").removeAttribute("aria-busy");
  }
}

async function explainAll(body, hits, items, signal) {
  try {
    const answer = await ask("explain", body, signal);
    const whys = new Map(answer.explanations.map((why) => [plain(why.id), why]));
    const top = Math.max(...answer.explanations.map((why) => why.score), 0);
    hits.forEach((hit, i) => {
      const why = whys.get(plain(hit.id));
      if (why) explain(items[i], why, answer, answer.fusion === "rrf" ? top : Math.max(top, 1));
      else unexplained([items[i]], "The documents have changed since; search again.");
    });
  } catch (error) {
    if (signal.aborted) return;
    unexplained(items, `The reasons are missing. ${told(error)}`);
  }
}

// The search stands in the fragment of the address, which is not sent to any server.
function remember() {
  const parts = new URLSearchParams({ q: $("query").value });
  if ($("where").value.trim()) parts.set("where", $("where").value);
  if ($("count").value !== "10") parts.set("k", $("count").value);
  history.replaceState(null, "", `#${parts}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  $("query").value = parts.get("q") ?? "";
  $("where").value = parts.get("where") ?? "";
  $("count").value = parts.get("k") ?? "10";
  return $("query").value.trim() !== "";
}

// ---- the key ----------------------------------------------------------------------------------

function needKey(message) {
  key = "";
  $("key-form").hidden = false;
  $("key-error").textContent = message;
  $("key").setAttribute("aria-invalid", String(message !== ""));
  $("key").focus();
}

$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  if (/[^\x20-\xff]/.test(key)) return needKey("A key has no such characters.");
  try {
    await look();
  } catch (error) {
    if (error.status === 401) return needKey(told(error));
    $("key-error").textContent = told(error);
    return;
  }
  $("key").value = $("key-error").textContent = "";
  $("key-form").hidden = true;
  again(EVERY_MS);
  $("query").focus();
  if ($("query").value.trim()) search();
});

// ---- metrics ----------------------------------------------------------------------------------

let looks = []; // what /stats told in the last minute, oldest first
let timer = 0;
let pause = EVERY_MS;

function connection(up) {
  $("connection").className = up ? "state up" : "state down";
  const text = up ? "connected" : "the server does not answer";
  if ($("connection").textContent !== text) $("connection").textContent = text;
}

// The time within which a share of the searches between two looks was answered, as Prometheus'
// histogram_quantile has it.
function quantile(share, bounds, counts) {
  const total = counts.at(-1);
  if (!total) return null;
  const place = counts.findIndex((count) => count >= share * total);
  if (bounds[place] === null) return bounds[place - 1];
  const [low, before] = place ? [bounds[place - 1], counts[place - 1]] : [0, 0];
  return low + ((bounds[place] - low) * (share * total - before)) / (counts[place] - before);
}

function follow(stats) {
  const now = performance.now();
  if (looks.length && stats.started !== looks[0].stats.started) looks = []; // another process
  looks.push({ now, stats });
  while (looks.length > 2 && now - looks[0].now > WINDOW_MS) looks.shift();
  const [first, last] = [looks[0], looks.at(-1)];
  const { bounds, counts: until } = last.stats.search_seconds; // empty before the first search
  const before = first.stats.search_seconds.counts;
  const counts = until.map((count, i) => count - (before[i] ?? 0));
  const n = counts.at(-1) ?? 0;
  const ms = (seconds) => (seconds === null ? "–" : `${number(1000 * seconds, 1)} ms`);
  $("m-documents").textContent = whole(stats.documents);
  const rate = (1000 * n) / (last.now - first.now);
  $("m-rate").textContent = looks.length < 2 ? "–" : number(rate, rate < 10 ? 2 : 0);
  $("m-p50").textContent = ms(quantile(0.5, bounds, counts));
  $("m-p99").textContent = ms(quantile(0.99, bounds, counts));
  const asked = stats.cache_hits + stats.cache_misses;
  $("m-cache").textContent = asked
    ? `${whole(stats.cache_hits)} (${number((100 * stats.cache_hits) / asked, 0)} %)`
    : whole(stats.cache_hits);
  $("m-under-way").textContent = whole(stats.requests_under_way);
}

async function look() {
  const stats = await ask("stats", undefined, AbortSignal.timeout(SLOWEST_MS));
  follow(stats);
  connection(true);
}

function again(ms) {
  clearTimeout(timer);
  pause = ms;
  timer = setTimeout(watch, ms);
}

async function watch() {
  clearTimeout(timer);
  if (document.hidden || (KEY_NEEDED && !key)) return; // whoever ends that calls again
  try {
    await look();
    again(EVERY_MS);
  } catch (error) {
    if (error.status === 401) return needKey(told(error));
    connection(error instanceof Refusal);
    again(Math.max(1000 * (error.wait ?? 0), Math.min(2 * pause, SLOWEST_MS)));
  }
}

document.addEventListener("visibilitychange", () => document.hidden || watch());

// ---- keys -------------------------------------------------------------------------------------

function heads() {
  return [...document.querySelectorAll("#hits .head")];
}

function move(event) {
  const all = heads();
  const place = all.indexOf(document.activeElement);
  const inBox = document.activeElement === $("query");
  if (!all.length || (place < 0 && !(inBox && event.key === "ArrowDown"))) return;
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: all.length - 1 }[event.key];
  event.preventDefault();
  if (next < 0) $("query").focus();
  else all[Math.min(next, all.length - 1)].focus();
}

function escape(event) {
  const item = document.activeElement?.closest?.(".hit");
  if (item) {
    const head = item.querySelector(".head");
    event.preventDefault();
    if (head.getAttribute("aria-expanded") === "true") {
      head.click();
      head.focus();
    } else $("query").focus();
  } else if (document.activeElement === $("query") && $("query").value) {
    event.preventDefault();
    $("query").value = "";
  } else if (document.activeElement !== $("key")) $("query").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = document.activeElement?.tagName === "INPUT";
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  } else if (["ArrowDown", "ArrowUp", "Home", "End"].includes(event.key)) move(event);
  else if (event.key === "Escape") escape(event);
});

// ---- the start --------------------------------------------------------------------------------

$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("search-form").noValidate = true; // `wanted` says what is wrong
addEventListener("hashchange", () => recall() && search());

if (!HAS_DOCUMENTS) {
  for (const input of $("search-form").elements) input.disabled = true;
  $("message").textContent = "This server has no documents to search.";
}
const asked = HAS_DOCUMENTS && recall();
if (KEY_NEEDED) needKey("");
else {
  if (HAS_DOCUMENTS) $("query").focus();
  watch();
  if (asked) search();
}
