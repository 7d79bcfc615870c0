// Written by generate_types.py from raykit/render/face.py; do not edit.

export interface Lane {
  readonly cells: readonly string[];
  readonly share: number | null;
  readonly faded: boolean;
}

export interface Card {
  readonly title: string;
  readonly good: boolean;
  readonly facts: readonly [string, string][];
}

export interface Face {
  readonly name: string;
  readonly kind: string;
  readonly state: string;
  readonly elapsed: string;
  readonly ended: boolean;
  readonly labels: readonly string[];
  readonly progress: number | null;
  readonly progress_words: string;
  readonly headers: readonly string[];
  readonly lanes: readonly Lane[];
  readonly curve_name: string;
  readonly curve: readonly [number, number][];
  readonly metrics: readonly [string, string][];
  readonly cards: readonly Card[];
  readonly held: string;
  readonly outputs: string;
  readonly error: string;
  readonly lines: readonly string[];
  readonly num_lines_hidden: number;
}
