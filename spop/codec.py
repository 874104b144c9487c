"""The codec, in the twin that `spop.twins` chooses.

`IMPLEMENTATION` is ``"c"`` or ``"python"``. `spop._codec_py` and `spop._typed_data_py` document
the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.twins import IMPLEMENTATION as IMPLEMENTATION
from spop.twins import twin

if TYPE_CHECKING:
    from spop._codec_py import decode_actions as decode_actions
    from spop._codec_py import decode_frames as decode_frames
    from spop._codec_py import decode_kv_list as decode_kv_list
    from spop._codec_py import decode_messages as decode_messages
    from spop._codec_py import decode_string as decode_string
    from spop._codec_py import decode_value as decode_value
    from spop._codec_py import decode_varint as decode_varint
    from spop._codec_py import encode_ack as encode_ack
    from spop._codec_py import encode_actions as encode_actions
    from spop._codec_py import encode_answer as encode_answer
    from spop._codec_py import encode_control as encode_control
    from spop._codec_py import encode_frame as encode_frame
    from spop._codec_py import encode_kv_list as encode_kv_list
    from spop._codec_py import encode_messages as encode_messages
    from spop._codec_py import encode_notify as encode_notify
    from spop._codec_py import encode_raw_frame as encode_raw_frame
    from spop._codec_py import encode_string as encode_string
    from spop._codec_py import encode_value as encode_value
    from spop._codec_py import encode_varint as encode_varint
else:
    _codec = twin("spop._codec")
    encode_varint = _codec.encode_varint
    decode_varint = _codec.decode_varint
    encode_string = _codec.encode_string
    decode_string = _codec.decode_string
    encode_value = _codec.encode_value
    decode_value = _codec.decode_value
    encode_kv_list = _codec.encode_kv_list
    decode_kv_list = _codec.decode_kv_list
    encode_messages = _codec.encode_messages
    decode_messages = _codec.decode_messages
    encode_actions = _codec.encode_actions
    encode_answer = _codec.encode_answer
    decode_actions = _codec.decode_actions
    encode_notify = _codec.encode_notify
    encode_ack = _codec.encode_ack
    encode_control = _codec.encode_control
    encode_raw_frame = _codec.encode_raw_frame
    encode_frame = _codec.encode_frame
    decode_frames = _codec.decode_frames

__all__ = [
    "IMPLEMENTATION",
    "decode_actions",
    "decode_frames",
    "decode_kv_list",
    "decode_messages",
    "decode_string",
    "decode_value",
    "decode_varint",
    "encode_ack",
    "encode_actions",
    "encode_answer",
    "encode_control",
    "encode_frame",
    "encode_kv_list",
    "encode_messages",
    "encode_notify",
    "encode_raw_frame",
    "encode_string",
    "encode_value",
    "encode_varint",
]
