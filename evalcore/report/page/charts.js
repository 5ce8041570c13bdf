// Part 3: charts, drawn when they come into view.

const MANY = 600; // marks a canvas draws faster than elements
const MOST_LINES = 40; // of a heat map, unless all are asked for: a screen has no more
const LEAST_TEXT = 26; // pixels a column of a heat map needs for its numbers
const tip = byId("tip");
// What a mark says: its row's columns, as the specification names them, looked up now.
const tipOf = (figure) => (handler, event, item, value) => {
  if (!value || typeof value !== "object") { tip.hidden = true; return; }
  const row = datasets[figure.dataset].rows[value.i];
  const said = row ? figure.spec.usermeta.tips.map(([name, title]) => [title, row[name]]) : [];
  if (!row && known(value.floor)) said.push(["trivial answer", plain(value.floor)]);
  tip.replaceChildren(...said.filter(([, v]) => known(v) && v !== "" && v !== "–")
    .map(([title, v]) => make("div", {}, make("b", {}, title), typeof v === "number" ? count(v) : String(v))));
  tip.hidden = !tip.firstChild;
  const [w, h] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - w - 8))}px`;
  tip.style.top = `${Math.max(4, event.clientY + 18 + h > innerHeight ? event.clientY - h - 12 : event.clientY + 18)}px`;
}
const dirty = new Set();
const onScreen = (box) => { const at = box.getBoundingClientRect(); return at.bottom > 0 && at.top < innerHeight; };
const drawings = new Set(); // promises of charts that are being drawn
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.inView = entry.isIntersecting;
    if (entry.isIntersecting && dirty.has(entry.target)) entry.target.drawChart();
  }
}, { rootMargin: "150px" });

// A heat map's height hangs on its rows: its place is kept before it comes into view.
const coming = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) entry.target.keepPlace();
}, { rootMargin: "1500px" });

function inked() { // style sheets do not reach into a canvas
  const color = getComputedStyle(document.body).color;
  return { axis: { labelColor: color, titleColor: color }, legend: { labelColor: color, titleColor: color } };
}
function figureTable(figure) {
  if (figure.dataset === "scores") return SCORE_COLUMNS;
  if (figure.dataset === "losses") return ["tuning", "checkpoint", "job", "seed", "step", "loss"].map((k) => column(k, k === "loss" ? "number" : k === "step" ? "count" : "text", k));
  return [column("task", "text", "task"), column("kind", "text", "kind"), column("tokens", "count", "tokens")];
}
// Rows of a heat map's lines that changed most (or of the first ones, where nothing is a change).
function fewLines(figure, rows) {
  if (!figure.row) return [rows, 0];
  const most = new Map();
  for (const row of rows) most.set(row.row, Math.max(most.get(row.row) || 0, Math.abs(row.gain || 0)));
  if (figure.all || most.size <= MOST_LINES) return [rows, most.size];
  const kept = new Set([...most.keys()].sort((x, y) => most.get(y) - most.get(x)).slice(0, MOST_LINES));
  return [rows.filter((row) => kept.has(row.row)), most.size];
}
function addFigure(host, figure, hero) {
  const chart = make("div", { class: "chart", role: "img", "aria-label": `${figure.title}: ${figure.caption}` });
  const height = typeof figure.spec.height === "number" ? figure.spec.height * (hero ? 1.35 : 1) + 130 : 170;
  chart.style.minHeight = `${height}px`;
  const details = make("details", {}, make("summary", {}, "table of this figure"));
  const all = make("button", { type: "button", onclick: () => { figure.all = true; dirty.add(box); box.drawChart(); } }, "show all");
  const fewer = make("span");
  const few = make("p", { class: "soft", hidden: true }, fewer, all);
  const box = make("figure", { id: (hero ? "first-" : "figure-") + figure.id },
    make("h3", {}, figure.title), chart, make("figcaption", {}, figure.caption), few, details);
  host.append(box);
  let table = null;
  let view = null;
  let renderer = "";
  let drawn = Promise.resolve();
  const fill = () => {
    if (!details.open) return;
    if (!table) {
      table = makeTable(details, `Table of ${figure.title}`, figureTable(figure));
      const files = figure.picture
        ? ["The picture: ", make("code", {}, `${figure.id}.png`), " and ", make("code", {}, `${figure.id}.svg`)]
        : ["No picture was written: there are many; ", make("code", {}, "evalcore report --tasks"), " makes those of a task"];
      details.append(source(figure.file), make("p", { class: "soft" }, ...files));
    }
    table.set(rowsOf(figure));
  };
  details.addEventListener("toggle", fill);
  async function drawNow() {
    if (!dirty.delete(box)) return;
    const [rows, lines] = fewLines(figure, chartRows(figure, rowsOf(figure)));
    if (!rows.length) return;
    few.hidden = figure.all || lines <= MOST_LINES;
    fewer.textContent = `${MOST_LINES} of ${count(lines)} rows: ${figure.fields.includes("gain") ? "those that changed most" : "the first"}. `;
    const columns = figure.row ? new Set(rows.map((row) => row.at)).size : 0;
    const bare = columns && (chart.clientWidth - 150) / columns < LEAST_TEXT; // no room for numbers
    const wanted = `${rows.length > MANY ? "canvas" : "svg"}${bare ? " bare" : ""}`;
    if (view && renderer === wanted) { await view.data("rows", rows).resize().runAsync(); return; }
    if (view) view.finalize();
    const kind = wanted.split(" ")[0];
    const spec = { ...figure.spec, datasets: { rows } };
    if (bare) spec.layer = spec.layer.filter((layer) => layer.mark.type !== "text");
    if (hero) spec.height *= 1.35;
    const made = await window.vegaEmbed(chart, spec,
      { config: kind === "canvas" ? inked() : {}, ast: true, renderer: kind, actions: false, defaultStyle: false, tooltip: tipOf(figure) });
    [view, renderer] = [made.view, wanted];
    chart.style.minHeight = "";
    box.dataset.drawn = "yes";
    // The words of the figure are its label; single marks would be read one by one.
    for (const node of chart.querySelectorAll("svg, canvas")) node.setAttribute("aria-hidden", "true");
  }
  box.drawChart = () => { // one after the other, the last of several states once
    drawn = drawn.catch(() => {}).then(drawNow);
    const own = drawn.finally(() => drawings.delete(own));
    drawings.add(own);
    return own;
  };
  box.keepPlace = () => {
    if (view || !figure.row) return;
    const lines = fewLines(figure, chartRows(figure, rowsOf(figure)))[1];
    chart.style.minHeight = `${24 * Math.min(lines, figure.all ? lines : MOST_LINES) + 135}px`;
  };
  seen.observe(box);
  if (figure.row) coming.observe(box);
  return { box, update: () => {
    if (!hero) box.hidden = state.chosen.size > 0 && !anyRowOf(figure); // unfiltered, all have rows
    dirty.add(box);
    if (hero || (box.inView && onScreen(box))) box.drawChart();
    else if (box.inView) idle(() => { if (dirty.has(box)) box.drawChart(); }); // what is seen comes first
    fill();
  } };
}
// The first screen's picture: of the headline's task, or of the first the filter leaves.
function addHero() {
  const curves = data.figures.filter((f) => f.section === "curves");
  curves.sort((x, y) => (y.id === data.first) - (x.id === data.first));
  byId("hero").hidden = !curves.length; // nothing has a score
  const made = new Map();
  updates.push(() => {
    const figure = curves.find(anyRowOf) || curves[0];
    if (!figure) return;
    if (!made.has(figure.id)) made.set(figure.id, addFigure(byId("hero"), figure, true));
    for (const [id, one] of made) one.box.hidden = id !== figure.id;
    made.get(figure.id).update();
  });
}
