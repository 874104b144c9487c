"""An agent for ``spoe-forge`` with plain handlers, which run in threads."""

import sys
import threading

from spoe_forge import ActionScope, AgentContext, SetVarAction, SpoeForge

agent = SpoeForge("threads", max_frame_size=16380, debug=False, max_concurrent_frames=10)
seen = threading.local()


@agent.message("request")
def request(ctx: AgentContext):
    seen.count = getattr(seen, "count", 0) + 1
    assert threading.current_thread() is not threading.main_thread()
    if not ctx.has_arg("path"):
        return None
    values = [ctx.get_arg("path"), 5, -5, True, None, b"\xff", "\u20ac", 2**63]
    return [
        SetVarAction(ActionScope.SESSION, f"v{index}", value) for index, value in enumerate(values)
    ]


@agent.message("response")
def response(ctx: AgentContext):
    return SetVarAction(ActionScope.SESSION, "no", "list") if ctx.get_arg("status") == 500 else []


if __name__ == "__main__":
    agent.run(sys.argv[1], int(sys.argv[2]))
