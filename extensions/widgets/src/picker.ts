/** Draws a person's clusters and a form for another. What a click asks for is done by the kernel, which says how far it is. */

import type { RenderProps } from "@anywidget/types";

import { ConfirmButton } from "./confirm";
import { drawPairs, keepKeys, make, newButton, say, setShown, setText, withChildren } from "./dom";
import type { ClusterRow, Form, PickerFace } from "./face";
import { ClusterForm, type Asked } from "./form";
import { whenGone } from "./kernel";
import { Look } from "./look";
import { Menu } from "./menu";

interface Model {
  form: Form;
  now: PickerFace;
  said: string;
  gone: string;
  looks: number;
}

type Command =
  | { readonly command: "look" }
  | ({ readonly command: "plan" | "start" } & Asked)
  | { readonly command: "use" | "suspend" | "stop"; readonly name: string }
  | { readonly command: "scale"; readonly name: string; readonly nodes: string };

type Send = (command: Command) => void;

class Picker {
  readonly element = make("section", "raykit raykit-picker");
  private readonly list = make("ul", "raykit-clusters");
  private readonly rows = new Map<Element, Row>();
  private readonly form: ClusterForm;
  private readonly start: HTMLButtonElement;
  private readonly doing = make("div", "raykit-doing");
  private readonly told = make("ul", "raykit-told");
  private readonly line = make("code", "raykit-line");
  private readonly plan = make("dl", "raykit-pairs");
  private readonly price = make("div", "raykit-soft");
  private readonly said = make("div", "raykit-said");

  constructor(form: Form, private readonly send: Send) {
    keepKeys(this.element);
    this.element.setAttribute("aria-label", "clusters");
    for (const status of [this.doing, this.said]) status.setAttribute("role", "status");
    this.start = make("button", "raykit-button raykit-primary", "Start");
    this.start.type = "submit";
    const plan = newButton("Plan", () => send({ command: "plan", ...this.form.asked() }));
    this.form = new ClusterForm(form, [plan, this.start], () => send({ command: "start", ...this.form.asked() }));
    const title = make("header", "raykit-title", make("strong", "raykit-name", "Clusters"));
    const news = [this.doing, this.told, this.said, this.line, this.plan, this.price];
    this.element.append(make("div", "raykit-page", title, this.list, this.form.element, ...news));
  }

  draw(face: PickerFace, said: string): void {
    withChildren(this.list, face.clusters.length, () => this.newRow()).forEach((row, at) =>
      this.rows.get(row)!.draw(face.clusters[at]!, face.doing !== ""),
    );
    setShown(this.list, face.clusters.length > 0);
    this.start.disabled = face.doing !== "";
    say(this.doing, face.doing && `${face.doing} …`);
    setShown(this.told, face.told.length > 0);
    withChildren(this.told, face.told.length, () => make("li", "")).forEach((item, at) => setText(item, face.told[at]!));
    say(this.said, said);
    say(this.line, face.line);
    drawPairs(this.plan, face.plan);
    say(this.price, face.price && `${face.price} Nothing was made.`);
  }

  /** Show what was there last, and let nobody ask for more. */
  leave(face: PickerFace, gone: string): void {
    this.draw(face, gone);
    this.list.inert = this.form.element.inert = true;
  }

  private newRow(): HTMLElement {
    const row = new Row(this.send);
    this.rows.set(row.element, row);
    return row.element;
  }
}

/** A cluster with its buttons; they concern the cluster that the row shows now. */
class Row {
  private readonly name = make("strong", "");
  private readonly words = make("span", "raykit-soft");
  private readonly nodes = make("input", "");
  private readonly use: HTMLButtonElement;
  private readonly suspend: HTMLButtonElement;
  private readonly scale: Menu;
  private readonly stop: ConfirmButton;
  readonly element: HTMLElement;
  private cluster = "";

  constructor(private readonly send: Send) {
    this.use = newButton("Use", () => send({ command: "use", name: this.cluster }));
    this.suspend = newButton("Suspend", () => send({ command: "suspend", name: this.cluster }));
    this.scale = new Menu("Scale", this.scaleForm());
    const words = { idle: "Stop", armed: "Stop the cluster and its runs?", sent: "Stopping…" };
    this.stop = new ConfirmButton(words, () => send({ command: "stop", name: this.cluster }));
    const buttons = make("div", "raykit-controls", this.use, this.scale.element, this.suspend, this.stop.element);
    this.element = make("li", "", this.name, this.words, buttons);
  }

  draw(row: ClusterRow, busy: boolean): void {
    if (this.cluster !== row.name) this.scale.close();
    this.cluster = row.name;
    setText(this.name, row.name);
    setText(this.words, [row.state, row.place, `nodes ${row.nodes}`, row.current ? "current" : "", row.why].filter(Boolean).join(" · "));
    this.element.dataset["state"] = row.state;
    const up = row.state === "up";
    setShown(this.use, up && !row.current);
    setShown(this.scale.element, up && !busy);
    setShown(this.suspend, up && row.place === "k8s" && !busy);
    this.stop.draw(!busy, false);
    if (document.activeElement !== this.nodes) this.nodes.value = row.nodes;
  }

  private scaleForm(): HTMLElement {
    const go = make("button", "raykit-button", "Scale");
    go.type = "submit";
    this.nodes.size = 6;
    this.nodes.setAttribute("aria-label", "nodes, or least:most");
    const form = make("form", "raykit-form", make("label", "", "nodes "), this.nodes, go);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send({ command: "scale", name: this.cluster, nodes: this.nodes.value });
      this.scale.close();
    });
    return form;
  }
}

function render({ model, el }: RenderProps<Model>): () => void {
  const picker = new Picker(model.get("form"), (command) => model.send(command));
  const look = new Look(picker.element, () => model.send({ command: "look" }));
  const draw = (): void => picker.draw(model.get("now"), model.get("said"));
  const answered = (): void => look.answered();
  el.append(picker.element);
  draw();
  model.on("change", draw);
  model.on("change:looks", answered);
  const unheard = whenGone(model, () => {
    look.close();
    picker.leave(model.get("now"), model.get("gone"));
  });
  return () => {
    unheard();
    model.off("change", draw);
    model.off("change:looks", answered);
    look.close();
  };
}

export default { render };
