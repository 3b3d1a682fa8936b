-- The moves of a task between its places. Each keeps :where in the call (written once by `finish_call`).

local OPEN_TRIES = 8 -- members of an open set that one placement tries
local TEXTS = {} -- of numbers of attempts, kept between calls: to write one costs more than to look it up
local MAX_UNSTARTED = 3 -- how often a task may come back unstarted for free

local function text_of(attempt)
  local text = TEXTS[attempt]
  if not text then
    text = tostring(attempt)
    TEXTS[attempt] = text
  end
  return text
end

-- Where a task is from now on; of several places told in one call the last one counts.
local function put_place(c, id, text)
  local places = c.places
  local n = #places
  places[n + 1], places[n + 2] = id, text
end

-- When the record of an entry arrived, as :where tells it.
local function bucket_of(c, arrived)
  local bucket = floor(arrived / BUCKET_MS)
  local text = c.buckets[bucket]
  if not text then
    text = string.format('%d', bucket)
    c.buckets[bucket] = text
  end
  return text
end

-- One more, or one less, unfinished task of this bucket.
local function count_unfinished(c, bucket, by)
  c.born[bucket] = (c.born[bucket] or 0) + by
end

local function parked_text(bucket, order_key, attempt, shape_text)
  return 'p|' .. bucket .. '|' .. number(order_key) .. '|' .. attempt .. '|' .. shape_text
end

local function later_text(bucket, due, attempt, shape_text)
  return 'l|' .. bucket .. '|' .. number(due) .. '|' .. attempt .. '|' .. shape_text
end

local function park(c, shape, entry, id, attempt, order_key, deadline, bucket)
  local name = shape.park
  c.reindex[shape.text] = shape
  undo(c, 'ZREM', name, entry)
  redis.call('ZADD', name, number(order_key), entry)
  if not front.has_earlier(c, shape, order_key) then
    local added = redis.call('ZADD', shape.heads, 'LT', number(order_key), shape.text)
    if added == 1 then redis.call('SADD', key(c, ':waiting'), shape.index) end
    front.put(c, shape, order_key)
  end
  if deadline > 0 then
    undo(c, 'ZREM', key(c, ':deadlines'), id)
    redis.call('ZADD', key(c, ':deadlines'), number(deadline), id)
  end
  put_place(c, id, parked_text(bucket, order_key, attempt, shape.text))
  c.parked = c.parked + 1
  c.parked_bytes = c.parked_bytes + #entry
end

-- End the hold of an instance for a shape.
local function release(c, shape_text, instance)
  drop(c, ':hold', shape_text)
  drop(c, ':held', instance)
  c.held[instance] = false
  local f = free_of(c, instance)
  if f and f[2] == HELD then
    f[2] = OPEN
    touch(c, instance, f)
  end
end

-- Put an entry on an instance's queue. Returns its stream id.
local function place(c, instance, f, shape, entry, id, attempt, via, bucket)
  take(c, instance, f, shape)
  local queue, added = c.queue .. instance, c.queued
  local stream_id = call('XADD', queue, '*', 'e', entry)
  local n = #added -- its undo, without a call: this is done for every task
  added[n + 1], added[n + 2] = queue, stream_id
  put_place(c, id,
    'q|' .. bucket .. '|' .. via .. '|' .. stream_id .. '|' .. text_of(attempt) .. '|' .. instance .. '|' .. shape.text)
  if f[2] == HELD then release(c, held_for(c, instance), instance) end -- it has served, or resync knows better
  return stream_id
end

-- Keep the index of heads true to the park of a shape. Returns the key of its first task, nil if nothing is left in it.
local function index_head(c, shape)
  local first = call('ZRANGE', shape.park, 0, 0, 'WITHSCORES')
  if first[2] then
    call('ZADD', shape.heads, first[2], shape.text)
    return tonumber(first[2])
  end
  redis.call('ZREM', shape.heads, shape.text)
  if redis.call('EXISTS', shape.heads) == 0 then redis.call('SREM', key(c, ':waiting'), shape.index) end
  return nil
