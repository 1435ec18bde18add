"""A child that beats every 50 ms, once it has been told to; ``quiet`` never does, and ``dead`` ends at once."""

import os
from pathlib import Path

from streamkd.serve.processes.channel import Channel


def main() -> int:
    channel = Channel.inherited()
    start = (channel.receive(30) or {})["config"]
    with Path(start["lives"]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if start["manner"] == "dead":
        return 3
    try:
        while (message := channel.receive(0.05)) is None or message["kind"] != "stop":
            if start["manner"] != "quiet":
                channel.send({"kind": "beat", "doing": "learning"})
    except EOFError:
        return 1
    channel.send({"kind": "stopped"})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
