// Data & Trace: every run, when it ran, its traces, its command; and the data to take away.
"use strict";
(() => {
  const { el } = Atom;
  const STATES = [
    ["ok", "sound", "--series-0"],
    ["slo_missed", "SLO missed", "--series-3"],
    ["errors", "errors", "--series-1"],
    ["client_bound", "client-bound", "--series-2"],
    ["interrupted", "interrupted", "--series-5"],
  ];

  function flat(run) {
    const row = {
      run: run.id,
      kind: run.kind,
      time: run.time ? new Date(run.time).toISOString() : "",
      name: run.name,
      model: run.model,
      backend: run.backend,
      server_version: run.version,
      hardware: run.hardware,
      num_gpus: run.gpus,
      tensor_parallel_size: run.tp,
      workload: run.shape,
      load: run.load.label,
      commit: run.commit,
      dirty: run.dirty,
      recipe: run.recipe,
      fingerprint: run.fingerprint,
      sweep: run.sweep,
      status: run.status,
      command: run.command,
    };
    for (const name of Object.keys(Atom.data.values)) {
      const cell = Atom.cell(run, name);
      row[name] = cell ? cell[0] : null;
      row[`${name}_low`] = cell && cell.length > 1 ? cell[1] : null;
      row[`${name}_high`] = cell && cell.length > 1 ? cell[2] : null;
    }
    return row;
  }
  const toCsv = (runs) => {
    const rows = runs.map(flat);
    const names = Object.keys(rows[0] || {}).filter((n) => rows.some((r) => r[n] !== null && r[n] !== ""));
    return Atom.csv([names, ...rows.map((r) => names.map((n) => r[n]))]);
  };
  const toJson = (runs) =>
    JSON.stringify(
      runs.map((run) => {
        const row = Object.fromEntries(Object.entries(flat(run)).filter(([, v]) => v !== null && v !== ""));
        const provenance = Object.fromEntries(
          Object.entries(run.provenance).map(([k, i]) => [k, Atom.data.pool[i]]),
        );
        return {
          ...row,
          notes: run.notes,
          errors: run.errors,
          artefacts: run.artefacts,
          workload_parameters: Atom.data.pool[run.workload],
          provenance,
        };
      }),
      null,
      1,
    );

  function timeline(runs) {
    const days = Atom.group(
      runs.filter((run) => run.time),
      (run) => Math.floor(run.time / 86400000),
    );
    const keys = [...days.keys()].sort((a, b) => a - b);
    if (!keys.length) return null;
    const states = STATES.filter(([key]) => runs.some((run) => run.status === key));
    const other = runs.some((run) => !STATES.some(([key]) => key === run.status));
    if (other) states.push(["", "other", "--series-7"]);
    const count = (day, key) =>
      (days.get(day) || []).filter((run) =>
        key ? run.status === key : !STATES.some(([k]) => k === run.status),
      ).length;
    const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const hidden = new Set();
    const look = (name) => ({ shape: "rect", colour: style(name) });
    return Atom.chart({
      title: "Runs by day",
      height: 150,
      label: `${runs.length} runs on ${keys.length} days, ${Atom.date(keys[0] * 86400000)} to ${Atom.date(keys[keys.length - 1] * 86400000)}. The table below has the figures.`,
      legend:
        states.length > 1
          ? (redraw) =>
              Atom.legend(
                states.map(([key, label, colour]) => ({ key, label, look: look(colour) })),
                hidden,
                redraw,
              )
          : null,
      build: () =>
        Atom.option({
          x: {
            type: "time",
            min: (keys[0] - 1) * 86400000,
            max: (keys[keys.length - 1] + 1) * 86400000,
            minInterval: 86400000,
          },
          y: { minInterval: 1, min: 0, scale: false, splitNumber: 3 },
          series: states
            .filter(([key]) => !hidden.has(key))
            .map(([key, label, colour]) => ({
              type: "bar",
              stack: "runs",
              name: label,
              barMaxWidth: 14,
              barMinWidth: 2,
              itemStyle: { color: style(colour) },
              emphasis: { disabled: true },
              data: keys.map((day) => ({
                value: [day * 86400000, count(day, key)],
                tip: [Atom.date(day * 86400000), ["State", label], ["Runs", String(count(day, key))]],
              })),
            })),
        }),
      twin: Atom.twin("Runs by day", () => ({
        rows: [...keys].reverse(),
        columns: [
          { key: "day", label: "Day", of: (d) => Atom.date(d * 86400000) },
          ...states.map(([key, label]) => ({
            key: key || "other",
            label,
            number: true,
            of: (d) => count(d, key),
          })),
        ],
      })),
    });
  }

  const score = (run) =>
    Atom.data.evals
      .filter((e) => e.run === run.index)
      .map((e) => `${e.task} ${Atom.score(e.scores[Atom.mainMetric(e)][0])}`)
      .join(", ");

  Atom.views.data = {
    label: "Data & Trace",
    render(state) {
      const runs = Atom.data.runs.filter((run) => Atom.matches(run, state)).reverse();
      if (!runs.length) return Atom.nothing("run");
      const traced = runs.filter((run) => run.artefacts.length).length;
      const button = (label, action) =>
        el("button", { type: "button", class: "small", onclick: action }, label);
      const bar = el(
        "div",
        { class: "cardhead" },
        el("h2", null, "Runs"),
        el(
          "p",
          { class: "muted grow" },
          traced ? `${Atom.number(traced)} with traces or files` : "no traces or files yet",
        ),
        el(
          "div",
          { class: "controls" },
          button("Copy CSV", () => Atom.copy(toCsv(runs), "CSV")),
          button("Download CSV", () => Atom.save("atom-runs.csv", "text/csv", toCsv(runs))),
          button("Download JSON", () => Atom.save("atom-runs.json", "application/json", toJson(runs))),
        ),
      );
      const columns = [
        {
          key: "time",
          label: "When, UTC",
          of: (run) => run.time,
          show: (run) => Atom.runButton(run, Atom.time(run.time)),
        },
        ...Atom.runColumns(),
        ...Atom.metricColumns().slice(0, 2),
        ...(runs.some((run) => run.kind === "eval") ? [{ key: "score", label: "Score", of: score }] : []),
        {
          key: "state",
          label: "State",
          of: (run) => run.status,
          show: (run) => el("span", { class: "badges" }, Atom.badges(run)),
        },
        { key: "commit", label: "Commit", of: (run) => run.commit, show: Atom.commit },
        {
          key: "traces",
          label: "Traces and files",
          class: "files",
          of: (run) => run.artefacts.length || null,
          show: (run) => run.artefacts.map(Atom.artefact),
        },
        {
          key: "command",
          label: "Command",
          sortable: false,
          of: () => "",
          show: (run) => (run.command ? Atom.copyButton("Copy", run.command, "Command") : ""),
        },
      ];
      return [
        timeline(runs),
        el(
          "section",
          { class: "card" },
          bar,
          Atom.table({
            caption: "Runs, newest first",
            hidden: true,
            columns,
            rows: runs,
            sort: state.sort,
            onSort: (sort) => Atom.change({ sort }),
            onOpen: Atom.open,
          }),
        ),
      ];
    },
  };
})();
