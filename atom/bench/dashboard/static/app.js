// The page: tabs, state, and the one place where everything is drawn again.
"use strict";
(() => {
  const { el } = Atom;
  const NAMES = Object.keys(Atom.views);
  const tabs = document.getElementById("tabs"),
    panels = document.getElementById("panels");
  let state = Atom.readState();
  const current = () => (NAMES.includes(state.tab) ? state.tab : NAMES[0]);

  Atom.nothing = (kind) => {
    if (Atom.data.problem)
      return Atom.empty("The history cannot be shown", Atom.data.problem, ["atom dashboard build"]);
    const none = !Atom.data.runs.some((run) => kind === "run" || run.kind === kind);
    if (none && kind === "eval") {
      return Atom.empty(
        "No accuracy results yet",
        "Evaluate a model, or take in results of lm-eval, and build this page again.",
        ["atom eval gsm8k", "atom bench import results_*.json", "atom dashboard build"],
      );
    }
    if (none) {
      return Atom.empty(
        "The history is empty",
        "Benchmark a server, or take in results that you have, and build this page again.",
        ["atom bench --concurrency 1-16*2", "atom bench import result.json", "atom dashboard build"],
      );
    }
    const clear = el("button", { type: "button", class: "small" }, "Clear filters");
    clear.addEventListener("click", () => Atom.clearFilters());
    return Atom.empty("No run matches these filters", "Other filters have runs.", [], clear);
  };

  // Changes of filters replace the address, so that Back leads to the view before.
  Atom.change = (part) => {
    Object.assign(state, part);
    Atom.writeState(state, false);
    if (!("sort" in part)) draw(); // a table has sorted itself
  };
  Atom.clearFilters = () => {
    Atom.change({ ...Object.fromEntries(Object.keys(Atom.FACETS).map((key) => [key, []])), period: "" });
    document.getElementById("main").focus();
  };
  Atom.open = (run) => {
    state.run = run.id;
    Atom.writeState(state, true);
    Atom.drawer(run);
  };
  Atom.closed = () => {
    if (!state.run) return;
    state.run = "";
    Atom.writeState(state, false);
  };

  function go(name, focus) {
    state.tab = name;
    state.sort = "";
    Atom.writeState(state, true);
    draw();
    if (focus) document.getElementById(`tab-${name}`).focus();
  }

  function drawTabs() {
    const active = current();
    if (!tabs.childElementCount) {
      tabs.append(
        ...NAMES.map((name) => {
          const button = el(
            "button",
            { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}` },
            Atom.views[name].label,
          );
          button.addEventListener("click", () => go(name, false));
          return button;
        }),
      );
      tabs.addEventListener("keydown", (event) => {
        const at = NAMES.indexOf(current());
        const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: NAMES.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        go(NAMES[(to + NAMES.length) % NAMES.length], true);
      });
      panels.append(
        ...NAMES.map((name) =>
          el("div", {
            role: "tabpanel",
            id: `panel-${name}`,
            "aria-labelledby": `tab-${name}`,
            tabindex: "-1",
            hidden: true,
          }),
        ),
      );
    }
    for (const name of NAMES) {
      const tab = document.getElementById(`tab-${name}`),
        chosen = name === active;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      document.getElementById(`panel-${name}`).hidden = !chosen;
    }
    const chosen = document.getElementById(`tab-${active}`);
    tabs.scrollLeft = Math.max(0, chosen.offsetLeft - tabs.offsetLeft - 24);
    document.title = `${Atom.views[active].label} · atom benchmarks`;
    document.getElementById("title").textContent = `Benchmark history: ${Atom.views[active].label}`;
  }

  function draw() {
    const focused = document.activeElement?.id;
    drawTabs();
    Atom.filterBar(state, (part) => Atom.change(part));
    Atom.dropCharts();
    const name = current();
    for (const other of NAMES)
      if (other !== name) document.getElementById(`panel-${other}`).replaceChildren();
    const made = [Atom.views[name].render(state)].flat(Infinity).filter(Boolean);
    document.getElementById(`panel-${name}`).replaceChildren(...made);
    Atom.redraw();
    if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
  }
  Atom.refresh = draw;

  function drawTheme() {
    const names = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };
    document.getElementById("theme").textContent = names[AtomTheme.get()];
  }
  document.getElementById("theme").addEventListener("click", () => {
    AtomTheme.next();
    drawTheme();
    draw();
  });

  // The address holds the state, so the way past the header must not become one.
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });

  function fromAddress() {
    state = Atom.readState();
    draw();
    const drawer = document.getElementById("drawer"),
      run = Atom.byId.get(state.run);
    if (run) Atom.drawer(run);
    else if (drawer.open) drawer.close();
    if (state.run && !run) Atom.say("That run is not in this history");
  }
  addEventListener("popstate", fromAddress);

  const built = Atom.data.built_at ? `Built ${Atom.time(Date.parse(Atom.data.built_at))} UTC` : "";
  document
    .getElementById("foot")
    .append(
      el(
        "p",
        null,
        [built, Atom.data.source && `from ${Atom.data.source}`, Atom.data.atom && `by atom ${Atom.data.atom}`]
          .filter(Boolean)
          .join(" "),
      ),
      el("p", null, "Charts: Apache ECharts. Nothing is loaded from a network."),
    );
  drawTheme();
  fromAddress();
})();
