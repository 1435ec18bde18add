"""A child that speaks the learner's side of the channel and trains nothing; ``FAKE`` says how it behaves."""

import os
import sys
import time
from pathlib import Path

from streamkd.serve.processes.channel import Channel


def main() -> None:
    channel = Channel.inherited()
    start = channel.receive(30)
    assert start is not None
    state, manner = Path(start["state"]), os.environ.get("FAKE", "")
    state.mkdir(exist_ok=True)
    with (state / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if manner == "fatal":
        channel.send({"kind": "fatal", "message": "the state directory is another's", "exit_code": 2})
        return
    while manner == "late" and not (state / "go").exists():
        time.sleep(0.05)
    channel.send({"kind": "nonsense"})
    channel.send({"kind": "counted", "deltas": [["no_such_family", [], 1]]})
    channel.send({"kind": "counted", "deltas": [["train_steps_total", [], 5]]})
    channel.send({"kind": "status", "status": {"records_trained": 50, "task": "0"}})
    channel.send({"kind": "ready"})
    channel.send({"kind": "committed", "offsets": {"main/0": 5}})
    if manner == "finished":
        channel.send({"kind": "stopped"})
        return
    try:
        listen(channel, state, manner)
    except EOFError:
        sys.exit(9)


def listen(channel: Channel, state: Path, manner: str) -> None:
    while True:
        message = channel.receive(0.1)
        if message is None:
            channel.send({"kind": "beat", "doing": "learning", "offsets": {"main/0": 5}, "ends": {"main/0": 9}})
            continue
        with (state / "heard").open("a") as file:
            file.write(f"{message['kind']} {message.get('checkpoint', '')}\n")
        if message["kind"] == "stop":
            if manner == "slow-hangup":
                time.sleep(1)  # long enough for a second signal
            if manner == "saves":
                channel.send({"kind": "beat", "doing": "stopping"})
                time.sleep(1.5)
            if manner == "stuck" or (manner == "slow" and message["checkpoint"]):
                continue
            time.sleep(0.2)
            channel.send({"kind": "stopped"})
            return


if __name__ == "__main__":
    main()
