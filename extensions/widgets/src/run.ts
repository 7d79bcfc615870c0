/** Draws the face of a run. It holds no truth: every change of the face is drawn, and buttons only send commands. */

import type { RenderProps } from "@anywidget/types";

import { Cards } from "./cards";
import { Curve } from "./curve";
import { Bar, make, setShown, setText, withChildren } from "./dom";
import type { Face } from "./face";
import { Lanes } from "./lanes";
import { StopButton } from "./stop";

interface Model {
  face: Face;
}

class RunFace {
  readonly element = make("section", "raykit-run");
  private readonly name = make("strong", "raykit-name");
  private readonly kind = make("span", "raykit-soft");
  private readonly state = make("span", "raykit-state");
  private readonly elapsed = make("span", "raykit-soft");
  private readonly stop: StopButton;
  private readonly labels = make("ul", "raykit-labels");
  private readonly bar = new Bar("progress");
  private readonly words = make("div", "raykit-soft");
  private readonly lanes = new Lanes();
  private readonly curve = new Curve();
  private readonly metrics = make("dl", "raykit-metrics");
  private readonly figure = make("div", "raykit-figure", this.curve.element, this.metrics);
  private readonly cards = new Cards();
  private readonly error = make("div", "raykit-error");
  private readonly printedTitle = make("summary", "");
  private readonly printed = make("pre", "");
  private readonly fold = make("details", "raykit-fold", this.printedTitle, this.printed);
  private readonly foot = make("div", "raykit-soft");

  constructor(send: (command: string) => void) {
    this.stop = new StopButton(() => send("stop"));
    this.state.setAttribute("role", "status");
    this.error.setAttribute("role", "alert");
    const title = make("header", "raykit-title", this.name, this.kind, this.state, this.elapsed, this.stop.element);
    const progress = make("div", "raykit-progress", this.bar.element, this.words);
    this.element.append(
      make(
        "div", "raykit-page", title, this.labels, progress, this.lanes.element, this.figure, this.cards.element,
        this.error, this.fold, this.foot,
      ),
    );
  }

  draw(face: Face): void {
    this.element.dataset["state"] = face.state;
    this.element.setAttribute("aria-label", `run ${face.name}`);
    setText(this.name, face.name);
    setText(this.kind, face.kind);
    setText(this.state, face.state);
    setText(this.elapsed, face.elapsed);
    this.stop.draw(face);
    setShown(this.labels, face.labels.length > 0);
    withChildren(this.labels, face.labels.length, () => make("li", "")).forEach((chip, at) => setText(chip, face.labels[at] ?? ""));
    this.bar.draw(face.progress);
    said(this.words, face.progress_words);
    this.lanes.draw(face);
    this.drawFigure(face);
    this.cards.draw(face.cards);
    said(this.error, face.error);
    this.drawPrinted(face);
    said(this.foot, [face.held, face.outputs && `came back: ${face.outputs}`].filter(Boolean).join(" · "));
  }

  close(): void {
    this.stop.close();
  }

  private drawFigure(face: Face): void {
    setShown(this.figure, face.curve.length > 1 || face.metrics.length > 0);
    setShown(this.curve.element, face.curve.length > 1);
    this.curve.draw(face.curve_name, face.curve);
    const metrics = withChildren(this.metrics, face.metrics.length, () => make("div", "", make("dt", ""), make("dd", "")));
    metrics.forEach((metric, at) => {
      const [name, value] = face.metrics[at] as [string, string];
      setText(metric.children[0] as Element, name);
      setText(metric.children[1] as Element, value);
    });
  }

  private drawPrinted(face: Face): void {
    setShown(this.fold, face.lines.length > 0);
    const more = face.num_lines_hidden ? ` · ${face.num_lines_hidden} more: %ray logs ${face.name}` : "";
    setText(this.printedTitle, `printed${more}`);
    setText(this.printed, face.lines.join("\n"));
  }
}

/** Show an element with its words, or not at all. */
function said(element: HTMLElement, words: string): void {
  setText(element, words);
  setShown(element, words !== "");
}

function render({ model, el }: RenderProps<Model>): () => void {
  const face = new RunFace((command) => model.send({ command }));
  let frame = 0;
  const draw = (): void => face.draw(model.get("face"));
  // One drawing a frame, however fast the news come; none while the page is hidden.
  const drawSoon = (): void => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  };
  draw();
  model.on("change:face", drawSoon);
  el.append(face.element);
  return () => {
    model.off("change:face", drawSoon);
    cancelAnimationFrame(frame);
    face.close();
  };
}

export default { render };
