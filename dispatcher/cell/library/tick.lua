-- What a dispatcher does from time to time: recall, settle, due, expire, hold, and the housekeeping of the cell itself.

local HEADS_PER_INDEX = 128 -- shapes of one index whose first task is looked at in one call

-- What the instance had not read of entries that were there min_age_ms before it reported, oldest first.
local function unread_of(c, instance, min_age, limit)
  local report = redis.call('HGET', key(c, ':report'), instance)
  if not report or not instance_of(c, instance) then return {} end
  local cursor = cmsgpack.unpack(string.sub(report, 9))[1]
  local queue = key(c, ':q:' .. instance)
  local newest = number((struct.unpack('<d', report)) - min_age)
  local rows = redis.pcall('XRANGE', queue, '(' .. cursor, newest, 'COUNT', limit)
  -- A worker may be of any make: with a cursor that is no stream id it has read nothing.
  if rows.err then rows = redis.call('XRANGE', queue, '-', newest, 'COUNT', limit) end
  return rows
end

-- recall: KEYS[1] root; ARGV min_age_ms, limit, instance...
-- Takes back entries that were on the queue for min_age_ms when the instance last reported and that it had not read by
-- then, and closes those instances. (Its age now says nothing: it may have been read since the report.) reply: how many.
-- Each instance is a step of its own.
local function recall(c, args)
  local min_age, limit, count = tonumber(args[1]), math.min(tonumber(args[2]), MAX_PAGE), 0
  for i = 3, #args do
    local instance = args[i]
    local rows = count < limit and unread_of(c, instance, min_age, limit - count) or {}
    if rows[1] then
      -- Closed by a person, it is not opened by reading.
      if redis.call('HEXISTS', key(c, ':closed'), instance) == 0 then put(c, ':closed', instance, UNREAD) end
      put(c, ':recalled', instance, rows[#rows][1])
      set_flag(c, instance, CLOSED)
      local gone = {}
      for k, row in ipairs(rows) do
        gone[k] = row[1]
        leave_queue(c, instance, row[2][2], UNREAD, false)
      end
      finish_call(c)
      redis.call('XDEL', key(c, ':q:' .. instance), unpack(gone))
      commit(c)
      count = count + #rows
    end
  end
  return count
end

-- settle: KEYS[1] root; ARGV limit, instance, shape, ... Each instance pulls, then takes what fits of the shape: a pull
-- looks at a bounded number of shapes, and this one may be behind more that do not fit. reply: how many were placed.
local function settle(c, args)
  local limit, count = tonumber(args[1]), 0
  for i = 2, #args, 2 do
    if count >= limit then break end
    count = count + pull(c, args[i], limit - count, 's')
    count = count + pull_shape(c, args[i], shape_of(c, args[i + 1]), limit - count, 's')
  end
  finish_call(c)
  return count
end

-- Undo of what was due.
local function wait_again(c, entry, due)
  local head = read_head(entry)
  redis.call('ZADD', key(c, ':later'), due, entry)
  was_at(c, head.id, later_text(bucket_of(c, head.arrived), tonumber(due), head.attempt, head.shape))
end

-- due: KEYS[1] root; ARGV limit. Tasks whose backoff is over are placed or parked. reply: how many.
local function due(c, args)
  local rows = redis.call(
    'ZRANGEBYSCORE', key(c, ':later'), '-inf', number(c.now), 'WITHSCORES', 'LIMIT', 0, tonumber(args[1]))
  for i = 1, #rows, 2 do
    undo(c, wait_again, rows[i], rows[i + 1])
    redis.call('ZREM', key(c, ':later'), rows[i])
    c.later = c.later - 1
    place_or_park(c, rows[i], 'd')
  end
  finish_call(c)
  return #rows / 2
end

-- A parked task has waited for too long.
local function give_up(c, shape, entry, head, order_key, reason, cause)
  redis.call('ZREM', shape.park, entry)
  unparked(c, shape, entry, head.id, order_key, head.deadline)
  dead(c, entry, head, reason, cause, '')
end

-- Since when no instance serves each type that tasks wait for; of a type that is served: none. Counted from the first
-- look that finds it so, and forgotten when one registers: a restart of all its instances, or the loss of the cell, must
-- not end what arrived long ago.
local function unserved_since(c, waiting)
  local since = {}
  for _, index in ipairs(waiting) do
    local agent_type = string.match(index, '^c|(.*)$') or index
    if redis.call('HEXISTS', key(c, ':serving'), agent_type) == 0 then
      local at = tonumber(redis.call('HGET', key(c, ':unserved'), agent_type) or c.now)
      since[agent_type] = at and at <= c.now and at or c.now
      put(c, ':unserved', agent_type, number(since[agent_type]))
    end
  end
  for _, agent_type in ipairs(redis.call('HKEYS', key(c, ':unserved'))) do
    if not since[agent_type] then drop(c, ':unserved', agent_type) end
  end
  return since
end

-- Dead-letter the first tasks of a shape that have waited too long for any instance.
local function expire_aged(c, shape_text, limit, since)
  local shape, count = shape_of(c, shape_text), 0
  local unserved = since[shape.type]
  local parked_age, unknown_age = setting(c, 'parked_age_ms'), setting(c, 'unknown_type_age_ms')
  local why = unserved and 'no instance serves the agent type ' .. shape.type or 'no instance had room for it in time'
  local rows = redis.call('ZRANGE', key(c, ':park:' .. shape_text), 0, limit - 1, 'WITHSCORES')
  for i = 1, #rows, 2 do
    local head = read_head(rows[i])
    local is_unknown = unserved and math.max(head.arrived, unserved) + unknown_age <= c.now
    if not is_unknown and head.arrived + parked_age > c.now then break end
    give_up(c, shape, rows[i], head, rows[i + 1], 'age', why)
    count = count + 1
  end
  if count > 0 then refresh_head(c, shape) end
  return count
end

-- Dead-letter what is late among the parked tasks of the shape with this key: a deadline often is the key, and thousands
-- may have the same one. Returns how many of them were, and whether all were looked at.
local function expire_late(c, shape, order_key, limit)
  local rows, count = parked_at(c, shape, order_key), 0
  for _, entry in ipairs(rows) do
    local head = read_head(entry)
    if count < limit and head.deadline > 0 and head.deadline < c.now then
      give_up(c, shape, entry, head, order_key, 'deadline', 'its deadline passed while it was parked')
      count = count + 1
    end
  end
  if count > 0 then refresh_head(c, shape) end
  return count, #rows < TIES
end

-- Whether Kafka is being read again after a total loss: what was remembered for that must not be forgotten yet.
local function is_replaying(c)
  local applied = key(c, ':applied')
  if redis.call('HEXISTS', applied, 'begun') == 0 then return true end
  local ends = redis.call('HGETALL', key(c, ':replay'))
  for i = 1, #ends, 2 do
    if tonumber(redis.call('HGET', applied, ends[i]) or 0) < tonumber(ends[i + 1]) then return true end
  end
  for i = 1, #ends, 2 do drop(c, ':replay', ends[i]) end
  return false
end

-- Forget the older half of the finished ids once the newer half is full or old.
local function rotate_done(c)
  local size, began = redis.call('HLEN', key(c, ':done0')), tonumber(meta(c, 'done_began'))
  if is_replaying(c) or size == 0 then return end
  if not began then put(c, ':meta', 'done_began', number(c.now)) end
  local is_old = began and c.now - began > setting(c, 'done_age_ms')
  if not is_old and size < setting(c, 'done_limit') / 2 then return end
  put(c, ':meta', 'done_began', number(c.now))
  local newer, older, gone = key(c, ':done0'), key(c, ':done1'), key(c, ':forgotten')
  if redis.call('EXISTS', older) == 1 then
    redis.call('RENAME', older, gone)
    undo(c, 'RENAME', gone, older)
  end
  redis.call('RENAME', newer, older)
  undo(c, 'RENAME', older, newer)
  redis.call('UNLINK', gone)
  commit(c)
end

-- expire: KEYS[1] root; ARGV limit. Parked tasks past their deadline or the age allowed go to the outbox as dead.
-- reply: how many.
local function expire(c, args)
  local limit, count = tonumber(args[1]), 0
  rotate_done(c)
  local late = redis.call('ZRANGEBYSCORE', key(c, ':deadlines'), '-inf', '(' .. number(c.now), 'LIMIT', 0, limit)
  for _, id in ipairs(late) do
    if count < limit and redis.call('ZSCORE', key(c, ':deadlines'), id) then -- not ended with an earlier one
      local where = redis.call('HGET', key(c, ':where'), id)
      local at, shape_text = string.match(where or '', '^p|[^|]*|([^|]*)|[^|]*|(.*)$')
      local ended, is_all = 0, true
      if at then ended, is_all = expire_late(c, shape_of(c, shape_text), at, limit - count) end
      count = count + ended
      if ended == 0 and is_all then score(c, ':deadlines', id, nil) end -- it is not parked
    end
  end
  local waiting = redis.call('SMEMBERS', key(c, ':waiting'))
  local since = unserved_since(c, waiting)
  for _, index in ipairs(waiting) do
    for _, shape_text in ipairs(redis.call('ZRANGE', key(c, ':heads:' .. index), 0, HEADS_PER_INDEX - 1)) do
      if count < limit then count = count + expire_aged(c, shape_text, limit - count, since) end
    end
  end
  finish_call(c)
  return count
end

-- Whether the instance, when it is empty, can run tasks of the shape.
local function could_run(c, instance, shape_text)
  local record, shape, serves = instance_of(c, instance), shape_of(c, shape_text), false
  for _, agent_type in ipairs(record.types) do serves = serves or agent_type == shape.type end
  if not serves or not has_labels(c, instance, shape) then return false end
  for name, units in pairs(pairs_of(string.match(shape_text, '^.|[^|]*|([^|]*)|'))) do
    if tonumber(units) > (record.capacity[name] or 0) then return false end
  end
  return true
end

-- hold: KEYS[1] root; ARGV shape, instance. Keeps the instance for the first task of the shape.
-- reply: 1 | 0 (either is held, the instance is closed, gone or could never run it, or nothing of the shape is parked)
local function hold(c, args)
  local shape_text, instance = args[1], args[2]
  local f = free_of(c, instance)
  if not f or f[2] ~= OPEN or redis.call('HEXISTS', key(c, ':hold'), shape_text) == 1
    or redis.call('EXISTS', key(c, ':park:' .. shape_text)) == 0 or not could_run(c, instance, shape_text) then
    return 0
  end
  put(c, ':hold', shape_text, instance)
  put(c, ':held', instance, shape_text)
  c.held[instance] = shape_text
  f[2] = HELD
  touch(c, instance, f)
  pull(c, instance, 1, 's')
  finish_call(c)
  return 1
end

-- lease: KEYS[1] root; ARGV name, owner, ttl_ms (0 gives it back). reply: 1 if owner has it now
local function lease(keys, args)
  local lock, owner, ttl = keys[1] .. ':lock:' .. args[1], args[2], tonumber(args[3])
  local holder = redis.call('GET', lock)
  if holder and holder ~= owner then return 0 end
  if ttl > 0 then
    redis.call('SET', lock, owner, 'PX', ttl)
    return 1
  end
  if holder then redis.call('DEL', lock) end
  return 0
end

-- Builds before 12 had the heads of critical shapes in one index with the others of their type, where nobody looks for
-- them any more.
local function part_heads(c)
  front.change(c)
  local waiting = key(c, ':waiting')
  for _, index in ipairs(redis.call('SMEMBERS', waiting)) do
    for _, shape_text in ipairs(redis.call('ZRANGE', key(c, ':heads:' .. index), 0, -1)) do
      local is_read, shape = pcall(shape_of, c, shape_text)
      if is_read and shape.index ~= index then
        score(c, ':heads:' .. index, shape_text, nil)
        score(c, ':heads:' .. shape.index, shape_text, redis.call('ZRANGE', shape.park, 0, 0, 'WITHSCORES')[2])
        if redis.call('SADD', waiting, shape.index) == 1 then undo(c, 'SREM', waiting, shape.index) end
      end
    end
    if redis.call('EXISTS', key(c, ':heads:' .. index)) == 0 and redis.call('SREM', waiting, index) == 1 then
      undo(c, 'SADD', waiting, index)
    end
  end
end

-- open: KEYS[1] root; ARGV run id of the server, a random name, then setting, value, ...
-- Stores the settings. A server with another run id may have gone back in time: the generation becomes the random name.
-- reply: generation, 1 if the cell has begun, [partition, offset up to which it is read again after a total loss, ...]
local function open(c, args)
  local generation = meta(c, 'generation')
  if not generation or meta(c, 'run_id') ~= args[1] then
    generation = args[2]
    put(c, ':meta', 'run_id', args[1])
    put(c, ':meta', 'generation', generation)
  end
  local before = setting(c, 'headroom_permille')
  for i = 3, #args, 2 do
    if meta(c, args[i]) ~= args[i + 1] then put(c, ':meta', args[i], args[i + 1]) end
  end
  c.meta = false
  settings.store(c)
  if setting(c, 'headroom_permille') ~= before then headroom.share_out(c) end
  if not meta(c, 'by_lane') then
    part_heads(c)
    put(c, ':meta', 'by_lane', '1')
  end
  return { generation, redis.call('HEXISTS', key(c, ':applied'), 'begun'), redis.call('HGETALL', key(c, ':replay')) }
end

-- begin: KEYS[1] root; ARGV generation (empty: whatever it is), number of partitions, (partition, offset)..., then
--        (partition, offset up to which this is a replay)...
-- From now on the cell takes batches. reply: 1 | 0 (it did already, or has another history)
local function begin_cell(c, args)
  if #args > 6000 then error('more than 1500 partitions') end
  if redis.call('HEXISTS', key(c, ':applied'), 'begun') == 1 then return 0 end
  if args[1] ~= '' and args[1] ~= meta(c, 'generation') then return 0 end
  local first_end = 3 + 2 * tonumber(args[2])
  if args[first_end] then
    undo(c, 'UNLINK', key(c, ':replay'), key(c, ':replay'))
    redis.call('HSET', key(c, ':replay'), unpack(args, first_end))
  end
  redis.call('HSET', key(c, ':applied'), 'begun', settings.text(c), unpack(args, 3, first_end - 1))
  return 1
end

-- remember: KEYS[1] root; ARGV id, ... Tasks that have ended, for a cell that has not begun: where one is held, it is
-- taken from there, for its outcome is published. Each of those is a step of its own. reply: how many were not known
local function remember(c, args)
  if #args == 0 or redis.call('HEXISTS', key(c, ':applied'), 'begun') == 1 then return 0 end
  local where = redis.call('HMGET', key(c, ':where'), unpack(args))
  local done0 = redis.call('HMGET', key(c, ':done0'), unpack(args))
  local done1 = redis.call('HMGET', key(c, ':done1'), unpack(args))
  local count, held, seen = 0, {}, {}
  for i, id in ipairs(args) do
    if not done0[i] and not done1[i] and not seen[id] then
      seen[id], count = true, count + 1
      if where[i] then held[#held + 1] = i else ended(c, id, 's', '', 0, nil) end
    end
  end
  c.forget = nil -- they had no place
  finish_call(c)
  commit(c)
  for _, i in ipairs(held) do
    if not end_wherever(c, args[i], where[i], '', 0, nil) then count = count - 1 end
  end
  return count
end

-- shapes: KEYS[1] root; ARGV most. Shapes with parked tasks, at most so many, of each index the earliest. Writes nothing.
-- reply: shape, parked tasks, key of the first, its arrival, instances that serve the type, ...
local function shapes(keys, args)
  local c, reply, most = begin(keys), {}, tonumber(args[1])
  local indexes = redis.call('SMEMBERS', key(c, ':waiting'))
  table.sort(indexes)
  for _, index in ipairs(indexes) do
    for _, shape_text in ipairs(redis.call('ZRANGE', key(c, ':heads:' .. index), 0, most - 1)) do
      local serving = tonumber(redis.call('HGET', key(c, ':serving'), shape_of(c, shape_text).type) or 0)
      local park = key(c, ':park:' .. shape_text)
      local first, order_key = unpack(redis.call('ZRANGE', park, 0, 0, 'WITHSCORES'))
      if first and #reply < 5 * most then
        local arrived = number((struct.unpack('<d', first, 21)))
        for _, value in ipairs({ shape_text, redis.call('ZCARD', park), order_key, arrived, serving }) do
          reply[#reply + 1] = value
        end
      end
    end
  end
  return reply
end

redis.register_function{ function_name = 'ty1_recall', callback = atomic(recall), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_settle', callback = atomic(settle), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_due', callback = atomic(due), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_expire', callback = atomic(expire), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_hold', callback = atomic(hold), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_lease', callback = lease, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_open', callback = atomic(open), flags = { 'allow-oom' } }
redis.register_function('ty1_begin', atomic(begin_cell))
redis.register_function('ty1_remember', atomic(remember))
redis.register_function{ function_name = 'ty1_shapes', callback = shapes, flags = { 'no-writes' } }
