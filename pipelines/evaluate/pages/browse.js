// Tables of answers: rows come from the JSON in the page, and one sheet of them is in the document at a time.
"use strict";
(() => {
  const SHEET = 25;

  function make(name, text = "", style = "") {
    const element = document.createElement(name);
    element.textContent = text;
    if (style) element.className = style;
    return element;
  }

  function cell(title, ...content) {
    const made = make("td");
    made.dataset.head = title;
    made.append(...content);
    return made;
  }

  function shots(numbers, pictures, id) {
    const box = make("div", "", "shots");
    for (const [at, number] of numbers.entries()) {
      const image = make("img");
      image.src = pictures[number];
      image.alt = numbers.length > 1 ? `frame ${at + 1} of ${id}` : `picture of ${id}`;
      box.append(image);
    }
    if (!numbers.length) box.append(make("small", "not shown"));
    return box;
  }

  function said({ text, note, kind }) {
    const mark = { right: "✓ ", wrong: "✗ ", partly: "≈ ", failed: "⚠ " }[kind];
    const words = make("span", "", `answer ${kind}`);
    words.append(make("span", mark, "mark"), make("bdi", text));
    return note ? [words, make("small", note)] : [words];
  }

  function drawn(row, { head, pictures }) {
    const line = make("tr");
    const where = [row.id, row.category].filter(Boolean).join(" · ");
    line.append(
      cell(head[0], shots(row.pictures, pictures, row.id)),
      cell(head[1], make("bdi", row.prompt || "—"), make("small", where)),
      cell(head[2], ...row.truths.map((truth) => make("bdi", truth, "truth"))),
      ...row.answers.map((answer, at) => cell(head[3 + at], ...said(answer))),
      cell(head.at(-1), make("b", row.value)),
    );
    return line;
  }

  function start(browser) {
    const content = JSON.parse(browser.querySelector("script").textContent);
    const { rows, pictures } = content;
    const form = browser.querySelector("form");
    const body = browser.querySelector("tbody");
    const said = browser.querySelector("output");
    const buttons = [...browser.querySelectorAll("[data-step]")];
    const shown = rows.filter((row) => row.pictures.length).length;
    let found = rows;
    let sheet = 0;

    function draw() {
      const from = sheet * SHEET;
      const now = found.slice(from, from + SHEET);
      body.replaceChildren(...now.map((row) => drawn(row, content)));
      const range = now.length ? `${(from + 1).toLocaleString("en")} to ${(from + now.length).toLocaleString("en")}` : "None";
      said.textContent = `${range} of ${found.length.toLocaleString("en")}; ${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} with pictures`;
      for (const button of buttons) {
        const next = sheet + Number(button.dataset.step);
        button.disabled = next < 0 || next * SHEET >= found.length;
      }
    }

    function filter() {
      const { kind, category, order, text } = Object.fromEntries(new FormData(form));
      const words = text.trim().toLowerCase();
      const holds = (row) =>
        [row.id, row.prompt, ...row.truths, ...row.answers.map((answer) => answer.text)].some((one) => one.toLowerCase().includes(words));
      found = rows.filter(
        (row) =>
          (!kind || row.kinds.includes(kind)) &&
          (category === undefined || category === "*" || row.category === category) &&
          (!words || holds(row)),
      );
      if (order === "last") found.reverse();
      if (order === "index") found.sort((a, b) => a.at - b.at);
      sheet = 0;
      draw();
    }

    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const button of buttons) {
      button.addEventListener("click", () => {
        sheet += Number(button.dataset.step);
        draw();
        browser.scrollIntoView({ block: "start" });
      });
    }
    filter();
  }

  // A large table is read when it comes near the window, not before.
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        near.unobserve(entry.target);
        start(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  for (const browser of document.querySelectorAll(".browser")) near.observe(browser);

  // Whose published scores stand beside ours.
  const beside = document.getElementById("beside");
  beside?.addEventListener("input", () => {
    const scores = JSON.parse(document.getElementById("published").querySelector("script").textContent)[beside.value];
    for (const place of document.querySelectorAll("[data-beside]")) place.textContent = scores[place.dataset.beside] ?? "";
  });
})();
