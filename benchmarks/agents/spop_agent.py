"""The benchmark's agent with this package."""

from ipaddress import IPv4Address

from spop import Agent

agent = Agent(name="benchmark")


@agent.message("check-client-ip")
def check_client_ip(ip: IPv4Address) -> dict[str, int]:
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("check-request")
def check_request(
    ip: IPv4Address, port: int, method: str, path: str, ssl: bool, headers: str
) -> dict[str, int]:
    return {"sess.ip_score": ip.packed[-1]}
