-- Wireshark dissector for SPOP, the protocol between HAProxy and the agents of its SPOE.
--
-- Copy it into the folder of personal Lua plugins (Wireshark: Help, About, Folders), then choose
-- "Decode As… SPOP" for the agent's port, or set the ports in the preferences of the protocol:
--   tshark -X lua_script:spop.lua -o spop.ports:9000 -r agent.pcap
-- A connection that begins with a HELLO is recognised on any port.
--
-- Sections are those of HAProxy's doc/SPOE.txt. The tables are those of spop/constants.py; a test
-- compares them.

local FRAME_TYPES = {
  [0] = "UNSET",
  [1] = "HAPROXY-HELLO",
  [2] = "HAPROXY-DISCONNECT",
  [3] = "NOTIFY",
  [101] = "AGENT-HELLO",
  [102] = "AGENT-DISCONNECT",
  [103] = "ACK",
}
local FRAME_FLAGS = {
  [1] = "FIN",
  [2] = "ABORT",
}
local DATA_TYPES = {
  [0] = "NULL",
  [1] = "BOOL",
  [2] = "INT32",
  [3] = "UINT32",
  [4] = "INT64",
  [5] = "UINT64",
  [6] = "IPV4",
  [7] = "IPV6",
  [8] = "STRING",
  [9] = "BINARY",
}
local ACTION_TYPES = {
  [1] = "SET-VAR",
  [2] = "UNSET-VAR",
}
local SCOPES = {
  [0] = "PROC",
  [1] = "SESS",
  [2] = "TXN",
  [3] = "REQ",
  [4] = "RES",
}
local STATUS = {
  [0] = "normal",
  [1] = "I/O error",
  [2] = "a timeout occurred",
  [3] = "frame is too big",
  [4] = "invalid frame received",
  [5] = "version value not found",
  [6] = "max-frame-size value not found",
  [7] = "capabilities value not found",
  [8] = "unsupported version",
  [9] = "max-frame-size too big or too small",
  [10] = "payload fragmentation is not supported",
  [11] = "invalid interlaced frames",
  [12] = "frame-id not found",
  [13] = "resource allocation error",
  [99] = "an unknown error occurred",
}
local HAPROXY_HELLO, HAPROXY_DISCONNECT, NOTIFY = 1, 2, 3
local AGENT_HELLO, AGENT_DISCONNECT, ACK = 101, 102, 103
local LENGTH_SIZE, SHORTEST_FRAME, FLAGS_END = 4, 7, 9
local MAX_LENGTH = 64 * 1024 * 1024

local spop = Proto("spop", "HAProxy Stream Processing Offload Protocol")
spop.prefs.ports = Pref.range("TCP ports", "", "Ports of agents", 65535)

local f = {
  length = ProtoField.uint32("spop.length", "Length"),
  type = ProtoField.uint8("spop.type", "Type", base.DEC, FRAME_TYPES),
  flags = ProtoField.uint32("spop.flags", "Flags", base.HEX),
  fin = ProtoField.bool("spop.flags.fin", "FIN", 32, nil, 1),
  abort = ProtoField.bool("spop.flags.abort", "ABORT", 32, nil, 2),
  stream_id = ProtoField.uint64("spop.stream_id", "Stream-id"),
  frame_id = ProtoField.uint64("spop.frame_id", "Frame-id"),
  message = ProtoField.string("spop.message", "Message"),
  action = ProtoField.uint8("spop.action", "Action", base.DEC, ACTION_TYPES),
  scope = ProtoField.uint8("spop.scope", "Scope", base.DEC, SCOPES),
  name = ProtoField.string("spop.name", "Name"),
  data_type = ProtoField.uint8("spop.data_type", "Data type", base.DEC, DATA_TYPES),
  value = ProtoField.string("spop.value", "Value"),
  status = ProtoField.uint32("spop.status", "Status", base.DEC, STATUS),
  fragment = ProtoField.bytes("spop.fragment", "Fragment of a payload"),
}
spop.fields = f
local malformed = ProtoExpert.new(
  "spop.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR
)
spop.experts = { malformed }

