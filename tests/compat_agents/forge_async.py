"""An agent for ``spoe-forge`` with ``async def`` handlers beside other tasks."""

import asyncio
import sys

from spoe_forge import Action, ActionScope, AgentContext, SetVarAction, SpoeForge, UnsetVarAction

agent = SpoeForge(name="async", max_frame_size=16380)


@agent.message("request")
async def request(ctx: AgentContext) -> list[Action]:
    await asyncio.sleep(0)
    path = ctx.get_arg("path", "/")
    return [
        SetVarAction(ActionScope.TRANSACTION, "target", path.upper()),
        SetVarAction(ActionScope.TRANSACTION, "ip", ctx.get_arg("client_ip")),
        UnsetVarAction(ActionScope.SESSION, "old"),
    ]


@agent.message("response")
async def response(ctx: AgentContext) -> list[Action]:
    if ctx.get_arg("status") == 500:
        raise RuntimeError("no answer for this one")
    return [SetVarAction(ActionScope.TRANSACTION, "names", ",".join(ctx.get_args()))]


async def main(host: str, port: str) -> None:
    await asyncio.gather(agent.serve(host, int(port)), asyncio.sleep(0))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
