/** Asks the kernel for news while somebody looks at an element; the next question waits for the last one's answer. */

const EVERY_MS = 1_000;
const PATIENCE_MS = 15_000;

export class Look {
  private readonly timer: ReturnType<typeof setInterval>;
  private readonly observer: IntersectionObserver;
  private inSight = false;
  private askedAt = -Infinity;
  private waiting = false;

  constructor(element: Element, private readonly ask: () => void) {
    this.observer = new IntersectionObserver((entries) => (this.inSight = entries.at(-1)!.isIntersecting));
    this.observer.observe(element);
    this.timer = setInterval(() => this.tick(), EVERY_MS);
  }

  answered(): void {
    this.waiting = false;
  }

  close(): void {
    clearInterval(this.timer);
    this.observer.disconnect();
  }

  private tick(): void {
    const now = performance.now();
    // A kernel that was restarted does not answer what its predecessor was asked.
    if (!this.inSight || document.hidden || (this.waiting && now - this.askedAt < PATIENCE_MS)) return;
    this.waiting = true;
    this.askedAt = now;
    this.ask();
  }
}
