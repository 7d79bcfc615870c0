/** The buttons of a run. Each sends one command; what became of it is for the view to say. */

import { ConfirmButton } from "./confirm";
import { make, setShown, setText, withChildren } from "./dom";
import type { Face } from "./face";
import { Menu } from "./menu";

/** What a click sends: the words of the magic of that name. */
export type Command =
  | { readonly command: "stop" | "apply" }
  | { readonly command: "resize"; readonly workers: string }
  | { readonly command: "drill"; readonly action: string };

export type Send = (command: Command) => void;

const STOP = { idle: "Stop", armed: "Stop the run?", sent: "Stopping…" };

export class Controls {
  private readonly stop: ConfirmButton;
  private readonly workers = make("input", "");
  private readonly drills = make("div", "raykit-choices");
  private readonly resize: Menu;
  private readonly drill: Menu;
  private readonly logs = make("button", "raykit-button", "Logs");
  readonly element: HTMLElement;

  constructor(
    private readonly send: Send,
    logs: HTMLElement,
  ) {
    this.stop = new ConfirmButton(STOP, () => send({ command: "stop" }));
    this.resize = new Menu("Resize", this.form());
    this.drill = new Menu("Drill", this.drills);
    this.logs.type = "button";
    this.logs.setAttribute("aria-expanded", "false");
    this.logs.addEventListener("click", () => {
      logs.hidden = !logs.hidden;
      this.logs.setAttribute("aria-expanded", String(!logs.hidden));
    });
    this.element = make("div", "raykit-controls", this.logs, this.drill.element, this.resize.element, this.stop.element);
  }

  draw(face: Face): void {
    this.stop.draw(face.buttons.includes("stop"), face.state === "stopping");
    setShown(this.resize.element, face.buttons.includes("resize"));
    setShown(this.drill.element, face.buttons.includes("drill"));
    if (document.activeElement !== this.workers) this.workers.value = face.workers;
    withChildren(this.drills, face.drills.length, () => this.newDrill()).forEach((button, at) => setText(button, face.drills[at]!));
  }

  close(): void {
    this.stop.close();
  }

  private form(): HTMLElement {
    const go = make("button", "raykit-button", "Resize");
    go.type = "submit";
    this.workers.size = 6;
    this.workers.setAttribute("aria-label", "ranks, least:most");
    const form = make("form", "raykit-form", make("label", "", "ranks "), this.workers, go);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send({ command: "resize", workers: this.workers.value });
      this.resize.close();
    });
    return form;
  }

  private newDrill(): HTMLElement {
    const button = make("button", "raykit-button", "");
    button.type = "button";
    button.addEventListener("click", () => {
      this.send({ command: "drill", action: button.textContent ?? "" });
      this.drill.close();
    });
    return button;
  }
}

/** An advice with its button. */
export class Advice {
  private readonly words = make("span", "");
  private readonly apply = make("button", "raykit-button", "Apply");
  readonly element = make("div", "raykit-advice", this.words, this.apply);

  constructor(send: Send) {
    this.apply.type = "button";
    this.apply.addEventListener("click", () => send({ command: "apply" }));
  }

  draw(face: Face): void {
    setShown(this.element, face.advice !== "");
    setShown(this.apply, face.buttons.includes("apply"));
    setText(this.words, face.advice);
  }
}
