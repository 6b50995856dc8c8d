// Performance: where things stand. The newest sound run of each configuration, and what stands out.
"use strict";
(() => {
  const { el } = Atom;
  Atom.views = {};

  function card(title, value, unit, run, text) {
    const caption = run ? Atom.runButton(run, text) : el("span", { class: "muted" }, text);
    return el(
      "div",
      { class: "stat" },
      el("h2", null, title),
      el("p", { class: "big" }, value, unit ? el("span", { class: "unit" }, ` ${unit}`) : null),
      el("p", { class: "by" }, caption),
    );
  }

  const best = (list, metric, lower) =>
    list.reduce((most, run) => {
      const value = Atom.value(run, metric);
      if (value === null || !Atom.sound(run)) return most;
      return most === null || (lower ? value < Atom.value(most, metric) : value > Atom.value(most, metric))
        ? run
        : most;
    }, null);
  const where = (run) => [Atom.shortModel(run.model), run.shape, run.load.label].filter(Boolean).join(" · ");

  function cards(current, evals, standing) {
    const peak = best(current, "total_token_throughput", false);
    const tpot = best(current, "mean_tpot_ms", true);
    const models = new Set(current.map((run) => run.model)).size;
    const bad = current.filter((run) => standing(run)?.kind === "regression");
    const suspicious = current.filter((run) => standing(run)?.kind === "suspicious").length;
    const scored = evals.filter((e) => e.limit !== null);
    const passing = scored.filter((e) => !Atom.scoreFails(e)).length;
    return el(
      "div",
      { class: "stats" },
      card(
        "Peak total throughput",
        peak ? Atom.number(Atom.value(peak, "total_token_throughput")) : "–",
        peak ? "tok/s" : "",
        peak,
        peak ? where(peak) : "no run measured it",
      ),
      card(
        "Best TPOT",
        tpot ? Atom.number(Atom.value(tpot, "mean_tpot_ms")) : "–",
        tpot ? "ms" : "",
        tpot,
        tpot ? where(tpot) : "no run measured it",
      ),
      card(
        "Test matrix",
        Atom.number(current.length),
        current.length === 1 ? "configuration" : "configurations",
        null,
        `${models} ${models === 1 ? "model" : "models"}`,
      ),
      card(
        "Regressions",
        Atom.number(bad.length),
        "",
        bad[0] || null,
        bad[0]
          ? `${where(bad[0])}${bad.length > 1 ? " and others" : ""}`
          : suspicious
            ? `${suspicious} suspicious`
            : "no standing loss beyond noise",
      ),
      card(
        "Accuracy",
        scored.length ? `${passing}/${scored.length}` : Atom.number(evals.length),
        scored.length ? "pass" : evals.length === 1 ? "score" : "scores",
        null,
        scored.length ? "within their thresholds" : evals.length ? "no thresholds set" : "no evaluation yet",
      ),
    );
  }

  function trend(run, history) {
    const metric = Atom.cell(run, "total_token_throughput") ? "total_token_throughput" : "output_throughput";
    const values = history
      .get(run.fingerprint)
      .slice(-20)
      .map((r) => Atom.value(r, metric));
    const known = values.filter((v) => v !== null);
    const label =
      known.length > 1
        ? `Last ${known.length} runs, throughput from ${Atom.number(known[0])} to ${Atom.number(known[known.length - 1])} tok/s`
        : "";
    return Atom.spark(values, label);
  }

  Atom.commit = (run) =>
    run.commit ? el("code", { title: run.commit }, run.commit.slice(0, 7), run.dirty ? "+" : "") : "–";

  Atom.runColumns = () => [
    {
      key: "model",
      label: "Model",
      quiet: true,
      class: "name",
      of: (run) => Atom.shortModel(run.model),
      show: (run) => el("span", { title: run.model }, Atom.shortModel(run.model)),
    },
    {
      key: "backend",
      label: "Backend",
      quiet: true,
      class: "minor",
      of: (run) => run.backend,
      show: (run) => el("span", { title: run.version }, run.backend),
    },
    {
      key: "hardware",
      label: "GPU",
      quiet: true,
      class: "minor",
      of: (run) => run.hardware,
      show: (run) =>
        run.hardware && el("span", { class: "clip", title: run.hardware }, Atom.shortHardware(run.hardware)),
    },
    {
      key: "tp",
      label: "TP",
      number: true,
      class: "minor",
      title: "Tensor parallel size",
      of: (run) => run.tp,
    },
    {
      key: "shape",
      label: "ISL/OSL",
      quiet: true,
      title: "Tokens asked in and out, or the data set",
      of: (run) => run.shape,
    },
    {
      key: "load",
      label: "Load",
      number: true,
      title: "Requests in flight (c), or requests per second",
      of: (run) => run.load.level,
      show: (run) => run.load.label,
    },
  ];
  Atom.metricColumns = () =>
    [
      Atom.metricColumn(
        "total_token_throughput",
        "Total tok/s",
        "Input and output tokens per second, whole run",
      ),
      Atom.metricColumn("output_throughput", "Output tok/s", "Output tokens per second, whole run"),
      Atom.metricColumn(
        "output_throughput_per_user",
        "Interactivity",
        "Tokens per second that one user sees: 1000 / TPOT",
      ),
      Atom.metricColumn("mean_tpot_ms", "TPOT ms", "Time per output token, mean"),
      Atom.metricColumn("mean_ttft_ms", "TTFT ms", "Time to first token, mean"),
    ].filter((column) => Atom.data.values[column.key]);

  Atom.views.performance = {
    label: "Performance",
    render(state) {
      const all = Atom.filtered(state);
      if (!all.length) return Atom.nothing("bench");
      const history = Atom.group(all, (run) => run.fingerprint);
      const current = Atom.latest(all).sort(Atom.inOrder);
      const standing = (run) => Atom.standing(history.get(run.fingerprint));
      const columns = [
        ...Atom.runColumns(),
        ...Atom.metricColumns(),
        {
          key: "trend",
          label: "Trend",
          sortable: false,
          title: "Throughput of the last 20 runs",
          of: () => "",
          show: (run) => trend(run, history),
        },
        {
          key: "state",
          label: "State",
          of: (run) => standing(run)?.kind || (run.status === "ok" ? "" : run.status),
          show: (run) => el("span", { class: "badges" }, Atom.badges(run, standing(run))),
        },
        { key: "commit", label: "Commit", class: "minor", of: (run) => run.commit, show: Atom.commit },
        {
          key: "time",
          label: "Run",
          number: true,
          of: (run) => run.time,
          show: (run) => Atom.runButton(run),
        },
      ];
      const evals = Atom.currentScores(state);
      return [
        cards(current, evals, standing),
        el(
          "section",
          { class: "card" },
          Atom.table({
            caption: "Newest run of each configuration",
            columns,
            rows: current,
            sort: state.sort,
            onSort: (sort) => Atom.change({ sort }),
            onOpen: Atom.open,
          }),
          el(
            "p",
            { class: "note" },
            "± is half of the 95 % confidence interval. State: what changed in the last 20 runs of the configuration, by change points and by the regression gate.",
          ),
        ),
      ];
    },
  };
})();
