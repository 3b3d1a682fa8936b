-- apply: make a batch of Kafka records take effect, and with it the offsets, exactly once.
--
-- KEYS[1]  root
-- ARGV[1]  MessagePack [ranges, instances, shapes, parked_permille]: ranges [[partition, start, end]...],
--          instances [id, tag...], shapes [text...]
-- ARGV[2]  per task 4 x u16, little-endian: shape, candidate, candidate, candidate; from 1, 0 is none
-- ARGV[3]  number of tasks n; then n entries in order of their keys; then any number of refused records
-- reply    ok, one byte per task (1 2 3 candidate, o open set, p parked, k known, x dead: its deadline has passed),
--          parked, outbox, now
--          recovering                              the cell has not begun: it has no history yet, or has lost it
--          fenced, partition, offset or nil, ...   some range does not start where its partition stands
--          full, parked and later, parked_bytes, outbox   the park or the outbox is at its bound
-- cost     of a task that is placed on a candidate one XADD; all else is read and written once a call
-- A task of a shape that has an earlier one parked is parked behind it; the candidates then pull.

-- Set of the ids that the cell knows already: placed, parked, later, or finished not long ago.
local function known_of(c, ids)
  local known = {}
  if #ids == 0 then return known end
  local where = redis.call('HMGET', key(c, ':where'), unpack(ids))
  local done0 = redis.call('HMGET', key(c, ':done0'), unpack(ids))
  local done1 = redis.call('HMGET', key(c, ':done1'), unpack(ids))
  for i = 1, #ids do
    if where[i] or done0[i] or done1[i] then known[ids[i]] = true end
  end
  return known
end

do

local FEW = 100 -- entries of the outbox that weigh little, whatever is in them

local function is_offset(value)
  return type(value) == 'number' and value >= 0 and value < 2 ^ 53 and value == math.floor(value)
end

