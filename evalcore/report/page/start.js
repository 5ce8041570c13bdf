// Part 6: puts the page together.

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
addEventListener("hashchange", () => { at = readAddress(); refresh(); drawDocuments(); });
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
const drawAll = () => {
  paper = true;
  for (const show of printing) show();
  return Promise.all([...dirty].map((box) => box.drawChart()));
};
addEventListener("beforeprint", drawAll);
addEventListener("afterprint", () => { paper = false; });
window.evalcoreReport = { // for who prints without a dialogue, and who measures
  drawAll, settled: () => Promise.all([...drawings]),
};
if (at && byId(at)) byId(at).scrollIntoView();
document.documentElement.dataset.ready = "yes";
