// Part 5: documents, two models or two prompts side by side.

let drawDocuments = () => {};
// change: 1 for documents that came out better, -1 for worse, 0 for all.
function openDocs(row, change = 0) {
  const b = row.subject;
  const base = data.subjects[b].base;
  const other = row.prompts.find((p) => p !== row.prompts[0]) || row.prompts[0];
  state.doc = known(base)
    ? { dtask: row.task, a: String(base), b: String(b), pa: row.prompts[0], pb: row.prompts[0] }
    : { dtask: row.task, a: String(b), b: String(b), pa: row.prompts[0], pb: other };
  const task = data.documents[row.task];
  if (change) state.doc.kind = KINDS[(task && task.right ? 0 : 2) + (change > 0)];
  drawDocuments();
  writeAddress();
  const place = byId("documents");
  place.scrollIntoView();
  const head = place.querySelector("h2");
  head.tabIndex = -1;
  head.focus({ preventScroll: true });
}
function openFacets(facets) {
  const keys = FACETS.map((facet) => FACET_COLUMNS.scores[facet]);
  const has = (row) => facets.every((values, n) => !values || listOf(row[keys[n]]).some((v) => values.includes(v)));
  const means = scores.rows.filter((r) => r.level === "mean" && has(r));
  const found = means.find((r) => r.kind === "own" && r.primary) || means.find((r) => r.primary) || means[0];
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
    const rows = rowsWith("task", d.dtask).filter((r) => r.level === "prompt" && r.kind === "own" && task.pairs.has(r.subject));
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
    const cellOf = (s, p) => (rowsWith("task", d.dtask).find((r) => r.level === "prompt" && r.subject === Number(s) && r.prompts[0] === p) || {}).cell;
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
  drawDocuments();
}
