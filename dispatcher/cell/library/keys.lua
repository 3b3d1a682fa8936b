-- The cell: live state of one fleet, changed only by the functions of this library. One declared key, the root
-- KEYS[1] = ty:{cell}; every other key is the root with a suffix, so all share one hash tag and one slot.
--
-- key              type    meaning
-- :meta            hash    generation, run_id and the cell's settings (recovery.lua)
-- :applied         hash    topic incarnation:partition -> offset up to which records have been applied
-- :inst            hash    instance -> MessagePack {epoch, types, capacity, labels, lease_ms, reason, profile}
-- :free            hash    instance -> packed tag, flag, headroom and free vector (vector.lua)
-- :res             hash    resource name -> index in every vector; slots is 1; append-only
-- :lease           zset    instance -> when its registration expires
-- :report          hash    instance -> MessagePack {cursor, cpu_permille, memory_permille, errors_permille, at}
-- :serving         hash    agent type -> number of registered instances
-- :open:<type>     set     instances that serve the type, are not closed and have a free slot
-- :q:<instance>    stream  its queue and the ledger of its reservations: one field e = the entry
-- :park:<shape>    zset    entry -> key; parked tasks of one shape
-- :heads:<type>    zset    shape -> key of its first parked task
-- :waiting         set     agent types with parked tasks
-- :later           zset    entry -> when it is due (backoff between attempts)
-- :deadlines       zset    task id -> deadline, of parked tasks that have one
-- :where           hash    task id -> place: q|via|stream id|attempt|instance|shape, p|key|attempt|shape, l|due|attempt|shape
-- :done0 :done1    hash    task id -> how it ended; two halves that rotate: the bounded memory of finished ids
-- :hold :held      hash    shape -> instance held for it, and back
-- :out             stream  outbox: r = outcome | d, c, i, e = reason, cause, instance, entry of a dead one | p = refused record
-- :stats           hash    parked, parked_bytes, later
--
-- Rules of every function: read and check first; then writes that cannot fail; loops are bounded by an argument.
-- A `call` (the table c) carries what one function call has read, so that each thing is read and written once.

local MAX_RESOURCES = 16

local function begin(keys)
  local time = redis.call('TIME')
  return {
    root = keys[1],
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000),
    usec = tonumber(time[2]),
    free = {}, before = {}, dirty = {}, inst = {}, shapes = {},
    where = {}, forget = {}, done = {}, parked = 0, parked_bytes = 0, later = 0,
  }
end

local function key(c, suffix)
  return c.root .. suffix
end

local function setting(c, name)
  if not c.meta then
    c.meta = {}
    local flat = redis.call('HGETALL', key(c, ':meta'))
    for i = 1, #flat, 2 do c.meta[flat[i]] = flat[i + 1] end
  end
  return c.meta[name]
end

local function split(text, separator)
  local parts = {}
  for part in string.gmatch(text, '[^' .. separator .. ']+') do parts[#parts + 1] = part end
  return parts
end

local function pairs_of(text)
  local found = {}
  for name, value in string.gmatch(text, '([^,=]+)=([^,=]*)') do found[name] = value end
  return found
end

-- HSET/HDEL/XDEL in chunks: unpack fails above 7,999 values.
local function in_chunks(command, name, values, step)
  for first = 1, #values, step do
    redis.call(command, name, unpack(values, first, math.min(first + step - 1, #values)))
  end
end
