/** A plain table; a cell whose text did not change is not touched. */

import { make, setShown, setText, withChildren } from "./dom";

const UNKNOWN = "unknown";

export class Table {
  private readonly head = make("tr", "");
  private readonly body = make("tbody", "");
  readonly element: HTMLElement;

  constructor(label: string) {
    const table = make("table", "", make("thead", "", this.head), this.body);
    table.setAttribute("aria-label", label);
    this.element = make("div", "raykit-lanes", table);
    this.element.tabIndex = 0; // it scrolls
    this.element.setAttribute("role", "region");
    this.element.setAttribute("aria-label", label);
  }

  draw(headers: readonly string[], rows: readonly (readonly string[])[]): void {
    setShown(this.element, rows.length > 0);
    withChildren(this.head, headers.length, () => headed("col")).forEach((cell, at) => setText(cell, headers[at]!));
    withChildren(this.body, rows.length, () => make("tr", "")).forEach((row, at) => drawRow(row, headers, rows[at]!));
  }
}

function drawRow(row: HTMLElement, headers: readonly string[], texts: readonly string[]): void {
  withChildren(row, texts.length, (at) => (at === 0 ? headed("row") : make("td", ""))).forEach((cell, at) => {
    setText(cell, texts[at]!);
    cell.dataset["label"] = headers[at]!;
    cell.classList.toggle("raykit-unknown", texts[at] === UNKNOWN);
  });
}

function headed(scope: string): HTMLElement {
  const cell = make("th", "");
  cell.scope = scope;
  return cell;
}
