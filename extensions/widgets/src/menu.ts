/** A button that opens a small panel below it; Escape, a click elsewhere or a choice closes it. */

import { make } from "./dom";

export class Menu {
  private readonly button: HTMLButtonElement;
  private readonly panel: HTMLElement;
  readonly element: HTMLElement;

  constructor(label: string, ...children: Node[]) {
    this.button = make("button", "raykit-button", label);
    this.button.type = "button";
    this.panel = make("div", "raykit-panel", ...children);
    this.panel.setAttribute("role", "group");
    this.panel.setAttribute("aria-label", label);
    this.element = make("div", "raykit-menu", this.button, this.panel);
    this.button.addEventListener("click", () => this.show(this.panel.hidden));
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.close();
      this.button.focus();
    });
    this.element.addEventListener("focusout", (event) => {
      const to = event.relatedTarget;
      if (!(to instanceof Node && this.element.contains(to))) this.close();
    });
    // A press on the panel's ground would take the focus away and close it.
    this.panel.tabIndex = -1;
    this.close();
  }

  close(): void {
    this.show(false);
  }

  private show(shown: boolean): void {
    this.panel.hidden = !shown;
    this.button.setAttribute("aria-expanded", String(shown));
    if (shown) this.panel.querySelector<HTMLElement>("input, button")?.focus();
  }
}
