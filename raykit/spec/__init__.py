"""What is wanted: plain values, checked when they are made, that a magic's line or Python code builds."""

from raykit.spec.cluster import ClusterSpec
from raykit.spec.pipeline import PipelineSpec, SourceSpec, StageSpec
from raykit.spec.service import ServiceSpec
from raykit.spec.task import TaskSpec
from raykit.spec.training import TrainSpec

RunSpec = TaskSpec | PipelineSpec | TrainSpec | ServiceSpec

__all__ = ["ClusterSpec", "PipelineSpec", "RunSpec", "ServiceSpec", "SourceSpec", "StageSpec", "TaskSpec", "TrainSpec"]
