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

interface Measures {
  readonly cell: number;
  readonly nodeGap: number;
  readonly domainGap: number;
}

/** Of maps of so many cells at most: thousands of GPUs fit on a screen. */
const MEASURES: readonly [number, Measures][] = [
  [64, { cell: 20, nodeGap: 6, domainGap: 16 }],
  [512, { cell: 14, nodeGap: 6, domainGap: 16 }],
  [2_048, { cell: 10, nodeGap: 6, domainGap: 16 }],
  [Infinity, { cell: 6, nodeGap: 3, domainGap: 10 }],
];
const CELL_GAP = 1;
const TITLE_HEIGHT = 18;
const LETTER_WIDTH = 7;
const BREADTH = 1.2; // of a rack, to the side of a square with its area

export function layOut(domains: readonly Domain[], width: number): MapLayout {
  const total = domains.reduce((sum, domain) => sum + domain.nodes.reduce((some, node) => some + node.num_cells, 0), 0);
  const { cell, nodeGap, domainGap } = MEASURES.find(([most]) => total <= most)![1];
  const titles: Title[] = [];
  const boxes: NodeBox[] = [];
  const page = new Flow(width, domainGap);
  let first = 0;
  for (const domain of domains) {
    const top = domain.name ? TITLE_HEIGHT : 0;
    const sizes = domain.nodes.map((node) => sizeOf(node.num_cells, cell));
    const titleWidth = domain.name.length * LETTER_WIDTH;
    const inner = new Flow(domains.length > 1 ? Math.min(width, Math.max(titleWidth, breadth(sizes, nodeGap))) : width, nodeGap);
    const spots = sizes.map(([boxWidth, boxHeight]) => inner.place(boxWidth, boxHeight));
    const [left, y] = page.place(Math.max(inner.width, titleWidth), inner.height + top);
    if (domain.name) titles.push({ name: domain.name, x: left, y: y + top - 5 });
    domain.nodes.forEach((node, at) => {
      const [[spotX, spotY], [boxWidth, boxHeight]] = [spots[at]!, sizes[at]!];
      const corner = { x: left + spotX, y: y + top + spotY, width: boxWidth, height: boxHeight };
      boxes.push({ name: node.name, hasGpus: node.has_gpus, first, numCells: node.num_cells, ...corner });
      first += node.num_cells;
    });
  }
  return { cell, height: Math.max(page.height, 1) + nodeGap, titles, boxes };
}

/** Give how wide a rack is that is about as high. */
function breadth(sizes: readonly (readonly [number, number])[], gap: number): number {
  return BREADTH * Math.sqrt(sizes.reduce((sum, [width, height]) => sum + (width + gap) * (height + gap), 0));
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
