/** What went wrong and how it was mended: the newest cards open, earlier ones in a fold. */

import { make, setShown, setText, withChildren } from "./dom";
import type { Card } from "./face";

const NUM_OPEN = 2;

export class Cards {
  private readonly earlier = make("div", "raykit-deck");
  private readonly earlierTitle = make("summary", "");
  private readonly fold = make("details", "raykit-fold", this.earlierTitle, this.earlier);
  private readonly newest = make("div", "raykit-deck");
  readonly element = make("div", "raykit-cards", this.newest, this.fold);

  draw(cards: readonly Card[]): void {
    const at = Math.max(0, cards.length - NUM_OPEN);
    setShown(this.element, cards.length > 0);
    setShown(this.fold, at > 0);
    setText(this.earlierTitle, `${at} earlier`);
    drawDeck(this.earlier, cards.slice(0, at));
    drawDeck(this.newest, cards.slice(at));
  }
}

function drawDeck(deck: Element, cards: readonly Card[]): void {
  withChildren(deck, cards.length, newCard).forEach((element, at) => drawCard(element, cards[at] as Card));
}

function newCard(): HTMLElement {
  const mark = make("span", "raykit-mark");
  mark.setAttribute("role", "img");
  return make("article", "raykit-card", make("div", "raykit-card-title", mark, make("strong", "")), make("dl", ""));
}

function drawCard(element: HTMLElement, card: Card): void {
  element.classList.toggle("raykit-bad", !card.good);
  const [title, facts] = element.children as unknown as [Element, Element];
  const [mark, words] = title.children as unknown as [Element, Element];
  setText(mark, card.good ? "✓" : "✗");
  mark.setAttribute("aria-label", card.good ? "mended" : "not mended");
  setText(words, card.title);
  const rows = withChildren(facts, card.facts.length, () => make("div", "", make("dt", ""), make("dd", "")));
  rows.forEach((row, at) => {
    const [name, said] = card.facts[at] as [string, string];
    setText(row.children[0] as Element, name);
    setText(row.children[1] as Element, said);
  });
}
