// The report's page, part 1: data as it was packed (evalcore/report/packing.py), and what filters leave.
// Plain DOM; data becomes text nodes only. Numbers are chosen, never computed: a mean whose prompts
// or seeds the filter cuts into is hidden, and the rows of its single prompts stand in its place.

const byId = (id) => document.getElementById(id);

function make(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

async function unzip(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
let buffer = null;
try {
  buffer = await unzip(byId("data").textContent);
} catch (error) {
  byId("hero").append(make("p", { class: "warning" }, `This browser cannot unpack the page's data (${error}). It takes one of 2023 or later; the pictures and tables lie beside the page too.`));
  return;
}
byId("data").remove();
const headSize = new DataView(buffer).getUint32(0, true);
const data = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headSize)));
const FACETS = data.facets;
const FACET_WORDS = { checkpoint: "checkpoint", tuning: "tuning", seed: "seed", task: "task",
  prompt: "prompt", way: "way of asking", folder: "results" };

// Numbers as text -------------------------------------------------------------------------------

const known = (v) => v !== null && v !== undefined;
const plain = (v) => (known(v) ? v.toFixed(3).replace("-", "−") : "–");
function signed(v) {
  if (!known(v)) return "–";
  const text = Math.abs(v).toFixed(3);
  return Number(text) === 0 ? text : (v > 0 ? "+" : "−") + text;
}
const count = (v) => (known(v) ? String(v).replace(/\B(?=(\d{3})+$)/g, ",") : "–");
function withInterval(write, value, low, high) {
  if (!known(value)) return "–";
  return known(low) && known(high) ? `${write(value)} [${write(low)}, ${write(high)}]` : write(value);
}
const WRITE = {
  text: (v) => (known(v) ? String(v) : ""), count, number: plain, change: signed,
  score: (v) => (v ? withInterval(plain, v[0], v[1], v[2]) : "–"),
  gain: (v) => (v ? withInterval(signed, v[0], v[1], v[2]) : "–"),
  range: (v) => (v ? `${signed(v[0])} to ${signed(v[1])}` : ""),
};

// Rows ------------------------------------------------------------------------------------------

const ARRAYS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };
// {size, columns, rows}: rows are views whose values are looked up when they are read.
function dataset(packed, derived) {
  const columns = {};
  class Row { constructor(i) { this.i = i; } }
  for (const [name, about] of Object.entries(packed.columns)) {
    const codes = new ARRAYS[about.bytes](buffer, 4 + headSize + about.at, packed.size);
    const { of, low, scale } = about;
    columns[name] = { of, codes };
    const get = of ? function () { return of[codes[this.i]]; }
      : function () { const code = codes[this.i]; return code ? (code - 1 + low) / scale : null; };
    Object.defineProperty(Row.prototype, name, { get });
  }
  for (const [name, get] of Object.entries(derived)) Object.defineProperty(Row.prototype, name, { get() { return get(this); } });
  const names = [...Object.keys(columns), ...Object.keys(derived)];
  return { size: packed.size, columns, names, rows: Array.from({ length: packed.size }, (_, n) => new Row(n)) };
}
const seedWords = (seed) => (seed.endsWith("seeds") ? seed : `seed ${seed}`);
const datasets = {
  scores: dataset(data.scores, {
    weight: (r) => (r.level === "seed" ? 0 : r.kind === "base" || r.kind === "own" || r.kind === "unknown" ? 2 : 1),
    series: (r) => [r.tuning, r.strand, (r.folders || []).join(), r.asked].join("|"),
    line: (r) => r.tuning + (r.seed === "none" || r.seed === "0" ? "" : `, ${seedWords(r.seed)}`) + ` | ${r.asked}`,
    who: (r) => r.tuning + (r.seed === "none" ? "" : `, ${seedWords(r.seed)}`),
    score_text: (r) => withInterval(plain, r.score, r.score_low, r.score_high),
    gain_text: (r) => withInterval(signed, r.gain, r.gain_low, r.gain_high),
  }),
  losses: dataset(data.losses, {}),
  cost: dataset(data.cost, {}),
};
const FACET_COLUMNS = {
  scores: { checkpoint: "checkpoint", tuning: "tuning", seed: "seeds", task: "task", prompt: "prompts", way: "way", folder: "folders" },
  losses: { checkpoint: "checkpoint", tuning: "tuning", seed: "seed" },
  cost: { task: "task" },
};
const scores = datasets.scores;
const listOf = (v) => (Array.isArray(v) ? v : [v]);

const choices = {};
for (const facet of FACETS) {
  const seen = new Set();
  for (const [name, columns] of Object.entries(FACET_COLUMNS)) {
    const column = name === "cost" ? null : datasets[name].columns[columns[facet]];
    for (const value of column ? column.of : []) for (const v of listOf(value)) seen.add(v);
  }
  choices[facet] = [...seen];
  if (facet !== "checkpoint") choices[facet].sort(new Intl.Collator(undefined, { numeric: true }).compare);
}

// What the address says -------------------------------------------------------------------------

const state = { chosen: new Map(), every: false, doc: {} };
const DOC_KEYS = ["dtask", "a", "b", "pa", "pb", "q", "kind"];

