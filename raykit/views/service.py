"""The steps of the fold that concern a service's requests."""

from __future__ import annotations

from raykit import events as ev
from raykit.views.values import RunView, SeriesView, ServiceView, Step, changed

P99 = "p99, s"


def _service_opened(view: RunView, event: ev.ServiceOpened, _: float) -> RunView:
    wanted = view.service.wanted if view.service else 0
    return changed(view, service=ServiceView(url=event.url, slo_s=event.slo_s, wanted=wanted))


def _replicas_wanted(view: RunView, event: ev.ReplicasWanted, _: float) -> RunView:
    service = view.service or ServiceView()
    return changed(view, service=changed(service, wanted=event.count))


def _requests_sampled(view: RunView, event: ev.RequestsSampled, at_unix_s: float) -> RunView:
    service = changed(
        view.service or ServiceView(),
        rate_s=event.rate_s,
        p50_s=event.p50_s,
        p95_s=event.p95_s,
        p99_s=event.p99_s,
        num_open=event.num_open,
        num_failed=event.num_failed,
    )
    curves = dict(view.curves)
    if event.p99_s is not None:
        curves[P99] = curves.get(P99, SeriesView()).at(at_unix_s, event.p99_s)
    return changed(view, service=service, curves=tuple(curves.items()))


STEPS: dict[type, Step] = {
    ev.ServiceOpened: _service_opened,
    ev.ReplicasWanted: _replicas_wanted,
    ev.RequestsSampled: _requests_sampled,
}
