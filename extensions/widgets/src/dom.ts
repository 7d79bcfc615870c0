/** Elements made and kept: what did not change is not touched, so focus, selection and open folds stay. */

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className: string,
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function setShown(element: HTMLElement, shown: boolean): void {
  element.hidden = !shown;
}

/** Make `parent` have `count` children, added by `create` or removed at the end, and give them. */
export function withChildren<E extends Element>(parent: Element, count: number, create: (at: number) => E): E[] {
  while (parent.children.length > count) parent.lastElementChild?.remove();
  while (parent.children.length < count) parent.append(create(parent.children.length));
  return [...parent.children] as E[];
}

/** A bar that says its share to a reader of the screen, too; an unknown share is no bar. */
export class Bar {
  private readonly fill = make("div", "raykit-fill");
  readonly element = make("div", "raykit-bar", this.fill);

  constructor(label: string) {
    this.element.setAttribute("role", "progressbar");
    this.element.setAttribute("aria-label", label);
    this.element.setAttribute("aria-valuemin", "0");
    this.element.setAttribute("aria-valuemax", "100");
  }

  draw(share: number | null): void {
    setShown(this.element, share !== null);
    const percent = String(Math.round((share ?? 0) * 1000) / 10);
    this.fill.style.width = `${percent}%`;
    this.element.setAttribute("aria-valuenow", percent);
  }
}

/** Fill a list with terms and what they are. */
export function drawPairs(list: HTMLElement, pairs: readonly [string, string][]): void {
  setShown(list, pairs.length > 0);
  withChildren(list, pairs.length, () => make("div", "", make("dt", ""), make("dd", ""))).forEach((pair, at) => {
    const [name, value] = pairs[at]!;
    setText(pair.children[0]!, name);
    setText(pair.children[1]!, value);
  });
}

/** Show an element with its words, or not at all. */
export function say(element: HTMLElement, words: string): void {
  setText(element, words);
  setShown(element, words !== "");
}

/** JupyterLab would take arrows and letters for its own: its shortcuts heed the attribute, its notebook the stopped event. */
export function keepKeys(element: HTMLElement): void {
  element.setAttribute("data-lm-suppress-shortcuts", "true");
  element.addEventListener("keydown", (event) => event.stopPropagation());
}

export function newButton(label: string, click: () => void, className = "raykit-button"): HTMLButtonElement {
  const button = make("button", className, label);
  button.type = "button";
  button.addEventListener("click", click);
  return button;
}
