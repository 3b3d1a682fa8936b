-- The entry, as schemas/entry.py lays it out. Only its head is ever read or rewritten here.

local MAX_CAUSES_BYTES = 2048 -- the newest causes that fit; older lines are dropped
local MAX_CAUSE_BYTES = 400

local function id_of(entry)
  return (struct.unpack('<Hc0', entry, 29))
end

local function read_head(entry)
  local version, attempt, max_attempts, evictions, order_key, deadline, arrived = struct.unpack('<BBBBddd', entry)
  if version ~= 1 then error('entry version ' .. version) end
  local id, shape, causes, after = struct.unpack('<Hc0Hc0Hc0', entry, 29)
  return {
    attempt = attempt, max_attempts = max_attempts, evictions = evictions, key = order_key, deadline = deadline,
    arrived = arrived, id = id, shape = shape, causes = causes, rest = after,
  }
end

-- The same entry with the attempt, evictions and causes of `head`; everything else byte for byte.
local function rewrite(entry, head)
  return struct.pack('<BBBB', 1, head.attempt, head.max_attempts, head.evictions)
    .. string.sub(entry, 5, 28)
    .. struct.pack('<Hc0Hc0Hc0', #head.id, head.id, #head.shape, head.shape, #head.causes, head.causes)
    .. string.sub(entry, head.rest)
end

local function add_cause(c, head, instance, reason)
  local line = string.sub(string.gsub(reason, '[\r\n\t]', ' '), 1, MAX_CAUSE_BYTES)
  local causes = head.causes .. head.attempt .. '\t' .. instance .. '\t' .. string.format('%.0f', c.now) .. '\t' .. line .. '\n'
  while #causes > MAX_CAUSES_BYTES do causes = string.gsub(causes, '^[^\n]*\n', '', 1) end
  head.causes = causes
end
