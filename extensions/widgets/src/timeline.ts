/** What happened when: a strip of states with marks, and a brush that chooses the part that the charts show. */

import { make, setShown, setText, withChildren } from "./dom";
import type { Past } from "./face";
import type { Zoom } from "./zoom";

const LEAST = 0.01; // of the whole: a shorter drag is a click, and shows everything again

export class Timeline {
  private readonly spans = make("div", "raykit-spans");
  private readonly marks = make("div", "raykit-marks");
  private readonly brush = make("div", "raykit-brush");
  private readonly from = slider("from");
  private readonly to = slider("to");
  private readonly words = make("span", "raykit-soft");
  private readonly all = make("button", "raykit-small", "Show all");
  private readonly strip = make("div", "raykit-strip", this.spans, this.brush, this.marks, this.from, this.to);
  readonly element = make("div", "raykit-timeline", this.strip, make("div", "raykit-timeline-words", this.words, this.all));

  constructor(private readonly zoom: Zoom) {
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", "timeline");
    this.all.type = "button";
    this.all.addEventListener("click", () => zoom.choose(null));
    for (const input of [this.from, this.to]) input.addEventListener("input", () => this.slide());
    this.strip.addEventListener("pointerdown", (event) => this.drag(event));
    zoom.follow(() => this.drawBrush());
  }

  draw(past: Past): void {
    setShown(this.element, past.spans.length > 0);
    const across = 100 / Math.max(past.to_s, 0.01);
    withChildren(this.spans, past.spans.length, () => make("span", "")).forEach((element, at) => {
      const span = past.spans[at]!;
      element.dataset["state"] = span.state;
      element.title = `${span.state}, ${seconds(span.from_s)} to ${seconds(span.to_s)}`;
      element.style.left = `${span.from_s * across}%`;
      element.style.width = `${(span.to_s - span.from_s) * across}%`;
    });
    withChildren(this.marks, past.marks.length, newMark).forEach((element, at) => {
      const mark = past.marks[at]!;
      element.classList.toggle("raykit-bad", !mark.good);
      element.title = `${mark.words}, at ${seconds(mark.at_s)}`;
      element.setAttribute("aria-label", element.title);
      element.style.left = `${mark.at_s * across}%`;
    });
    this.drawBrush();
  }

  private drawBrush(): void {
    const [from, to] = this.zoom.window;
    const end = Math.max(this.zoom.end, 0.01);
    for (const [input, value] of [[this.from, from], [this.to, to]] as const) {
      input.max = String(end);
      input.value = String(value);
      input.setAttribute("aria-valuetext", seconds(value));
    }
    this.brush.style.left = `${(from / end) * 100}%`;
    this.brush.style.width = `${((to - from) / end) * 100}%`;
    this.element.dataset["chosen"] = String(this.zoom.isChosen);
    this.all.style.visibility = this.zoom.isChosen ? "visible" : "hidden";
    setText(this.words, `${seconds(from)} to ${seconds(to)}`);
  }

  private slide(): void {
    const [one, other] = [Number(this.from.value), Number(this.to.value)];
    const window = [Math.min(one, other), Math.max(one, other)] as const;
    this.zoom.choose(window[0] <= 0 && window[1] >= this.zoom.end ? null : window);
  }

  private drag(event: PointerEvent): void {
    if (event.target instanceof HTMLInputElement || event.button !== 0) return;
    const box = this.strip.getBoundingClientRect();
    const at = (clientX: number): number => Math.min(1, Math.max(0, (clientX - box.left) / box.width));
    const begin = at(event.clientX);
    const move = (moved: PointerEvent): void => {
      const [low, high] = [Math.min(begin, at(moved.clientX)), Math.max(begin, at(moved.clientX))];
      this.zoom.choose(high - low < LEAST ? null : [low * this.zoom.end, high * this.zoom.end]);
    };
    const stop = (): void => {
      this.strip.removeEventListener("pointermove", move);
      this.strip.removeEventListener("pointerup", stop);
      this.strip.removeEventListener("pointercancel", stop);
    };
    this.strip.setPointerCapture(event.pointerId);
    this.strip.addEventListener("pointermove", move);
    this.strip.addEventListener("pointerup", stop);
    this.strip.addEventListener("pointercancel", stop);
    event.preventDefault();
  }
}

export function seconds(value: number): string {
  if (value < 100) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function newMark(): HTMLElement {
  const mark = make("span", "raykit-mark-at");
  mark.setAttribute("role", "img");
  return mark;
}

function slider(name: string): HTMLInputElement {
  const input = make("input", "raykit-thumb");
  input.type = "range";
  input.min = "0";
  input.step = "any";
  input.setAttribute("aria-label", `${name} this time on the charts`);
  return input;
}
