"""What raykit needs of ipykernel's inner parts, held on the version that is pinned."""

import inspect


def test_a_widget_s_replies_are_routed_by_the_attribute_that_raykit_sets():
    from ipykernel.comm.comm import BaseComm
    from ipykernel.kernelbase import Kernel

    assert list(inspect.signature(BaseComm._reply_subshell_for).parameters) == ["self", "data", "default"]
    assert '"_reply_subshell_for"' in inspect.getsource(Kernel)
