/** A small curve with its range, drawn anew when its points changed. */

import { make, setText } from "./dom";

type Point = readonly [number, number];

const WIDTH = 320;
const HEIGHT = 64;
const SVG = "http://www.w3.org/2000/svg";

export class Curve {
  private readonly area = document.createElementNS(SVG, "polygon");
  private readonly line = document.createElementNS(SVG, "polyline");
  private readonly high = make("span", "raykit-high");
  private readonly low = make("span", "raykit-low");
  private readonly left = make("span", "raykit-left");
  private readonly right = make("span", "raykit-right");
  private readonly svg = document.createElementNS(SVG, "svg");
  readonly element = make("div", "raykit-curve");
  private drawn = "";

  constructor() {
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    // The words stand outside: the drawing is stretched to the room that there is.
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.svg.append(this.area, this.line);
    this.element.append(this.high, this.low, this.svg, this.left, this.right);
  }

  draw(name: string, points: readonly Point[]): void {
    const finite = points.filter(([, y]) => Number.isFinite(y));
    const [first, last] = [finite[0], finite[finite.length - 1]];
    if (!first || !last) return;
    const values = finite.map(([, y]) => y);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const text = toPoints(finite, low, high);
    if (text === this.drawn) return;
    this.drawn = text;
    this.line.setAttribute("points", text);
    this.area.setAttribute("points", `0,${HEIGHT} ${text} ${WIDTH},${HEIGHT}`);
    setText(this.high, short(high));
    setText(this.low, short(low));
    setText(this.left, `${name} at step ${first[0]}`);
    setText(this.right, `step ${last[0]}`);
    const said = `${name}, ${short(first[1])} at step ${first[0]}, ${short(last[1])} at step ${last[0]}`;
    this.svg.setAttribute("aria-label", said);
  }
}

function toPoints(points: readonly Point[], low: number, high: number): string {
  const steps = points.map(([x]) => x);
  const [left, right] = [Math.min(...steps), Math.max(...steps)];
  const across = right > left ? WIDTH / (right - left) : 0;
  const up = high > low ? (HEIGHT - 8) / (high - low) : 0;
  return points
    .map(([x, y]) => `${((x - left) * across).toFixed(1)},${(HEIGHT - 4 - (y - low) * up).toFixed(1)}`)
    .join(" ");
}

function short(value: number): string {
  return String(Number(value.toPrecision(3)));
}
