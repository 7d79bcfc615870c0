"""The steps of the fold that concern a service's requests."""

from __future__ import annotations

from raykit import events as ev
from raykit.views.values import CardView, RefusedView, RunView, SeriesView, ServiceView, Step, changed

P99 = "p99, s"


def _service_opened(view: RunView, event: ev.ServiceOpened, _: float) -> RunView:
    return changed(view, service=changed(view.service or ServiceView(), url=event.url, slo_s=event.slo_s))


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


def _update_asked(view: RunView, event: ev.UpdateAsked, _: float) -> RunView:
    return changed(view, service=changed(view.service or ServiceView(), asked=event.version))


def _service_updated(view: RunView, event: ev.ServiceUpdated, at_unix_s: float) -> RunView:
    service = changed(view.service or ServiceView(), version=event.version, slo_s=event.slo_s)
    return changed(view.marked(at_unix_s, f"version {event.version} answers"), service=service, priority=event.priority)


def _update_refused(view: RunView, event: ev.UpdateRefused, at_unix_s: float) -> RunView:
    service = view.service or ServiceView()
    facts = (("where", event.where), ("error", event.error), ("goes on", f"version {service.version}"))
    card = CardView(at_unix_s=at_unix_s, title="The update was refused", good=False, facts=facts)
    refused = RefusedView(version=event.version, where=event.where, error=event.error, traceback_text=event.traceback_text)
    return changed(view, service=changed(service, refused=refused), cards=(*view.cards, card))


STEPS: dict[type, Step] = {
    ev.ServiceOpened: _service_opened,
    ev.ReplicasWanted: _replicas_wanted,
    ev.RequestsSampled: _requests_sampled,
    ev.UpdateAsked: _update_asked,
    ev.ServiceUpdated: _service_updated,
    ev.UpdateRefused: _update_refused,
}
