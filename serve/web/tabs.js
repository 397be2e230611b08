// Tabs as the ARIA pattern has them: one stop for Tab, arrows choose, Home and End are the ends.

/** @param {HTMLElement} list role=tablist @param {(tab: HTMLElement) => void} onSelect */
export function tabs(list, onSelect = () => {}) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const other of all) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    onSelect(tab);
  };
  const place = (key, index) => ({
    ArrowRight: (index + 1) % all.length,
    ArrowLeft: (index - 1 + all.length) % all.length,
    Home: 0,
    End: all.length - 1,
  })[key];
  all.forEach((tab, index) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const next = all[place(event.key, index)];
      if (!next) return;
      event.preventDefault();
      select(next);
      next.focus();
    });
  });
  return select;
}
