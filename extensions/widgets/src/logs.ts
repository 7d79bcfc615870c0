/** What stages or ranks printed last, each in a fold of its own. */

import { make, setText, withChildren } from "./dom";
import type { Log } from "./face";

export class Logs {
  private readonly sources = make("div", "");
  private readonly none = make("div", "raykit-soft", "Nothing was printed yet.");
  private readonly all = make("div", "raykit-soft");
  readonly element = make("div", "raykit-logs", this.none, this.sources, this.all);

  constructor() {
    this.element.hidden = true;
  }

  draw(run: string, logs: readonly Log[]): void {
    this.none.hidden = logs.length > 0;
    setText(this.all, `All that was printed: %ray logs ${run}`);
    withChildren(this.sources, logs.length, newLog).forEach((element, at) => {
      const log = logs[at]!;
      setText(element.children[0]!, log.source);
      setText(element.children[1]!, log.lines.join("\n"));
    });
  }
}

function newLog(): HTMLElement {
  const fold = make("details", "raykit-fold", make("summary", ""), make("pre", ""));
  fold.open = true;
  return fold;
}