-- Stream-ids and values can have 64 bits, Lua's numbers 53: varints are UInt64.
local function varint(buffer, at) -- Section 3.1.
  local first = buffer(at, 1):uint()
  local value, shift = UInt64(first), 4
  at = at + 1
  if first < 240 then
    return value, at
  end
  while true do
    local byte = buffer(at, 1):uint()
    value = value + UInt64(byte):lshift(shift)
    at, shift = at + 1, shift + 7
    if byte < 128 then
      return value, at
    end
  end
end

local function text(buffer, at)
  local size, start = varint(buffer, at)
  size = size:tonumber()
  if size == 0 then
    return "", start
  end
  return buffer(start, size):string(), start + size
end

local function signed(number)
  return tostring(Int64(number:lower(), number:higher()))
end

local function tail(buffer, at, size)
  return size > 0 and buffer(at, size) or nil
end

-- Typed data (section 3.1): its type, its value as text, where it ends, its number.
local function typed(buffer, at)
  local head = buffer(at, 1):uint()
  local kind = head % 16
  at = at + 1
  if kind == 0 then
    return kind, "null", at
  elseif kind == 1 then
    return kind, head >= 16 and "true" or "false", at
  elseif kind <= 5 then
    local number, stop = varint(buffer, at)
    local shown = (kind == 2 or kind == 4) and signed(number) or tostring(number)
    return kind, shown, stop, number
  elseif kind == 6 then
    return kind, tostring(buffer(at, 4):ipv4()), at + 4
  elseif kind == 7 then
    return kind, tostring(buffer(at, 16):ipv6()), at + 16
  elseif kind == 8 then
    local value, stop = text(buffer, at)
    return kind, value, stop
  elseif kind == 9 then
    local size, start = varint(buffer, at)
    size = size:tonumber()
    local bytes = tail(buffer, start, size)
    return kind, bytes and bytes:bytes():tohex(true) or "", start + size
  end
  error("data type " .. kind)
end

local function add_typed(tree, buffer, start, name)
  local named, at = nil, start
  if name == nil then
    named, at = text(buffer, start)
  end
  local kind, value, stop, number = typed(buffer, at)
  local item = tree:add(f.value, buffer(start, stop - start), value)
  item:set_text((named or name) .. " = " .. value .. " (" .. DATA_TYPES[kind] .. ")")
  if named then
    item:add(f.name, buffer(start, at - start), named)
  end
  item:add(f.data_type, buffer(at, 1), kind)
  if named == "status-code" and number then
    item:add(f.status, buffer(at, stop - at), number:tonumber())
  end
  return stop
end

local function add_items(tree, buffer, at) -- KV-LIST, section 3.2.4.
  while at < buffer:len() do
    at = add_typed(tree, buffer, at)
  end
end

