// The pictures of the next question: added, put in order, removed.

import { button, element } from "/web/dom.js";

export class Tray {
  /** @param {HTMLElement} list @param {() => void} onChange */
  constructor(list, onChange) {
    [this.list, this.onChange] = [list, onChange];
    this.pictures = [];
    this.dragged = -1;
    this.#draw();
  }

  add(picture) {
    this.pictures.push(picture);
    this.#draw();
  }

  /** All pictures, which leave the tray. */
  take() {
    const taken = this.pictures;
    this.pictures = [];
    this.#draw();
    return taken;
  }

  #move(from, to) {
    const [picture] = this.pictures.splice(from, 1);
    this.pictures.splice(to, 0, picture);
    this.#draw();
  }

  #remove(index) {
    this.pictures.splice(index, 1);
    this.#draw();
    const left = this.list.children[Math.min(index, this.pictures.length - 1)];
    (left?.querySelector(".remove") ?? document.getElementById("question")).focus();
  }

  #draw() {
    this.list.replaceChildren(...this.pictures.map((picture, index) => this.#entry(picture, index)));
    this.onChange();
  }

  #entry({ url, name }, index) {
    const entry = element("li", "");
    entry.draggable = true;
    const image = element("img", "");
    image.src = url;
    image.alt = `Picture ${index + 1}: ${name}`;
    image.title = name;
    const tools = element("div", "tools");
    tools.append(
      this.#mover("‹", `Move picture ${index + 1} earlier`, index, index - 1),
      button("remove", "×", `Remove picture ${index + 1}`, () => this.#remove(index)),
      this.#mover("›", `Move picture ${index + 1} later`, index, index + 1),
    );
    entry.append(image, element("span", "number", String(index + 1)), tools);
    entry.addEventListener("dragstart", () => (this.dragged = index));
    entry.addEventListener("dragend", () => (this.dragged = -1));
    entry.addEventListener("dragover", (event) => this.dragged >= 0 && event.preventDefault());
    entry.addEventListener("drop", (event) => {
      if (this.dragged < 0) return; // a file: the whole form takes it
      event.preventDefault();
      event.stopPropagation();
      this.#move(this.dragged, index);
    });
    return entry;
  }

  #mover(sign, label, from, to) {
    const kind = to < from ? "earlier" : "later";
    const mover = button(kind, sign, label, () => {
      this.#move(from, to);
      const again = this.list.children[to].querySelector(`.${kind}`);
      (again.disabled ? this.list.children[to].querySelector(".remove") : again).focus();
    });
    mover.disabled = to < 0 || to >= this.pictures.length;
    return mover;
  }
}
