/** Small charts of figures over time, one beside the other; they share the window of the timeline and the cursor. */

import uPlot from "uplot";

import { make, setShown, setText, withChildren } from "./dom";
import type { Chart, Past } from "./face";
import { seconds } from "./timeline";
import type { Zoom } from "./zoom";

const HEIGHT = 110;
let numWidgets = 0;

/** Figures as small charts; under the cursor each says its value. */
export class Charts {
  private readonly plots = new WeakMap<Element, Plot>();
  private readonly sync = uPlot.sync(`raykit-${numWidgets++}`);
  readonly element = make("div", "raykit-charts");

  constructor(private readonly zoom: Zoom) {
    zoom.follow(() => this.each((plot) => plot.look()));
  }

  draw(past: Past): void {
    setShown(this.element, past.charts.length > 0);
    withChildren(this.element, past.charts.length, () => this.make()).forEach((element, at) => {
      this.plots.get(element)?.draw(past.charts[at]!, past.steps);
    });
  }

  close(): void {
    this.each((plot) => plot.close());
  }

  private make(): HTMLElement {
    const plot = new Plot(this.zoom, this.sync);
    this.plots.set(plot.element, plot);
    return plot.element;
  }

  private each(act: (plot: Plot) => void): void {
    for (const element of this.element.children) {
      const plot = this.plots.get(element);
      if (plot) act(plot);
    }
  }
}

class Plot {
  private readonly name = make("strong", "");
  private readonly value = make("span", "raykit-soft");
  private readonly room = make("div", "raykit-plot");
  readonly element = make("figure", "raykit-chart", make("figcaption", "", this.name, this.value), this.room);
  private readonly plot: uPlot;
  private readonly observer: ResizeObserver;
  private points: Chart["points"] = [];
  private steps: Past["steps"] = [];

  constructor(
    private readonly zoom: Zoom,
    sync: uPlot.SyncPubSub,
  ) {
    const ink = (name: string) => (): string => getComputedStyle(this.element).getPropertyValue(name).trim();
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: ink("--soft"), font, grid: { stroke: ink("--track"), width: 1 }, ticks: { show: false } };
    this.plot = new uPlot(
      {
        width: 260,
        height: HEIGHT,
        padding: [8, 16, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: sync.key }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
        scales: { x: { time: false, range: () => [...zoom.window] } },
        axes: [
          { ...axis, size: 22, space: 60, values: (_, splits) => splits.map((at) => seconds(at).replace(".0 s", " s")), grid: { show: false } },
          { ...axis, size: 46, space: 28, values: (_, splits) => splits.map(short) },
        ],
        series: [{}, { stroke: ink("--accent"), width: 1.75, points: { show: false } }],
        hooks: { setCursor: [() => this.say()] },
      },
      [[], []],
      this.room,
    );
    this.room.setAttribute("role", "img");
    this.observer = new ResizeObserver(() => {
      const width = this.room.clientWidth;
      if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
    });
    this.observer.observe(this.room);
  }

  draw(chart: Chart, steps: Past["steps"]): void {
    setText(this.name, chart.name);
    this.steps = steps;
    if (chart.points !== this.points) {
      this.points = chart.points;
      this.look();
    }
    const [first, last] = [chart.points[0]!, chart.points[chart.points.length - 1]!];
    this.room.setAttribute("aria-label", `${chart.name}, ${short(first[1])} at first, ${short(last[1])} now`);
    this.say();
  }

  /** Draw the part of the points that is looked at, and one more on either side, so that the line leaves the picture. */
  look(): void {
    const [from, to] = this.zoom.window;
    const begin = Math.max(0, this.points.findIndex(([at]) => at >= from) - 1);
    const after = this.points.findIndex(([at]) => at > to);
    const shown = this.points.slice(begin, after < 0 ? undefined : after + 1);
    this.plot.setData([shown.map(([at]) => at), shown.map(([, value]) => value)]);
  }

  close(): void {
    this.observer.disconnect();
    this.plot.destroy();
  }

  private say(): void {
    const under = this.plot.cursor.idx;
    const at = under == null ? undefined : this.plot.data[0][under];
    const value = under == null ? undefined : this.plot.data[1]?.[under];
    const step = at === undefined ? undefined : this.steps.findLast(([when]) => when <= at + 0.01)?.[1];
    const where = at === undefined ? "" : ` at ${seconds(at)}${step === undefined ? "" : `, step ${step}`}`;
    setText(this.value, value == null ? "" : short(value) + where);
  }
}

function short(value: number): string {
  return Math.abs(value) >= 10_000 ? `${Number((value / 1000).toPrecision(3))}k` : String(Number(value.toPrecision(3)));
}