local function add_messages(tree, buffer, at) -- Section 3.3.
  local names = {}
  while at < buffer:len() do
    local name, stop = text(buffer, at)
    local item = tree:add(f.message, buffer(at, stop - at), name)
    local count = buffer(stop, 1):uint()
    names[#names + 1] = name
    at = stop + 1
    for _ = 1, count do
      at = add_typed(item, buffer, at)
    end
  end
  return table.concat(names, ", ")
end

local function add_actions(tree, buffer, at) -- Section 3.4.
  local count = 0
  while at < buffer:len() do
    local kind, scope = buffer(at, 1):uint(), buffer(at + 2, 1):uint()
    local name, stop = text(buffer, at + 3)
    local item = tree:add(f.action, buffer(at, 1))
    local variable = (SCOPES[scope] or "?"):lower() .. "." .. name
    item:set_text((ACTION_TYPES[kind] or ("action " .. kind)) .. " " .. variable)
    item:add(f.scope, buffer(at + 2, 1))
    item:add(f.name, buffer(at + 3, stop - at - 3), name)
    if kind == 1 then
      stop = add_typed(item, buffer, stop, variable)
    elseif kind ~= 2 then
      error("action type " .. kind)
    end
    at, count = stop, count + 1
  end
  return count .. (count == 1 and " action" or " actions")
end

local function add_flags(tree, range)
  -- SPOP 1.0 on x86 (HAProxy 1.8) wrote them in little endian.
  local little = range(0, 1):uint() ~= 0 and range(3, 1):uint() == 0
  local value = little and range:le_uint() or range:uint()
  local item = tree:add(f.flags, range, value)
  item:add(f.fin, range, value)
  item:add(f.abort, range, value)
  return value % 2 == 1
end

local function add_payload(tree, buffer, at, kind, whole)
  if kind == HAPROXY_HELLO or kind == AGENT_HELLO
    or kind == HAPROXY_DISCONNECT or kind == AGENT_DISCONNECT then
    add_items(tree, buffer, at)
  elseif kind == NOTIFY and whole then
    return add_messages(tree, buffer, at)
  elseif kind == ACK and whole then
    return add_actions(tree, buffer, at)
  elseif at < buffer:len() then
    tree:add(f.fragment, buffer(at))
    return (buffer:len() - at) .. " bytes of a fragment"
  end
  return ""
end

local function dissect_frame(tvb, pinfo, root)
  local buffer = tvb:range()
  local tree = root:add(spop, buffer)
  local kind = buffer(LENGTH_SIZE, 1):uint()
  tree:add(f.length, buffer(0, LENGTH_SIZE))
  tree:add(f.type, buffer(LENGTH_SIZE, 1))
  local whole = add_flags(tree, buffer(LENGTH_SIZE + 1, 4))
  local name = FRAME_TYPES[kind] or ("type " .. kind)
  pinfo.cols.protocol = "SPOP"
  local good, shown = pcall(function()
    local stream_id, middle = varint(buffer, FLAGS_END)
    local frame_id, at = varint(buffer, middle)
    tree:add(f.stream_id, buffer(FLAGS_END, middle - FLAGS_END), stream_id)
    tree:add(f.frame_id, buffer(middle, at - middle), frame_id)
    tree:append_text(", " .. name .. ", stream " .. stream_id .. ", frame " .. frame_id)
    local payload = add_payload(tree, buffer, at, kind, whole)
    local ids = kind == NOTIFY or kind == ACK or kind == 0
    return (ids and (" " .. stream_id .. "/" .. frame_id .. " ") or "") .. payload
  end)
  if not good then
    tree:add_proto_expert_info(malformed, tostring(shown))
    shown = " (malformed)"
  end
  pinfo.cols.info:append((tostring(pinfo.cols.info) ~= "" and ", " or "") .. name .. shown)
  return tvb:len()
end

local function frame_size(tvb, _, offset)
  local length = tvb(offset, LENGTH_SIZE):uint()
  if length > MAX_LENGTH then
    return tvb:len() - offset
  end
  return LENGTH_SIZE + math.max(length, SHORTEST_FRAME)
end

function spop.dissector(tvb, pinfo, root)
  pinfo.cols.info = ""
  dissect_tcp_pdus(tvb, root, LENGTH_SIZE, frame_size, dissect_frame)
  return tvb:len()
end

local tcp = DissectorTable.get("tcp.port")
tcp:add_for_decode_as(spop)
local ports = ""
function spop.prefs_changed()
  if ports ~= spop.prefs.ports then
    if ports ~= "" then
      tcp:remove(ports, spop)
    end
    ports = spop.prefs.ports
    if ports ~= "" then
      tcp:add(ports, spop)
    end
  end
end

-- A connection is SPOP if it begins with a HELLO.
spop:register_heuristic("tcp", function(tvb, pinfo, root)
  if tvb:len() < FLAGS_END then
    return false
  end
  local kind, length = tvb(LENGTH_SIZE, 1):uint(), tvb(0, LENGTH_SIZE):uint()
  local is_hello = kind == HAPROXY_HELLO or kind == AGENT_HELLO
  if not is_hello or length < SHORTEST_FRAME or length > 16384 then
    return false
  end
  pinfo.conversation = spop
  spop.dissector(tvb, pinfo, root)
  return true
end)
