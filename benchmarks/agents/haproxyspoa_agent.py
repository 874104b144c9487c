"""The benchmark's agent with haproxyspoa."""

import logging
import sys
from ipaddress import IPv4Address

from haproxyspoa.payloads.ack import AckPayload, ActionVarScope
from haproxyspoa.spoa_server import SpoaServer

agent = SpoaServer()


@agent.handler("check-client-ip")
async def check_client_ip(ip: IPv4Address, **others: object) -> AckPayload:
    return AckPayload().set_var(ActionVarScope.SESSION, "ip_score", ip.packed[-1])


@agent.handler("check-request")
async def check_request(
    ip: IPv4Address, port: int, method: str, path: str, ssl: bool, headers: str
) -> AckPayload:
    return AckPayload().set_var(ActionVarScope.SESSION, "ip_score", ip.packed[-1])


if __name__ == "__main__":
    logging.disable(logging.INFO)
    agent.run(host="127.0.0.1", port=int(sys.argv[1]))
