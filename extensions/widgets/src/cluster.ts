/** Draws the face of a cluster, and asks for a newer one while somebody looks. */

import type { RenderProps } from "@anywidget/types";

import { Choice } from "./choice";
import { drawPairs, keepKeys, make, say, setShown, setText, withChildren } from "./dom";
import type { ClusterFace } from "./face";
import { HeatMap } from "./heatmap";
import { whenGone } from "./kernel";
import { Look } from "./look";
import { Table } from "./table";

/** The map's shape comes apart from what changes; `looks` counts the questions that were answered. */
interface Model {
  now: Omit<ClusterFace, "domains">;
  domains: ClusterFace["domains"];
  said: string;
  gone: string;
  looks: number;
}

type Send = (command: { readonly command: "look" } | { readonly command: "choose"; readonly node: string }) => void;

const WAITING_HEADERS = ["waiting run", "kind", "waits for"];

class ClusterPage {
  readonly element = make("section", "raykit raykit-cluster");
  private readonly name = make("strong", "raykit-name");
  private readonly said = make("div", "raykit-said");
  private readonly figures = make("dl", "raykit-pairs raykit-figures");
  private readonly labels = make("ul", "raykit-labels");
  private readonly map: HeatMap;
  private readonly nodes: Choice;
  private readonly owners: Choice;
  private readonly rows = new Table("nodes");
  private readonly waiting = new Table("waiting runs");
  private owner = "";
  private face: ClusterFace | undefined;

  constructor(send: Send) {
    const choose = (node: string): void => send({ command: "choose", node });
    keepKeys(this.element);
    this.said.setAttribute("role", "status");
    this.map = new HeatMap(choose);
    this.nodes = new Choice("node", "all nodes", choose);
    this.owners = new Choice("used by", "anybody", (owner) => {
      this.owner = owner;
      if (this.face) this.map.draw(this.face, owner);
    });
    const title = make("header", "raykit-title", this.name, make("span", "raykit-soft", "cluster"));
    const choices = make("div", "raykit-choosing", this.owners.element, this.nodes.element);
    this.element.append(
      make(
        "div", "raykit-page", title, this.said, this.figures, this.labels, this.waiting.element, choices, this.map.element,
        this.rows.element,
      ),
    );
  }

  drawMap(face: ClusterFace): void {
    this.face = face;
    this.map.draw(face, this.owner);
  }

  drawWords(face: ClusterFace, said: string): void {
    this.element.setAttribute("aria-label", `cluster ${face.name}`);
    setText(this.name, face.name);
    say(this.said, said);
    drawPairs(this.figures, face.figures);
    setShown(this.labels, face.labels.length > 0);
    withChildren(this.labels, face.labels.length, () => make("li", "")).forEach((chip, at) => setText(chip, face.labels[at]!));
    this.waiting.draw(WAITING_HEADERS, face.waiting);
    this.nodes.draw(face.domains.flatMap((domain) => domain.nodes.map((node) => node.name)), face.node);
    this.owners.draw(face.owners, this.owner);
    this.rows.draw(face.headers, face.rows);
  }

  close(): void {
    this.map.close();
  }
}

function render({ model, el }: RenderProps<Model>): () => void {
  const page = new ClusterPage((command) => model.send(command));
  const look = new Look(page.element, () => model.send({ command: "look" }));
  let frame = 0;
  let isGone = false;
  const face = (): ClusterFace => ({ ...model.get("now"), domains: model.get("domains") });
  const drawWords = (): void => page.drawWords(face(), model.get(isGone ? "gone" : "said"));
  // A frame for each: what a large map and a long table take is more than one frame has.
  const drawMap = (): void => {
    page.drawMap(face());
    frame = requestAnimationFrame(drawWords);
  };
  const drawSoon = (): void => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(drawMap);
  };
  const answered = (): void => look.answered();
  el.append(page.element);
  drawMap();
  drawWords();
  model.on("change", drawSoon);
  model.on("change:looks", answered);
  const unheard = whenGone(model, () => {
    isGone = true;
    look.close();
    drawSoon();
  });
  return () => {
    unheard();
    model.off("change", drawSoon);
    model.off("change:looks", answered);
    cancelAnimationFrame(frame);
    look.close();
    page.close();
  };
}

export default { render };
