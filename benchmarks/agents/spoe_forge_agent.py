"""The benchmark's agent with spoe-forge."""

import logging
import sys

from spoe_forge import ActionScope, AgentContext, SetVarAction, SpoeForge

agent = SpoeForge(name="benchmark")


@agent.message("check-client-ip")
def check_client_ip(ctx: AgentContext) -> list[SetVarAction]:
    return [SetVarAction(ActionScope.SESSION, "ip_score", ctx.get_arg("ip").packed[-1])]


@agent.message("check-request")
def check_request(ctx: AgentContext) -> list[SetVarAction]:
    return [SetVarAction(ActionScope.SESSION, "ip_score", ctx.get_arg("ip").packed[-1])]


if __name__ == "__main__":
    logging.disable(logging.INFO)
    agent.run("127.0.0.1", int(sys.argv[1]))
