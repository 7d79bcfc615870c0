"""What raykit needs of ipykernel's inner parts, held on the version that is pinned."""

import inspect


def test_a_widget_s_replies_are_routed_by_the_attribute_that_raykit_sets():
    from ipykernel.comm.comm import BaseComm
    from ipykernel.kernelbase import Kernel

    assert list(inspect.signature(BaseComm._reply_subshell_for).parameters) == ["self", "data", "default"]
    assert '"_reply_subshell_for"' in inspect.getsource(Kernel)


def test_a_kernel_that_is_asked_to_end_says_so_where_raykit_looks_and_is_interrupted_before():
    from ipykernel.ipkernel import IPythonKernel
    from jupyter_client.manager import KernelManager

    assert "self.shell.exit_now = True" in inspect.getsource(IPythonKernel.do_shutdown)
    source = inspect.getsource(KernelManager._async_shutdown_kernel)
    assert source.index("_async_interrupt_kernel()") < source.index("_async_request_shutdown(")
