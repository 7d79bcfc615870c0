/** What a widget knows of the kernel behind it. */

import type { AnyModel } from "@anywidget/types";

/** Call when the kernel was restarted that drew a widget and answered its clicks; what it gives ends that. */
export function whenGone(model: AnyModel, then: () => void): () => void {
  model.on("comm_live_update", then);
  return () => model.off("comm_live_update", then);
}
