"""What it costs to watch: the run's throughput, what a page is sent, how fresh it is, the fold, the sampler, a large map."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from _measure import ROUNDS, Figure, end_in_order, report
from _view_fold import fold_figures
from _view_page import page_figures
from _view_sampler import sampler_figures

SAMPLER_S = 30.0
PAGE_S, PAGE_ROUNDS = 15.0, 7


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round: only whether it runs")
    quick = parser.parse_args().quick
    parts: tuple[Callable[[], dict[str, Figure]], ...] = (
        lambda: fold_figures(ROUNDS),
        lambda: page_figures(*((1, 4.0) if quick else (PAGE_ROUNDS, PAGE_S))),
        lambda: sampler_figures(*((1, 3.0) if quick else (ROUNDS, SAMPLER_S))),
    )
    figures: dict[str, Figure] = {}
    for part in parts:
        for name, figure in part().items():
            figures[name] = figure
            print(f"{name}: {figure.value:.3g}", flush=True)
    report("view_cost", {} if quick else figures)


if __name__ == "__main__":
    main()
