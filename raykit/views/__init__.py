"""What is true now: values made of events by :func:`fold`, drawn alike by widget, page, text and tests."""

from raykit.views.cluster import ClusterView, NodeView, WaitingView, fold_cluster
from raykit.views.fold import fold, fold_all
from raykit.views.values import (
    ENDED,
    AdviceView,
    CardView,
    LineView,
    LoanView,
    MarkView,
    OutputView,
    RankView,
    RateView,
    ReplicaView,
    RunState,
    RunView,
    SeriesView,
    ServiceView,
    SlotView,
    SpanView,
    StageView,
)

__all__ = [
    "ENDED",
    "AdviceView",
    "CardView",
    "ClusterView",
    "LineView",
    "LoanView",
    "MarkView",
    "NodeView",
    "OutputView",
    "RankView",
    "RateView",
    "ReplicaView",
    "RunState",
    "RunView",
    "SeriesView",
    "ServiceView",
    "SlotView",
    "SpanView",
    "StageView",
    "WaitingView",
    "fold",
    "fold_all",
    "fold_cluster",
]
