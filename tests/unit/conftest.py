"""The wire between a widget and its page, without a page."""

import json
import threading

import comm
import pytest
from comm.base_comm import BaseComm


@pytest.fixture
def sent(monkeypatch):
    """Give the messages that widgets send, as a page would receive them."""
    messages = []

    class Wire(BaseComm):
        def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
            messages.append(json.dumps(data, allow_nan=False))

    monkeypatch.setattr(comm, "create_comm", Wire)
    return messages


@pytest.fixture
def click():
    """Send a widget what a click on its page sends, and let a look that was asked for come to its end."""

    def send(widget, **message):
        widget.comm.handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": []})
        for thread in threading.enumerate():
            if thread.name == "look":
                thread.join(10)

    return send
