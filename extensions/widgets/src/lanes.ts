/** The table of stages or workers; where there is little room each lane becomes a block with its own labels. */

import { Bar, make, setShown, setText, withChildren } from "./dom";
import type { Face, Lane } from "./face";

const UNKNOWN = "unknown";
const SHARE_HEADER = "busy";

export class Lanes {
  private readonly head = make("tr", "");
  private readonly body = make("tbody", "");
  private readonly table = make("table", "", make("thead", "", this.head), this.body);
  private readonly bars = new WeakMap<Element, Bar>();
  readonly element = make("div", "raykit-lanes", this.table);

  draw(face: Face): void {
    setShown(this.element, face.lanes.length > 0);
    this.element.dataset["kind"] = face.kind;
    this.table.setAttribute("aria-label", `${face.kind === "training" ? "workers" : "stages"} of ${face.name}`);
    withChildren(this.head, face.headers.length, header).forEach((cell, at) => setText(cell, face.headers[at] ?? ""));
    const rows = withChildren(this.body, face.lanes.length, () => make("tr", ""));
    rows.forEach((row, at) => this.drawLane(row, face.headers, face.lanes[at] as Lane));
  }

  private drawLane(row: HTMLElement, headers: readonly string[], lane: Lane): void {
    row.classList.toggle("raykit-faded", lane.faded);
    withChildren(row, lane.cells.length, cellOf).forEach((cell, at) => {
      const [text, label] = [lane.cells[at] ?? "", headers[at] ?? ""];
      const words = cell.firstElementChild as Element;
      setText(words, text);
      cell.dataset["label"] = label;
      cell.classList.toggle("raykit-unknown", text === UNKNOWN);
      if (label === SHARE_HEADER) this.barOf(cell, `${lane.cells[0]} ${label}`).draw(lane.share);
    });
  }

  private barOf(cell: Element, label: string): Bar {
    const bar = this.bars.get(cell) ?? new Bar(label);
    if (!this.bars.has(cell)) cell.append(bar.element);
    this.bars.set(cell, bar);
    return bar;
  }
}

function header(): HTMLElement {
  const cell = make("th", "");
  cell.scope = "col";
  return cell;
}

function cellOf(at: number): HTMLElement {
  const cell = at === 0 ? make("th", "", make("span", "")) : make("td", "", make("span", ""));
  if (cell.tagName === "TH") cell.setAttribute("scope", "row");
  return cell;
}
