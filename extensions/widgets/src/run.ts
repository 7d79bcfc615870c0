/** Draws the face of a run. It holds no truth: every change of the face is drawn, and buttons only send commands. */

import type { RenderProps } from "@anywidget/types";

import { Cards } from "./cards";
import { Charts } from "./charts";
import { Advice, Controls, type Send } from "./controls";
import { Bar, drawPairs, keepKeys, make, say, setShown, setText, withChildren } from "./dom";
import type { Face } from "./face";
import { whenGone } from "./kernel";
import { Lanes } from "./lanes";
import { Logs } from "./logs";
import { Look } from "./look";
import { Timeline } from "./timeline";
import { Zoom } from "./zoom";

/**
 * The face comes in parts, so that a tick sends only what changed; `said` is what became of the last click, `gone` what is
 * said when nobody answers clicks any more. Where no cell follows the run the page `asks` for news, and `looks` counts the
 * questions that were answered.
 */
interface Model {
  now: Omit<Face, "past" | "cards">;
  past: Face["past"];
  cards: Face["cards"];
  said: string;
  gone: string;
  asks: boolean;
  looks: number;
}

class RunFace {
  readonly element = make("section", "raykit raykit-run");
  private readonly name = make("strong", "raykit-name");
  private readonly kind = make("span", "raykit-soft");
  private readonly state = make("span", "raykit-state");
  private readonly zoom = new Zoom();
  private readonly logs = new Logs();
  private readonly controls: Controls;
  private readonly said = make("div", "raykit-said");
  private readonly figures = make("dl", "raykit-pairs raykit-figures");
  private readonly labels = make("ul", "raykit-labels");
  private readonly advice: Advice;
  private readonly bar = new Bar("progress");
  private readonly words = make("div", "raykit-soft");
  private readonly lanes = new Lanes(this.zoom);
  private readonly timeline = new Timeline(this.zoom);
  private readonly charts = new Charts(this.zoom);
  private readonly metrics = make("dl", "raykit-pairs");
  private readonly cards = new Cards();
  private readonly error = make("div", "raykit-error");
  private readonly foot = make("div", "raykit-soft");

  constructor(send: Send) {
    this.controls = new Controls(send, this.logs.element);
    this.advice = new Advice(send);
    keepKeys(this.element);
    this.state.setAttribute("role", "status");
    this.said.setAttribute("role", "status");
    this.error.setAttribute("role", "alert");
    const title = make("header", "raykit-title", this.name, this.kind, this.state, this.controls.element);
    const progress = make("div", "raykit-progress", this.bar.element, this.words);
    this.element.append(
      make(
        "div", "raykit-page", title, this.said, this.figures, this.labels, progress, this.advice.element, this.lanes.element,
        this.timeline.element, this.charts.element, this.metrics, this.cards.element, this.error, this.logs.element, this.foot,
      ),
    );
  }

  draw(face: Face, said: string): void {
    this.zoom.grow(face.past.to_s);
    this.element.dataset["state"] = face.state;
    this.element.setAttribute("aria-label", `run ${face.name}`);
    setText(this.name, face.name);
    setText(this.kind, face.kind);
    setText(this.state, face.state);
    this.controls.draw(face);
    say(this.said, said);
    drawPairs(this.figures, face.figures);
    setShown(this.labels, face.labels.length > 0);
    withChildren(this.labels, face.labels.length, () => make("li", "")).forEach((chip, at) => setText(chip, face.labels[at]!));
    this.bar.draw(face.progress);
    say(this.words, face.progress_words);
    this.advice.draw(face);
    this.lanes.draw(face);
    this.timeline.draw(face.past);
    this.charts.draw(face.past);
    drawPairs(this.metrics, face.metrics);
    this.cards.draw(face.cards);
    say(this.error, face.error);
    this.logs.draw(face.name, face.past.logs);
    say(this.foot, [face.held, face.outputs && `came back: ${face.outputs}`].filter(Boolean).join(" · "));
  }

  close(): void {
    this.controls.close();
    this.charts.close();
  }
}

function render({ model, el }: RenderProps<Model>): () => void {
  const face = new RunFace((command) => model.send(command));
  let frame = 0;
  let isGone = false;
  const draw = (): void => {
    const now = { ...model.get("now"), past: model.get("past"), cards: model.get("cards") };
    if (isGone) face.draw({ ...now, buttons: [] }, model.get("gone"));
    else face.draw(now, model.get("said"));
  };
  // One drawing a frame, however fast the news come; none while the page is hidden.
  const drawSoon = (): void => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  };
  const look = model.get("asks") ? new Look(face.element, () => model.send({ command: "look" })) : undefined;
  const answered = (): void => look?.answered();
  el.append(face.element);
  draw();
  model.on("change", drawSoon);
  model.on("change:looks", answered);
  const unheard = whenGone(model, () => {
    isGone = true;
    look?.close();
    drawSoon();
  });
  return () => {
    unheard();
    model.off("change", drawSoon);
    model.off("change:looks", answered);
    cancelAnimationFrame(frame);
    look?.close();
    face.close();
  };
}

export default { render };
