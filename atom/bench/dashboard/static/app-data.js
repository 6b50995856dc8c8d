// The history in memory: runs, their values, the choices of the filters, groups, the Pareto front.
"use strict";
(() => {
  const NONE = {
    schema: 1,
    latencies: {},
    metrics: {},
    runs: [],
    values: {},
    pool: [],
    evals: [],
    marks: [],
    built_at: "",
    source: "",
    atom: "",
  };
  const data = window.ATOM_DATA || {
    ...NONE,
    problem: "data.js is missing beside this page, or cannot be read; build the page again",
  };
  const runs = data.runs;
  runs.forEach((run, index) => (run.index = index));

  Atom.data = data;
  Atom.cell = (run, metric) => {
    const column = data.values[metric];
    return column ? column[run.index] : null;
  };
  Atom.value = (run, metric) => {
    const cell = Atom.cell(run, metric);
    return cell ? cell[0] : null;
  };
  Atom.metric = (name) => data.metrics[name] || { label: name, unit: "", better: "higher" };
  // Figures per GPU of runs without one are figures of the whole machine.
  Atom.perWhat = (text, list) =>
    list.some((run) => run.gpus) ? text : text.replace("per GPU", "per machine");
  Atom.byId = new Map(runs.map((run) => [run.id, run]));
  Atom.marksOf = new Map();
  for (const mark of data.marks) {
    const held = Atom.marksOf.get(mark.run) || [];
    held.push(mark);
    Atom.marksOf.set(mark.run, held);
  }

  // What can be filtered by: key -> label and the run's value.
  Atom.FACETS = {
    model: { label: "Model", of: (run) => run.model, show: Atom.shortModel },
    backend: { label: "Backend", of: (run) => run.backend || "unknown", show: (v) => v },
    hardware: { label: "GPU", of: (run) => run.hardware || "unknown", show: Atom.shortHardware },
    shape: { label: "ISL/OSL", of: (run) => run.shape || "unknown", show: (v) => v },
    load: { label: "Load", of: (run) => run.load.label || "unknown", show: (v) => v },
  };
  // Evaluations are not told apart by these, nor put away by a choice of them.
  Atom.NOT_OF_EVALS = new Set(["shape", "load", "hardware"]);
  Atom.PERIODS = [
    ["", "All time"],
    ["90", "Last 90 days"],
    ["30", "Last 30 days"],
    ["7", "Last 7 days"],
  ];

  const newest = runs.reduce((most, run) => Math.max(most, run.time), 0);

  // Periods count back from the newest run, so that an old site still shows something. A run that
  // has no shape or load (an evaluation) is not put away by a filter on it.
  Atom.matches = (run, state, without = "") => {
    if (state.period && run.time < newest - Number(state.period) * 86400000) return false;
    return Object.entries(Atom.FACETS).every(([key, facet]) => {
      if (key === without || !state[key].length) return true;
      if (run.kind === "eval" && Atom.NOT_OF_EVALS.has(key)) return true;
      return state[key].includes(facet.of(run));
    });
  };
  Atom.filtered = (state, kind = "bench") =>
    runs.filter((run) => run.kind === kind && Atom.matches(run, state));

  Atom.group = (items, key) => {
    const found = new Map();
    for (const item of items) {
      const name = key(item);
      const held = found.get(name);
      if (held) held.push(item);
      else found.set(name, [item]);
    }
    return found;
  };

  // Interrupted runs and runs of a busy client or with many errors are listed, but never stand for
  // a configuration while a sound one does.
  const sound = (run) => run.status === "ok" || run.status === "slo_missed";
  Atom.sound = sound;
  Atom.latest = (list) =>
    [...Atom.group(list, (run) => run.fingerprint).values()].map(
      (same) => same.filter(sound).pop() || same[same.length - 1],
    );

  const compareText = (a, b) => a.localeCompare(b, "en", { numeric: true });
  Atom.inOrder = (a, b) =>
    compareText(Atom.shortModel(a.model), Atom.shortModel(b.model)) ||
    compareText(a.backend, b.backend) ||
    compareText(a.hardware, b.hardware) ||
    compareText(a.shape, b.shape) ||
    compareText(a.load.mode, b.load.mode) ||
    (a.load.level ?? 0) - (b.load.level ?? 0) ||
    a.time - b.time;

  // Names for a set of runs: as few parts as tell them apart; `shared` says what they have in common.
  const PARTS = [
    (run) => Atom.shortModel(run.model),
    (run) => run.backend,
    (run) => run.shape,
    (run) => run.load.label,
    (run) => Atom.shortHardware(run.hardware),
    (run) => (run.tp ? `TP${run.tp}` : ""),
    (run) => (run.name !== Atom.shortModel(run.model) ? run.name : ""),
    (run) => run.recipe,
  ];
  const LOAD = 3;
  Atom.labels = (list, withLoad = false) => {
    const parts = [];
    const text = (run) =>
      parts
        .map((part) => part(run))
        .filter(Boolean)
        .join(" · ");
    let told = 1;
    PARTS.forEach((part, i) => {
      if (i === LOAD && !withLoad) return;
      parts.push(part);
      const now = new Set(list.map(text)).size;
      if (now === told) parts.pop();
      told = Math.max(told, now);
    });
    if (!parts.length) parts.push(PARTS[0]);
    const seen = Atom.group(list, text);
    return (run) =>
      new Set(seen.get(text(run)).map((r) => r.fingerprint)).size > 1
        ? `${text(run)} · ${run.fingerprint.slice(0, 4)}`
        : text(run);
  };
  Atom.shared = (list) =>
    PARTS.filter((part, i) => i !== LOAD && new Set(list.map(part)).size === 1)
      .map((part) => part(list[0]))
      .filter(Boolean)
      .join(" · ");

  // Points that no other point beats in both directions, by x. Each is [x, y, ...].
  Atom.pareto = (points, lowerX) => {
    const order = [...points].sort((a, b) => (lowerX ? a[0] - b[0] : b[0] - a[0]) || b[1] - a[1]);
    const front = [];
    let best = -Infinity;
    for (const point of order) {
      if (point[1] > best) {
        front.push(point);
        best = point[1];
      }
    }
    return front.sort((a, b) => a[0] - b[0]);
  };

  const RANK = { regression: 0, suspicious: 1, change: 2, improvement: 3 };
  const gravest = (marks) => [...marks].sort((a, b) => RANK[a.kind] - RANK[b.kind])[0] || null;
  Atom.worst = (run) => gravest(Atom.marksOf.get(run.index) || []);

  // The gravest of the last marks on each metric of a configuration: a regression stands until
  // something else happened to that metric, or twenty runs have passed.
  const STANDS = 20;
  Atom.standing = (list) => {
    return gravest(standing(list));
  };
  function standing(list) {
    const last = new Map();
    for (const run of list.slice(-STANDS))
      for (const mark of Atom.marksOf.get(run.index) || []) last.set(mark.metric, mark);
    return [...last.values()];
  }
  Atom.standingAt = (run) =>
    standing(runs.filter((other) => other.fingerprint === run.fingerprint && other.index <= run.index));

  // How much worse or better, by the metric's direction: "9.1 % worse".
  Atom.verdict = (mark) => {
    const up = mark.ratio > 1;
    const worse = Atom.metric(mark.metric).better === "lower" ? up : !up;
    return `${(100 * Math.abs(mark.ratio - 1)).toFixed(1)} % ${worse ? "worse" : "better"}`;
  };
})();
