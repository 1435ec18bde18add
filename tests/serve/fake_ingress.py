"""A child that speaks the ingress' side of the channel and answers one request on its unix socket."""

import socket
from pathlib import Path

from streamkd.errors import LogDamaged
from streamkd.serve.processes.channel import Channel


def main() -> None:
    channel = Channel.inherited()
    start = channel.receive(30)
    assert start is not None
    state = Path(start["state"])
    if start["again"] and (state / "broken").exists():
        channel.send({"kind": "fatal", "message": "the tokens cannot be read", "exit_code": 2})
        return
    with socket.create_server(("127.0.0.1", start["config"]["serve"]["flight_port"])) as flight:
        channel.send({"kind": "listening", "urls": {"flight": f"grpc://127.0.0.1:{flight.getsockname()[1]}"}})
        end = 9
        while True:
            message = channel.receive(0.1)
            if (state / "damaged").exists():
                channel.send_fatal(LogDamaged("the log's file is damaged"))
                return
            if message is None:
                end += 1
                channel.send({"kind": "beat", "doing": "taking records", "ends": {"main/0": end}})
                continue
            with (state / "ingress-heard").open("a") as file:
                file.write(f"{message['kind']}\n")
            if message["kind"] == "drain":
                return


if __name__ == "__main__":
    main()
