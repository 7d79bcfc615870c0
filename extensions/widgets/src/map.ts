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

export interface MapLayout {
  readonly cell: number;
  readonly height: number;
  readonly titles: readonly { readonly name: string; readonly y: number }[];
  readonly boxes: readonly NodeBox[];
}

const CELL_SIZES: readonly [number, number][] = [[64, 20], [512, 14], [2_048, 10], [Infinity, 7]];
const CELL_GAP = 1;
const NODE_GAP = 6;
const TITLE_HEIGHT = 20;

export function layOut(domains: readonly Domain[], width: number): MapLayout {
  const total = domains.reduce((sum, domain) => sum + domain.nodes.reduce((some, node) => some + node.num_cells, 0), 0);
  const cell = CELL_SIZES.find(([most]) => total <= most)![1];
  const step = cell + CELL_GAP;
  const titles: { name: string; y: number }[] = [];
  const boxes: NodeBox[] = [];
  let [first, y] = [0, 0];
  for (const domain of domains) {
    if (domain.name) {
      titles.push({ name: domain.name, y: y + TITLE_HEIGHT - 6 });
      y += TITLE_HEIGHT;
    }
    let [x, rowHeight] = [0, 0];
    for (const node of domain.nodes) {
      const columns = columnsOf(node.num_cells);
      const [boxWidth, boxHeight] = [columns * step - CELL_GAP, Math.ceil(node.num_cells / columns) * step - CELL_GAP];
      if (x > 0 && x + boxWidth > width) [x, y, rowHeight] = [0, y + rowHeight + NODE_GAP, 0];
      boxes.push({ name: node.name, hasGpus: node.has_gpus, first, numCells: node.num_cells, x, y, width: boxWidth, height: boxHeight });
      first += node.num_cells;
      x += boxWidth + NODE_GAP;
      rowHeight = Math.max(rowHeight, boxHeight);
    }
    y += rowHeight + NODE_GAP;
  }
  return { cell, height: Math.max(y, 1), titles, boxes };
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
