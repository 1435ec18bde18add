"""A thread that dies ends its process: with words, an exit code, and without waiting for anybody."""

import subprocess
import sys
import textwrap

import pytest

from streamkd.threads import DIED

PROCESS = """
    import logging, sys, threading, time
    from streamkd import threads
    from streamkd.errors import StateError

    logging.basicConfig(stream=sys.stderr)

    def tell(fault):
        print("told", fault, flush=True)
        {telling}

    def die():
        {dying}

    def main():
        threads.end_process_when_one_dies(tell)
        threading.Thread(target=time.sleep, args=[60]).start()  # no daemon: the interpreter would wait for it
        {main}
        return 3

    threads.run_process(main)
"""
IN_A_THREAD = "threading.Thread(target=die, name='vital').start(); time.sleep(60)"


def run(dying: str = "pass", main: str = IN_A_THREAD, telling: str = "pass") -> "subprocess.CompletedProcess[str]":
    script = textwrap.dedent(PROCESS).format(dying=dying, main=main, telling=telling)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)


ENDS = [
    ("an error nobody expected", {"dying": "1 / 0"}, DIED, "", "'vital' died"),
    ("SystemExit, which Python's own hook passes over", {"dying": "sys.exit(0)"}, DIED, "", "SystemExit"),
    ("no more memory", {"dying": "raise MemoryError"}, DIED, "", "MemoryError"),
    ("one of ours, which is told", {"dying": "raise StateError('gone')"}, 1, "told gone", ""),
    ("nobody hears", {"dying": "raise StateError('gone')", "telling": "raise EOFError"}, DIED, "told gone", "EOFError"),
    ("an error in main", {"main": "1 / 0"}, DIED, "", "'main' died"),
    ("the end of main", {"main": "pass"}, 3, "", ""),
]


@pytest.mark.parametrize(("title", "what", "code", "out", "err"), ENDS, ids=[row[0] for row in ENDS])
def test_the_process_ends(title: str, what: dict[str, str], code: int, out: str, err: str) -> None:
    """However a thread ends unasked, the process ends with it, and other threads keep nothing waiting."""
    done = run(**what)
    assert done.returncode == code
    assert (out in done.stdout, err in done.stderr) == (True, True), done