local function fence(c, ranges)
  local names = { 'begun' }
  for i, range in ipairs(ranges) do
    if type(range[1]) ~= 'string' or not is_offset(range[2]) or not is_offset(range[3]) then
      error('a range is partition, start, end')
    end
    names[i + 1] = range[1]
  end
  local offsets = redis.call('HMGET', key(c, ':applied'), unpack(names))
  if not offsets[1] then return { 'recovering' } end
  settings.learn(c, offsets[1])
  for i, range in ipairs(ranges) do
    local offset = offsets[i + 1]
    -- A partition that was never applied starts at 0, or where an empty range has said that its log begins: whoever
    -- stands elsewhere knows a history that this cell has not.
    local is_there = offset and tonumber(offset) == range[2] or not offset and (range[2] == 0 or range[2] == range[3])
    if not is_there then
      local reply = { 'fenced' }
      for k = 2, #names do
        reply[#reply + 1] = names[k]
        reply[#reply + 1] = offsets[k]
      end
      return reply
    end
  end
  c.offsets = offsets
  return nil
end

-- Note up to which offset each partition has been applied; undone, as it was before.
local function move_on(c, ranges)
  local offsets, applied = {}, key(c, ':applied')
  for i, range in ipairs(ranges) do
    local before = c.offsets[i + 1]
    if before then undo(c, 'HSET', applied, range[1], before) else undo(c, 'HDEL', applied, range[1]) end
    offsets[#offsets + 1] = range[1]
    offsets[#offsets + 1] = range[3]
  end
  in_chunks('HSET', applied, offsets, 4000)
end

local function level(c)
  local stats = redis.call('HMGET', key(c, ':stats'), 'parked', 'parked_bytes', 'later')
  local outbox = redis.call('XLEN', key(c, ':out'))
  return tonumber(stats[1]) or 0, tonumber(stats[2]) or 0, tonumber(stats[3]) or 0, outbox
end

-- What the outbox weighs; of a few entries that is not asked, since it costs up to 60 us.
local function outbox_bytes(c, outbox)
  return outbox > FEW and redis.call('MEMORY', 'USAGE', key(c, ':out')) or 0
end

local function full(c, parked_permille)
  local parked, parked_bytes, later, outbox = level(c)
  local share = parked_permille / 1000
  -- What waits for its retry is parked again when that is due.
  if parked + later >= setting(c, 'parked_limit') * share or parked_bytes >= setting(c, 'parked_bytes_limit') * share
    or outbox >= setting(c, 'outbox_limit') or outbox_bytes(c, outbox) >= setting(c, 'outbox_bytes_limit') then
    return { 'full', parked + later, parked_bytes, outbox }
  end
  c.parked_before, c.outbox = parked, outbox
  return nil
end

-- Read the vectors of all candidates at once. One whose tag is not the plan's is no candidate any more.
local function candidates_of(c, instances)
  local names, valid = {}, {}
  for i = 1, #instances / 2 do names[i] = instances[2 * i - 1] end
  if #names == 0 then return names, valid end
  local packed = call('HMGET', key(c, ':free'), unpack(names))
  for i, name in ipairs(names) do
    local f = c.free[name] -- one table each, also if it is named twice
    if f == nil then f = remember_free(c, name, packed[i]) end
    valid[i] = f and part_of(f[STORED], 1, 4) == instances[2 * i] and f
  end
  return names, valid
end

-- Key of the shape's first parked task, as far as this call knows; math.huge: there is none.
local function head_of(c, shape)
  local head = c.head[shape]
  if not head then
    head = first_key(shape.park)
    c.head[shape] = head
  end
  return head
end

local VIA = { '1', '2', '3' }

-- Place, or park, one task that the cell did not know. b: names, valid and pullers of the batch; n1 n2 n3: the task's
-- candidates in names, 0 none.
local function place_new(c, b, entry, id, shape, order_key, deadline, bucket, n1, n2, n3)
  local names, valid = b.names, b.valid
  if head_of(c, shape) <= order_key then -- behind an earlier one; the candidates then pull whichever is first
    if valid[n1] then b.pullers[names[n1]] = true end
    if valid[n2] then b.pullers[names[n2]] = true end
    if valid[n3] then b.pullers[names[n3]] = true end
  else
    for n = 1, 3 do
      local i = n == 1 and n1 or n == 2 and n2 or n3
      local f = valid[i]
      if f and fits(c, names[i], f, shape) then
        place(c, names[i], f, shape, entry, id, 1, VIA[n], bucket)
        return VIA[n]
      end
    end
    if not c.is_full[shape] then
      local instance, f = any_open(c, shape)
      if instance then
        place(c, instance, f, shape, entry, id, 1, 'o', bucket)
        return 'o'
      end
      c.is_full[shape] = true -- asked once a call
    end
    c.head[shape] = order_key
  end
  park(c, shape, entry, id, 1, order_key, deadline, bucket)
  return 'p'
end

-- The results of n tasks, one byte each; entries begin at args[4].
local function place_all(c, b, args, n, shapes)
  local ids, texts, keys, deadlines, arrived, results = {}, {}, {}, {}, {}, {}
  for i = 1, n do
    keys[i], deadlines[i], arrived[i], ids[i], texts[i] = unpack_bytes('<dddHc0Hc0', args[3 + i], 5)
  end
  local known, choices = known_of(c, ids), args[2]
  for i = 1, n do
    local id, entry = ids[i], args[3 + i]
    if known[id] then
      results[i] = 'k'
    else
      known[id] = true
      -- Four u16 by their bytes: to unpack them takes four times as long.
      local s, s_high, n1, n1_high, n2, n2_high, n3, n3_high = byte(choices, 8 * i - 7, 8 * i)
      local shape, bucket = shapes[s + 256 * s_high], bucket_of(c, arrived[i])
      if shape.text ~= texts[i] then error('an entry of another shape than its task: ' .. texts[i]) end
      count_unfinished(c, bucket, 1)
      if deadlines[i] > 0 and deadlines[i] < c.now then
        dead(c, entry, read_head(entry), 'deadline', 'its deadline had passed when it arrived', '')
        results[i] = 'x'
      else
        results[i] = place_new(c, b, entry, id, shape, keys[i], deadlines[i], bucket,
          n1 + 256 * n1_high, n2 + 256 * n2_high, n3 + 256 * n3_high)
      end
    end
  end
  return table.concat(results)
end

local function apply(c, args)
  local header = cmsgpack.unpack(args[1])
  local ranges, shapes = header[1], header[3]
  local refused = fence(c, ranges) or full(c, header[4])
  if refused then return refused end
  local n, b = tonumber(args[3]), { pullers = {} }
  b.names, b.valid = candidates_of(c, header[2])
  for i = 1, #shapes do shapes[i] = shape_of(c, shapes[i]) end
  local results = place_all(c, b, args, n, shapes)
  for instance in pairs(b.pullers) do pull(c, instance, n, 's') end
  for i = 4 + n, #args do publish(c, 'p', args[i]) end
  local parked = c.parked_before + c.parked
  finish_call(c)
  move_on(c, ranges)
  return { 'ok', results, parked, c.outbox + c.published, c.now }
end

redis.register_function('ty1_apply', atomic(apply))

end
