"""A disk that is full twice while three producers send over both doors: acknowledged = logged = trained, bits equal."""

import time
from pathlib import Path

import pytest

from ..endtoend.conftest import Serve, serve, until
from ..endtoend.test_full_disk import Disk, disk, pytestmark
from .test_processes import CONFIG, POSTED, SWITCHED, Switcher, check_learned, check_log, pushing, wait_for_all

__all__ = ["disk", "pytestmark", "serve"]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_full_disk_loses_nothing(serve: Serve, disk: Disk, tmp_path: Path) -> None:
    """Neither the log nor a checkpoint nor a version can be written for a while; nobody ends, and all goes on."""
    rows = 1_000
    server = serve(CONFIG, state=disk.path / "state")
    switcher = Switcher(server, 0)
    with pushing(server, rows, 20, tmp_path) as pushes:
        switcher.start()
        try:
            wait_for_all(server, rows)
            until(lambda: server.metric("checkpoints_total") >= 1, 60, "a checkpoint")
            learner, ingress = server.pid("learner"), server.pid("ingress")
            for _ in range(2):
                disk.fill()
                until(lambda: "cannot be written" in server.err, 30, "a word about it")
                time.sleep(2.0)
                disk.free()
                wait_for_all(server, rows)
            said = [push.communicate(timeout=300)[0] for push in pushes]
        finally:
            switcher.end()
    for words in said:
        assert f"{rows} records sent, {rows} accepted, 0 rejected" in words, words
    server.trained(2 * rows + switcher.sent, 120)
    assert (server.pid("learner"), server.pid("ingress")) == (learner, ingress)
    assert server.stop() == 0
    assert "Traceback" not in server.err
    check_log(server.state, {0: rows, POSTED: rows, SWITCHED: switcher.sent})
    check_learned(server, tmp_path / "undisturbed", 2 * rows + switcher.sent)
