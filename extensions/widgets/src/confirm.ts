/** A button for what cannot be undone: the first click arms it, the second sends. */

import { make, setShown, setText } from "./dom";

const ARMED_MS = 5_000;
const PATIENCE_MS = 10_000;

type Stage = "idle" | "armed" | "sent";

export class ConfirmButton {
  readonly element = make("button", "raykit-button raykit-stop");
  private stage: Stage = "idle";
  private atWork = false;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly words: Record<Stage, string>,
    send: () => void,
  ) {
    this.element.type = "button";
    this.element.addEventListener("click", () => {
      if (this.stage === "idle") this.go("armed", ARMED_MS);
      else if (this.stage === "armed") {
        send();
        // A command may be lost with its cluster: after a while one may ask again.
        this.go("sent", PATIENCE_MS);
      }
    });
    this.element.addEventListener("blur", () => this.disarm());
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.disarm();
    });
    this.show();
  }

  /** Show it or not; what it asks for may be at work already. */
  draw(shown: boolean, atWork: boolean): void {
    this.atWork = atWork;
    setShown(this.element, shown);
    this.show();
  }

  close(): void {
    clearTimeout(this.timer);
  }

  private disarm(): void {
    if (this.stage === "armed") this.go("idle");
  }

  private go(stage: Stage, backAfterMs?: number): void {
    clearTimeout(this.timer);
    this.stage = stage;
    if (backAfterMs !== undefined) this.timer = setTimeout(() => this.go("idle"), backAfterMs);
    this.show();
  }

  private show(): void {
    const stage = this.atWork ? "sent" : this.stage;
    this.element.disabled = this.element.hidden || stage === "sent";
    this.element.dataset["stage"] = stage;
    setText(this.element, this.words[stage]);
  }
}
