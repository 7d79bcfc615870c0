/** The part of the run's time that is looked at: set by the timeline's brush, followed by everything that is drawn over time. */

export type Window = readonly [from: number, to: number];

export class Zoom {
  private chosen: Window | null = null;
  private whole: Window = [0, 0];
  private readonly followers: (() => void)[] = [];

  /** The window that is looked at: the chosen one, or all of the time so far. */
  get window(): Window {
    return this.chosen ?? this.whole;
  }

  get isChosen(): boolean {
    return this.chosen !== null;
  }

  get end(): number {
    return this.whole[1];
  }

  follow(draw: () => void): void {
    this.followers.push(draw);
  }

  grow(to: number): void {
    this.whole = [0, to];
  }

  choose(window: Window | null): void {
    this.chosen = window;
    for (const draw of this.followers) draw();
  }
}
