"""A child that speaks the ingress' side of the channel and answers one request on its unix socket."""

import argparse
import socket
from pathlib import Path

from streamkd.serve.channel import Channel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    channel = Channel.inherited(parser.parse_args().fd)
    start = channel.receive(30)
    assert start is not None
    state = Path(start["state"])
    with socket.create_server(("127.0.0.1", start["config"]["serve"]["flight_port"])) as flight:
        channel.send({"kind": "listening", "flight": f"grpc://127.0.0.1:{flight.getsockname()[1]}"})
        while message := channel.receive(60):
            with (state / "ingress-heard").open("a") as file:
                file.write(f"{message['kind']}\n")
            if message["kind"] == "drain":
                return


if __name__ == "__main__":
    main()
