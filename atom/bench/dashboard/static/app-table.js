// Tables: sortable by their header buttons, long ones in pages, and the twin of every chart.
"use strict";
(() => {
  const { el, svg } = Atom;
  const PAGE = 100;

  // A column: {key, label, title, number, of(row) -> value to sort and export, show(row) -> node}.
  // Missing values sort last in both directions.
  function sorted(rows, column, down) {
    const sign = down ? -1 : 1;
    const missing = (v) => v === null || v === undefined || v === "";
    return rows
      .map((row, i) => [column.of(row), i, row])
      .sort((a, b) => {
        if (missing(a[0]) || missing(b[0])) return missing(a[0]) - missing(b[0]) || a[1] - b[1];
        const order =
          typeof a[0] === "number" && typeof b[0] === "number"
            ? a[0] - b[0]
            : String(a[0]).localeCompare(String(b[0]), "en", { numeric: true });
        return sign * order || a[1] - b[1];
      })
      .map((entry) => entry[2]);
  }

  Atom.table = ({
    caption,
    columns,
    rows,
    sort = null,
    onSort = null,
    onOpen = null,
    page = PAGE,
    hidden = false,
  }) => {
    let key = sort ? sort.replace(/^-/, "") : "";
    let down = Boolean(sort && sort.startsWith("-"));
    let shown = page;
    const body = el("tbody");
    const heads = columns.map((column) => head(column));
    const more = el("button", { type: "button", class: "small more" });
    more.addEventListener("click", () => {
      shown += page;
      draw();
    });

    function head(column) {
      const button = el(
        "button",
        { type: "button", title: column.title || null },
        column.label,
        el("span", { class: "arrow", "aria-hidden": "true" }),
      );
      button.addEventListener("click", () => {
        down = key === column.key ? !down : Boolean(column.number);
        key = column.key;
        if (onSort) onSort(`${down ? "-" : ""}${key}`);
        draw();
      });
      const plain = column.sortable === false;
      return el(
        "th",
        {
          scope: "col",
          class:
            [column.number ? "num" : "", column.class === "minor" ? "minor" : ""].join(" ").trim() || null,
        },
        plain ? column.label : button,
      );
    }

    function draw() {
      const column = columns.find((c) => c.key === key);
      const order = column ? sorted(rows, column, down) : rows;
      heads.forEach((th, i) => {
        if (columns[i].key === key) th.setAttribute("aria-sort", down ? "descending" : "ascending");
        else th.removeAttribute("aria-sort");
      });
      let above = null;
      body.replaceChildren(
        ...order.slice(0, shown).map((row) => {
          const made = line(row, above);
          above = row;
          return made;
        }),
      );
      const left = order.length - shown;
      more.hidden = left <= 0;
      more.textContent = `Show ${Math.min(left, page)} more of ${Atom.number(left)}`;
    }

    function line(row, above) {
      const cells = columns.map((column, i) => {
        const same = column.quiet && above && column.of(above) === column.of(row);
        const classes = [column.number ? "num" : "", same ? "same" : "", column.class || ""]
          .filter(Boolean)
          .join(" ");
        const content = column.show ? column.show(row) : (column.of(row) ?? "–");
        return el(
          i === 0 ? "th" : "td",
          { scope: i === 0 ? "row" : null, class: classes || null },
          content === "" ? "–" : content,
        );
      });
      const tr = el("tr", { class: onOpen ? "open" : null }, cells);
      if (onOpen)
        tr.addEventListener("click", (event) => {
          if (!event.target.closest("button, a, summary") && !String(getSelection())) onOpen(row);
        });
      return tr;
    }

    draw();
    const label = el("caption", { class: hidden ? "sr" : null }, caption);
    const scroll = el(
      "div",
      { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
      el("table", null, label, el("thead", null, el("tr", null, heads)), body),
    );
    return el("div", { class: "tablebox" }, scroll, more);
  };

  // The accessible twin of a chart; built when it is opened, for charts may have thousands of points.
  Atom.twin = (caption, make) => {
    const details = el("details", { class: "twin" }, el("summary", null, "Show as table"));
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1)
        details.append(Atom.table({ caption, hidden: true, ...make() }));
    });
    return details;
  };

  // A value with its relative half-width: 1,234 ±1.2 %
  Atom.measure = (cell, unit = "", room = true) => {
    const spread = cell ? Atom.spread(cell) : null;
    const known = spread !== null && spread >= 0.0005;
    return [
      cell ? Atom.number(cell[0]) : "–",
      unit ? el("span", { class: "unit" }, ` ${unit}`) : null,
      known || room ? el("span", { class: "pm" }, known ? `±${(100 * spread).toFixed(1)}%` : "") : null,
    ];
  };

  // Whether any run has an interval of this metric: then all leave room for one, and figures align.
  const spreads = new Map();
  const hasSpread = (metric) => {
    if (!spreads.has(metric)) {
      spreads.set(
        metric,
        (Atom.data.values[metric] || []).some((cell) => Atom.spread(cell) !== null),
      );
    }
    return spreads.get(metric);
  };

  Atom.metricColumn = (metric, label, title) => ({
    key: metric,
    label,
    title:
      title ||
      `${Atom.metric(metric).label}${Atom.metric(metric).unit ? `, ${Atom.metric(metric).unit}` : ""}`,
    number: true,
    of: (run) => Atom.value(run, metric),
    show: (run) => Atom.measure(Atom.cell(run, metric), "", hasSpread(metric)),
  });

  // The last runs of a configuration, small; the figures are in the trend's own tab.
  Atom.spark = (values, label) => {
    const known = values.filter((v) => v !== null);
    if (known.length < 2) return el("span", { class: "muted" }, known.length ? "first" : "–");
    const low = Math.min(...known),
      high = Math.max(...known);
    const x = (i) => 2 + (i * 56) / (values.length - 1);
    const y = (v) => (high === low ? 10 : 17 - (14 * (v - low)) / (high - low));
    const points = values
      .map((v, i) => (v === null ? null : `${x(i).toFixed(1)},${y(v).toFixed(1)}`))
      .filter(Boolean);
    const [cx, cy] = points[points.length - 1].split(",");
    return svg(
      "svg",
      { class: "spark", width: 60, height: 20, viewBox: "0 0 60 20", role: "img", "aria-label": label },
      svg("polyline", { points: points.join(" "), fill: "none" }),
      svg("circle", { cx, cy, r: 2 }),
    );
  };

  Atom.runButton = (run, text) => {
    const button = el(
      "button",
      { type: "button", class: "link", title: run.id },
      text || Atom.date(run.time),
    );
    button.addEventListener("click", () => Atom.open(run));
    return button;
  };

  const SAID = {
    ok: "",
    interrupted: "interrupted",
    client_bound: "client-bound",
    errors: "errors",
    slo_missed: "SLO missed",
  };
  Atom.badges = (run, mark = Atom.worst(run)) => {
    const made = [];
    if (mark)
      made.push(
        el(
          "span",
          {
            class: `badge ${mark.kind}`,
            title: `${Atom.date(Atom.data.runs[mark.run].time)}, ${Atom.metric(mark.metric).label}: ${mark.text}`,
          },
          Atom.markName(mark),
        ),
      );
    const status = SAID[run.status] ?? run.status;
    if (status) made.push(el("span", { class: "badge status" }, status));
    return made;
  };
  Atom.markName = (mark) => {
    const name = {
      regression: "▼ regression",
      suspicious: "◇ suspicious",
      improvement: "▲ better",
      change: "◆ change",
    }[mark.kind];
    return `${name || mark.kind} ${Atom.percent(mark.ratio - 1)}`;
  };
})();
