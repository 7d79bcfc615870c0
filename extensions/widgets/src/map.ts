/** Where each cell of a cluster's map stands: nodes in rows, under the name of their rack or zone. */

import type { Domain } from "./face";

/** A node's rectangle, with its first cell's place in the arrays of the face. */
export interface NodeBox {
  readonly name: string;
  readonly hasGpus: boolean;
  readonly first: number;
  readonly numCells: number;
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

export interface Title {
  readonly name: string;
  readonly x: number;
  readonly y: number;
}

export interface MapLayout {
  readonly cell: number;
  readonly height: number;
  readonly titles: readonly Title[];
  readonly boxes: readonly NodeBox[];
}

const CELL_SIZES: readonly [number, number][] = [[64, 20], [512, 14], [2_048, 10], [Infinity, 7]];
const CELL_GAP = 1;
const NODE_GAP = 6;
const DOMAIN_GAP = 16;
const TITLE_HEIGHT = 20;
const LETTER_WIDTH = 7;

export function layOut(domains: readonly Domain[], width: number): MapLayout {
  const total = domains.reduce((sum, domain) => sum + domain.nodes.reduce((some, node) => some + node.num_cells, 0), 0);
  const cell = CELL_SIZES.find(([most]) => total <= most)![1];
  const titles: Title[] = [];
  const boxes: NodeBox[] = [];
  const page = new Flow(width, DOMAIN_GAP);
  let first = 0;
  for (const domain of domains) {
    const top = domain.name ? TITLE_HEIGHT : 0;
    const inner = new Flow(width, NODE_GAP);
    const sizes = domain.nodes.map((node) => sizeOf(node.num_cells, cell));
    const spots = sizes.map(([boxWidth, boxHeight]) => inner.place(boxWidth, boxHeight));
    const [left, y] = page.place(Math.max(inner.width, domain.name.length * LETTER_WIDTH), inner.height + top);
    if (domain.name) titles.push({ name: domain.name, x: left, y: y + top - 6 });
    domain.nodes.forEach((node, at) => {
      const [[spotX, spotY], [boxWidth, boxHeight]] = [spots[at]!, sizes[at]!];
      const corner = { x: left + spotX, y: y + top + spotY, width: boxWidth, height: boxHeight };
      boxes.push({ name: node.name, hasGpus: node.has_gpus, first, numCells: node.num_cells, ...corner });
      first += node.num_cells;
    });
  }
  return { cell, height: Math.max(page.height, 1) + NODE_GAP, titles, boxes };
}

/** Puts rectangles beside each other, and below where the width ends. */
class Flow {
  width = 0;
  height = 0;
  private x = 0;
  private y = 0;

  constructor(
    private readonly limit: number,
    private readonly gap: number,
  ) {}

  place(width: number, height: number): [number, number] {
    if (this.x > 0 && this.x + width > this.limit) [this.x, this.y] = [0, this.height + this.gap];
    const spot: [number, number] = [this.x, this.y];
    this.x += width + this.gap;
    this.width = Math.max(this.width, spot[0] + width);
    this.height = Math.max(this.height, this.y + height);
    return spot;
  }
}

/** Give where a cell of a node's box stands. */
export function cellAt(box: NodeBox, place: number, cell: number): [number, number] {
  const columns = columnsOf(box.numCells);
  return [box.x + (place % columns) * (cell + CELL_GAP), box.y + Math.floor(place / columns) * (cell + CELL_GAP)];
}

/** Give the box under a point, and which of its cells. */
export function hit(layout: MapLayout, x: number, y: number): { box: NodeBox; place: number } | undefined {
  const box = layout.boxes.find((each) => x >= each.x && x < each.x + each.width && y >= each.y && y < each.y + each.height);
  if (!box) return undefined;
  const step = layout.cell + CELL_GAP;
  const place = Math.floor((y - box.y) / step) * columnsOf(box.numCells) + Math.floor((x - box.x) / step);
  return place < box.numCells ? { box, place } : undefined;
}

function columnsOf(numCells: number): number {
  return numCells <= 4 ? numCells : Math.ceil(numCells / 2);
}

function sizeOf(numCells: number, cell: number): [number, number] {
  const columns = columnsOf(numCells);
  return [columns * (cell + CELL_GAP) - CELL_GAP, Math.ceil(numCells / columns) * (cell + CELL_GAP) - CELL_GAP];
}
