// The report's page: filters, tables, charts and documents. Plain DOM; data becomes text nodes only.
// Numbers are chosen, never computed: a mean whose prompts or seeds the filter cuts into is hidden,
// and the rows of its single prompts are shown in its place.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const FACETS = data.facets;
  const FACET_WORDS = { checkpoint: "checkpoint", tuning: "tuning", seed: "seed", task: "task",
    prompt: "prompt", way: "way of asking" };
  const PAGE = 30;
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

  // Numbers as text -----------------------------------------------------------------------------

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

  // Rows ----------------------------------------------------------------------------------------

  function decode(packed) {
    const rows = Array.from({ length: packed.size }, () => ({}));
    for (const [name, column] of Object.entries(packed.columns)) {
      if (Array.isArray(column)) for (let i = 0; i < rows.length; i++) rows[i][name] = column[i] ?? null;
      else for (let i = 0; i < rows.length; i++) rows[i][name] = column.of[column.at[i]];
    }
    return rows;
  }
  const datasets = { scores: decode(data.scores), losses: decode(data.losses), cost: decode(data.cost) };
  for (const row of datasets.scores) {
    const strong = row.kind === "base" || row.kind === "own" || row.kind === "unknown";
    row.weight = row.level === "seed" ? 0 : strong ? 2 : 1;
    row.series = [row.tuning, row.seed, row.tuning_step === null ? "" : row.tuning_step, row.asked].join("|");
    row.line = row.tuning + (row.seed === "none" || row.seed === "0" ? "" : ` ${row.seed}`) + ` | ${row.asked}`;
    row.who = row.tuning + (row.seed === "none" ? "" : `, ${row.seed.endsWith("seeds") ? "" : "seed "}${row.seed}`);
    row.score_text = withInterval(plain, row.score, row.score_low, row.score_high);
    row.gain_text = withInterval(signed, row.gain, row.gain_low, row.gain_high);
    row.facets = [[row.checkpoint], [row.tuning], row.seeds, [row.task], row.prompts, [row.way]];
  }
  for (const row of datasets.losses) row.facets = [[row.checkpoint], [row.tuning], [row.seed], null, null, null];
  for (const row of datasets.cost) row.facets = [null, null, null, [row.task], null, null];

  // What the address says -----------------------------------------------------------------------

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

  const choices = {};
  FACETS.forEach((facet, n) => {
    const seen = new Set();
    for (const row of datasets.scores) for (const v of row.facets[n]) seen.add(v);
    for (const row of datasets.losses) for (const v of row.facets[n] || []) seen.add(v);
    choices[facet] = [...seen];
    if (facet !== "checkpoint") choices[facet].sort();
  });

  // Filtering -----------------------------------------------------------------------------------

  function inside(facets) {
    for (let n = 0; n < FACETS.length; n++) {
      const chosen = state.chosen.get(FACETS[n]);
      const values = facets[n];
      if (chosen && values) for (const v of values) if (!chosen.has(v)) return false;
    }
    return true;
  }
  let shown = new Set(); // rows of means that are whole under the filter
  let scoreRows = [];
  function chooseScores() {
    const rows = datasets.scores;
    shown = new Set();
    rows.forEach((row, n) => { if (row.level === "mean" && inside(row.facets)) shown.add(n); });
    scoreRows = rows.filter((row, n) => {
      if (row.level === "mean") return shown.has(n);
      if (row.level === "seed") return shown.has(row.parent);
      return (state.every || !shown.has(row.parent)) && inside(row.facets);
    });
  }
  function rowsOf(figure) {
    const tests = Object.entries(figure.where).filter(([name]) => !(name === "primary" && state.chosen.has("way")));
    const fits = (row) => tests.every(([name, values]) => values.includes(row[name]));
    let found;
    if (figure.dataset !== "scores") found = datasets[figure.dataset].filter((row) => inside(row.facets));
    else if (figure.levels === "prompt") found = datasets.scores.filter((r) => r.level === "prompt" && inside(r.facets));
    else found = scoreRows.filter((r) => (r.level === "prompt" ? !shown.has(r.parent) : r.level === "mean" || figure.levels === "curve"));
    found = found.filter(fits);
    if (!figure.row) return found.map((r) => ({ ...r }));
    return found.map((r) => ({ ...r, row: figure.row === "task" && r.level === "prompt" ? `${r.task} | ${r.asked}` : r[figure.row] }));
  }

  // Saying and copying --------------------------------------------------------------------------

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

  // Tables --------------------------------------------------------------------------------------

  const printing = []; // what shows more on paper
  const firstNumber = (v) => (Array.isArray(v) ? v[0] : v);
  function compare(a, b) {
    const [x, y] = [firstNumber(a), firstNumber(b)];
    if (!known(x) || x === "") return known(y) && y !== "" ? 1 : 0;
    if (!known(y) || y === "") return -1;
    return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
  }
  // columns: {title, kind, get(row), open(row)}; open: shows the documents behind a number.
  function makeTable(host, name, columns) {
    const table = { rows: [], sort: -1, down: false, limit: PAGE };
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
        const lines = ordered().map((row) => columns.map((c) => WRITE[c.kind](c.get(row))));
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
      const sorted = table.rows.map((row) => [get(row), row]).sort((a, b) => {
        const missing = !known(firstNumber(a[0])) || !known(firstNumber(b[0]));
        return compare(a[0], b[0]) * (table.down && !missing ? -1 : 1);
      });
      return sorted.map((pair) => pair[1]);
    }
    function draw() {
      [...head.children].forEach((th, n) => {
        if (n === table.sort) th.setAttribute("aria-sort", table.down ? "descending" : "ascending");
        else th.removeAttribute("aria-sort");
      });
      const rows = ordered();
      const lines = rows.slice(0, table.limit).map((row) => {
        const line = make("tr");
        for (const column of columns) {
          const value = column.get(row);
          const text = WRITE[column.kind](value);
          const sure = Array.isArray(value) && value[3] === 1;
          const long = column.kind === "text" && text.length > 60;
          const cell = make("td", { class: [wide(column), sure ? "sure" : "", long ? "note" : ""].join(" ").trim() });
          if (column.open && known(value) && text !== "–") {
            cell.append(make("button", { type: "button", title: "documents behind it", onclick: () => column.open(row) }, text));
          } else cell.textContent = text;
          line.append(cell);
        }
        return line;
      });
      body.replaceChildren(...lines);
      const rest = rows.length - lines.length;
      more.hidden = rest <= 0;
      more.textContent = `${Math.min(rest, 10 * PAGE)} more of ${count(rows.length)} rows`;
      caption.textContent = rows.length ? `${count(rows.length)} row${rows.length === 1 ? "" : "s"}` : "nothing under these filters";
    }
    printing.push(() => { table.limit = Math.max(table.limit, 1000); draw(); });
    table.set = (rows) => { table.rows = rows; table.limit = PAGE; draw(); };
    return table;
  }

  const column = (title, kind, key, open) => ({ title, kind, get: typeof key === "function" ? key : (row) => row[key], open });
  const anyWay = new Set(datasets.scores.map((r) => r.way)).size > 1;
  const anyStep = datasets.scores.some((r) => r.tuning_step !== null);
  const anySeed = choices.seed.filter((s) => s !== "none").length > 1;
  const SCORE_COLUMNS = [
    column("checkpoint", "text", "checkpoint"), column("tuned on", "text", "tuning"),
    ...(anyStep ? [column("step", "count", "tuning_step")] : []),
    ...(anySeed ? [column("seed", "text", (r) => (r.seed === "none" ? "" : r.seed))] : []),
    column("task", "text", "task"),
    ...(anyWay ? [column("asked with", "text", "way")] : []), column("prompt", "text", "asked"),
    column("score [95 %]", "score", (r) => (known(r.score) ? [r.score, r.score_low, r.score_high] : null), openDocs),
    column("gain [95 %]", "gain", (r) => (known(r.gain) ? [r.gain, r.gain_low, r.gain_high] : null), openDocs),
    column("gain by prompt", "range", (r) => (r.level === "mean" && r.prompts.length > 1 && known(r.gain) ? [r.gain_least, r.gain_most] : null)),
    column("base", "number", "base"), column("trivial answer", "number", "floor"),
    column("documents", "count", "n"), column("better", "count", "better"), column("worse", "count", "worse"),
    column("metric", "text", "metric"), column("error", "number", "score_error"),
    column("interval about", "text", "claim"), column("note", "text", "note"),
  ];

  const updates = []; // called when the filter changed
  function addScores() {
    const host = document.querySelector("#scores .put");
    const box = make("input", { type: "checkbox", onchange: () => { state.every = box.checked; refresh(); } });
    host.append(make("label", {}, box, " show every prompt and seed as well"));
    const table = makeTable(host, "Scores and gains", SCORE_COLUMNS);
    host.append(make("p", { class: "soft" }, "better, worse: documents that came out better or worse than with the untuned checkpoint, under all prompts of the row."));
    updates.push(() => { box.checked = state.every; table.set(scoreRows.filter((r) => r.level !== "seed")); });
  }

  function addTable(about) {
    const host = document.querySelector(`#${about.section} .put`);
    if (!host) return;
    const columns = about.columns.map(([title, kind], n) => column(title, kind, (r) => r.cells[n],
      kind === "gain" || kind === "score" ? (r) => openFacets(r.facets) : null));
    const box = make("div", { id: `table-${about.id}` }, make("h3", {}, about.title), make("p", { class: "soft" }, about.caption));
    const hidden = make("p", { class: "soft" });
    const table = makeTable(box, about.title, columns);
    box.append(hidden, source(about.file));
    host.append(box);
    const rows = about.rows.map((cells, n) => ({ cells, facets: about.facets[n] }));
    updates.push(() => {
      const left = rows.filter((row) => inside(row.facets));
      table.set(left);
      const lost = rows.length - left.length;
      hidden.textContent = lost ? `${count(lost)} of ${count(rows.length)} rows are hidden by the filter: they are about, or average over, something it leaves out.` : "";
    });
  }
  const command = document.querySelector("#run code").textContent;
  const source = (file) => make("p", { class: "soft" }, "In ", make("code", {}, file || "report.html"), "; made again by ", make("code", {}, command));

  // Charts --------------------------------------------------------------------------------------

  const tip = byId("tip");
  function showTip(handler, event, item, value) {
    if (!value || typeof value !== "object") { tip.hidden = true; return; }
    tip.replaceChildren(...Object.entries(value).filter(([, v]) => v !== "" && v !== "null" && v !== "undefined")
      .map(([key, v]) => make("div", {}, make("b", {}, key), String(v))));
    tip.hidden = false;
    const [w, h] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - w - 8))}px`;
    tip.style.top = `${Math.max(4, event.clientY + 18 + h > innerHeight ? event.clientY - h - 12 : event.clientY + 18)}px`;
  }
  const dirty = new Set();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      entry.target.inView = entry.isIntersecting;
      if (entry.isIntersecting && dirty.has(entry.target)) entry.target.drawChart();
    }
  }, { rootMargin: "150px" });

  function figureTable(figure) {
    if (figure.dataset === "scores") return SCORE_COLUMNS;
    if (figure.dataset === "losses") return ["tuning", "checkpoint", "job", "seed", "step", "loss"].map((k) => column(k, k === "loss" ? "number" : k === "step" ? "count" : "text", k));
    return [column("task", "text", "task"), column("kind", "text", "kind"), column("tokens", "count", "tokens")];
  }
  function addFigure(host, figure, hero) {
    const chart = make("div", { class: "chart", role: "img", "aria-label": `${figure.title}: ${figure.caption}` });
    const height = typeof figure.spec.height === "number" ? figure.spec.height + 130 : 170;
    chart.style.minHeight = `${height}px`;
    const details = make("details", {}, make("summary", {}, "table of this figure"));
    const box = make("figure", { id: (hero ? "first-" : "figure-") + figure.id },
      make("h3", {}, figure.title), chart, make("figcaption", {}, figure.caption), details);
    host.append(box);
    let table = null;
    let view = null;
    let rows = [];
    const fill = () => {
      if (!details.open) return;
      if (!table) {
        table = makeTable(details, `Table of ${figure.title}`, figureTable(figure));
        details.append(source(figure.file), make("p", { class: "soft" }, "The picture: ", make("code", {}, `${figure.id}.png`), " and ", make("code", {}, `${figure.id}.svg`)));
      }
      table.set(rows);
    };
    details.addEventListener("toggle", fill);
    box.drawChart = async () => {
      dirty.delete(box);
      if (!rows.length) return;
      if (view) { await view.data("rows", rows).resize().runAsync(); return; }
      const made = await window.vegaEmbed(chart, { ...figure.spec, datasets: { rows } },
        { ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: showTip });
      view = made.view;
      chart.style.minHeight = "";
      box.dataset.drawn = "yes";
      // The words of the figure are its label; single marks would be read one by one.
      for (const svg of chart.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "true");
    };
    seen.observe(box);
    return { box, update: () => {
      rows = rowsOf(figure);
      if (!hero) box.hidden = !rows.length;
      dirty.add(box);
      if (box.inView || hero) box.drawChart();
      fill();
    } };
  }
  // The first screen's picture: of the headline's task, or of the first the filter leaves.
  function addHero() {
    const curves = data.figures.filter((f) => f.section === "curves");
    curves.sort((x, y) => (y.id === data.first) - (x.id === data.first));
    const made = new Map();
    updates.push(() => {
      const figure = curves.find((f) => rowsOf(f).length) || curves[0];
      if (!figure) return;
      if (!made.has(figure.id)) made.set(figure.id, addFigure(byId("hero"), figure, true));
      for (const [id, one] of made) one.box.hidden = id !== figure.id;
      made.get(figure.id).update();
    });
  }

  // Filters -------------------------------------------------------------------------------------

  function addFilters() {
    const host = byId("filters");
    FACETS.forEach((facet) => {
      if (choices[facet].length < 2 || (facet === "seed" && !anySeed)) return;
      const summary = make("summary", {});
      const set = make("fieldset", {}, make("legend", {}, FACET_WORDS[facet]));
      const details = make("details", { "data-facet": facet }, summary, set);
      for (const value of choices[facet]) {
        const box = make("input", { type: "checkbox", value });
        box.addEventListener("change", () => {
          const chosen = state.chosen.get(facet) || new Set();
          if (box.checked) chosen.add(value); else chosen.delete(value);
          if (chosen.size) state.chosen.set(facet, chosen); else state.chosen.delete(facet);
          refresh();
        });
        set.append(make("label", {}, box, ` ${value}`));
      }
      details.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { details.open = false; summary.focus(); }
      });
      host.append(details);
      updates.push(() => {
        const chosen = state.chosen.get(facet);
        details.classList.toggle("on", Boolean(chosen));
        const names = chosen ? [...chosen].join(", ") : "all";
        summary.textContent = `${FACET_WORDS[facet]}: ${names.length > 28 ? `${chosen.size} of ${choices[facet].length}` : names}`;
        for (const box of set.querySelectorAll("input")) box.checked = Boolean(chosen && chosen.has(box.value));
      });
    });
    const clear = make("button", { type: "button", onclick: () => { state.chosen.clear(); refresh(); } }, "clear");
    host.append(clear);
    updates.push(() => { clear.hidden = !state.chosen.size; });
    document.addEventListener("click", (event) => {
      for (const open of host.querySelectorAll("details[open]")) if (!open.contains(event.target)) open.open = false;
    });
  }
  function refresh() {
    chooseScores();
    for (const update of updates) update();
    writeAddress();
    const n = scoreRows.filter((r) => r.level !== "seed").length;
    say(`${count(n)} rows of scores`);
  }

  // Documents -----------------------------------------------------------------------------------

  let drawDocuments = () => {};
  function openDocs(row) {
    const b = row.subject;
    const base = data.subjects[b].base;
    const other = row.prompts.find((p) => p !== row.prompts[0]) || row.prompts[0];
    state.doc = known(base)
      ? { dtask: row.task, a: String(base), b: String(b), pa: row.prompts[0], pb: row.prompts[0] }
      : { dtask: row.task, a: String(b), b: String(b), pa: row.prompts[0], pb: other };
    drawDocuments();
    writeAddress();
    const place = byId("documents");
    place.scrollIntoView();
    const head = place.querySelector("h2");
    head.tabIndex = -1;
    head.focus({ preventScroll: true });
  }
  function openFacets(facets) {
    const has = (row) => facets.every((values, n) => !values || row.facets[n].some((v) => values.includes(v)));
    const mean = (r) => r.level === "mean" && has(r);
    const found = datasets.scores.find((r) => mean(r) && r.kind === "own" && r.primary)
      || datasets.scores.find((r) => mean(r) && r.primary) || datasets.scores.find(mean);
    if (found) openDocs(found);
  }
  const KINDS = ["right to wrong", "wrong to right", "worse", "better", "another answer", "the same"];
  function kindOf(task, one, two) {
    if (!one || !two) return "the same";
    if (known(one[2]) && known(two[2]) && one[2] !== two[2]) {
      if (task.right) return one[2] > two[2] ? KINDS[0] : KINDS[1];
      return one[2] > two[2] ? KINDS[2] : KINDS[3];
    }
    return one[4] !== two[4] || one[6] !== two[6] ? KINDS[4] : KINDS[5];
  }
  const pre = (text) => make("pre", { tabindex: "0" }, text);
  function promptNode(task, entry, prompt) {
    if (entry.prompts[prompt] !== undefined) return pre(entry.prompts[prompt]);
    const box = make("div", {}, make("p", { class: "soft" }, "The prompt's text is not here (the tokenizer it was made with was not at hand): its template, and the document's fields."));
    if (task.templates && task.templates[prompt]) box.append(pre(task.templates[prompt]));
    if (entry.fields) box.append(pre(Object.entries(entry.fields).map(([k, v]) => `${k}: ${v}`).join("\n")));
    return box;
  }
  function verdict(task, answer) {
    if (!answer) return make("span", { class: "soft" }, "not in the sample");
    if (!task.right) return make("span", {}, `${task.metric} ${plain(answer[2])}`);
    return answer[2] === 1 ? make("span", { class: "right" }, "right") : make("span", { class: "wrong" }, "wrong");
  }
  function docNode(task, item, names) {
    const { entry, one, two, kind } = item;
    const change = known(item.change) ? `, probability of the right choice ${plain(one[3])} → ${plain(two[3])}`
      : one && two && known(one[2]) && known(two[2]) ? `, ${task.metric} ${plain(one[2])} → ${plain(two[2])}` : "";
    const body = make("div");
    const node = make("details", { class: "doc", "data-kind": kind },
      make("summary", {}, `document ${known(entry.index) ? entry.index : entry.id}: ${kind}${change}`), body);
    node.addEventListener("toggle", () => {
      if (!node.open || body.firstChild) return;
      const samePrompt = names.pa === names.pb;
      const sides = make("div", { class: "sides" });
      sides.append(make("div", {}, make("h4", {}, samePrompt ? "Prompt as sent" : `Prompt ${names.pa}`), promptNode(task, entry, names.pa)));
      if (!samePrompt) sides.append(make("div", {}, make("h4", {}, `Prompt ${names.pb}`), promptNode(task, entry, names.pb)));
      body.append(sides);
      const golds = entry.golds || [entry.gold];
      const options = (one && one[5].length) || (two && two[5].length) || 0;
      if (options) {
        const lines = [];
        for (let i = 0; i < options; i++) {
          const text = entry.choices && entry.choices[i] !== undefined ? entry.choices[i] : `choice ${i + 1}`;
          const side = (answer) => make("td", { class: "num" }, answer && known(answer[5][i]) ? `${answer[4] === i ? "● " : ""}${plain(answer[5][i])}` : "–");
          lines.push(make("tr", {}, make("td", {}, golds.includes(i) ? make("span", { class: "right" }, `✓ ${text}`) : text), side(one), side(two)));
        }
        body.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "choices" }, make("table", {},
          make("caption", {}, "log-probability of each choice; ✓ the right one, ● the one chosen"),
          make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "choice"), make("th", { scope: "col", class: "num" }, names.a), make("th", { scope: "col", class: "num" }, names.b))),
          make("tbody", {}, ...lines))));
      }
      if (entry.references) body.append(make("p", {}, make("b", {}, "Reference: "), entry.references.join(" | ")));
      const answers = make("div", { class: "sides" });
      [[names.a, one], [names.b, two]].forEach(([name, answer]) => {
        answers.append(make("div", {}, make("p", {}, make("b", {}, `${name}: `), verdict(task, answer)), answer && answer[6] !== null ? pre(answer[6]) : null));
      });
      body.append(answers);
      for (const [name, key] of [[names.a, names.ca], [names.b, names.cb]]) {
        if (key) body.append(make("p", { class: "soft" }, `${name}, in full: `, make("code", {}, `evalcore show RESULTS ${key} ${entry.index}`)));
      }
    });
    return node;
  }

  function addDocuments() {
    const host = document.querySelector("#documents .put");
    const tasks = Object.keys(data.documents).filter((t) => data.documents[t].documents.length);
    if (!tasks.length) { host.append(make("p", {}, "No documents are in this page.")); return; }
    const picks = {};
    const about = make("p", { class: "soft" });
    const list = make("div");
    const bar = make("div", { class: "choose" });
    const pick = (key, label) => {
      picks[key] = make("select", { onchange: () => { state.doc[key] = picks[key].value; drawDocuments(); writeAddress(); } });
      bar.append(make("label", {}, label, picks[key]));
    };
    pick("dtask", "task"); pick("a", "this model"); pick("pa", "under prompt"); pick("b", "beside this model"); pick("pb", "under prompt "); pick("kind", "documents that went from");
    const search = make("input", { type: "search", oninput: () => { state.doc.q = search.value; drawDocuments(); writeAddress(); } });
    bar.append(make("label", {}, "search", search));
    host.append(about, bar, list);

    const options = (select, pairs, value) => {
      select.replaceChildren(...pairs.map(([v, text]) => make("option", { value: v }, text)));
      select.value = pairs.some(([v]) => v === value) ? value : pairs[0][0];
      return select.value;
    };
    function settle() {
      const d = state.doc;
      const first = data.figures.find((f) => f.id === data.first);
      const wanted = d.dtask || (first && first.where.task ? first.where.task[0] : tasks[0]);
      d.dtask = options(picks.dtask, tasks.map((t) => [t, t]), wanted);
      const task = data.documents[d.dtask];
      if (!task.pairs) {
        task.pairs = new Map();
        for (const entry of task.documents) {
          entry.found = new Map();
          for (const answer of entry.answers) {
            entry.found.set(`${answer[0]}|${answer[1]}`, answer);
            if (!task.pairs.has(answer[0])) task.pairs.set(answer[0], new Set());
            task.pairs.get(answer[0]).add(answer[1]);
          }
        }
      }
      const own = [...task.pairs.keys()].sort((x, y) => x - y);
      const pairs = own.map((s) => [String(s), data.subjects[s].name]);
      const rows = datasets.scores.filter((r) => r.level === "prompt" && r.task === d.dtask && r.kind === "own" && own.includes(r.subject));
      const tuned = rows.length ? rows[rows.length - 1].subject : own[own.length - 1];
      const base = data.subjects[tuned].base;
      d.b = options(picks.b, pairs, d.b || String(tuned));
      d.a = options(picks.a, pairs, d.a || String(known(base) ? base : own[0]));
      const prompts = (s) => [...task.pairs.get(Number(s))].sort().map((p) => [p, p]);
      d.pa = options(picks.pa, prompts(d.a), d.pa);
      d.pb = options(picks.pb, prompts(d.b), d.pb || d.pa);
      return task;
    }
    let most = 20;
    drawDocuments = () => {
      const task = settle();
      const d = state.doc;
      const names = { a: data.subjects[d.a].name, b: data.subjects[d.b].name, pa: d.pa, pb: d.pb };
      if (d.a === d.b) { names.a += `, ${d.pa}`; names.b += `, ${d.pb}`; }
      const cellOf = (s, p) => (datasets.scores.find((r) => r.level === "prompt" && r.subject === Number(s) && r.task === d.dtask && r.prompts[0] === p) || {}).cell;
      names.ca = cellOf(d.a, d.pa);
      names.cb = cellOf(d.b, d.pb);
      const words = (d.q || "").toLowerCase();
      search.value = d.q || "";
      let items = task.documents.map((entry) => {
        const [one, two] = [entry.found.get(`${d.a}|${d.pa}`), entry.found.get(`${d.b}|${d.pb}`)];
        const change = one && two && known(one[3]) && known(two[3]) ? two[3] - one[3] : null;
        const size = Math.abs(known(change) ? change : one && two ? (two[2] || 0) - (one[2] || 0) : 0);
        return { entry, one, two, change, size, kind: kindOf(task, one, two) };
      });
      const counts = KINDS.map((k) => [k, items.filter((i) => i.kind === k).length]).filter(([, n]) => n);
      d.kind = options(picks.kind, [["", `all (${items.length})`], ...counts.map(([k, n]) => [k, `${k} (${n})`])], d.kind || "");
      const text = (i) => [Object.values(i.entry.prompts), Object.values(i.entry.fields || {}), i.entry.choices || [], i.entry.references || [], i.one && i.one[6], i.two && i.two[6]].flat().join("\n").toLowerCase();
      items = items.filter((i) => (!d.kind || i.kind === d.kind) && (!words || text(i).includes(words)));
      items.sort((x, y) => KINDS.indexOf(x.kind) - KINDS.indexOf(y.kind) || y.size - x.size);
      about.textContent = `A sample: ${task.documents.length} of ${count(task.total)} documents, half of them those that tuning changed most at the last checkpoint, the others drawn`
        + `${task.cells < task.of ? `; answers of ${count(task.cells)} of ${count(task.of)} (model, prompt) pairs` : ""}`
        + ". Shares of this list are not shares of the task: those stand in the table of scores as better and worse. Grouped by what changed, then by the change of the right choice's probability.";
      const heads = [];
      let last = null;
      for (const item of items.slice(0, most)) {
        if (item.kind !== last) heads.push(make("h3", {}, `${item.kind[0].toUpperCase()}${item.kind.slice(1)}`));
        last = item.kind;
        heads.push(docNode(task, item, names));
      }
      if (items.length > most) heads.push(make("button", { type: "button", onclick: () => { most += 50; drawDocuments(); } }, `${items.length - most} more`));
      list.replaceChildren(...(heads.length ? heads : [make("p", {}, "None.")]));
    };
    updates.push(drawDocuments);
  }

  // Start ---------------------------------------------------------------------------------------

  let at = readAddress();
  addFilters();
  addHero();
  addScores();
  for (const section of document.querySelectorAll("main section")) {
    const put = section.querySelector(".put");
    const own = data.figures.filter((f) => f.section === section.id);
    if (put && own.length) {
      const grid = make("div", { class: "grid" });
      put.append(grid);
      for (const figure of own) updates.push(addFigure(grid, figure, false).update);
    }
  }
  for (const table of data.tables) addTable(table);
  addDocuments();
  refresh();
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      const target = byId(link.getAttribute("href").slice(1));
      if (!target) return;
      event.preventDefault(); // the fragment is the filter's
      target.scrollIntoView();
      target.tabIndex = -1;
      target.focus({ preventScroll: true });
    });
  }
  addEventListener("hashchange", () => { at = readAddress(); refresh(); });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  const drawAll = () => {
    for (const show of printing) show();
    return Promise.all([...dirty].map((box) => box.drawChart()));
  };
  addEventListener("beforeprint", drawAll);
  window.evalcoreReport = { drawAll }; // for who prints without a dialogue
  if (at && byId(at)) byId(at).scrollIntoView();
  document.documentElement.dataset.ready = "yes";
})();
