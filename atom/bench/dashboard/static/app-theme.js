// The theme, set before the first paint: the system's, or the choice kept in this browser.
"use strict";
(() => {
  const KEY = "atom-theme";
  const root = document.documentElement;
  const kept = () => {
    try {
      return localStorage.getItem(KEY) || "auto";
    } catch {
      return "auto"; // storage may be closed to pages from files
    }
  };
  let theme = kept();
  const apply = () => {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
  };
  apply();
  window.AtomTheme = {
    get: () => theme,
    next() {
      const order = ["auto", "light", "dark"];
      theme = order[(order.indexOf(theme) + 1) % order.length];
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // the choice then lasts as long as the page
      }
      apply();
    },
  };
})();
