"""What is fuzzed. Each module has `outcome`, what an input leads to, and `mutate`.

`outcome` takes one implementation's modules. Both implementations must have equal outcomes. An
exception that is none of the protocol's is a finding in any case.
"""

WITHOUT_TWINS = ("capture", "spoe_file")
TARGETS = (
    "codec", "dispatcher", "intake", "acks", "headers", "server_connection", "client_connection",
    *WITHOUT_TWINS,
)  # fmt: skip
FOLLOWED = {
    "server_connection": ("spop.connection", "spop.handshake"),
    "client_connection": ("spop.connection", "spop.handshake"),
    "capture": ("spop.cli.capture", "spop.cli.packets"),
    "spoe_file": ("spop.engine.config", "spop.engine.samples.expression"),
}
"""The modules in Python whose branches guide the fuzzer, by target."""
