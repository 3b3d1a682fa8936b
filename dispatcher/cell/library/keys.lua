-- The cell: live state of one fleet, changed only by the functions of this library. One declared key, the root
-- KEYS[1] = ty:{cell}; every other key is the root with a suffix, so all share one hash tag and one slot.
--
-- key              type    meaning
-- :meta            hash    generation, run_id, evict_ms (when evict was last called), headroom_surplus (headroom.lua),
--                          by_lane (1: heads are in indexes by lane) and the cell's settings (settings.lua)
-- :applied         hash    topic incarnation:partition -> offset up to which records have been applied; begun -> the
--                          cell's settings as one text (settings.lua)
-- :inst            hash    instance -> f64 registered, MessagePack [epoch, types, capacity, labels, lease_ms, profile]
-- :closed          hash    instance -> why nothing is placed on it; no field: open or held
-- :recalled        hash    instance -> newest stream id that was recalled from it
-- :free            hash    instance -> packed tag, flag, headroom and free vector (vector.lua)
-- :res             hash    resource name -> index in every vector; slots is 1; append-only
-- :lease           zset    instance -> when its registration expires
-- :report          hash    instance -> f64 when, MessagePack [cursor, cpu, memory, errors (permille), running, progress]
-- :serving         hash    agent type -> number of registered instances
-- :unserved        hash    agent type that tasks wait for -> since when it is known that no instance serves it
-- :open:<type>     set     instances that serve the type, are not closed and have a free slot
-- :q:<instance>    stream  its queue and the ledger of its reservations: one field e = the entry
-- :park:<shape>    zset    entry -> key; parked tasks of one shape
-- :heads:<index>   zset    shape -> key of its first parked task, or an earlier one (front.lua); index: the agent type, of
--                          critical shapes c|type
-- :waiting         set     indexes that have heads
-- :front           string  counts the calls that changed what is parked (front.lua)
-- :later           zset    entry -> when it is due (backoff between attempts)
-- :deadlines       zset    task id -> deadline, of parked tasks that have one
-- :where           hash    task id -> place: q|bucket|via|stream id|attempt|instance|shape, p|bucket|key|attempt|shape,
--                          l|bucket|due|attempt|shape; bucket: when its record arrived, in BUCKET_MS
-- :replay          hash    partition -> offset up to which it is read again after a total loss; none when that is over
-- :unfinished      hash    bucket -> how many unfinished tasks arrived in it, without those that are carried
-- :carried         hash    task id -> bucket, of old unfinished tasks that the topic of carried ones keeps (carry.lua)
-- :done0 :done1    hash    task id -> how it ended; two halves that rotate: the bounded memory of finished ids
--                          (:forgotten is one on its way out, within a call)
-- :hold :held      hash    shape -> instance held for it, and back
-- :out             stream  outbox: r = outcome | d, c, i, e = reason, cause, instance, entry of a dead one | p = refused record |
--                          x = id of a carried task that has ended
-- :stats           hash    parked, parked_bytes, later
-- :lock:<name>     string  owner of a lease among the dispatchers (tick, relay, ...)
--
-- A call takes effect whole or not at all. Redis keeps what a function wrote before it failed, so every write has its
-- `undo` noted, and `atomic` runs those, the latest first, before it passes the error on. What cannot be undone is the
-- deletion from a stream: it comes last in a call, or in each step of one, and `commit` follows it.
-- Loops are bounded by an argument. A `call` (the table c) carries what one function call has read, so that each thing
-- is read and written once.

local MAX_RESOURCES = 16
local BUCKET_MS = 10000
local CARRIED_AGE_MS = 60000 -- no younger task is carried: most end before that, and need not ask whether they are
local UNREAD = 'not reading' -- why an instance that beats but does not read is closed
local RESUMING = 'resuming' -- why one is closed that has not told yet what it runs
-- Why an instance is closed whose entries are being taken back, a page a call. Its epoch counts no more: were its lease
-- renewed between two pages, it would stay closed for good with half of its queue.
local LEAVING = 'its entries are being taken back'

-- Looked up in the first call, not in each of some hundred thousand uses a second; while the library is loaded there are
-- none.
local call, unpack_bytes, byte, part_of, floor

-- Tables of a call that are made when they are first asked for: no call needs them all, and ten unused ones cost as much
-- as a command. What is noted in one is forgotten by setting it to nil.
local ON_DEMAND = {
  free = true, dirty = true, inst = true, held = true, buckets = true, head = true, is_full = true,
  places = true, forget = true, done = true, born = true,
  queued = true, placed = true, forgotten = true, was = true, reindex = true,
}
local DEMAND = {
  __index = function(c, name)
    if not ON_DEMAND[name] then return nil end
    local made = {}
    c[name] = made
    return made
  end,
}

