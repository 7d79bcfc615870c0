"""What raykit needs of Ray Data's inner parts, held on the version that is pinned."""

from __future__ import annotations

import subprocess
import sys


def test_the_parts_of_ray_data_that_raykit_touches_are_there():
    # In a process of its own: this one stays without ray.
    code = """
import inspect
import ray.data
from ray.actor import ActorMethod
from ray._private.state import available_resources_per_node
from ray.data import DataContext, Dataset
from ray.data._internal.delegating_block_builder import DelegatingBlockBuilder
from ray.data._internal.execution.interfaces.ref_bundle import BlockEntry, RefBundle
from ray.data.block import BlockAccessor, BlockMetadata

context = DataContext.get_current()
for name in ("enable_progress_bars", "print_on_execution_start"):
    assert hasattr(context, name), name
assert hasattr(context.execution_options, "preserve_order")
assert not inspect.signature(available_resources_per_node).parameters
assert "_generator_backpressure_num_objects" in inspect.signature(ActorMethod._remote).parameters
assert list(inspect.signature(Dataset.iter_internal_ref_bundles).parameters) == ["self"]
assert "blocks" in RefBundle.__dataclass_fields__ and set(BlockEntry.__dataclass_fields__) == {"ref", "metadata"}
assert {"num_rows", "size_bytes"} <= set(BlockMetadata.__dataclass_fields__ | vars(BlockMetadata))
builder = DelegatingBlockBuilder()
builder.add({"x": 1, "image": __import__("numpy").zeros((2, 2))})
accessor = BlockAccessor.for_block(builder.build())
assert accessor.num_rows() == 1 and [row["x"] for row in accessor.iter_rows(public_row_format=True)] == [1]
assert accessor.to_numpy()["image"].shape == (1, 2, 2)
assert BlockAccessor.for_block(BlockAccessor.batch_to_block({"x": accessor.to_numpy()["x"]})).to_arrow().num_rows == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
