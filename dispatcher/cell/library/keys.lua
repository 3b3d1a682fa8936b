-- The cell: live state of one fleet, changed only by the functions of this library. One declared key, the root
-- KEYS[1] = ty:{cell}; every other key is the root with a suffix, so all share one hash tag and one slot.
--
-- key              type    meaning
-- :meta            hash    generation, run_id, evict_ms (when evict was last called) and the cell's settings (tick.lua)
-- :applied         hash    topic incarnation:partition -> offset up to which records have been applied
-- :inst            hash    instance -> f64 registered, MessagePack [epoch, types, capacity, labels, lease_ms, profile]
-- :closed          hash    instance -> why nothing is placed on it; no field: open or held
-- :recalled        hash    instance -> newest stream id that was recalled from it
-- :free            hash    instance -> packed tag, flag, headroom and free vector (vector.lua)
-- :res             hash    resource name -> index in every vector; slots is 1; append-only
-- :lease           zset    instance -> when its registration expires
-- :report          hash    instance -> f64 when, MessagePack [cursor, cpu, memory, errors (permille), running, progress]
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
-- :lock:<name>     string  owner of a lease among the dispatchers (tick, relay)
--
-- Rules of every function: read and check first; then writes that cannot fail; loops are bounded by an argument.
-- A `call` (the table c) carries what one function call has read, so that each thing is read and written once.

local MAX_RESOURCES = 16
local UNREAD = 'not reading' -- why an instance that beats but does not read is closed
-- Why an instance is closed whose entries are being taken back, a page a call. Its epoch counts no more: were its lease
-- renewed between two pages, it would stay closed for good with half of its queue.
local LEAVING = 'its entries are being taken back'

local function begin(keys)
  local time = redis.call('TIME')
  return {
    root = keys[1],
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000),
    usec = tonumber(time[2]),
    free = {}, before = {}, dirty = {}, inst = {}, held = {}, shapes = {},
    where = {}, forget = {}, done = {}, parked = 0, parked_bytes = 0, later = 0,
  }
end

local function key(c, suffix)
  return c.root .. suffix
end

-- Settings of a cell that nobody has opened yet; `open` stores the real ones.
local DEFAULTS = {
  headroom_permille = 50, parked_limit = 1000000, parked_bytes_limit = 4294967296, outbox_limit = 1000000,
  retry_base_ms = 1000, retry_cap_ms = 60000, unknown_type_age_ms = 3600000, parked_age_ms = 86400000,
  done_limit = 500000, done_age_ms = 600000,
}

local function meta(c, name)
  if not c.meta then
    c.meta = {}
    local flat = redis.call('HGETALL', key(c, ':meta'))
    for i = 1, #flat, 2 do c.meta[flat[i]] = flat[i + 1] end
  end
  return c.meta[name]
end

local function setting(c, name)
  return tonumber(meta(c, name)) or DEFAULTS[name]
end

-- A number as text that reads back as the same double; times and offsets without a point.
local function number(value)
  return string.format('%.17g', value)
end

-- Whether stream id a comes no later than b. Ids are `ms-seq`; ms alone means sequence 0.
local function is_up_to(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)%-?(%d*)$')
  local b_ms, b_seq = string.match(b, '^(%d+)%-?(%d*)$')
  a_ms, b_ms = tonumber(a_ms) or 0, tonumber(b_ms) or 0
  if a_ms ~= b_ms then return a_ms < b_ms end
  return (tonumber(a_seq) or 0) <= (tonumber(b_seq) or 0)
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
