// Throughput vs Latency: the Pareto picture, how throughput scales with load, and the matrix.
"use strict";
(() => {
  const { el } = Atom;
  const MOST = 12; // curves that can be told apart
  const X = [
    ["output_throughput_per_user", "Tokens per user, tok/s/user"],
    ["mean_ttft_ms", "TTFT mean, ms"],
    ["p99_ttft_ms", "TTFT p99, ms"],
    ["mean_tpot_ms", "TPOT mean, ms"],
    ["p99_tpot_ms", "TPOT p99, ms"],
    ["mean_e2el_ms", "E2EL mean, ms"],
  ];
  const Y = [
    ["total_per_device", "Total tok/s per GPU"],
    ["output_per_device", "Output tok/s per GPU"],
    ["steady_total_per_device", "Total tok/s per GPU, steady state"],
    ["steady_output_per_device", "Output tok/s per GPU, steady state"],
    ["request_throughput", "Requests per second"],
    ["request_goodput", "Goodput, requests per second"],
  ];
  const hidden = new Set();
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const known = (list) => list.filter(([name]) => Atom.data.values[name]);
  const pick = (list, wanted) => (list.some(([name]) => name === wanted) ? wanted : (list[0] || [""])[0]);
  const plotted = (run, x, y) => Atom.cell(run, x) && Atom.cell(run, y);

  // The curves with the newest runs, when there are more than can be told apart.
  function curves(runs) {
    const found = [...Atom.group(runs, (run) => run.series).entries()].map(([key, list]) => ({
      key,
      list: list.sort((a, b) => (a.load.level ?? 0) - (b.load.level ?? 0)),
    }));
    const newest = (c) => Math.max(...c.list.map((run) => run.time));
    const shown = [...found].sort((a, b) => newest(b) - newest(a)).slice(0, MOST);
    const label = Atom.labels(shown.map((c) => c.list[0]));
    const looks = Atom.looks(
      shown.map((c) => c.key),
      Atom.rankOfSeries,
    );
    for (const curve of shown)
      Object.assign(curve, { label: label(curve.list[0]), index: looks.get(curve.key) });
    return {
      shown: shown.sort((a, b) => a.label.localeCompare(b.label, "en", { numeric: true })),
      dropped: found.length - shown.length,
    };
  }

  function drawn(curve, x, y, labelled, front) {
    const look = Atom.look(curve.index);
    const points = curve.list.filter((run) => plotted(run, x, y));
    return [
      {
        type: "line",
        name: curve.label,
        symbol: look.shape,
        symbolSize: 8,
        showAllSymbol: true,
        z: 3,
        cursor: "pointer",
        lineStyle: { color: look.colour, width: 1.5, opacity: 0.6 },
        itemStyle: { color: look.colour },
        label: {
          show: labelled,
          formatter: (p) => p.data.text,
          position: "top",
          distance: 4,
          fontSize: 10,
          color: style("--muted"),
        },
        labelLayout: { hideOverlap: true },
        emphasis: { disabled: true },
        data: points.map((run) => ({
          value: [Atom.value(run, x), Atom.value(run, y)],
          run: run.index,
          text: run.load.label,
          tip: Atom.tipOf(run, [x, y], curve.label),
          symbolSize: front.has(run) ? 10 : 7,
          itemStyle: front.has(run)
            ? { color: look.colour, borderColor: style("--text"), borderWidth: 1.5 }
            : { color: look.colour },
        })),
      },
      Atom.whiskers(
        points.map((run) => ({ x: Atom.cell(run, x), y: Atom.cell(run, y) })),
        look.colour,
      ),
    ];
  }

  const lowerX = (x) => Atom.metric(x).better === "lower";
  const points = (list, x, y) =>
    list
      .flatMap((c) => c.list)
      .filter((run) => plotted(run, x, y))
      .map((run) => [Atom.value(run, x), Atom.value(run, y), run]);

  // A front for each model and shape: points of other work are no better choice, only other work.
  const work = (curve) => JSON.stringify([curve.list[0].model, curve.list[0].shape]);
  const fronts = (list, x, y) =>
    [...Atom.group(list, work).values()].map((curves) => Atom.pareto(points(curves, x, y), lowerX(x)));

  const frontSeries = (list, x, y) =>
    fronts(list, x, y).map((front) => ({
      type: "line",
      silent: true,
      z: 1,
      symbol: "none",
      step: lowerX(x) ? "end" : "start",
      data: front.map((p) => [p[0], p[1]]),
      lineStyle: { color: style("--muted"), width: 1, type: [2, 3] },
    }));

  function paretoFigure(state, set, dropped) {
    const xs = known(X),
      ys = known(Y);
    const x = pick(xs, state.x),
      y = pick(ys, state.y);
    const visible = () => set.filter((c) => !hidden.has(c.key));
    const all = points(set, x, y);
    const found = fronts(set, x, y);
    const front = new Set(found.flat().map((p) => p[2]));
    const cpu = set.some((c) => c.list.some((run) => !run.gpus));
    const notes = [
      `Ringed points and dotted line: the Pareto front${found.length > 1 ? " of each model and ISL/OSL" : ""}, ${front.size} of ${all.length} points. Whiskers: 95 % intervals.`,
    ];
    if (cpu && y.endsWith("_per_device"))
      notes.push("Runs without a GPU, or of unknown GPU count, take the whole machine as one device.");
    if (dropped)
      notes.push(`The ${MOST} newest of ${MOST + dropped} curves are drawn; filter to see others.`);
    const log = state.scale === "log";
    const name = (list, key) => list.find(([k]) => k === key)[1];
    const xn = name(xs, x),
      yn = Atom.perWhat(
        name(ys, y),
        set.flatMap((c) => c.list),
      );
    return Atom.chart({
      title: "Throughput against speed",
      height: 420,
      onOpen: Atom.open,
      note: notes.join(" "),
      label: `Scatter of ${all.length} points in ${set.length} curves: ${xn} across, ${yn} up. ${front.size} points form the Pareto front. The table below has the figures.`,
      controls: el(
        "div",
        { class: "controls" },
        Atom.select("Across", xs, x, (value) => Atom.change({ x: value })),
        Atom.select("Up", ys, y, (value) => Atom.change({ y: value })),
        Atom.select(
          "Scale",
          [
            ["", "Linear"],
            ["log", "Logarithmic"],
          ],
          state.scale,
          (value) => Atom.change({ scale: value }),
        ),
      ),
      legend: (redraw) =>
        Atom.legend(
          set.map((c) => ({ key: c.key, label: c.label, look: Atom.look(c.index) })),
          hidden,
          redraw,
        ),
      build: (width) =>
        Atom.option({
          x: { name: xn, min: lowerX(x) ? 0 : undefined },
          y: log ? { name: yn, type: "log" } : { name: yn, min: 0, scale: false },
          series: [
            ...frontSeries(visible(), x, y),
            ...visible().flatMap((c) => drawn(c, x, y, width > 560, front)),
          ],
        }),
      twin: Atom.twin("Points of the chart", () => ({
        columns: [
          ...Atom.runColumns(),
          Atom.metricColumn(x, xn),
          Atom.metricColumn(y, yn),
          { key: "front", label: "On the front", of: (run) => (front.has(run) ? "yes" : "no") },
        ],
        rows: all.map((p) => p[2]),
        onOpen: Atom.open,
      })),
    });
  }

  function scaling(set, y, title, lower) {
    const levels = [
      ...new Set(
        set
          .flatMap((c) => c.list)
          .filter((r) => r.load.mode === "concurrency")
          .map((r) => r.load.level),
      ),
    ].sort((a, b) => a - b);
    const part = set
      .map((c) => ({ ...c, list: c.list.filter((r) => r.load.mode === "concurrency" && Atom.cell(r, y)) }))
      .filter((c) => c.list.length);
    if (levels.length < 2 || !part.length) return null;
    return Atom.chart({
      title,
      height: 260,
      onOpen: Atom.open,
      label: `${title} for ${part.length} curves at ${levels.length} levels of concurrency. The table below has the figures.`,
      build: () =>
        Atom.option({
          x: { type: "category", data: levels.map(String), name: "Concurrency", boundaryGap: true },
          y: { name: `${Atom.metric(y).unit}${lower ? ", lower is better" : ""}`, min: 0, scale: false },
          series: part
            .filter((c) => !hidden.has(c.key))
            .map((c) => {
              const look = Atom.look(c.index);
              return {
                type: "line",
                symbol: look.shape,
                symbolSize: 7,
                showAllSymbol: true,
                cursor: "pointer",
                lineStyle: { color: look.colour, width: 1.5 },
                itemStyle: { color: look.colour },
                emphasis: { disabled: true },
                data: c.list.map((run) => ({
                  value: [levels.indexOf(run.load.level), Atom.value(run, y)],
                  run: run.index,
                  tip: Atom.tipOf(run, [y], c.label),
                })),
              };
            }),
        }),
      twin: Atom.twin(title, () => ({
        columns: [...Atom.runColumns(), Atom.metricColumn(y, Atom.metric(y).label)],
        rows: part.flatMap((c) => c.list),
        onOpen: Atom.open,
      })),
    });
  }

  // Load across, shape down; a table is its own accessible form. Shades are relative to its highest cell.
  function matrix(state, runs) {
    const metric = pick(known(Y), state.y);
    const groups = [
      ...Atom.group(
        runs.filter((run) => Atom.cell(run, metric) && run.load.label),
        (run) => JSON.stringify([run.model, run.backend, run.hardware, run.tp, run.name]),
      ).values(),
    ];
    if (!groups.length) return null;
    const label = Atom.labels(groups.map((g) => ({ ...g[0], shape: "" })));
    const tables = groups.slice(0, 6).map((group) => {
      const loads = [...new Map(group.map((r) => [r.load.label, r])).values()]
        .sort((a, b) => a.load.mode.localeCompare(b.load.mode) || a.load.level - b.load.level)
        .map((r) => r.load.label);
      const shapes = [...new Set(group.map((r) => r.shape))].sort((a, b) =>
        a.localeCompare(b, "en", { numeric: true }),
      );
      const most = Math.max(...group.map((r) => Atom.value(r, metric)));
      const at = new Map(group.map((r) => [`${r.shape} ${r.load.label}`, r]));
      const cell = (run) => {
        if (!run) return el("td", { class: "num none" }, "–");
        const share = most > 0 ? Atom.value(run, metric) / most : 0;
        return el(
          "td",
          { class: "num heat", style: `--share:${(45 * share).toFixed(1)}%` },
          Atom.runButton(run, Atom.number(Atom.value(run, metric))),
        );
      };
      const title = label({ ...group[0], shape: "" });
      return el(
        "div",
        { class: "scroll", role: "region", tabindex: "0", "aria-label": `Matrix of ${title}` },
        el(
          "table",
          { class: "matrix" },
          el("caption", null, title),
          el(
            "thead",
            null,
            el(
              "tr",
              null,
              el("th", { scope: "col" }, "ISL/OSL"),
              loads.map((l) => el("th", { scope: "col", class: "num" }, l)),
            ),
          ),
          el(
            "tbody",
            null,
            shapes.map((s) =>
              el(
                "tr",
                null,
                el("th", { scope: "row" }, s || "–"),
                loads.map((l) => cell(at.get(`${s} ${l}`))),
              ),
            ),
          ),
        ),
      );
    });
    const more = groups.length > 6 ? `The first 6 of ${groups.length} are shown; filter to see others. ` : "";
    return el(
      "section",
      { class: "card" },
      el(
        "div",
        { class: "cardhead" },
        el("h2", null, `Matrix: ${Atom.perWhat(Y.find(([k]) => k === metric)[1], runs)}`),
      ),
      el("div", { class: "matrices" }, tables),
      el("p", { class: "note" }, `${more}The deeper the shade, the more, within each table.`),
    );
  }

  Atom.views.tradeoff = {
    label: "Throughput vs Latency",
    render(state) {
      const current = Atom.latest(Atom.filtered(state));
      if (!current.length) return Atom.nothing("bench");
      if (
        !current.some(
          (run) => known(X).some(([x]) => Atom.cell(run, x)) && known(Y).some(([y]) => Atom.cell(run, y)),
        )
      ) {
        return Atom.empty(
          "No run has both a throughput and a latency",
          "Imported results may lack one of the two; a benchmark of the server measures both.",
          ["atom bench --concurrency 1-64*2"],
        );
      }
      const { shown, dropped } = curves(current);
      const smaller = [
        scaling(shown, "total_token_throughput", "Throughput by concurrency", false),
        scaling(shown, "mean_tpot_ms", "TPOT by concurrency", true),
      ].filter(Boolean);
      return [
        paretoFigure(state, shown, dropped),
        smaller.length ? el("div", { class: "pair" }, smaller) : null,
        matrix(state, current),
      ];
    },
  };
})();
