/** The map of a cluster's GPUs on a canvas: as dark as they work, hollow where nobody uses them. */

import { make, setText } from "./dom";
import type { ClusterFace } from "./face";
import { cellAt, hit, layOut, type MapLayout, type NodeBox } from "./map";

const UNKNOWN = -1; // as in raykit.render.nodes
const LEVELS = 5;
const NOBODY = 0; // the first of the owners
const DIMMED = 0.15;

/** The kinds of cells; the swatch of each in the legend is also the palette. */
const KINDS = ["idle, used by nobody", "used, 0–19% at work", "20–39%", "40–59%", "60–79%", "80–100%", "unknown", "broken or gone"];
const [HOLLOW, UNKNOWN_KIND, FAULT_KIND] = [0, LEVELS + 1, LEVELS + 2];

export class HeatMap {
  private readonly canvas = make("canvas", "raykit-map");
  private readonly swatches = KINDS.map((_, kind) => make("i", `raykit-cell-${kind}`));
  private readonly legend = make("ul", "raykit-legend", ...KINDS.map((words, kind) => make("li", "", this.swatches[kind]!, words)));
  private readonly pointed = make("div", "raykit-pointed raykit-soft");
  readonly element = make("div", "", this.legend, this.canvas, this.pointed);
  private readonly resized: ResizeObserver;
  private face: ClusterFace | undefined;
  private owner = "";
  private domains: ClusterFace["domains"] | undefined;
  private layout: MapLayout = { cell: 0, height: 1, titles: [], boxes: [] };
  private width = 0;
  private ground = "";
  private looks: number[] = [];

  constructor(choose: (node: string) => void) {
    this.canvas.setAttribute("role", "img");
    this.canvas.addEventListener("mousemove", (event) => this.point(hit(this.layout, event.offsetX, event.offsetY)));
    this.canvas.addEventListener("mouseleave", () => this.point(undefined));
    this.canvas.addEventListener("click", (event) => choose(hit(this.layout, event.offsetX, event.offsetY)?.box.name ?? ""));
    this.resized = new ResizeObserver(() => this.paint());
    this.resized.observe(this.element);
  }

  /** Draw the face, with all but one owner's cells dimmed if an owner is named. */
  draw(face: ClusterFace, owner: string): void {
    this.face = face;
    this.owner = owner;
    this.canvas.setAttribute("aria-label", `map of ${face.name}, ${face.percents.length} cells; the table below says the same`);
    this.paint();
  }

  close(): void {
    this.resized.disconnect();
  }

  private paint(): void {
    const { face, element } = this;
    const width = element.clientWidth;
    if (!face || !width) return;
    const scale = window.devicePixelRatio;
    const colors = this.swatches.map((swatch) => getComputedStyle(swatch).backgroundColor);
    const ground = `${getComputedStyle(this.element).color} ${colors} ${face.node}`;
    const isNew = face.domains !== this.domains || width !== this.width || this.canvas.width !== Math.round(width * scale);
    if (isNew) {
      this.layout = layOut(face.domains, width);
      [this.domains, this.width] = [face.domains, width];
      [this.canvas.width, this.canvas.height] = [Math.round(width * scale), Math.round(this.layout.height * scale)];
      [this.canvas.style.width, this.canvas.style.height] = [`${width}px`, `${this.layout.height}px`];
    }
    const context = this.canvas.getContext("2d")!;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    if (isNew || ground !== this.ground) {
      [this.ground, this.looks] = [ground, []];
      context.clearRect(0, 0, width, this.layout.height);
      this.paintTitles(context);
      const chosen = this.layout.boxes.find((box) => box.name === face.node);
      if (chosen) context.strokeRect(chosen.x - 2.5, chosen.y - 2.5, chosen.width + 5, chosen.height + 5);
    }
    this.paintCells(context, face, colors);
  }

  private paintTitles(context: CanvasRenderingContext2D): void {
    const style = getComputedStyle(this.element);
    context.strokeStyle = context.fillStyle = style.color;
    context.font = `12px ${style.fontFamily}`;
    for (const title of this.layout.titles) context.fillText(title.name, title.x, title.y);
  }

  /** Paint the cells that look otherwise than before, look by look: to change the colour takes longer than to fill a cell. */
  private paintCells(context: CanvasRenderingContext2D, face: ClusterFace, colors: readonly string[]): void {
    const only = face.owners.indexOf(this.owner);
    const { cell, boxes } = this.layout;
    const changed: number[][] = KINDS.flatMap(() => [[], []]); // of each kind those that shine, and those that are dimmed
    for (const box of boxes) {
      for (let place = 0; place < box.numCells; place++) {
        const at = box.first + place;
        const look = 2 * kindOf(face, box, at) + (only < 0 || face.owner_of[at] === only ? 0 : 1);
        if (this.looks[at] !== look) changed[look]!.push(...cellAt(box, place, cell));
        this.looks[at] = look;
      }
    }
    changed.forEach((corners, look) => {
      context.globalAlpha = look % 2 ? DIMMED : 1;
      context.fillStyle = colors[look >> 1]!;
      for (let at = 0; at < corners.length; at += 2) {
        context.clearRect(corners[at]!, corners[at + 1]!, cell, cell);
        context.fillRect(corners[at]!, corners[at + 1]!, cell, cell);
      }
    });
    context.globalAlpha = 1;
  }

  private point(found: { box: NodeBox; place: number } | undefined): void {
    setText(this.pointed, found && this.face ? words(this.face, found.box, found.place) : "");
  }
}

function kindOf(face: ClusterFace, box: NodeBox, at: number): number {
  const percent = face.percents[at] ?? UNKNOWN;
  if (percent === UNKNOWN) return UNKNOWN_KIND;
  if (percent < 0) return FAULT_KIND;
  const level = Math.min(LEVELS - 1, Math.floor((percent * LEVELS) / 100));
  // CPUs have no owners that a driver could name: they are idle or at work.
  return (box.hasGpus ? face.owner_of[at] === NOBODY : level === 0) ? HOLLOW : 1 + level;
}

function words(face: ClusterFace, box: NodeBox, place: number): string {
  const at = box.first + place;
  const kind = kindOf(face, box, at);
  const percent = face.percents[at]!;
  const use = percent >= 0 ? `${percent}% at work` : KINDS[kind]!;
  return box.hasGpus ? `${box.name}, GPU ${place}: ${use}, used by ${face.owners[face.owner_of[at]!]}` : `${box.name}, its CPUs: ${use}`;
}
