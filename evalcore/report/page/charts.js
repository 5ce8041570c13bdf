// Part 3: charts, drawn when they come into view.

const MANY = 1500; // marks a canvas draws faster than elements
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
const drawings = new Set(); // promises of charts that are being drawn
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.inView = entry.isIntersecting;
    if (entry.isIntersecting && dirty.has(entry.target)) entry.target.drawChart();
  }
}, { rootMargin: "150px" });

function inked() { // style sheets do not reach into a canvas
  const color = getComputedStyle(document.body).color;
  return { axis: { labelColor: color, titleColor: color }, legend: { labelColor: color, titleColor: color } };
}
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
    const rows = chartRows(figure, rowsOf(figure));
    if (!rows.length) return;
    const wanted = rows.length > MANY ? "canvas" : "svg";
    if (view && renderer === wanted) { await view.data("rows", rows).resize().runAsync(); return; }
    if (view) view.finalize();
    const made = await window.vegaEmbed(chart, { ...figure.spec, datasets: { rows } },
      { config: wanted === "canvas" ? inked() : {}, ast: true, renderer: wanted, actions: false, defaultStyle: false, tooltip: showTip });
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
  seen.observe(box);
  return { box, update: () => {
    if (!hero) box.hidden = state.chosen.size > 0 && !anyRowOf(figure); // unfiltered, all have rows
    dirty.add(box);
    if (box.inView || hero) box.drawChart();
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
