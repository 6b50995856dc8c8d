// Building blocks: elements, numbers, dates, copying and saving. Data becomes text nodes, never HTML.
"use strict";
window.Atom = {};
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : String(child));
    }
    return node;
  }

  Atom.el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  Atom.svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  const format = (digits) =>
    new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const formats = [0, 1, 2, 3].map(format);

  // Three significant digits or more, with a fixed place for the point per magnitude.
  Atom.number = (value) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e15) return formats[0].format(value);
    const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
    return formats[digits].format(value);
  };
  Atom.score = (value) => (Number.isFinite(value) ? value.toFixed(4) : "–");
  Atom.percent = (share, digits = 1) =>
    `${share > 0 ? "+" : share < 0 ? "−" : ""}${(100 * Math.abs(share)).toFixed(digits)} %`;
  Atom.plain = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

  // Half the width of a cell's interval, relative to its value; null without one.
  Atom.spread = (cell) => {
    if (!cell || cell.length < 3 || !cell[0]) return null;
    return Math.max(cell[2] - cell[0], cell[0] - cell[1]) / Math.abs(cell[0]);
  };

  const two = (n) => String(n).padStart(2, "0");
  Atom.date = (ms) => {
    if (!ms) return "–";
    const d = new Date(ms);
    return `${d.getUTCFullYear()}-${two(d.getUTCMonth() + 1)}-${two(d.getUTCDate())}`;
  };
  Atom.time = (ms) => {
    if (!ms) return "–";
    const d = new Date(ms);
    return `${Atom.date(ms)} ${two(d.getUTCHours())}:${two(d.getUTCMinutes())}`;
  };

  Atom.shortModel = (model) => model.split("/").filter(Boolean).pop() || model || "–";

  // HIP and CUDA devices carry long trade names; the whole one stays in the title.
  Atom.shortHardware = (name) =>
    name
      .replace(/\b(AMD|NVIDIA|Instinct|Intel\(R\)|Corporation|Processor)\b ?/g, "")
      .replace(/\(R\)|\(TM\)/g, "")
      .trim();

  Atom.say = (text) => {
    document.getElementById("live").textContent = text;
  };

  Atom.copy = async (text, what) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = Atom.el("textarea", { class: "sr", "aria-hidden": "true" });
      area.value = text;
      (document.querySelector("dialog[open]") || document.body).append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) return Atom.say(`${what} could not be copied; select it and copy by hand`);
    }
    return Atom.say(`${what} copied`);
  };

  Atom.copyButton = (label, text, what) => {
    const button = Atom.el("button", { type: "button", class: "small" }, label);
    button.addEventListener("click", async () => {
      await Atom.copy(typeof text === "function" ? text() : text, what);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = label), 1500);
    });
    return button;
  };

  Atom.save = (name, type, text) => {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = Atom.el("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };

  // A cell that a spreadsheet would take for a formula is made text.
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  Atom.csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";

  Atom.empty = (title, text, commands = [], action = null) =>
    Atom.el(
      "div",
      { class: "empty" },
      Atom.el("h2", null, title),
      Atom.el("p", null, text),
      commands.length
        ? Atom.el(
            "ul",
            { class: "commands" },
            commands.map((c) =>
              Atom.el("li", null, Atom.el("code", null, c), Atom.copyButton("Copy", c, "Command")),
            ),
          )
        : null,
      action,
    );

  // Its id is its label's, so that the focus finds it again when the page has been drawn anew.
  Atom.select = (label, options, value, change) => {
    const id = `select-${label.toLowerCase()}`;
    const box = Atom.el(
      "select",
      { id },
      options.map(([key, text]) => Atom.el("option", { value: key, selected: key === value }, text)),
    );
    box.addEventListener("change", () => change(box.value));
    return Atom.el("span", { class: "field" }, Atom.el("label", { for: id }, label), box);
  };
})();
