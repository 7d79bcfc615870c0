/** The table of stages or workers; where there is little room each lane becomes a block with its own labels. */

import { make, setShown, setText, withChildren } from "./dom";
import type { Face, Lane } from "./face";
import { Spark } from "./spark";
import { SpentBar } from "./spent";
import type { Zoom } from "./zoom";

const UNKNOWN = "unknown";
const SPENT_HEADER = "busy";
const RATE_HEADER = "rate";

export class Lanes {
  private readonly head = make("tr", "");
  private readonly body = make("tbody", "");
  private readonly table = make("table", "", make("thead", "", this.head), this.body);
  private readonly bars = new WeakMap<Element, SpentBar>();
  private readonly sparks = new WeakMap<Element, Spark>();
  readonly element = make("div", "raykit-lanes", this.table);

  constructor(private readonly zoom: Zoom) {
    this.element.tabIndex = 0; // it scrolls
    this.element.setAttribute("role", "region");
    this.element.setAttribute("aria-label", "lanes");
  }

  draw(face: Face): void {
    setShown(this.element, face.lanes.length > 0);
    this.element.dataset["kind"] = face.kind;
    this.table.setAttribute("aria-label", `${face.kind === "training" ? "workers" : "stages"} of ${face.name}`);
    withChildren(this.head, face.headers.length, header).forEach((cell, at) => {
      setText(cell, face.headers[at]!);
      cell.dataset["label"] = face.headers[at]!;
    });
    const rows = withChildren(this.body, face.lanes.length, () => make("tr", ""));
    rows.forEach((row, at) => this.drawLane(row, face, at));
  }

  private drawLane(row: HTMLElement, face: Face, place: number): void {
    const lane = face.lanes[place] as Lane;
    const rates = face.past.rates[place];
    row.classList.toggle("raykit-faded", lane.faded);
    withChildren(row, lane.cells.length, cellOf).forEach((cell, at) => {
      const [text, label] = [lane.cells[at] ?? "", face.headers[at] ?? ""];
      setText(cell.firstElementChild!, text);
      cell.dataset["label"] = label;
      cell.classList.toggle("raykit-unknown", text === UNKNOWN);
      if (label === SPENT_HEADER) kept(this.bars, cell, () => new SpentBar()).draw(lane);
      if (label === RATE_HEADER && rates) kept(this.sparks, cell, () => new Spark(this.zoom)).draw(rates);
    });
  }
}

/** Give what a cell has drawn in it, made and appended at first. */
function kept<D extends { readonly element: Element }>(drawn: WeakMap<Element, D>, cell: Element, create: () => D): D {
  const found = drawn.get(cell) ?? create();
  if (!drawn.has(cell)) cell.append(found.element);
  drawn.set(cell, found);
  return found;
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
