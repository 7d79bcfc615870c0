// Written by generate_types.py from the dataclasses of raykit/render; do not edit.

export interface Span {
  readonly state: string;
  readonly from_s: number;
  readonly to_s: number;
}

export interface Mark {
  readonly at_s: number;
  readonly words: string;
  readonly good: boolean;
}

export interface Chart {
  readonly name: string;
  readonly points: readonly [number, number][];
}

export interface Log {
  readonly source: string;
  readonly lines: readonly string[];
}

export interface Past {
  readonly to_s: number;
  readonly spans: readonly Span[];
  readonly marks: readonly Mark[];
  readonly steps: readonly [number, number][];
  readonly charts: readonly Chart[];
  readonly rates: readonly (readonly [number, number][])[];
  readonly logs: readonly Log[];
}

export interface Lane {
  readonly cells: readonly string[];
  readonly spent: [number, number, number] | null;
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
  readonly figures: readonly [string, string][];
  readonly ended: boolean;
  readonly buttons: readonly string[];
  readonly drills: readonly string[];
  readonly workers: string;
  readonly advice: string;
  readonly labels: readonly string[];
  readonly progress: number | null;
  readonly progress_words: string;
  readonly headers: readonly string[];
  readonly lanes: readonly Lane[];
  readonly metrics: readonly [string, string][];
  readonly cards: readonly Card[];
  readonly held: string;
  readonly outputs: string;
  readonly error: string;
  readonly lines: readonly string[];
  readonly num_lines_hidden: number;
  readonly past: Past;
}

export interface NodeBlock {
  readonly name: string;
  readonly num_cells: number;
  readonly has_gpus: boolean;
}

export interface Domain {
  readonly name: string;
  readonly nodes: readonly NodeBlock[];
}

export interface ClusterFace {
  readonly name: string;
  readonly figures: readonly [string, string][];
  readonly labels: readonly string[];
  readonly waiting: readonly [string, string, string][];
  readonly domains: readonly Domain[];
  readonly percents: readonly number[];
  readonly owners: readonly string[];
  readonly owner_of: readonly number[];
  readonly node: string;
  readonly headers: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

export interface FormField {
  readonly flag: string;
  readonly help: string;
  readonly example: string;
  readonly places: readonly string[];
  readonly is_switch: boolean;
  readonly is_first: boolean;
}

export interface Form {
  readonly places: readonly [string, string][];
  readonly fields: readonly FormField[];
}

export interface ClusterRow {
  readonly name: string;
  readonly place: string;
  readonly state: string;
  readonly nodes: string;
  readonly why: string;
  readonly current: boolean;
}

export interface PickerFace {
  readonly clusters: readonly ClusterRow[];
  readonly doing: string;
  readonly told: readonly string[];
  readonly line: string;
  readonly plan: readonly [string, string][];
  readonly price: string;
}
