"""What it costs to watch: the sampler of a node."""

from __future__ import annotations

import argparse

from _measure import ROUNDS, end_in_order, report
from _view_sampler import sampler_figures

SECONDS = 30.0


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round: only whether it runs")
    quick = parser.parse_args().quick
    figures = sampler_figures(*((1, 3.0) if quick else (ROUNDS, SECONDS)))
    report("view_cost", {} if quick else figures)


if __name__ == "__main__":
    main()
