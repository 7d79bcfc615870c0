"""The API server of a Kubernetes: its objects as JSON values, its refusals as sentences.

The ``kubernetes`` package finds the server and the credentials; it is imported when one is asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

from raykit.cluster.kuberay.manifest import CLUSTER_LABEL, Object
from raykit.errors import ClusterError, require

REQUEST_TIMEOUT_S = 10.0
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
PATHS = {
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Event": "/api/v1/namespaces/{namespace}/events",
    "Node": "/api/v1/nodes",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "RayCluster": "/apis/ray.io/v1/namespaces/{namespace}/rayclusters",
}
"""Where each kind lives."""

MADE = ("RayCluster", "RoleBinding", "Role", "ServiceAccount", "ConfigMap", "Secret")
"""The kinds of which raykit makes objects, in the order in which they are deleted."""

UNKNOWN_KIND = ("could not find the requested resource", "page not found")  # a 404 of the kind, not of one object
JSON_PATCH, MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"


class RefusedError(ClusterError):
    """The API server answered with a refusal; ``status`` is its HTTP status."""

    def __init__(self, problem: str, remedy: str = "", status: int = 0) -> None:
        ClusterError.__init__(self, problem, remedy)
        self.status = status


@dataclass(frozen=True, slots=True)
class Kube:
    """One namespace of one API server; closed at the end of a ``with`` block."""

    client: Any
    context: str
    namespace: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept for further requests."""
        self.client.close()

    def get(self, kind: str, name: str) -> Object | None:
        """Give an object, or None where there is none of that name."""
        try:
            return self._json("GET", kind, name)
        except RefusedError as refused:
            if refused.status != HTTPStatus.NOT_FOUND or UNKNOWN_KIND[0] in refused.problem:
                raise
            return None

    def find(self, kind: str, label: str = "") -> list[Object]:
        """Give the objects of a kind that carry a label."""
        found: list[Object] = self._json("GET", kind, query={"labelSelector": label} if label else {})["items"]
        return found

    def create(self, made: Object, *, dry_run: bool = False) -> Object:
        """Make an object; a dry run has the API server check it and makes nothing.

        Raises:
            RefusedError: with status 409 where one of that name is there.
        """
        return self._json("POST", made["kind"], query={"dryRun": "All"} if dry_run else {}, body=made)

    def patch(self, kind: str, name: str, body: Any) -> Object:
        """Change an object by a merge patch, or by a JSON patch if ``body`` is a list."""
        return self._json("PATCH", kind, name, body=body, content_type=JSON_PATCH if isinstance(body, list) else MERGE_PATCH)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and what it owns; one that is not there is fine."""
        try:
            self._json("DELETE", kind, name, query={"propagationPolicy": "Background"})
        except RefusedError as refused:
            if refused.status != HTTPStatus.NOT_FOUND:
                raise

    def events(self) -> list[Object]:
        """Give the events of the namespace; none where they may not be read: they only say why something waits."""
        try:
            return self.find("Event")
        except RefusedError as refused:
            if refused.status != HTTPStatus.FORBIDDEN:
                raise
            return []

    def log(self, pod: str, container: str, *, tail: int) -> str:
        """Give the last lines of a container."""
        path = PATHS["Pod"].format(namespace=self.namespace) + f"/{pod}/log"
        return self._request("GET", path, f"logs of the pod {pod}", query={"container": container, "tailLines": tail}).decode(
            errors="replace"
        )

    def _json(self, method: str, kind: str, name: str = "", **request: Any) -> Object:
        path = PATHS[kind].format(namespace=self.namespace) + (f"/{name}" if name else "")
        answer: Object = json.loads(self._request(method, path, f"{kind} {name}".strip(), **request))
        return answer

    def _request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Object | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        headers = {"Accept": "application/json, */*", **({"Content-Type": content_type} if body is not None else {})}
        with _translated(self):
            call = self.client.param_serialize(
                method, path, {}, list((query or {}).items()), headers, body=body, auth_settings=["BearerToken"]
            )
            answer = self.client.call_api(*call, _request_timeout=REQUEST_TIMEOUT_S)
            data: bytes = answer.read() or b""
        if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            raise refusal(answer.status, data, f"{method} {what}", self)
        return data


def refusal(status: int, data: bytes, asked: str, kube: Kube) -> RefusedError:
    """Put an answer that is no success into a sentence: the API server's own, and what to do."""
    try:
        said = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        said = data.decode(errors="replace")[:300] or f"status {status}"
    where = f"the context {kube.context}, namespace {kube.namespace}"
    if status == HTTPStatus.UNAUTHORIZED:
        return RefusedError(
            f"The credentials of {where} are not accepted: they have expired or are wrong ({said}).",
            "Sign in again, as with: kubectl get pods",
            status,
        )
    if status == HTTPStatus.FORBIDDEN and "exceeded quota" in said:
        return RefusedError(f"The namespace's quota does not allow it: {said}", "Ask for less, or for more quota.", status)
    if status == HTTPStatus.FORBIDDEN:
        return RefusedError(f"This is not allowed in {where}: {said}", "Ask for a Role with that verb on that resource.", status)
    if status == HTTPStatus.NOT_FOUND and any(words in said for words in UNKNOWN_KIND):
        return RefusedError(
            f"The Kubernetes of {where} knows no {asked.split()[1]} (could not find the requested resource).",
            "KubeRay has to be installed there: https://docs.ray.io/en/latest/cluster/kubernetes/getting-started.html",
            status,
        )
    return RefusedError(f"The Kubernetes of {where} answered {status} to {asked}: {said}", "", status)


