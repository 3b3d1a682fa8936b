-- finish and resync: what workers say of the tasks they hold.

local PULL_MARGIN = 64 -- parked tasks that one finish may take beyond the slots it frees
local MAX_ENDINGS = 4000 -- of one call: their entries are deleted at once, which cannot be undone by halves

-- The place of a task, or nil: { bucket, via, stream_id, attempt, instance, shape } if it is on a queue.
local function queued(where)
  if not where then return nil end
  local bucket, via, stream_id, attempt, instance, shape = string.match(where, '^q|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|(.*)$')
  if not via then return nil end
  return { bucket = bucket, via = via, stream_id = stream_id, attempt = tonumber(attempt), instance = instance, shape = shape }
end

local TIES = 1000 -- parked entries of one key that are looked through

local function parked_at(c, shape, order_key)
  return redis.call('ZRANGEBYSCORE', shape.park, order_key, order_key, 'LIMIT', 0, TIES)
end

-- The parked entry of this id, found by its key.
local function parked_entry(c, shape, order_key, id)
  local rows = parked_at(c, shape, order_key)
  for _, entry in ipairs(rows) do
    if id_of(entry) == id then return entry end
  end
  return nil
end

-- The entry of this id that waits for its retry, found by when it is due.
local function later_entry(c, due, id)
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', key(c, ':later'), due, due, 'LIMIT', 0, TIES)) do
    if id_of(entry) == id then return entry end
  end
  return nil
end

-- Take a task that is parked or waits for its retry out of there. False if it is in neither place.
local function unplace(c, id, where)
  local kind, at, shape_text = string.match(where, '^(.)|[^|]*|([^|]*)|[^|]*|(.*)$')
  if kind == 'p' then
    local shape = shape_of(c, shape_text)
    local entry = parked_entry(c, shape, at, id)
    if not entry then return false end
    redis.call('ZREM', shape.park, entry)
    unparked(c, shape, entry, id, at, read_head(entry).deadline)
    refresh_head(c, shape)
    return true
  end
  if kind == 'l' then
    local entry = later_entry(c, at, id)
    if not entry then return false end
    undo(c, 'ZADD', key(c, ':later'), at, entry)
    redis.call('ZREM', key(c, ':later'), entry)
    c.later = c.later - 1
    return true
  end
  return false
end

-- Delete entries whose reservations were given back. If one was not there (the auditor tells it as lost), what is free
-- is what the others leave.
local function delete_entries(c, instance, stream_ids)
  local queue = key(c, ':q:' .. instance)
  local count = redis.call('XDEL', queue, unpack(stream_ids))
  commit(c)
  local record, f = instance_of(c, instance), free_of(c, instance)
  if count == #stream_ids or not record or not f then return end
  resource_index(c, 'slots', false)
  for name, index in pairs(c.res) do
    if f[FIRST - 1 + index] then f[FIRST - 1 + index] = record.capacity[name] or 0 end
  end
  for _, row in ipairs(redis.call('XRANGE', queue, '-', '+')) do
    take(c, instance, f, shape_of(c, read_head(row[2][2]).shape))
  end
  touch(c, instance, f)
  write_free(c)
  commit(c)
end

-- One ending that counts: the task leaves the queue and its reservation is given back. False if it is not there.
local function end_attempt(c, instance, id, stream_id, attempt, how, delay_ms, detail, bucket, shape)
  if how == 'succeeded' then
    publish(c, 'r', detail)
    ended(c, id, 's', instance, attempt, bucket)
  else
    local row = call('XRANGE', c.queue .. instance, stream_id, stream_id)[1]
    if not row then return false end -- its place says that it is here and it is not: for the auditor to tell
    local entry = row[2][2]
    if how == 'gave_up' then
      local head = read_head(entry)
      add_cause(c, head, instance, detail)
      dead(c, rewrite(entry, head), head, 'gave_up', detail, instance)
    elseif how == 'unstarted' then
      again(c, entry, instance, detail, 0, false)
    else
      again(c, entry, instance, detail, delay_ms, true)
    end
  end
  give(c, instance, shape_of(c, shape))
  return true
end

