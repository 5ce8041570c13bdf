// Part 2: tables: sorted, paged, opened, copied.

const say = (text) => { byId("said").textContent = text; };
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch (error) {
    const area = make("textarea", { class: "hidden", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("copied");
}
const LATEX = { "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_",
  "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$", "–": "--" };
const FORMATS = {
  TSV: (head, body) => [head, ...body].map((line) => line.map((v) => v.replace(/[\t\n\r]/g, " ")).join("\t")).join("\n"),
  Markdown: (head, body) => [head, head.map(() => "---"), ...body]
    .map((line) => `| ${line.map((v) => v.replace(/\|/g, "\\|").replace(/\n/g, " ")).join(" | ")} |`).join("\n"),
  LaTeX: (head, body) => {
    const lines = [head, ...body].map((line) => `${line.map((v) => v.replace(/[\\&%$#_{}~^−–]/g, (c) => LATEX[c])).join(" & ")} \\\\`);
    return [`\\begin{tabular}{${"l".repeat(head.length)}}`, "\\toprule", lines[0], "\\midrule", ...lines.slice(1), "\\bottomrule", "\\end{tabular}"].join("\n");
  },
};

const PAGE = 30;
const ON_PAPER = 1000;
const LOUD = ["score", "gain"]; // numbers that look like links; all others are, too
const SHORT = 110; // characters of a note before "more"
const printing = []; // what shows more on paper
let paper = false;
// Tables out of view are drawn when the page has nothing else to do.
const waiting = new Set();
const idle = window.requestIdleCallback ? (work) => requestIdleCallback(work, { timeout: 2000 }) : (work) => setTimeout(work, 100);
function drawWaiting() {
  const [next] = waiting;
  if (next) next();
  if (waiting.size) idle(drawWaiting);
}
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.inView = entry.isIntersecting;
    if (entry.isIntersecting && waiting.has(entry.target.drawTable)) entry.target.drawTable();
  }
}, { rootMargin: "300px" });
const collator = new Intl.Collator(undefined, { numeric: true });
const firstNumber = (v) => (Array.isArray(v) ? v[0] : v);
// Rows in the order of their keys, missing ones last; texts are compared once each.
function sortedBy(rows, keys, down) {
  const missing = (v) => !known(v) || v === "";
  const texts = [...new Set(keys.filter((v) => typeof v === "string"))].sort(collator.compare);
  const rank = new Map(texts.map((text, n) => [text, n]));
  const numbers = Float64Array.from(keys, (v) => (missing(v) ? 0 : typeof v === "string" ? rank.get(v) : v));
  const there = keys.map((v, n) => [missing(v), n]);
  const order = there.filter(([lost]) => !lost).map(([, n]) => n);
  order.sort((a, b) => (down ? numbers[b] - numbers[a] : numbers[a] - numbers[b]));
  return [...order, ...there.filter(([lost]) => lost).map(([, n]) => n)].map((n) => rows[n]);
}
// columns: {title, kind, get(row), open(row)}; open: shows the documents behind a number.
// parts(row): rows that a row is the mean of, shown below it on demand. place: the element that is in
// view or not, of a table that may wait.
function makeTable(host, name, columns, { parts = () => [], place = null } = {}) {
  const table = { rows: [], sort: -1, down: false, limit: PAGE, opened: new Set() };
  const head = make("tr");
  const body = make("tbody");
  const caption = make("caption");
  const more = make("button", { type: "button", onclick: () => { table.limit += 10 * PAGE; draw(); } });
  const wide = (c) => c.kind === "text" ? "" : "num";
  columns.forEach((column, n) => {
    const button = make("button", { type: "button", onclick: () => {
      table.down = table.sort === n ? !table.down : column.kind !== "text";
      table.sort = n;
      draw();
    } }, column.title);
    head.append(make("th", { scope: "col", class: wide(column) }, button));
  });
  const tools = make("div", { class: "tools" }, "copy as");
  for (const [format, write] of Object.entries(FORMATS)) {
    tools.append(make("button", { type: "button", "aria-label": `copy ${name} as ${format}`, onclick: () => {
      const lines = ordered().flatMap(withParts).map(([row]) => columns.map((c) => WRITE[c.kind](c.get(row))));
      copy(write(columns.map((c) => c.title), lines));
    } }, format));
  }
  host.append(
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
      make("table", {}, caption, make("thead", {}, head), body)),
    make("div", { class: "tools" }, more), tools);

  function ordered() {
    if (table.sort < 0) return table.rows;
    const { get } = columns[table.sort];
    return sortedBy(table.rows, table.rows.map((row) => firstNumber(get(row))), table.down);
  }
  function withParts(row) {
    if (!table.opened.has(row)) return [[row, false]];
    const own = parts(row);
    const least = own.map((part) => (known(part.gain) ? part.gain : part.score));
    return [[row, false], ...sortedBy(own, least, false).map((part) => [part, true])];
  }
  function opener(row, text) {
    const open = table.opened.has(row);
    return make("button", { type: "button", class: "opener", "aria-expanded": String(open), title: "its single prompts, the lowest first", onclick: () => {
      if (open) table.opened.delete(row); else table.opened.add(row);
      draw();
      const again = [...body.querySelectorAll("button.opener")].find((b) => b.row === row);
      if (again) again.focus();
    } }, text);
  }
  function cellOf(column, row, part) {
    const value = column.get(row);
    const text = WRITE[column.kind](value);
    const sure = Array.isArray(value) && value[3] === 1;
    const long = column.kind === "text" && text.length > 60;
    const cell = make("td", { class: [wide(column), sure ? "sure" : "", long ? "note" : text.length < 14 ? "short" : ""].join(" ").trim() });
    if (column.open && known(value) && text && text !== "–") {
      cell.append(make("button", { type: "button", title: "documents behind it", class: LOUD.includes(column.kind) ? null : "quiet", onclick: () => column.open(row) }, text));
    } else if (column.opens && !part && parts(row).length > 1) {
      const button = opener(row, text);
      button.row = row;
      cell.append(button);
    } else if (long && text.length > SHORT && !paper) {
      const all = make("button", { type: "button", "aria-label": "whole note", onclick: () => { cell.textContent = text; } }, "more");
      cell.append(`${text.slice(0, SHORT - 10).replace(/\s+\S*$/, "")} … `, all);
    } else cell.textContent = text;
    return cell;
  }
  function draw() {
    waiting.delete(draw);
    [...head.children].forEach((th, n) => {
      if (n === table.sort) th.setAttribute("aria-sort", table.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    const rows = ordered();
    const first = rows.slice(0, table.limit);
    body.replaceChildren(...first.flatMap(withParts).map(([row, part]) => {
      const line = make("tr", { class: part ? "part" : null });
      for (const column of columns) line.append(cellOf(column, row, part));
      return line;
    }));
    const rest = rows.length - first.length;
    more.hidden = rest <= 0;
    more.textContent = `${count(Math.min(rest, 10 * PAGE))} more of ${count(rows.length)} rows`;
    caption.textContent = !rows.length ? "nothing under these filters"
      : `${count(rows.length)} row${rows.length === 1 ? "" : "s"}${rest > 0 ? `, the first ${count(first.length)} shown` : ""}`;
  }
  printing.push(() => { table.limit = Math.max(table.limit, ON_PAPER); draw(); });
  if (place) {
    place.drawTable = draw;
    nearby.observe(place);
  }
  table.set = (rows) => {
    Object.assign(table, { rows, limit: PAGE });
    if (!place || place.inView) { draw(); return; }
    waiting.add(draw);
    if (waiting.size === 1) idle(drawWaiting);
  };
  return table;
}

const column = (title, kind, key, open) => ({ title, kind, get: typeof key === "function" ? key : (row) => row[key], open });
const several = (name) => (scores.columns[name] ? scores.columns[name].of.length > 1 : false);
const anySeed = choices.seed.filter((s) => s !== "none").length > 1;
const SCORE_COLUMNS = [
  ...(choices.folder && choices.folder.length > 1 ? [column("results", "text", (r) => r.folders.join(", "))] : []),
  column("checkpoint", "text", "checkpoint"), column("tuned on", "text", "tuning"),
  ...(scores.rows.some((r) => r.tuning_step !== null) ? [column("step", "count", "tuning_step")] : []),
  ...(anySeed ? [column("seed", "text", (r) => (r.seed === "none" ? "" : r.seed))] : []),
  column("task", "text", "task"),
  ...(several("way") ? [column("asked with", "text", "way")] : []), { ...column("prompt", "text", "asked"), opens: true },
  column("score [95 %]", "score", (r) => (known(r.score) ? [r.score, r.score_low, r.score_high] : null), (r) => openDocs(r)),
  column("gain [95 %]", "gain", (r) => (known(r.gain) ? [r.gain, r.gain_low, r.gain_high] : null), (r) => openDocs(r)),
  column("gain by prompt", "range", (r) => (r.level === "mean" && r.prompts.length > 1 && known(r.gain) ? [r.gain_least, r.gain_most] : null), (r) => openDocs(r)),
  column("base", "number", "base", (r) => openDocs(r)), column("trivial answer", "number", "floor"),
  column("documents", "count", "n", (r) => openDocs(r)),
  column("better", "count", "better", (r) => openDocs(r, 1)), column("worse", "count", "worse", (r) => openDocs(r, -1)),
  column("metric", "text", (r) => data.words[r.metric] || r.metric), column("error", "number", "score_error"),
  column("interval about", "text", "claim"), column("note", "text", "note"),
];

const updates = []; // called when the filter changed
function addScores() {
  const host = document.querySelector("#scores .put");
  const box = make("input", { type: "checkbox", onchange: () => { state.every = box.checked; refresh(); } });
  host.append(make("label", {}, box, " show every prompt and seed as well"));
  const table = makeTable(host, "Scores and gains", SCORE_COLUMNS,
    { parts: (row) => (row.level === "mean" && !state.every ? partsOf.get(row.i) || [] : []) });
  host.append(make("p", { class: "soft" }, "better, worse: documents that came out better or worse than with the untuned checkpoint, under all prompts of the row. “mean over …” opens the row's single prompts."));
  updates.push(() => { box.checked = state.every; table.set(shown); });
}

const command = document.querySelector("#run code").textContent;
const source = (file) => make("p", { class: "soft" }, "In ", make("code", {}, file || "report.html"), "; made again by ", make("code", {}, command));
function addTable(about) {
  const host = document.querySelector(`#${about.section} .put`);
  if (!host) return;
  const facetsOf = (n) => about.facets[n].map((place, k) => (place < 0 ? null : data.lists[k][place]));
  const columns = about.columns.map(([title, kind], n) => column(title, kind, (r) => r.cells[n],
    kind !== "text" && (kind !== "count" || title === "documents") ? (r) => openFacets(facetsOf(r.n)) : null));
  const box = make("div", { id: `table-${about.id}` }, make("h3", {}, about.title), make("p", { class: "soft" }, about.caption));
  const hidden = make("p", { class: "soft" });
  const table = makeTable(box, about.title, columns, { place: box });
  box.append(hidden, source(about.file));
  host.append(box);
  const rows = about.rows.map((cells, n) => ({ cells, n }));
  updates.push(() => {
    const masks = FACETS.map((facet, k) => maskOf(facet, data.lists[k]));
    const left = rows.filter((row) => masks.every((mask, k) => !mask || about.facets[row.n][k] < 0 || mask[about.facets[row.n][k]]));
    table.set(left);
    const lost = rows.length - left.length;
    hidden.textContent = lost ? `${count(lost)} of ${count(rows.length)} rows are hidden by the filter: they are about, or average over, something it leaves out.` : "";
  });
}
