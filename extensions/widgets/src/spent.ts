/** What a lane's time went to: busy, starved and blocked, one after the other. Its figures stand in the lane's cells. */

import { make, setShown } from "./dom";
import type { Lane } from "./face";

const PARTS = ["busy", "starved", "blocked"];

export class SpentBar {
  private readonly parts = PARTS.map((part) => make("div", `raykit-${part}`));
  readonly element = make("div", "raykit-bar raykit-spent", ...this.parts);

  constructor() {
    this.element.setAttribute("aria-hidden", "true"); // the cells beside it say the same
  }

  draw(lane: Lane): void {
    setShown(this.element, lane.spent !== null);
    this.parts.forEach((part, at) => {
      part.style.width = `${(lane.spent?.[at] ?? 0) * 100}%`;
    });
  }
}
