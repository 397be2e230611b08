// Values on hover and focus. Without it the page loses nothing but these hints.
"use strict";
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  document.body.append(tip);

  function show(text, x, y) {
    tip.textContent = text;
    tip.classList.add("on");
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
  }
  const hide = () => tip.classList.remove("on");

  for (const element of document.querySelectorAll("[data-tip]")) {
    element.addEventListener("pointermove", (event) => show(element.dataset.tip, event.clientX, event.clientY));
    element.addEventListener("pointerleave", hide);
    element.addEventListener("focus", () => {
      const box = element.getBoundingClientRect();
      show(element.dataset.tip, box.left, box.bottom - 14);
    });
    element.addEventListener("blur", hide);
  }

  // Charts over steps: a vertical line at the pointer, and every series' value at the nearest step it has.
  for (const chart of document.querySelectorAll("svg.hover")) {
    const { x: [left, right, first, last], series } = JSON.parse(chart.dataset.hover);
    const cursor = chart.querySelector(".cursor");
    chart.addEventListener("pointermove", (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      const at = Math.max(left, Math.min(right, point.x));
      const step = first + ((at - left) / (right - left || 1)) * (last - first);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.style.visibility = "visible";
      const lines = series.filter((one) => one.points.length).map(({ label, points }) => {
        const nearest = points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
        return `${label}: ${nearest[1]}`;
      });
      show([`step ${Math.round(step)}`, ...lines].join("\n"), event.clientX, event.clientY);
    });
    chart.addEventListener("pointerleave", () => {
      cursor.style.visibility = "hidden";
      hide();
    });
  }
})();
