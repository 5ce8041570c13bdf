// Part 4: filters.

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
  choose();
  for (const update of updates) update();
  writeAddress();
  say(`${count(shown.length)} rows of scores`);
}
