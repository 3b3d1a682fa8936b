-- The pull: an instance takes the best parked tasks of its types, as many as fit.
--
-- Of each index of its types that has heads the first ones are read, and kept true to what is taken, so that most
-- tasks are taken without reading them again. An index is { heads = its key, rows = the heads read: a shape and its
-- key in turns, at = the first in rows that may still be taken, bound = the key up to which rows have all
-- (math.huge: there are no more), is_whole = whether a pull looks at no more, size = of the next read, noted = new
-- keys and shapes to write }.

local MAX_SHAPES_SCANNED = 32 -- heads of one index that one pull looks at
local HEADS_AT_ONCE = 8 -- the most that are read while there are some that fit
local NONE = {} -- nothing is read, or noted, yet; never written to

-- Take the first task out of the shape's park. Returns how many came onto the instance: 1, or 0 if there was none or it
-- came late; and the key of the next one, nil if there is none. The caller keeps the heads true.
local function pop(c, instance, f, shape, via)
  local first = call('ZPOPMIN', shape.park)
  local entry = first[1]
  if not entry then return 0, nil end
  local deadline, arrived, id = unpack_bytes('<ddHc0', entry, 13)
  local placed = 0
  unparked(c, shape, entry, id, first[2], deadline)
  if deadline > 0 and deadline < c.now then
    dead(c, entry, read_head(entry), 'deadline', 'its deadline passed while it was parked', '')
  else
    place(c, instance, f, shape, entry, id, byte(entry, 2), via, bucket_of(c, arrived))
    placed = 1
  end
  return placed, call('ZRANGE', shape.park, 0, 0, 'WITHSCORES')[2]
end

-- The indexes of an instance's types that have heads, the critical ones first, and how many those are.
local function waiting_of(c, record, f)
  local names, waiting, critical = record.indexes, {}, 0
  local is_waiting = call('SMISMEMBER', key(c, ':waiting'), unpack(names))
  for i = 1, #names do
    if is_waiting[i] == 1 then
      waiting[#waiting + 1] = { heads = c.root .. ':heads:' .. names[i], rows = NONE, at = 1, noted = NONE }
      if 2 * i <= #names then critical = critical + 1 end
    end
  end
  -- As many of each as come if all have an equal share of the free slots, and half as many again.
  local size = math.min(math.ceil(1.5 * f[FIRST] / #waiting), HEADS_AT_ONCE)
  for i = 1, #waiting do waiting[i].size = size end
  return waiting, critical
end

local function write_heads(index)
  if index.noted == NONE then return end
  in_chunks('ZADD', index.heads, index.noted, 4000)
  index.noted = NONE
end

local function write_all_heads(indexes)
  for i = 1, #indexes do write_heads(indexes[i]) end
end

local function read_heads(index)
  write_heads(index)
  local size = index.size
  local rows = call('ZRANGE', index.heads, 0, size - 1, 'WITHSCORES')
  local is_end = #rows < 2 * size
  index.rows, index.at, index.bound = rows, 1, is_end and math.huge or rows[#rows] + 0
  index.is_whole = is_end or size == MAX_SHAPES_SCANNED
  index.size = MAX_SHAPES_SCANNED -- unless one of these is taken
end

-- Key of the first head of the index that may still be taken; math.huge: there is none.
local function key_of(index)
  if not index.rows[index.at] and not index.is_whole then read_heads(index) end
  return (index.rows[index.at + 1] or math.huge) + 0
end

-- A task of the index's first shape was taken. next_key: of the next one of the shape, nil if it has none.
local function advance(c, index, shape, next_key)
  local rows, at, noted, bound = index.rows, index.at, index.noted, index.bound
  index.size, index.is_whole = HEADS_AT_ONCE, bound == math.huge
  if not next_key then
    write_heads(index)
    refresh_head(c, shape)
    index.at = at + 2
    return
  end
  if noted == NONE then
    noted = {}
    index.noted = noted
  end
  local n, order_key = #noted, next_key + 0
  noted[n + 1], noted[n + 2] = next_key, shape.text
  if order_key > bound then
    index.at = at + 2
    return
  end
  while rows[at + 3] and rows[at + 3] + 0 < order_key do
    rows[at], rows[at + 1] = rows[at + 2], rows[at + 3]
    at = at + 2
  end
  rows[at], rows[at + 1] = shape.text, next_key
  local is_tie = order_key == bound or rows[at + 3] and rows[at + 3] + 0 == order_key
  if is_tie then index.rows, index.is_whole = NONE, false end -- the sorted set tells which comes first
end

-- Which of the first indexes, so many, has the lowest key; nil: there are no heads. keys: of the indexes, as far as
-- known.
local function lowest_of(indexes, keys, count)
  local lowest, best = math.huge, nil
  for i = 1, count do
    local order_key = keys[i]
    if not order_key then
      order_key = key_of(indexes[i])
      keys[i] = order_key
    end
    if order_key < lowest then lowest, best = order_key, i end
  end
  return best
end

-- Fill the instance's free capacity with the best parked tasks of all its types; takes at most `limit` out of the
-- park. Returns how many came. What does not fit is not looked at again: it fits no later.
local function pull(c, instance, limit, via)
  local record, f = instance_of(c, instance), free_of(c, instance)
  if not record or not f or f[2] == CLOSED or f[FIRST] <= 0 then return 0 end
  local indexes, critical = waiting_of(c, record, f)
  local pulled, taken, flag, keys = 0, 0, f[2], {}
  while f[2] ~= CLOSED and f[FIRST] > 0 and taken < limit do
    if f[2] ~= flag then -- held no more: others fit now
      write_all_heads(indexes)
      indexes, critical = waiting_of(c, record, f)
      flag, keys = f[2], {}
    end
    -- If nothing but headroom is left only critical tasks fit.
    local count = f[FIRST] <= f[3] and flag ~= HELD and critical or #indexes
    local best = lowest_of(indexes, keys, count)
    if not best then break end
    local index = indexes[best]
    local shape = shape_of(c, index.rows[index.at])
    if fits(c, instance, f, shape) and has_labels(c, instance, shape) then
      local placed, next_key = pop(c, instance, f, shape, via)
      pulled, taken = pulled + placed, taken + 1
      advance(c, index, shape, next_key)
    else
      index.at = index.at + 2
    end
    keys[best] = nil
  end
  write_all_heads(indexes)
  return pulled
end

-- Fill the instance's free capacity with tasks of one shape. Returns how many came.
local function pull_shape(c, instance, shape, limit, via)
  local record, f = instance_of(c, instance), free_of(c, instance)
  if not record or not f or not has_labels(c, instance, shape) then return 0 end
  local serves, pulled, taken = false, 0, 0
  for _, agent_type in ipairs(record.types) do serves = serves or agent_type == shape.type end
  while serves and taken < limit and fits(c, instance, f, shape)
    and redis.call('EXISTS', shape.park) == 1 do
    pulled, taken = pulled + (pop(c, instance, f, shape, via)), taken + 1
    refresh_head(c, shape)
  end
  return pulled
end

