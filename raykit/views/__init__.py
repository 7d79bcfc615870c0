"""What is true now: values made of events by :func:`fold`, drawn alike by widget, page, text and tests."""

from raykit.views.fold import fold, fold_all
from raykit.views.values import (
    ENDED,
    AdviceView,
    CardView,
    LineView,
    OutputView,
    RankView,
    RateView,
    ReplicaView,
    RunState,
    RunView,
    SlotView,
    StageView,
)

__all__ = [
    "ENDED",
    "AdviceView",
    "CardView",
    "LineView",
    "OutputView",
    "RankView",
    "RateView",
    "ReplicaView",
    "RunState",
    "RunView",
    "SlotView",
    "StageView",
    "fold",
    "fold_all",
]
