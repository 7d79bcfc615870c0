/** A choice among words, with one for all of them. */

import { make, setShown, setText, withChildren } from "./dom";

export class Choice {
  private readonly select = make("select", "");
  private words: readonly string[] = [];
  readonly element: HTMLElement;

  constructor(label: string, private readonly all: string, choose: (word: string) => void) {
    this.element = make("label", "raykit-choice", `${label} `, this.select);
    this.select.setAttribute("aria-label", label); // without the words of its options
    this.select.addEventListener("change", () => choose(this.select.value));
    this.offer([]);
  }

  /** Show what is chosen of the words. */
  draw(words: readonly string[], chosen: string): void {
    if (words.length !== this.words.length || words.some((word, at) => word !== this.words[at])) this.offer(words);
    if (document.activeElement !== this.select && this.select.value !== chosen) this.select.value = chosen;
  }

  /** Offer the words; where there is only one, there is nothing to choose. */
  private offer(words: readonly string[]): void {
    this.words = words;
    setShown(this.element, words.length > 1);
    withChildren(this.select, words.length + 1, () => make("option", "")).forEach((option, at) => {
      setText(option, at === 0 ? this.all : words[at - 1]!);
      option.value = at === 0 ? "" : words[at - 1]!;
    });
  }
}