function readAddress() {
  const text = location.hash.slice(1);
  state.chosen.clear();
  state.doc = {};
  state.every = false;
  if (!text.includes("=")) return text;
  const found = new URLSearchParams(text);
  for (const facet of FACETS) {
    const values = found.getAll(facet).filter((v) => choices[facet].includes(v));
    if (values.length) state.chosen.set(facet, new Set(values));
  }
  state.every = found.get("rows") === "every";
  for (const key of DOC_KEYS) if (found.has(key)) state.doc[key] = found.get(key);
  return found.get("at");
}
function writeAddress() {
  const out = new URLSearchParams();
  for (const facet of FACETS) for (const v of state.chosen.get(facet) || []) out.append(facet, v);
  if (state.every) out.append("rows", "every");
  for (const key of DOC_KEYS) if (known(state.doc[key]) && state.doc[key] !== "") out.append(key, state.doc[key]);
  history.replaceState(null, "", "#" + out.toString());
}

// Filtering -------------------------------------------------------------------------------------

// Which of a column's values lie inside what is chosen; null: all.
function maskOf(facet, values) {
  const chosen = state.chosen.get(facet);
  return chosen && values ? Uint8Array.from(values, (value) => (value === null ? 1 : listOf(value).every((v) => chosen.has(v)))) : null;
}
function insideOf(name) {
  const { size, columns } = datasets[name];
  const inside = new Uint8Array(size).fill(1);
  for (const [facet, key] of Object.entries(FACET_COLUMNS[name])) {
    if (!columns[key]) continue;
    const mask = maskOf(facet, columns[key].of);
    if (!mask) continue;
    const { codes } = columns[key];
    for (let n = 0; n < size; n++) inside[n] &= mask[codes[n]];
  }
  return inside;
}
const levels = scores.size ? Array.from(scores.columns.level.codes, (code) => scores.columns.level.of[code]) : [];
const parents = Int32Array.from(scores.rows, (row) => row.parent);
const inside = {}; // data set -> 1 per row the filter leaves
let whole = new Uint8Array(scores.size); // means that are whole under the filter
let shown = []; // the rows of scores a table shows
function choose() {
  for (const name of Object.keys(datasets)) inside[name] = insideOf(name);
  whole = Uint8Array.from(levels, (level, n) => (level === "mean" ? inside.scores[n] : 0));
  shown = scores.rows.filter((row) => {
    if (levels[row.i] === "mean") return whole[row.i];
    return levels[row.i] === "prompt" && inside.scores[row.i] && (state.every || !whole[parents[row.i]]);
  });
}
const partsOf = new Map(); // a mean -> rows of its single prompts
for (const row of scores.rows) {
  if (levels[row.i] !== "prompt" || row.parent < 0) continue;
  if (!partsOf.has(row.parent)) partsOf.set(row.parent, []);
  partsOf.get(row.parent).push(row);
}

const groups = new Map(); // "task" -> value -> rows; for figures, which look at few of all rows
function rowsWith(name, value) {
  if (!groups.has(name)) {
    const found = new Map();
    for (const row of scores.rows) {
      const own = row[name];
      if (!found.has(own)) found.set(own, []);
      found.get(own).push(row);
    }
    groups.set(name, found);
  }
  return groups.get(name).get(value) || [];
}
const candidates = new Map();
function candidatesOf(figure) {
  if (!candidates.has(figure.id)) {
    const tests = Object.entries(figure.where).filter(([name]) => name !== "primary");
    const name = ["task", "tuning"].find((key) => figure.where[key] && figure.where[key].length === 1);
    const from = figure.dataset === "scores" && name ? rowsWith(name, figure.where[name][0]) : datasets[figure.dataset].rows;
    const checks = tests.map(([key, values]) => {
      const { of, codes } = datasets[figure.dataset].columns[key] || {};
      if (!of) return (row) => values.includes(row[key]);
      const wanted = Uint8Array.from(of, (value) => (values.includes(value) ? 1 : 0));
      return (row) => wanted[codes[row.i]];
    });
    candidates.set(figure.id, from.filter((row) => checks.every((check) => check(row))));
  }
  return candidates.get(figure.id);
}
// Whether a row of scores is drawn by a figure under the filter.
function drawnBy(figure, row) {
  if (figure.where.primary && !state.chosen.has("way") && !row.primary) return false;
  const level = levels[row.i];
  if (level === "seed") return figure.levels === "curve" && whole[parents[row.i]];
  if (level === "mean") return figure.levels !== "prompt" && inside.scores[row.i];
  return inside.scores[row.i] && (figure.levels === "prompt" || !whole[parents[row.i]]);
}
const fits = (figure) => (row) => (figure.dataset === "scores" ? drawnBy(figure, row) : inside[figure.dataset][row.i]);
const rowsOf = (figure) => candidatesOf(figure).filter(fits(figure));
const anyRowOf = (figure) => candidatesOf(figure).some(fits(figure));
function chartRows(figure, rows) {
  if (!figure.fields) { // what its specification names; what is pointed at is looked up by i
    const text = JSON.stringify({ ...figure.spec, usermeta: null });
    figure.fields = datasets[figure.dataset].names.filter((name) => new RegExp(`\\b${name}\\b`).test(text));
  }
  return rows.map((row) => {
    const out = { i: row.i };
    for (const name of figure.fields) out[name] = row[name];
    if (figure.row) out.row = figure.row === "task" && row.level === "prompt" ? `${row.task} | ${row.asked}` : row[figure.row];
    return out;
  });
}