-- A task has ended, wherever it is by now, if anywhere; a step of its own. outcome: to be published, nil if it has been.
-- False if it is not where its place says.
local function end_wherever(c, id, where, instance, attempt, outcome)
  local at = queued(where)
  if where then was_at(c, id, where) end
  if where and not at and not unplace(c, id, where) then return false end
  if outcome then publish(c, 'r', outcome) end
  ended(c, id, 's', instance, attempt, where and string.match(where, '^.|([^|]*)|'))
  if at then give(c, at.instance, shape_of(c, at.shape)) end
  finish_call(c)
  if at then delete_entries(c, at.instance, { at.stream_id }) else commit(c) end
  return true
end

-- A success counts although its entry is not here, if the task is not known at all or the attempt is its current one:
-- the cell has gone back in time, or has given it to another. The first finish of an attempt wins, once.
local function end_late(c, instance, id, its_attempt, how, detail)
  if how ~= 'succeeded' or redis.call('HEXISTS', key(c, ':done0'), id) == 1
    or redis.call('HEXISTS', key(c, ':done1'), id) == 1 then
    return false
  end
  local where = redis.call('HGET', key(c, ':where'), id)
  local at = queued(where)
  local attempt = at and at.attempt or where and tonumber(string.match(where, '^.|[^|]*|[^|]*|([^|]*)|'))
  if where and attempt ~= its_attempt then return false end
  return end_wherever(c, id, where, instance, its_attempt, detail)
end

local HOWS = { succeeded = true, retry = true, gave_up = true, unstarted = true }

-- Workers may be of any make: what is no ending is refused before anything is written. Returns how many there are.
local function check_endings(endings, args)
  local count = type(endings) == 'table' and #endings / 5
  if not count or count ~= floor(count) or count > MAX_ENDINGS then error('at most ' .. MAX_ENDINGS .. ' endings of five parts') end
  for n = 1, count do
    local id, stream_id, attempt, how, delay_ms = unpack(endings, 5 * n - 4, 5 * n)
    if type(id) ~= 'string' or id == '' or type(stream_id) ~= 'string' or not HOWS[how] or type(delay_ms) ~= 'number'
      or not args[3 + n] or type(attempt) ~= 'number' or attempt ~= floor(attempt) or attempt < 1 or attempt > 255 then
      error('an ending is id, stream id, attempt, how, delay_ms, and has a detail')
    end
  end
  return count
end

-- If a place is this attempt on this instance: when its record arrived, and its shape. The parts are compared as they
-- are written (move.lua, place), for to read them all costs five times as much.
local function is_at(where, instance, stream_id, attempt)
  local parts = '|' .. stream_id .. '|' .. text_of(attempt) .. '|' .. instance .. '|'
  local first, last = string.find(where, parts, 1, true)
  -- Behind `via`, which is one character: a stream id that is none may read like more than its part.
  if not first or part_of(where, first - 2, first - 2) ~= '|' or part_of(where, 1, 2) ~= 'q|' then return nil end
  return part_of(where, 3, first - 3), part_of(where, last + 1)
end

