/** The Stop button: asks once, sends once. Whether the run stops is for the view to say. */

import { make, setShown, setText } from "./dom";
import type { Face } from "./face";

const ARMED_MS = 5_000;
const PATIENCE_MS = 10_000;

type Stage = "idle" | "armed" | "sent";

const WORDS: Record<Stage, string> = { idle: "Stop", armed: "Stop the run?", sent: "Stopping…" };

export class StopButton {
  readonly element = make("button", "raykit-button raykit-stop", WORDS.idle);
  private stage: Stage = "idle";
  private stopping = false;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(send: () => void) {
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
  }

  draw(face: Face): void {
    this.stopping = face.state === "stopping";
    setShown(this.element, face.buttons.includes("stop"));
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
    const stage = this.stopping ? "sent" : this.stage;
    this.element.disabled = this.element.hidden || stage === "sent";
    this.element.dataset["stage"] = stage;
    setText(this.element, WORDS[stage]);
  }
}
