// Charts: Apache ECharts with the page's own colours, shapes, error bars, legends and tooltips.
"use strict";
(() => {
  const { el, svg } = Atom;
  const COLOURS = 8;
  const SHAPES = ["circle", "rect", "triangle", "diamond", "roundRect"];
  const live = new Set(); // charts on the page, for resizing and theme changes
  Atom.charts = live;

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  Atom.look = (i) => ({ colour: style(`--series-${i % COLOURS}`), shape: SHAPES[i % SHAPES.length] });

  // The same run has the same colour whatever is filtered: looks go by first appearance in the history.
  const order = new Map();
  for (const run of Atom.data.runs) if (!order.has(run.series)) order.set(run.series, order.size);
  const fingerprints = new Map();
  for (const run of Atom.data.runs)
    if (!fingerprints.has(run.fingerprint)) fingerprints.set(run.fingerprint, fingerprints.size);
  Atom.seriesLook = (run) => Atom.look(order.get(run.series));
  // Distinct looks within one chart come first; then stability.
  Atom.looks = (keys, rank) => {
    const taken = new Set(),
      found = new Map();
    for (const key of [...keys].sort((a, b) => rank.get(a) - rank.get(b))) {
      let i = rank.get(key) % 40;
      for (let tries = 0; taken.has(i % COLOURS) && tries < COLOURS && taken.size < COLOURS; tries++) i++;
      taken.add(i % COLOURS);
      found.set(key, i);
    }
    return found;
  };
  Atom.rankOfSeries = order;
  Atom.rankOfFingerprint = fingerprints;

  const PATHS = {
    circle: ["circle", { cx: 6, cy: 6, r: 4.2 }],
    rect: ["rect", { x: 2, y: 2, width: 8, height: 8 }],
    roundRect: ["rect", { x: 1.5, y: 3.5, width: 9, height: 5, rx: 2 }],
    triangle: ["path", { d: "M6 1.5 10.8 10H1.2Z" }],
    diamond: ["path", { d: "M6 1 11 6 6 11 1 6Z" }],
  };
  const glyph = (look) =>
    svg(
      "svg",
      { width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" },
      svg(PATHS[look.shape][0], { ...PATHS[look.shape][1], fill: look.colour }),
    );

  Atom.legend = (entries, hidden, redraw) =>
    el(
      "ul",
      { class: "legend", "aria-label": "Series; press to hide or show" },
      entries.map(({ key, label, look }) => {
        const button = el(
          "button",
          { type: "button", "aria-pressed": String(!hidden.has(key)) },
          glyph(look),
          el("span", null, label),
        );
        button.addEventListener("click", () => {
          if (hidden.has(key)) hidden.delete(key);
          else hidden.add(key);
          button.setAttribute("aria-pressed", String(!hidden.has(key)));
          redraw();
        });
        return el("li", null, button);
      }),
    );

  const tick = new Intl.NumberFormat("en-US", { maximumFractionDigits: 3 });
  const short = (v) => {
    const size = Math.abs(v);
    if (size >= 1e6) return `${+(v / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(v / 1e3).toPrecision(3)}k`;
    return tick.format(+v.toPrecision(5));
  };
  Atom.axisNumber = short;

  const TIMES = {
    year: "{yyyy}",
    month: "{MMM} {yyyy}",
    day: "{MMM} {d}",
    hour: "{MMM} {d} {HH}:{mm}",
    minute: "{HH}:{mm}",
    second: "{HH}:{mm}:{ss}",
    millisecond: "{ss}.{SSS}",
  };
  function axis(name, more) {
    const muted = style("--muted"),
      line = style("--line");
    return {
      type: "value",
      name,
      nameLocation: "middle",
      nameGap: 30,
      scale: true,
      nameTextStyle: { color: muted, fontSize: 12 },
      axisLabel: {
        color: muted,
        fontSize: 11,
        formatter: more.type === "time" ? TIMES : more.type === "category" ? undefined : more.show || short,
        hideOverlap: true,
      },
      axisLine: { show: true, lineStyle: { color: line } },
      axisTick: { show: false },
      splitLine: { lineStyle: { color: style("--grid") } },
      ...more,
    };
  }

  // options: {x: {name, type, min}, y: {...}, series: [...], onClick(run)}; y's name stands above the axis.
  Atom.option = ({ x, y, series }) => ({
    animation: false,
    textStyle: { fontFamily: style("--font") },
    grid: {
      left: 8,
      right: 18,
      top: y.name ? 34 : 14,
      bottom: x.name ? 26 : 8,
      containLabel: true,
      outerBoundsMode: "same",
      outerBoundsContain: "axisLabel",
    },
    xAxis: axis(x.name, { splitLine: { show: false }, ...x }),
    yAxis: axis(y.name, {
      nameLocation: "end",
      nameGap: 14,
      ...y,
      nameTextStyle: { color: style("--muted"), fontSize: 12, align: "left" },
      axisLine: { show: false },
    }),
    tooltip: {
      trigger: "item",
      confine: true,
      backgroundColor: style("--raised"),
      borderColor: style("--line"),
      borderWidth: 1,
      padding: 0,
      extraCssText: "box-shadow: var(--shadow); border-radius: 6px;",
      formatter: (p) => tip(p.data && p.data.tip),
      textStyle: { color: style("--text"), fontSize: 12 },
    },
    series,
  });

  // [title, [label, value]...] as nodes: a string would be parsed as HTML.
  function tip(content) {
    if (!content) return "";
    const [title, ...rows] = content;
    return el(
      "div",
      { class: "tip" },
      el("strong", null, title),
      el(
        "dl",
        null,
        rows
          .filter((r) => r[1] !== "" && r[1] !== null)
          .map(([k, v]) => [el("dt", null, k), el("dd", null, v)]),
      ),
    );
  }
  Atom.tipOf = (run, metrics, title) => [
    title,
    ...metrics
      .filter((m) => Atom.cell(run, m))
      .map((m) => {
        const cell = Atom.cell(run, m),
          info = Atom.metric(m),
          spread = Atom.spread(cell);
        return [
          info.label,
          `${Atom.number(cell[0])} ${info.unit}${spread === null ? "" : ` ±${Atom.plain(spread)}`}`,
        ];
      }),
    ["Load", run.load.label],
    ["Commit", run.commit ? run.commit.slice(0, 9) + (run.dirty ? " + changes" : "") : ""],
    ["When", `${Atom.time(run.time)} UTC`],
  ];

  // Whiskers of 95 % intervals; entries are {x: cell, y: cell}, either with or without ends.
  Atom.whiskers = (entries, colour) => ({
    type: "custom",
    silent: true,
    z: 2,
    tooltip: { show: false },
    encode: { x: [0, 1, 2], y: [3, 4, 5] },
    data: entries.map(({ x, y }) => [x[0], x[1] ?? x[0], x[2] ?? x[0], y[0], y[1] ?? y[0], y[2] ?? y[0]]),
    renderItem: (params, api) => {
      const at = (i, j) => api.coord([api.value(i), api.value(j)]);
      const [left, right, low, high] = [at(1, 3), at(2, 3), at(0, 4), at(0, 5)];
      const lines = [];
      const line = (x1, y1, x2, y2) =>
        lines.push({
          type: "line",
          shape: { x1, y1, x2, y2 },
          style: { stroke: colour, lineWidth: 1.2, opacity: 0.75 },
        });
      if (right[0] - left[0] > 1) line(left[0], left[1], right[0], right[1]);
      if (low[1] - high[1] > 1) line(low[0], low[1], high[0], high[1]);
      return { type: "group", children: lines };
    },
  });

  Atom.chart = ({
    title,
    label,
    height = 300,
    build,
    onOpen,
    legend = null,
    twin = null,
    note = null,
    controls = null,
  }) => {
    const canvas = el("div", {
      class: "canvas",
      role: "img",
      "aria-label": label,
      style: `height:${height}px`,
    });
    const held = { canvas, chart: null };
    held.draw = () => {
      if (!canvas.isConnected || !canvas.clientWidth) return;
      if (!held.chart) {
        held.chart = window.echarts.init(canvas, null, { renderer: "canvas" });
        if (onOpen)
          held.chart.on(
            "click",
            (event) => event.data && event.data.run !== undefined && onOpen(Atom.data.runs[event.data.run]),
          );
      }
      held.chart.resize();
      held.chart.setOption(build(canvas.clientWidth), true);
    };
    live.add(held);
    const figure = el(
      "figure",
      { class: "card figure" },
      el("figcaption", null, el("h2", null, title), controls),
      legend ? legend(held.draw) : null,
      canvas,
      note ? el("p", { class: "note" }, note) : null,
      twin,
    );
    requestAnimationFrame(held.draw);
    return figure;
  };
  Atom.redraw = () => live.forEach((held) => held.draw());
  Atom.dropCharts = () => {
    live.forEach((held) => held.chart && held.chart.dispose());
    live.clear();
  };
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(Atom.redraw);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Atom.refresh());
})();