-- finish: KEYS[1] root; ARGV instance, epoch, MessagePack [id, stream id, attempt, how, delay_ms, ...], detail...
--        (details are apart: cmsgpack reads no binary strings)
-- reply: ok, one byte per ending (1 counted, 0 gone: finished before, taken back or given to another), pulled
--        | stale | unknown
-- cost: an XADD an ending; the other writes once a call; about four commands for each parked task that is pulled
local function finish(c, args)
  local instance = args[1]
  local refused = refusal(c, instance, args[2])
  if refused then return refused end
  local endings = cmsgpack.unpack(args[3])
  local count, ids = check_endings(endings, args), {}
  if count == 0 then return { 'ok', '', 0 } end
  for n = 1, count do ids[n] = endings[5 * n - 4] end
  local places = call('HMGET', key(c, ':where'), unpack(ids))
  local counted, gone, seen, late = {}, {}, {}, {}
  for n, id in ipairs(ids) do
    local _, stream_id, attempt, how, delay_ms = unpack(endings, 5 * n - 4, 5 * n)
    local bucket, shape
    if places[n] and not seen[id] then bucket, shape = is_at(places[n], instance, stream_id, attempt) end
    local is_ours = false
    if bucket then
      undo(c, was_at, id, places[n])
      is_ours = end_attempt(c, instance, id, stream_id, attempt, how, delay_ms, args[3 + n], bucket, shape)
    end
    if is_ours then
      seen[id] = true
      gone[#gone + 1] = stream_id
    else
      late[#late + 1] = n
    end
    counted[n] = is_ours and '1' or '0'
  end
  local pulled = 0
  if #gone > 0 then
    pulled = pull(c, instance, #gone + PULL_MARGIN, 'u')
    finish_call(c)
    delete_entries(c, instance, gone)
  end
  for _, n in ipairs(late) do
    local id, _, attempt, how = unpack(endings, 5 * n - 4, 5 * n)
    if end_late(c, instance, id, attempt, how, args[3 + n]) then counted[n] = '1' end
  end
  return { 'ok', table.concat(counted), pulled }
end

-- Whether the capacity is there, whatever the state and the headroom of the instance: what runs there runs already.
local function has_room(f, shape)
  if f[FIRST] < shape.slots then return false end
  for i = 1, #shape.needs, 2 do
    if shape.needs[i + 1] > (f[shape.needs[i]] or 0) then return false end
  end
  return true
end

-- Adopt a running task that the cell does not have on this instance: its state went back to before the placement.
local function adopt(c, instance, running, entry, head, where)
  local id, attempt = running[1], running[3]
  local shape, f = shape_of(c, head.shape), free_of(c, instance)
  if head.id ~= id or head.attempt ~= attempt or not f or not has_room(f, shape) then return '' end
  if where then
    local bucket, its_attempt = string.match(where, '^.|([^|]*)|[^|]*|([^|]*)|')
    -- Another record of the same id has another arrival: it stays, and with it what :unfinished counts.
    local is_same = bucket == bucket_of(c, head.arrived) and tonumber(its_attempt) == attempt
    if not is_same or not unplace(c, id, where) then return '' end
    undo(c, was_at, id, where)
  else
    count_unfinished(c, bucket_of(c, head.arrived), 1)
  end
  return place(c, instance, f, shape, entry, id, attempt, 'r', bucket_of(c, head.arrived))
end

-- resync: KEYS[1] root; ARGV instance, epoch, MessagePack [[id, stream id, attempt]...], 1 if this is the last page,
--         entry...
-- reply: ok, generation, per running task its stream id from now on or '' (stop it: another has it, it is finished,
--        or it does not fit any more) | stale | unknown
-- After the last page an instance that was registered as resuming is open, and pulls.
local function resync(c, args)
  local instance = args[1]
  local refused = refusal(c, instance, args[2])
  if refused then return refused end
  local tasks, ids, heads = cmsgpack.unpack(args[3]), {}, {}
  for i, running in ipairs(tasks) do
    ids[i], heads[i] = running[1], read_head(args[4 + i])
    shape_of(c, heads[i].shape) -- an entry that is none must fail before anything is written
  end
  local reply = { 'ok', meta(c, 'generation') or '' }
  local places, done0, done1 = {}, {}, {}
  if #ids > 0 then
    places = redis.call('HMGET', key(c, ':where'), unpack(ids))
    done0 = redis.call('HMGET', key(c, ':done0'), unpack(ids))
    done1 = redis.call('HMGET', key(c, ':done1'), unpack(ids))
  end
  local adopted = {} -- what this call has put here
  for i, running in ipairs(tasks) do
    local at = adopted[running[1]] or queued(places[i])
    if at then
      local is_ours = at.instance == instance and at.attempt == running[3]
      reply[#reply + 1] = is_ours and at.stream_id or ''
    elseif done0[i] or done1[i] then
      reply[#reply + 1] = ''
    else
      local stream_id = adopt(c, instance, running, args[4 + i], heads[i], places[i])
      if stream_id ~= '' then
        adopted[running[1]] = { instance = instance, attempt = running[3], stream_id = stream_id }
      end
      reply[#reply + 1] = stream_id
    end
  end
  if args[4] == '1' and redis.call('HGET', key(c, ':closed'), instance) == RESUMING then reopen(c, instance) end
  finish_call(c)
  return reply
end

redis.register_function{ function_name = 'ty1_finish', callback = atomic(finish), flags = { 'allow-oom' } }
redis.register_function{ function_name = 'ty1_resync', callback = atomic(resync), flags = { 'allow-oom' } }
