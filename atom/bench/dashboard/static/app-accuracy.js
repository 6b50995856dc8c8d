// Accuracy: the evaluations in the history against their thresholds and their own past.
"use strict";
(() => {
  const { el } = Atom;
  const DAY = 86400000;
  const STALE = 3; // days behind the newest evaluation

  const FLEXIBLE = "flexible-extract",
    STRICT = "strict-match";
  const pickScore = (scores, filter) =>
    Object.entries(scores).find(([name]) => name.endsWith(filter))?.[1] || null;
  // The run says which metric stands for its task; imported ones do not.
  const main = (entry) =>
    entry.main in entry.scores
      ? entry.main
      : Object.keys(entry.scores).find((n) => n.endsWith(FLEXIBLE)) || Object.keys(entry.scores)[0];

  Atom.mainMetric = main;

  // How far the score is on the good side of its threshold; null without one.
  const margin = (e) => (e.limit === null ? null : e.lower ? e.limit - e.value : e.value - e.limit);
  Atom.scoreFails = (e) => e.limit !== null && margin(e) < 0;

  // The newest score of each model, server and task, with what came before it.
  Atom.currentScores = (state) => {
    const allowed = new Set(Atom.filtered(state, "eval"));
    const entries = Atom.data.evals
      .filter((e) => allowed.has(Atom.data.runs[e.run]))
      .map((e) => ({ ...e, run: Atom.data.runs[e.run] }));
    const groups = Atom.group(entries, (e) => JSON.stringify([e.run.fingerprint, e.task]));
    return [...groups.values()]
      .map((list) => {
        const last = list[list.length - 1],
          metric = main(last);
        const past = list
          .slice(0, -1)
          .map((e) => e.scores[metric]?.[0])
          .filter((v) => v !== undefined)
          .sort((a, b) => a - b);
        const value = last.scores[metric][0];
        const middle = past.length >> 1;
        const median = past.length % 2 ? past[middle] : (past[middle - 1] + past[middle]) / 2;
        const given = last.baselines[metric] ?? null;
        const baseline = given ?? (past.length ? median : null);
        return {
          ...last,
          list,
          metric,
          value,
          cell: last.scores[metric],
          limit: last.thresholds[metric] ?? null,
          lower: last.lower.includes(metric),
          baseline,
          baselineFrom: given === null ? "Median of the earlier evaluations" : "Given with the evaluation",
        };
      })
      .sort((a, b) => Atom.inOrder(a.run, b.run) || a.task.localeCompare(b.task));
  };

  function verdict(entry, newest) {
    const late = (newest - entry.run.time) / DAY;
    const stale =
      late > STALE
        ? el(
            "span",
            { class: "badge status", title: `${Math.floor(late)} days older than the newest evaluation` },
            "stale",
          )
        : null;
    if (entry.limit === null) return [stale];
    if (Atom.scoreFails(entry)) return [el("span", { class: "badge regression" }, "▼ fails"), stale];
    const cell = entry.cell;
    const within = cell.length > 1 && (entry.lower ? cell[2] > entry.limit : cell[1] < entry.limit);
    return [
      within
        ? el(
            "span",
            {
              class: "badge suspicious",
              title: "The threshold lies within the 95 % interval: another sample could fail",
            },
            "◇ at risk",
          )
        : el("span", { class: "badge improvement" }, "passes"),
      stale,
    ];
  }

  const pm = (cell) =>
    cell
      ? [
          Atom.score(cell[0]),
          el(
            "span",
            { class: "pm" },
            cell.length > 1 ? `±${Math.max(cell[2] - cell[0], cell[0] - cell[1]).toFixed(3)}` : "",
          ),
        ]
      : "–";

  function columns(entries, newest) {
    const extra = (metric, label, show) =>
      entries.some((e) => Atom.cell(e.run, metric))
        ? [
            {
              key: metric,
              label,
              number: true,
              of: (e) => Atom.value(e.run, metric),
              show: (e) => show(Atom.value(e.run, metric)),
            },
          ]
        : [];
    const score = (filter, label) => ({
      key: filter,
      label,
      number: true,
      of: (e) => pickScore(e.scores, filter)?.[0],
      show: (e) => pm(pickScore(e.scores, filter)),
    });
    const other = entries.some((e) => !e.metric.endsWith(FLEXIBLE))
      ? [
          {
            key: "score",
            label: "Score",
            number: true,
            of: (e) => (e.metric.endsWith(FLEXIBLE) ? null : e.value),
            show: (e) => (e.metric.endsWith(FLEXIBLE) ? "–" : el("span", { title: e.metric }, pm(e.cell))),
          },
          {
            key: "metric",
            label: "Metric",
            class: "minor",
            title: "The metric that Score, Baseline, Threshold and Trend are of",
            of: (e) => e.metric.replace(/,none$/, ""),
          },
        ]
      : [];
    return [
      {
        key: "model",
        label: "Model",
        class: "name",
        quiet: true,
        of: (e) => Atom.shortModel(e.run.model),
        show: (e) => el("span", { title: e.run.model }, Atom.shortModel(e.run.model)),
      },
      { key: "backend", label: "Backend", of: (e) => e.run.backend },
      { key: "task", label: "Task", of: (e) => e.task },
      score(FLEXIBLE, "flexible-extract"),
      score(STRICT, "strict-match"),
      ...other,
      {
        key: "baseline",
        label: "Baseline",
        number: true,
        title: "Given with the evaluation, else the median of the earlier ones",
        of: (e) => e.baseline,
        show: (e) =>
          e.baseline === null ? "–" : el("span", { title: e.baselineFrom }, Atom.score(e.baseline)),
      },
      {
        key: "recovery",
        label: "Recovery",
        number: true,
        title: "Score / baseline",
        of: (e) => (e.baseline ? e.value / e.baseline : null),
        show: (e) => (e.baseline ? Atom.plain(e.value / e.baseline) : "–"),
      },
      {
        key: "threshold",
        label: "Threshold",
        number: true,
        of: (e) => e.limit,
        show: (e) => (e.limit === null ? "–" : Atom.score(e.limit)),
      },
      {
        key: "margin",
        label: "Margin",
        number: true,
        title: "How far the score is on the good side of its threshold",
        of: margin,
        show: (e) =>
          e.limit === null ? "–" : `${margin(e) < 0 ? "−" : "+"}${Math.abs(margin(e)).toFixed(4)}`,
      },
      {
        key: "trend",
        label: "Trend",
        sortable: false,
        of: () => "",
        show: (e) =>
          Atom.spark(
            e.list.slice(-20).map((x) => x.scores[e.metric]?.[0] ?? null),
            `Last ${Math.min(20, e.list.length)} scores`,
          ),
      },
      {
        key: "state",
        label: "State",
        of: (e) => (e.limit === null ? "" : Atom.scoreFails(e) ? "a fails" : "passes"),
        show: (e) => el("span", { class: "badges" }, verdict(e, newest)),
      },
      {
        key: "fewshot",
        label: "Few-shot",
        number: true,
        of: (e) => e.fewshot,
        show: (e) => e.fewshot ?? "–",
      },
      {
        key: "samples",
        label: "Samples",
        number: true,
        title: "How many documents were asked",
        of: (e) => e.samples ?? null,
        show: (e) => Atom.number(e.samples ?? null),
      },
      ...extra("acceptance_rate", "MTP accept", (v) => (v === null ? "–" : Atom.plain(v))),
      ...extra("accept_length", "tok/fwd", Atom.number),
      {
        key: "time",
        label: "Last tested",
        number: true,
        of: (e) => e.run.time,
        show: (e) => Atom.runButton(e.run),
      },
    ];
  }

  function figure(entries) {
    const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const label = (e) =>
      `${Atom.shortModel(e.run.model)}${entries.some((o) => o.task !== e.task) ? ` · ${e.task}` : ""}${entries.some((o) => o.run.backend !== e.run.backend) ? ` · ${e.run.backend}` : ""}`;
    // One axis for shares; what is none (a perplexity) stands in the table alone.
    const shares = entries.filter((e) => e.cell.every((v) => v >= 0 && v <= 1));
    const drawn = shares.length ? shares : entries;
    const rows = drawn.slice(0, 30).reverse();
    const ends = rows.flatMap((e) => [...e.cell, e.limit]).filter((v) => v !== null && v !== undefined);
    const low = Math.max(0, Math.floor((Math.min(...ends) - 0.01) * 20) / 20),
      high = Math.min(1, Math.ceil((Math.max(...ends) + 0.01) * 20) / 20);
    const unit = high <= 1 && low >= 0 && Math.max(...ends) <= 1;
    const failing = entries.filter(Atom.scoreFails).length;
    return Atom.chart({
      title: "Scores against thresholds",
      height: 70 + 34 * rows.length,
      onOpen: Atom.open,
      note: `Dot and whisker: score with its 95 % interval. Bar: threshold.${drawn.length > 30 ? ` The first 30 of ${drawn.length}.` : ""}${drawn.length < entries.length ? " Scores that are no shares are in the table only." : ""}`,
      label: `${entries.length} scores, ${failing} on the wrong side of their thresholds. The table has the figures.`,
      build: (width) => {
        const option = Atom.option({
          x: {
            min: unit ? low : undefined,
            max: unit ? high : undefined,
            splitLine: { show: true, lineStyle: { color: style("--grid") } },
            axisLabel: { color: style("--muted"), fontSize: 11 },
          },
          y: {
            type: "category",
            data: rows.map(label),
            axisLabel: {
              color: style("--text"),
              fontSize: 12,
              width: Math.max(110, width * 0.32),
              overflow: "truncate",
            },
            splitLine: { show: false },
          },
          series: [
            Atom.whiskers(
              rows.map((e, i) => ({ x: e.cell, y: [i] })),
              style("--series-0"),
            ),
            {
              type: "scatter",
              symbol: "rect",
              symbolSize: [3, 18],
              z: 2,
              silent: true,
              itemStyle: { color: style("--text") },
              data: rows.map((e, i) => [e.limit, i]).filter((p) => p[0] !== null),
            },
            {
              type: "scatter",
              symbol: "circle",
              symbolSize: 9,
              z: 3,
              cursor: "pointer",
              data: rows.map((e, i) => ({
                value: [e.value, i],
                run: e.run.index,
                itemStyle: { color: style(Atom.scoreFails(e) ? "--bad" : "--series-0") },
                tip: [
                  label(e),
                  [e.metric, Atom.score(e.value)],
                  ["Threshold", e.limit === null ? "" : Atom.score(e.limit)],
                  ["When", `${Atom.time(e.run.time)} UTC`],
                ],
              })),
            },
          ],
        });
        return option;
      },
    });
  }

  Atom.views.accuracy = {
    label: "Accuracy",
    render(state) {
      const entries = Atom.currentScores(state);
      if (!entries.length) return Atom.nothing("eval");
      const newest = Math.max(...entries.map((e) => e.run.time));
      return [
        el(
          "section",
          { class: "card" },
          Atom.table({
            caption: "Newest score of each model and task",
            columns: columns(entries, newest),
            rows: entries,
            sort: state.sort,
            onSort: (sort) => Atom.change({ sort }),
            onOpen: (e) => Atom.open(e.run),
          }),
        ),
        figure(entries),
      ];
    },
  };
})();