end

-- The same after entries have left the park.
local function refresh_head(c, shape)
  local order_key = index_head(c, shape)
  front.put(c, shape, order_key)
  local instance = not order_key and redis.call('HGET', key(c, ':hold'), shape.text)
  if instance then release(c, shape.text, instance) end -- nothing is left to hold it for
  return order_key
end

-- Undo of what has left the park.
local function repark(c, shape, entry, order_key)
  c.reindex[shape.text] = shape
  local head = read_head(entry)
  redis.call('ZADD', shape.park, order_key, entry)
  was_at(c, head.id, parked_text(bucket_of(c, head.arrived), tonumber(order_key), head.attempt, shape.text))
end

-- An entry has left the park of its shape. deadline: its own, 0 if it has none.
local function unparked(c, shape, entry, id, order_key, deadline)
  undo(c, repark, shape, entry, order_key)
  c.parked = c.parked - 1
  c.parked_bytes = c.parked_bytes - #entry
  if deadline > 0 and redis.call('ZREM', key(c, ':deadlines'), id) == 1 then
    undo(c, 'ZADD', key(c, ':deadlines'), number(deadline), id)
  end
end

local function publish(c, ...)
  c.published = c.published + 1
  undo(c, 'XDEL', c.out, (call('XADD', c.out, '*', ...)))
end

local function now_text(c)
  if not c.now_text then c.now_text = string.format('%d', c.now) end
  return c.now_text
end