-- The keys of a cell that one call after another needs, by their suffix: kept between calls, since to join two texts costs
-- more than to look one up. Few cells are on one server; if there are many, they are joined again.
local names_of
do
  local SUFFIXES = {
    ':meta', ':applied', ':inst', ':closed', ':free', ':lease', ':report', ':waiting', ':front', ':later', ':deadlines', ':where',
    ':unfinished', ':carried', ':done0', ':done1', ':hold', ':held', ':out', ':stats', ':q:',
  }
  local MAX_CELLS, all, count = 100, {}, 0
  names_of = function(root)
    local names = all[root]
    if names then return names end
    if count >= MAX_CELLS then all, count = {}, 0 end
    names = {}
    for _, suffix in ipairs(SUFFIXES) do names[suffix] = root .. suffix end
    all[root], count = names, count + 1
    return names
  end
end

local NONE = {} -- an empty table to start from; never written to

local function begin(keys)
  if not call then
    call, unpack_bytes, byte, part_of, floor = redis.call, struct.unpack, string.byte, string.sub, math.floor
  end
  local time = redis.call('TIME')
  local root, usec = keys[1], tonumber(time[2])
  local names = names_of(root)
  return setmetatable({
    root = root,
    names = names,
    out = names[':out'],
    queue = names[':q:'], -- and the instance: the key of its queue
    now = tonumber(time[1]) * 1000 + floor(usec / 1000),
    usec = usec,
    parked = 0, parked_bytes = 0, later = 0, published = 0, looks = 0, undo = {}, undo_size = 0,
    meta = false, settings = false, res = false, now_text = false, offsets = false, front = false, -- what has been read
    plain = NONE, numbered = NONE, -- shapes that are known (vector.lua)
  }, DEMAND)
end

local function key(c, suffix)
  return c.names[suffix] or c.root .. suffix
end

local function meta(c, name)
  if not c.meta then
    c.meta = {}
    local flat = redis.call('HGETALL', key(c, ':meta'))
    for i = 1, #flat, 2 do c.meta[flat[i]] = flat[i + 1] end
  end
  return c.meta[name]
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

-- HSET/HDEL in chunks: unpack fails above 7,999 values.
local function in_chunks(command, name, values, step)
  local count = #values
  if count > 0 and count <= step then
    call(command, name, unpack(values))
    return
  end
  for first = 1, count, step do
    call(command, name, unpack(values, first, math.min(first + step - 1, count)))
  end
end

-- Undo of an HSET of field, value, field, value...: each as it was before, and none where there was none.
local function restore_fields(c, suffix, written, was)
  local values, gone = {}, {}
  for i = 1, #written, 2 do
    local field = written[i]
    if was[field] then
      values[#values + 1] = field
      values[#values + 1] = was[field]
    else
      gone[#gone + 1] = field
    end
  end
  in_chunks('HSET', key(c, suffix), values, 4000)
  in_chunks('HDEL', key(c, suffix), gone, 4000)
end

-- Note what takes a write back: a command with its key and one or two arguments, or a function of the call and three.
-- Noted before the write if it may run in vain, else after it.
local function undo(c, command, a, b, d)
  local list, n = c.undo, c.undo_size
  list[n + 1], list[n + 2], list[n + 3], list[n + 4] = command, a, b, d or false
  c.undo_size = n + 4
end

-- What has been written stays.
local function commit(c)
  c.undo_size = 0
  c.queued, c.placed, c.forgotten, c.was, c.reindex = nil, nil, nil, nil, nil
end

-- What a task's place was before this call; of several told, the first.
local function was_at(c, id, text)
  c.was[id] = text
end

-- HSET of one field, HDEL, ZADD and a counter's HINCRBY, with their undo. A counter at 0 is not kept.
local function put(c, suffix, field, value)
  local name = key(c, suffix)
  local old = redis.call('HGET', name, field)
  if old == value then return end
  if old then undo(c, 'HSET', name, field, old) else undo(c, 'HDEL', name, field) end
  redis.call('HSET', name, field, value)
end

local function drop(c, suffix, field)
  local name = key(c, suffix)
  local old = redis.call('HGET', name, field)
  if not old then return false end
  undo(c, 'HSET', name, field, old)
  redis.call('HDEL', name, field)
  return true
end

local function score(c, suffix, member, value)
  local name = key(c, suffix)
  local old = redis.call('ZSCORE', name, member)
  if old then undo(c, 'ZADD', name, old, member) else undo(c, 'ZREM', name, member) end
  if value then redis.call('ZADD', name, value, member) else redis.call('ZREM', name, member) end
end

local add
add = function(c, suffix, field, by)
  if by == 0 then return end
  local name = key(c, suffix)
  local sum = call('HINCRBY', name, field, by)
  undo(c, add, suffix, field, -by)
  if sum == 0 then redis.call('HDEL', name, field) end
end
