// The filter bar, and the state of the page in the address: #tab=...&model=...&run=...
"use strict";
(() => {
  const { el } = Atom;
  const LISTS = Object.keys(Atom.FACETS);
  const SINGLE = ["tab", "period", "x", "y", "scale", "axis", "values", "sort", "run"];

  Atom.readState = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    const state = {};
    for (const key of LISTS) state[key] = given.getAll(key);
    for (const key of SINGLE) state[key] = given.get(key) || "";
    return state;
  };
  Atom.writeState = (state, push) => {
    const out = new URLSearchParams();
    for (const key of SINGLE) if (state[key]) out.set(key, state[key]);
    for (const key of LISTS) for (const value of state[key]) out.append(key, value);
    const hash = `#${out}`;
    if (hash === location.hash || (hash === "#" && !location.hash)) return;
    history[push ? "pushState" : "replaceState"](null, "", hash);
  };

  function choice(key, state, change) {
    const facet = Atom.FACETS[key];
    const counts = new Map();
    const kind = state.tab === "accuracy" ? "eval" : "bench";
    for (const run of Atom.data.runs) {
      if (run.kind === kind && Atom.matches(run, state, key))
        counts.set(facet.of(run), (counts.get(facet.of(run)) || 0) + 1);
    }
    for (const value of state[key]) if (!counts.has(value)) counts.set(value, 0);
    const values = [...counts.keys()].sort((a, b) =>
      facet.show(a).localeCompare(facet.show(b), "en", { numeric: true }),
    );
    const said =
      state[key].length === 0
        ? "all"
        : state[key].length === 1
          ? facet.show(state[key][0])
          : `${state[key].length} chosen`;
    const summary = el(
      "summary",
      { class: state[key].length ? "on" : null },
      el("span", { class: "what" }, facet.label),
      " ",
      el("span", { class: "value" }, said),
    );
    const list = el(
      "fieldset",
      null,
      el("legend", { class: "sr" }, facet.label),
      values.map((value) => {
        const box = el("input", { type: "checkbox", value, checked: state[key].includes(value) });
        box.addEventListener("change", () => {
          const chosen = [...list.querySelectorAll("input:checked")].map((b) => b.value);
          change({ [key]: chosen }, key);
        });
        return el(
          "label",
          { title: value },
          box,
          el("span", null, facet.show(value)),
          el("span", { class: "count" }, Atom.number(counts.get(value))),
        );
      }),
    );
    return el(
      "details",
      { class: "choice", "data-key": key },
      summary,
      el("div", { class: "menu" }, values.length > 8 ? search(list, facet.label) : null, list),
    );
  }

  function search(list, label) {
    const box = el("input", {
      type: "search",
      placeholder: "Find",
      "aria-label": `Find ${label}`,
      autocomplete: "off",
    });
    box.addEventListener("input", () => {
      const wanted = box.value.toLowerCase();
      for (const row of list.querySelectorAll("label"))
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    return box;
  }

  Atom.filterBar = (state, change) => {
    const bar = document.getElementById("filters");
    const open = bar.querySelector("details[open].choice");
    const openKey = open ? open.dataset.key : "";
    const focused =
      document.activeElement && bar.contains(document.activeElement) ? document.activeElement.value : null;
    const expanded = bar.querySelector(".toggle")?.getAttribute("aria-expanded") === "true";
    bar.hidden = !Atom.data.runs.length;
    if (bar.hidden) return;

    const all = Atom.data.runs.length;
    const count = Atom.data.runs.filter((run) => Atom.matches(run, state)).length;
    const active = LISTS.filter((key) => state[key].length).length + (state.period ? 1 : 0);
    const keys = state.tab === "accuracy" ? LISTS.filter((key) => !Atom.NOT_OF_EVALS.has(key)) : LISTS;
    const choices = keys.map((key) => choice(key, state, change));
    const period = Atom.select("Period", Atom.PERIODS, state.period, (value) => change({ period: value }));
    const clear = el("button", { type: "button", class: "small", hidden: !active }, "Clear filters");
    clear.addEventListener("click", () => Atom.clearFilters());
    const group = el("div", { class: "group", id: "filter-group" }, choices, period, clear);
    const toggle = el(
      "button",
      { type: "button", class: "toggle", "aria-expanded": String(expanded), "aria-controls": "filter-group" },
      active ? `Filters (${active})` : "Filters",
    );
    toggle.addEventListener("click", () =>
      toggle.setAttribute("aria-expanded", String(toggle.getAttribute("aria-expanded") !== "true")),
    );
    bar.replaceChildren(
      toggle,
      group,
      el(
        "p",
        { class: "total" },
        count === all
          ? `${Atom.number(all)} ${all === 1 ? "run" : "runs"}`
          : `${Atom.number(count)} of ${Atom.number(all)} runs`,
      ),
    );

    const again = openKey && bar.querySelector(`details[data-key="${openKey}"]`);
    if (again) {
      again.open = true;
      const box = [...again.querySelectorAll("input[type=checkbox]")].find((b) => b.value === focused);
      if (box) box.focus();
    }
    for (const details of bar.querySelectorAll("details.choice")) {
      details.addEventListener("toggle", () => {
        if (details.open)
          for (const other of bar.querySelectorAll("details.choice[open]"))
            if (other !== details) other.open = false;
      });
      details.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || !details.open) return;
        details.open = false;
        details.querySelector("summary").focus();
      });
    }
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest("details.choice") || !event.target.isConnected) return;
    for (const details of document.querySelectorAll("details.choice[open]")) details.open = false;
  });
})();
