/** A line the size of a word: a lane's rate over the window that is looked at. */

import type { Chart } from "./face";
import type { Zoom } from "./zoom";

const WIDTH = 72;
const HEIGHT = 16;
const SVG = "http://www.w3.org/2000/svg";

export class Spark {
  private readonly line = document.createElementNS(SVG, "polyline");
  readonly element = document.createElementNS(SVG, "svg");
  private points: Chart["points"] = [];

  constructor(private readonly zoom: Zoom) {
    this.element.setAttribute("class", "raykit-spark");
    this.element.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true"); // the rate stands beside it
    this.element.append(this.line);
    zoom.follow(() => this.look());
  }

  draw(points: Chart["points"]): void {
    this.points = points;
    this.look();
  }

  private look(): void {
    const [from, to] = this.zoom.window;
    const high = Math.max(...this.points.map(([, value]) => value), Number.MIN_VALUE);
    const text = this.points
      .filter(([at]) => at >= from && at <= to)
      .map(([at, value]) => `${(((at - from) / (to - from || 1)) * WIDTH).toFixed(1)},${(HEIGHT - 1 - (value / high) * (HEIGHT - 2)).toFixed(1)}`)
      .join(" ");
    if (this.line.getAttribute("points") !== text) this.line.setAttribute("points", text);
  }
}
