// One run whole, in a drawer: figures, command, provenance, artefacts. Its address is #run=<id>.
"use strict";
(() => {
  const { el } = Atom;
  const WHATS = Object.keys(Atom.data.latencies);
  const SHORT = { ttft: "TTFT", tpot: "TPOT", itl: "ITL", e2el: "E2EL" };
  const LATENCY = new RegExp(`^(mean|median|std|p[0-9.]+)_(${WHATS.join("|")})_ms$`);

  const section = (title, ...content) => el("section", null, el("h3", null, title), content);
  const pairs = (rows) =>
    el(
      "dl",
      { class: "pairs" },
      rows
        .filter((r) => r[1] !== "" && r[1] !== null && r[1] !== undefined)
        .map(([k, v]) => el("div", null, el("dt", null, k), el("dd", null, v))),
    );

  function latencies(run) {
    const found = new Map();
    for (const name of Object.keys(Atom.data.values)) {
      const match = LATENCY.exec(name);
      if (match && Atom.cell(run, name)) found.set(`${match[2]} ${match[1]}`, Atom.cell(run, name));
    }
    if (!found.size) return null;
    const rank = (s) => (s === "mean" ? -3 : s === "median" ? -2 : s === "std" ? -1 : Number(s.slice(1)));
    const statistics = [...new Set([...found.keys()].map((k) => k.split(" ")[1]))].sort(
      (a, b) => rank(a) - rank(b),
    );
    const whats = WHATS.filter((what) => statistics.some((s) => found.has(`${what} ${s}`)));
    return section(
      "Latency, ms",
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Latency" },
        el(
          "table",
          null,
          el(
            "thead",
            null,
            el(
              "tr",
              null,
              el("th", { scope: "col" }, ""),
              statistics.map((s) => el("th", { scope: "col", class: "num" }, s)),
            ),
          ),
          el(
            "tbody",
            null,
            whats.map((what) =>
              el(
                "tr",
                null,
                el(
                  "th",
                  { scope: "row", title: Atom.data.latencies[what] },
                  SHORT[what] || Atom.data.latencies[what],
                ),
                statistics.map((s) => el("td", { class: "num" }, Atom.measure(found.get(`${what} ${s}`)))),
              ),
            ),
          ),
        ),
      ),
    );
  }

  function others(run) {
    const rows = Object.keys(Atom.data.values)
      .filter((name) => !LATENCY.test(name) && !Atom.metric(name).derived && Atom.cell(run, name))
      .map((name) => {
        const info = Atom.metric(name),
          cell = Atom.cell(run, name);
        const share = info.unit === "share";
        const shown = share ? Atom.plain(cell[0], 2) : Atom.measure(cell, info.unit);
        return [run.kind === "eval" && !share ? name : info.label, shown];
      });
    return rows.length
      ? section(run.kind === "eval" ? "Scores" : "Throughput and counts", pairs(rows))
      : null;
  }

  function repeats(run) {
    const names = Object.keys(run.repeats);
    const count = Math.max(0, ...names.map((n) => run.repeats[n].length));
    if (count < 2) return null;
    return section(
      `Repeats (${count})`,
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Repeats" },
        el(
          "table",
          null,
          el(
            "thead",
            null,
            el(
              "tr",
              null,
              el("th", { scope: "col" }, ""),
              Array.from({ length: count }, (_, i) => el("th", { scope: "col", class: "num" }, i + 1)),
            ),
          ),
          el(
            "tbody",
            null,
            names.map((name) =>
              el(
                "tr",
                null,
                el("th", { scope: "row" }, Atom.metric(name).label),
                run.repeats[name].map((v) => el("td", { class: "num" }, Atom.number(v))),
              ),
            ),
          ),
        ),
      ),
    );
  }

  const objectives = (run) =>
    Object.keys(run.slo).length === 0
      ? null
      : section(
          "Objectives",
          pairs(
            Object.entries(run.slo).map(([name, limit]) => {
              const value = Atom.value(run, name),
                info = Atom.metric(name);
              const met =
                value === null
                  ? "not measured"
                  : (info.better === "higher" ? value >= limit : value <= limit)
                    ? "met"
                    : "missed";
              return [
                info.label,
                `${info.better === "higher" ? "at least" : "at most"} ${Atom.number(limit)} ${info.unit}: ${met}`,
              ];
            }),
          ),
        );

  Atom.artefact = (artefact) => {
    const name = artefact.path.split("/").pop() || artefact.path;
    return artefact.href
      ? el("a", { href: artefact.href, title: artefact.path }, `${artefact.kind}: ${name}`)
      : el("span", { class: "muted", title: artefact.path }, `${artefact.kind}: ${name} (not found)`);
  };

  function provenance(run) {
    const flat = [],
      deep = [];
    const entries = [...Object.entries(run.provenance), ["workload", run.workload]];
    for (const [key, index] of entries) {
      const value = Atom.data.pool[index];
      if (value === null || value === "" || (typeof value === "object" && !Object.keys(value).length))
        continue;
      if (typeof value === "object") deep.push([key, JSON.stringify(value, null, 2)]);
      else flat.push([key, String(value)]);
    }
    return section(
      "Provenance",
      pairs([["run", run.id], ["fingerprint", run.fingerprint], ["sweep", run.sweep], ...flat]),
      deep.map(([key, text]) =>
        el("details", null, el("summary", null, key), el("pre", { tabindex: "0" }, text)),
      ),
    );
  }

  function health(run) {
    const h = run.health;
    if (!h) return null;
    return section(
      "Client",
      pairs([
        [
          "Verdict",
          h.bound ? `the client was the bottleneck: ${h.reason}` : h.reason || "not the bottleneck",
        ],
        ["Busiest process", `${Atom.plain(h.cpu_share, 0)} of a core, ${h.workers} in all`],
        ["Event loop late, p99", `${Atom.number(h.lag_p99_ms)} ms`],
        ["Sent late, p99", `${Atom.number(h.send_delay_p99_ms)} ms`],
      ]),
    );
  }

  Atom.drawer = (run) => {
    const drawer = document.getElementById("drawer");
    const close = el("button", { type: "button", class: "small", autofocus: true }, "Close");
    close.addEventListener("click", () => drawer.close());
    const facts = [
      run.backend && `${run.backend} ${run.version}`.trim(),
      run.hardware,
      run.tp ? `TP ${run.tp}` : "",
      run.shape,
      run.load.label,
    ].filter(Boolean);
    const marks = Atom.standingAt(run);
    const errors = Object.entries(run.errors);
    drawer.replaceChildren(
      el(
        "header",
        null,
        el(
          "div",
          null,
          el("h2", { id: "drawer-title" }, Atom.shortModel(run.model)),
          el("p", { class: "muted" }, facts.join(" · ")),
        ),
        close,
      ),
      el(
        "div",
        { class: "inside", tabindex: "0", role: "region", "aria-label": "Details of the run" },
        el(
          "p",
          { class: "line" },
          `${Atom.time(run.time)} UTC`,
          run.commit
            ? [
                " · commit ",
                el("code", null, run.commit.slice(0, 12)),
                run.dirty ? " with local changes" : "",
              ]
            : "",
          Atom.badges(run),
        ),
        marks.length
          ? section(
              "Against its history",
              el(
                "ul",
                null,
                marks.map((m) =>
                  el(
                    "li",
                    null,
                    el("b", null, `${Atom.metric(m.metric).label}: ${Atom.verdict(m)}`),
                    ` since ${Atom.date(Atom.data.runs[m.run].time)}: ${m.text}`,
                    m.commits ? [" ", el("code", null, m.commits)] : "",
                  ),
                ),
              ),
            )
          : null,
        section(
          "Reproduce",
          run.command
            ? el(
                "div",
                { class: "command" },
                el(
                  "pre",
                  { tabindex: "0" },
                  run.command.split(" ").map((word, i) => [i ? " " : "", el("span", null, word)]),
                ),
                Atom.copyButton("Copy", run.command, "Command"),
              )
            : el("p", { class: "muted" }, "The command of this run is not known; it was imported."),
        ),
        others(run),
        latencies(run),
        objectives(run),
        errors.length
          ? section("Failed requests", pairs(errors.map(([cause, count]) => [cause, Atom.number(count)])))
          : null,
        run.notes.length
          ? section(
              "Notes",
              el(
                "ul",
                null,
                run.notes.map((n) => el("li", null, n)),
              ),
            )
          : null,
        run.artefacts.length
          ? section(
              "Traces and files",
              el(
                "ul",
                null,
                run.artefacts.map((a) => el("li", null, Atom.artefact(a))),
              ),
            )
          : null,
        repeats(run),
        health(run),
        provenance(run),
      ),
    );
    if (!drawer.open) drawer.showModal();
  };
  document.getElementById("drawer").addEventListener("click", (event) => {
    if (event.target.id === "drawer") event.target.close(); // the backdrop
  });
  document.getElementById("drawer").addEventListener("close", () => Atom.closed());
})();
