"""The codec, in the twin that `spop.twins` chooses.

`IMPLEMENTATION` is ``"c"`` or ``"python"``. `spop._codec_py` and `spop._typed_data_py` document
the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spop.twins import IMPLEMENTATION as IMPLEMENTATION
from spop.twins import twin

if TYPE_CHECKING:
    from spop import _codec_py as _codec
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
