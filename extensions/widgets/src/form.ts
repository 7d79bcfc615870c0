/** The form of a cluster: a place, a name, and the options that the place knows. */

import { make, setShown } from "./dom";
import type { Form, FormField } from "./face";

/** What was filled in: texts by their flags; a switch that is on has its flag for a text. */
export interface Asked {
  readonly name: string;
  readonly place: string;
  readonly options: Record<string, string>;
}

export class ClusterForm {
  private readonly name = make("input", "");
  private readonly place = make("select", "");
  private readonly rows = new Map<FormField, { row: HTMLElement; input: HTMLInputElement }>();
  private readonly more = make("details", "raykit-fold", make("summary", "", "more options"));
  readonly element: HTMLFormElement;

  constructor(form: Form, buttons: readonly HTMLButtonElement[], submit: () => void) {
    this.name.placeholder = "local";
    for (const [place, what] of form.places) {
      const option = make("option", "", `${place}: ${what}`);
      option.value = place;
      this.place.append(option);
    }
    this.place.addEventListener("change", () => this.showKnown());
    const first = make("div", "raykit-fields", labelled("name", "how it is called", this.name), labelled("place", "", this.place));
    const others = make("div", "raykit-fields");
    for (const field of form.fields) {
      const input = make("input", "");
      input.type = field.is_switch ? "checkbox" : "text";
      input.placeholder = field.example;
      const row = labelled(field.flag, field.help, input);
      this.rows.set(field, { row, input });
      (field.is_first ? first : others).append(row);
    }
    this.more.append(others);
    this.element = make("form", "raykit-cluster-form", first, this.more, make("div", "raykit-controls", ...buttons));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    this.showKnown();
  }

  asked(): Asked {
    const options: Record<string, string> = {};
    for (const [field, { input }] of this.rows) {
      if (!knows(field, this.place.value)) continue;
      const text = field.is_switch ? (input.checked ? field.flag : "") : input.value.trim();
      if (text) options[field.flag] = text;
    }
    return { name: this.name.value.trim(), place: this.place.value, options };
  }

  private showKnown(): void {
    for (const [field, { row }] of this.rows) setShown(row, knows(field, this.place.value));
  }
}

function knows(field: FormField, place: string): boolean {
  return field.places.length === 0 || field.places.includes(place);
}

function labelled(flag: string, help: string, input: HTMLElement): HTMLElement {
  const label = make("label", "", make("span", "raykit-flag", flag), input);
  label.title = help;
  input.setAttribute("aria-description", help);
  return label;
}