-- A task is unfinished no more. bucket: when it arrived, nil if it was never counted.
local function ended(c, id, how, instance, attempt, bucket)
  c.forget[#c.forget + 1] = id
  local done = c.done
  local n = #done
  done[n + 1] = id
  done[n + 2] = how .. '|' .. instance .. '|' .. text_of(attempt) .. '|' .. now_text(c)
  if not bucket then return end
  if c.now - tonumber(bucket) * BUCKET_MS > CARRIED_AGE_MS and drop(c, ':carried', id) then
    publish(c, 'x', id)
  else
    count_unfinished(c, bucket, -1)
  end
end

local function dead(c, entry, head, reason, cause, instance)
  publish(c, 'd', reason, 'c', cause, 'i', instance, 'e', entry)
  ended(c, head.id, 'd', instance, head.attempt, bucket_of(c, head.arrived))
end

-- Whether a parked task of the shape goes before one with this key.
local function is_behind(c, shape, order_key)
  return first_key(shape.park) <= order_key
end

-- Some instance of the shape's open set that fits; tries a bounded number.
local function any_open(c, shape)
  for _, instance in ipairs(redis.call('SRANDMEMBER', key(c, ':open:' .. shape.type), OPEN_TRIES)) do
    local f = free_of(c, instance)
    if f and instance_of(c, instance) and fits(c, instance, f, shape) and has_labels(c, instance, shape) then
      return instance, f
    end
  end
  return nil
end

-- Place the entry on an instance of the open set, else park it. Used where no plan was made: due, evict, recall.
local function place_or_park(c, entry, via)
  local head = read_head(entry)
  local shape = shape_of(c, head.shape)
  if head.deadline > 0 and head.deadline < c.now then
    dead(c, entry, head, 'deadline', 'its deadline passed before it was placed', '')
    return
  end
  local instance, f
  if not is_behind(c, shape, head.key) then instance, f = any_open(c, shape) end
  if instance then
    place(c, instance, f, shape, entry, head.id, head.attempt, via, bucket_of(c, head.arrived))
  else
    park(c, shape, entry, head.id, head.attempt, head.key, head.deadline, bucket_of(c, head.arrived))
  end
end

-- The last writes of every function that moves tasks: vectors, places, memory of finished ids, counters.
local function finish_call(c)
  write_free(c)
  local places, forget, done = rawget(c, 'places'), rawget(c, 'forget'), rawget(c, 'done')
  c.placed, c.forgotten = places, forget
  if places then in_chunks('HSET', key(c, ':where'), places, 4000) end
  if forget then in_chunks('HDEL', key(c, ':where'), forget, 4000) end
  if done then
    undo(c, restore_fields, ':done0', done, {})
    in_chunks('HSET', key(c, ':done0'), done, 4000)
  end
  add(c, ':stats', 'parked', c.parked)
  add(c, ':stats', 'parked_bytes', c.parked_bytes)
  add(c, ':stats', 'later', c.later)
  for bucket, by in pairs(c.born) do add(c, ':unfinished', bucket, by) end
  c.places, c.forget, c.done, c.born, c.parked, c.parked_bytes, c.later = nil, nil, nil, nil, 0, 0, 0
end

local function take_back_write(c, command, a, b, d)
  if type(command) == 'function' then
    command(c, a, b, d)
  elseif d then
    redis.call(command, a, b, d)
  else
    redis.call(command, a, b)
  end
end

-- Each for itself: one that cannot be taken back must not keep the others. The places come last, since what else is
-- undone tells where the tasks were.
local function roll_back(c)
  local list, queued, placed = c.undo, c.queued, c.placed
  front.drop(c)
  for i = 1, #queued, 2 do pcall(redis.call, 'XDEL', queued[i], queued[i + 1]) end
  for n = c.undo_size, 4, -4 do pcall(take_back_write, c, list[n - 3], list[n - 2], list[n - 1], list[n]) end
  for _, id in ipairs(c.forgotten) do
    placed[#placed + 1] = id
    placed[#placed + 1] = ''
  end
  pcall(restore_fields, c, ':where', placed, c.was)
  for _, shape in pairs(c.reindex) do
    if index_head(c, shape) then redis.call('SADD', key(c, ':waiting'), shape.index) end
  end
end

-- Make a function of the library of a function of the call and the arguments: it takes effect whole or not at all.
local function atomic(callback)
  return function(keys, args)
    local c = begin(keys)
    local is_done, reply = pcall(callback, c, args)
    if is_done then return reply end
    roll_back(c)
    return error(reply, 0)
  end
end

-- Full jitter: anywhere between nothing and the cap that doubles with each attempt (AWS, "Exponential backoff and jitter").
local function backoff_ms(c, head)
  local cap = math.min(setting(c, 'retry_cap_ms'), setting(c, 'retry_base_ms') * 2 ^ (head.attempt - 2))
  local jitter = tonumber(string.sub(redis.sha1hex(head.id .. head.attempt .. c.usec), 1, 6), 16) / 16777216
  return math.floor(cap * jitter)
end

-- A task leaves an instance without success. The attempt counts if it was started; `nil` (nobody can say) counts from
-- the fourth time on: an instance may die of a task before it can tell that it has started it.
-- delay_ms 0: again at once; below 0: after the cell's backoff.
local function again(c, entry, instance, reason, delay_ms, started)
  local head = read_head(entry)
  if started == nil then
    head.evictions = math.min(head.evictions + 1, 255)
    started = head.evictions > MAX_UNSTARTED
  end
  if started then
    add_cause(c, head, instance, reason)
    if head.attempt >= head.max_attempts then
      dead(c, rewrite(entry, head), head, 'attempts', reason, instance)
      return
    end
    head.attempt = head.attempt + 1
  end
  local next_entry = rewrite(entry, head)
  if not started or delay_ms == 0 then
    place_or_park(c, next_entry, 'e')
    return
  end
  if delay_ms < 0 then delay_ms = backoff_ms(c, head) end
  undo(c, 'ZREM', key(c, ':later'), next_entry)
  redis.call('ZADD', key(c, ':later'), number(c.now + delay_ms), next_entry)
  put_place(c, head.id, later_text(bucket_of(c, head.arrived), c.now + delay_ms, head.attempt, head.shape))
  c.later = c.later + 1
end