def reach(*, kubeconfig: str = "", context: str = "", namespace: str = "") -> Kube:
    """Find the API server: a kubeconfig's context, or the one whose pod this is; nothing is asked yet.

    Raises:
        ClusterError: there is no such context, or no configuration at all; the contexts that are there are named.
        MissingPackageError: the package kubernetes is not installed.
    """
    require("kubernetes", extra="kuberay", why="to reach Kubernetes")
    from kubernetes import client, config

    configuration = client.Configuration()
    # The package looks at the variable when it is imported, and a notebook may set it later.
    kubeconfig = kubeconfig or os.environ.get("KUBECONFIG", "")
    try:
        contexts, current = config.list_kube_config_contexts(kubeconfig or None)
    except config.ConfigException as exc:
        if kubeconfig or context:
            raise ClusterError(
                f"The kubeconfig {kubeconfig or 'of kubectl'} cannot be used: {exc}", "Name another: --kubeconfig"
            ) from exc
        return _from_inside(configuration, namespace)
    names = [each["name"] for each in contexts]
    chosen = next((each for each in contexts if each["name"] == context), None) if context else current
    if chosen is None:
        raise ClusterError(f"The kubeconfig has no context {context}.", f"There are: {', '.join(names)}.")
    try:
        config.load_kube_config(kubeconfig or None, context=chosen["name"], client_configuration=configuration)
    except (config.ConfigException, OSError) as exc:
        raise ClusterError(f"The context {chosen['name']} cannot be used: {exc}", "Name another: --context") from exc
    configuration.retries = False
    own = str(chosen["context"].get("namespace", "default"))
    return Kube(client.ApiClient(configuration), str(chosen["name"]), namespace or own)


def _from_inside(configuration: Any, namespace: str) -> Kube:
    from kubernetes import client, config

    try:
        config.load_incluster_config(client_configuration=configuration)
        with open(NAMESPACE_FILE) as file:
            own = file.read().strip()
    except (config.ConfigException, OSError) as exc:
        raise ClusterError(
            "No Kubernetes is known here: there is no kubeconfig, and this is no pod of one.",
            "Name one: --kubeconfig FILE --context NAME",
        ) from exc
    configuration.retries = False
    return Kube(client.ApiClient(configuration), "", namespace or own)


@contextmanager
def _translated(kube: Kube) -> Iterator[None]:
    import urllib3

    try:
        yield
    except urllib3.exceptions.HTTPError as exc:
        raise ClusterError(
            f"The Kubernetes of the context {kube.context} does not answer at {kube.client.configuration.host} "
            f"({type(exc).__name__}: {getattr(exc, 'reason', None) or exc}).",
            "Is the machine on its network? Another context: --context",
        ) from exc


def label_of(cluster: str) -> str:
    """Give the selector of all that was made for a cluster."""
    return f"{CLUSTER_LABEL}={cluster}"


def pods_of(cluster: str) -> str:
    """Give the selector of the pods that KubeRay's operator made for a RayCluster."""
    return f"ray.io/cluster={cluster}"


def pod_named(pods: Sequence[Object], kind: str) -> Object | None:
    """Give the newest pod of a kind (``head`` or ``worker``) that runs."""
    running = [
        pod
        for pod in pods
        if pod["metadata"]["labels"].get("ray.io/node-type") == kind
        and (pod.get("status") or {}).get("phase") == "Running"
        and not pod["metadata"].get("deletionTimestamp")
    ]
    return max(running, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), default=None)
