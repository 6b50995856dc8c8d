// Trends: a metric over the runs of a configuration, with the changes that were found in it.
"use strict";
(() => {
  const { el } = Atom;
  const MOST = 6;
  const METRICS = [
    ["total_per_device", "Total throughput per GPU"],
    ["output_throughput", "Output throughput"],
    ["mean_tpot_ms", "TPOT, mean"],
    ["mean_ttft_ms", "TTFT, mean"],
  ];
  const MARKS = {
    regression: ["triangle", 180, "--bad"],
    suspicious: ["diamond", 0, "--warn"],
    improvement: ["triangle", 0, "--good"],
    change: ["diamond", 0, "--text"],
  };
  const hidden = new Set();
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function lines(runs) {
    const found = [...Atom.group(runs.filter(Atom.sound), (run) => run.fingerprint).entries()].map(
      ([key, list]) => ({ key, list }),
    );
    const weight = (l) => (l.list.some((run) => Atom.marksOf.has(run.index)) ? 1e6 : 0) + l.list.length;
    const shown = [...found].sort((a, b) => weight(b) - weight(a)).slice(0, MOST);
    const label = Atom.labels(
      shown.map((l) => l.list[0]),
      true,
    );
    const looks = Atom.looks(
      shown.map((l) => l.key),
      Atom.rankOfFingerprint,
    );
    for (const line of shown) Object.assign(line, { label: label(line.list[0]), index: looks.get(line.key) });
    return {
      shown: shown.sort((a, b) => a.label.localeCompare(b.label, "en", { numeric: true })),
      total: found.length,
    };
  }

  // What 100 % is: the median of the first runs shown, so that one odd run does not set it.
  const FIRST = 5;
  function reference(line, metric) {
    const first = line.list
      .map((run) => Atom.value(run, metric))
      .filter((v) => v !== null)
      .slice(0, FIRST)
      .sort((a, b) => a - b);
    const middle = first.length >> 1;
    return first.length % 2 ? first[middle] : (first[middle - 1] + first[middle]) / 2;
  }

  function series(line, metric, x, relative) {
    const look = Atom.look(line.index);
    const list = line.list.map((run, i) => [run, i]).filter(([run]) => Atom.cell(run, metric));
    const base = relative ? reference(line, metric) : 1;
    const scaled = (cell) => cell.map((v) => (relative ? (100 * v) / base : v));
    const marks = list.flatMap(([run, i]) =>
      (Atom.marksOf.get(run.index) || [])
        .filter((m) => m.metric === metric || Atom.same(m.metric, metric))
        .map((m) => [run, i, m]),
    );
    return [
      {
        type: "line",
        symbol: look.shape,
        symbolSize: list.length > 80 ? 3 : 6,
        showAllSymbol: true,
        z: 3,
        cursor: "pointer",
        emphasis: { disabled: true },
        lineStyle: { color: look.colour, width: 1.5 },
        itemStyle: { color: look.colour },
        data: list.map(([run, i]) => ({
          value: [x(run, i), scaled(Atom.cell(run, metric))[0]],
          run: run.index,
          tip: Atom.tipOf(run, [metric], line.label),
        })),
      },
      Atom.whiskers(
        list.map(([run, i]) => ({ x: [x(run, i)], y: scaled(Atom.cell(run, metric)) })),
        look.colour,
      ),
      {
        type: "scatter",
        z: 5,
        cursor: "pointer",
        data: marks.map(([run, i, mark]) => ({
          value: [x(run, i), scaled(Atom.cell(run, metric))[0]],
          run: run.index,
          symbol: MARKS[mark.kind][0],
          symbolRotate: MARKS[mark.kind][1],
          symbolSize: 13,
          symbolOffset: [0, -13],
          itemStyle: { color: style(MARKS[mark.kind][2]), borderColor: style("--surface"), borderWidth: 1 },
          tip: [
            Atom.markName(mark),
            ["Configuration", line.label],
            ["Metric", Atom.metric(mark.metric).label],
            ["Why", mark.text],
            ["When", `${Atom.time(run.time)} UTC`],
          ],
        })),
      },
    ];
  }

  // A mark on a total stands on the per-device curve as well: one is the other divided.
  const PARENTS = {
    total_per_device: ["total_token_throughput", "steady_output_throughput", "output_throughput"],
    output_throughput: ["steady_output_throughput"],
  };
  Atom.same = (marked, drawn) => (PARENTS[drawn] || []).includes(marked);

  function figure([metric, name], set, state) {
    const part = set.filter((line) => line.list.some((run) => Atom.cell(run, metric)));
    if (!part.length) return null;
    const info = Atom.metric(metric);
    const title = Atom.perWhat(
      name,
      part.flatMap((line) => line.list),
    );
    const byOrder = state.axis === "order";
    const relative = state.values !== "absolute" && set.length > 1;
    const x = byOrder ? (run, i) => i + 1 : (run) => run.time;
    const count = part.reduce((sum, line) => sum + line.list.length, 0);
    return Atom.chart({
      title,
      height: 260,
      onOpen: Atom.open,
      label: `${title} over ${count} runs of ${part.length} configurations. The table below has the figures.`,
      build: () =>
        Atom.option({
          x: byOrder ? { name: "Run", minInterval: 1, min: 1 } : { type: "time", splitNumber: 4 },
          y: { name: `${relative ? "%" : info.unit}${info.better === "lower" ? ", lower is better" : ""}` },
          series: part
            .filter((line) => !hidden.has(line.key))
            .flatMap((line) => series(line, metric, x, relative)),
        }),
      twin: Atom.twin(title, () => ({
        columns: [
          {
            key: "time",
            label: "When, UTC",
            of: (run) => run.time,
            show: (run) => Atom.runButton(run, Atom.time(run.time)),
          },
          { key: "commit", label: "Commit", of: (run) => run.commit, show: Atom.commit },
          ...Atom.runColumns(),
          Atom.metricColumn(metric, title),
          {
            key: "mark",
            label: "Mark",
            of: (run) => Atom.worst(run)?.kind || "",
            show: (run) => el("span", { class: "badges" }, Atom.badges(run)),
          },
        ],
        rows: part.flatMap((line) => line.list).sort((a, b) => b.time - a.time),
        onOpen: Atom.open,
      })),
    });
  }

  // One row for each run at which something changed, with all that changed at once.
  function changes(runs) {
    const rows = runs
      .filter((run) => Atom.marksOf.has(run.index))
      .map((run) => ({ run, marks: Atom.marksOf.get(run.index), worst: Atom.worst(run) }))
      .reverse();
    if (!rows.length)
      return el(
        "section",
        { class: "card" },
        el("div", { class: "cardhead" }, el("h2", null, "Changes")),
        el("p", { class: "note" }, "No change stands out from the noise in these runs."),
      );
    const label = Atom.labels(
      rows.map((r) => r.run),
      true,
    );
    return el(
      "section",
      { class: "card" },
      Atom.table({
        caption: "Changes found in the history",
        page: 20,
        rows,
        onOpen: (row) => Atom.open(row.run),
        columns: [
          { key: "time", label: "First run", of: (r) => r.run.time, show: (r) => Atom.runButton(r.run) },
          {
            key: "kind",
            label: "Kind",
            of: (r) => r.worst.kind,
            show: (r) => el("span", { class: `badge ${r.worst.kind}` }, Atom.markName(r.worst)),
          },
          { key: "what", label: "Configuration", of: (r) => label(r.run) },
          {
            key: "why",
            label: "What changed",
            class: "wrap",
            of: (r) => r.marks.map((m) => m.metric).join(),
            show: (r) =>
              r.marks.map((m) =>
                el("div", null, `${Atom.metric(m.metric).label}: `, el("span", { class: "muted" }, m.text)),
              ),
          },
          {
            key: "commits",
            label: "Commits",
            of: (r) => r.marks.map((m) => m.commits).find(Boolean) || "",
            show: (r) => el("code", null, r.marks.map((m) => m.commits).find(Boolean) || "–"),
          },
        ],
      }),
    );
  }

  Atom.views.trends = {
    label: "Trends",
    render(state) {
      const all = Atom.filtered(state);
      if (!all.length) return Atom.nothing("bench");
      const { shown, total } = lines(all);
      if (!shown.some((line) => line.list.length > 1)) {
        return Atom.empty(
          "No configuration has been run twice yet",
          "A trend needs two runs of the same thing: the same model, load, workload, server and hardware. Run the command of a run again, or widen the filters.",
        );
      }
      const notes = [];
      if (total > shown.length)
        notes.push(
          `${shown.length} of ${total} configurations are drawn: those with changes and the longest histories first; filter to see others.`,
        );
      if (shown.length > 1 && state.values !== "absolute")
        notes.push("100 % is the median of a configuration's first five runs.");
      notes.push("▼ regression, ▲ improvement, ◆ change or suspicion: see the table below.");
      const common = Atom.shared(shown.map((l) => l.list[0]));
      return [
        el(
          "section",
          { class: "card head" },
          el(
            "div",
            { class: "cardhead" },
            el("h2", null, "Configurations"),
            el(
              "div",
              { class: "controls" },
              shown.length > 1
                ? Atom.select(
                    "Values",
                    [
                      ["", "Relative"],
                      ["absolute", "Absolute"],
                    ],
                    state.values,
                    (value) => Atom.change({ values: value }),
                  )
                : null,
              Atom.select(
                "Axis",
                [
                  ["", "Time"],
                  ["order", "Run order"],
                ],
                state.axis,
                (value) => Atom.change({ axis: value }),
              ),
            ),
          ),
          common && shown.length > 1 ? el("p", { class: "shared" }, common) : null,
          Atom.legend(
            shown.map((l) => ({ key: l.key, label: l.label, look: Atom.look(l.index) })),
            hidden,
            Atom.redraw,
          ),
          el("p", { class: "note" }, notes.join(" ")),
        ),
        el("div", { class: "pair" }, METRICS.map((m) => figure(m, shown, state)).filter(Boolean)),
        changes(all),
      ];
    },
  };
})();
