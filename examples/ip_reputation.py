"""An IP reputation agent: the score of a client's address, from 0 (bad) to 100 (good).

spop serve examples/ip_reputation.py:agent --bind 127.0.0.1:9000
"""

from ipaddress import IPv4Address, IPv6Address, ip_network

from spop import Agent

BAD = ["192.0.2.0/24", "2001:db8::/32", "127.0.0.66/32"]
BAD_NETWORKS = [ip_network(text) for text in BAD]

agent = Agent(name="ip-reputation")


@agent.message("check-client-ip")
def check_client_ip(ip: IPv4Address | IPv6Address) -> dict[str, int]:
    if any(ip in network for network in BAD_NETWORKS):
        return {"sess.ip_score": 0}
    return {"sess.ip_score": 100 - ip.packed[-1] % 50}
