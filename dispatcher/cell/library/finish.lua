-- finish and resync: what workers say of the tasks they hold.

local PULL_MARGIN = 64 -- parked tasks that one finish may take beyond the slots it frees

-- The place of a task, or nil: { via, stream_id, attempt, instance, shape } if it is on a queue.
local function queued(where)
  if not where then return nil end
  local via, stream_id, attempt, instance, shape = string.match(where, '^q|(.-)|(.-)|(.-)|(.-)|(.*)$')
  if not via then return nil end
  return { via = via, stream_id = stream_id, attempt = tonumber(attempt), instance = instance, shape = shape }
end

-- One ending that counts: the task leaves the queue and its reservation is given back. False if it is not there.
local function end_attempt(c, instance, ending, detail, at)
  local how = ending[4]
  local queue = key(c, ':q:' .. instance)
  if how == 'succeeded' then
    redis.call('XADD', key(c, ':out'), '*', 'r', detail)
    c.forget[#c.forget + 1] = ending[1]
    c.done[ending[1]] = 's|' .. instance .. '|' .. at.attempt .. '|' .. string.format('%.0f', c.now)
  else
    local row = redis.call('XRANGE', queue, ending[2], ending[2])[1]
    if not row then return false end -- its place says that it is here and it is not: for the auditor to mend
    local entry = row[2][2]
    if how == 'gave_up' then
      local head = read_head(entry)
      add_cause(c, head, instance, detail)
      dead(c, rewrite(entry, head), ending[1], at.attempt, 'gave_up', detail, instance)
    elseif how == 'unstarted' then
      again(c, entry, instance, detail, 0, false)
    else
      again(c, entry, instance, detail, ending[5], true)
    end
  end
  give(c, instance, shape_of(c, at.shape))
  return true
end

-- finish: KEYS[1] root; ARGV instance, epoch, MessagePack [[id, stream id, attempt, how, delay_ms]...], detail...
--        (details are apart: cmsgpack reads no binary strings)
-- reply: ok, one byte per ending (1 counted, 0 gone: finished before, taken back or given to another), pulled
--        | stale | unknown
-- cost: 4 us an ending, and about 5 us for each parked task that is pulled
local function finish(keys, args)
  local c, instance = begin(keys), args[1]
  local refused = refusal(c, instance, args[2])
  if refused then return refused end
  local endings, ids = cmsgpack.unpack(args[3]), {}
  if #endings == 0 then return { 'ok', '', 0 } end
  for i, ending in ipairs(endings) do ids[i] = ending[1] end
  local places = redis.call('HMGET', key(c, ':where'), unpack(ids))
  local counted, gone, seen = {}, {}, {}
  for i, ending in ipairs(endings) do
    local at = queued(places[i])
    local is_ours = at and at.instance == instance and at.stream_id == ending[2] and at.attempt == ending[3]
    if is_ours and not seen[ending[1]] and end_attempt(c, instance, ending, args[3 + i], at) then
      seen[ending[1]] = true
      gone[#gone + 1] = ending[2]
      counted[i] = '1'
    else
      counted[i] = '0'
    end
  end
  in_chunks('XDEL', key(c, ':q:' .. instance), gone, 4000)
  local pulled = 0
  if #gone > 0 then pulled = pull(c, instance, #gone + PULL_MARGIN, 'u') end
  finish_call(c)
  return { 'ok', table.concat(counted), pulled }
end

local TIES = 1000 -- parked entries of one key that are looked through

local function parked_at(c, shape, order_key)
  return redis.call('ZRANGEBYSCORE', key(c, ':park:' .. shape.text), order_key, order_key, 'LIMIT', 0, TIES)
end

-- The parked entry of this id, found by its key.
local function parked_entry(c, shape, order_key, id)
  local rows = parked_at(c, shape, order_key)
  for _, entry in ipairs(rows) do
    if id_of(entry) == id then return entry end
  end
  return nil
end

-- Take a task that is parked or waits for its retry out of there. False if it is in neither place.
local function unplace(c, id, where)
  local kind, at, _, shape_text = string.match(where, '^(.)|(.-)|(.-)|(.*)$')
  if kind == 'p' then
    local shape = shape_of(c, shape_text)
    local entry = parked_entry(c, shape, at, id)
    if not entry then return false end
    redis.call('ZREM', key(c, ':park:' .. shape_text), entry)
    unparked(c, entry, id)
    refresh_head(c, shape)
    return true
  end
  if kind == 'l' then
    for _, entry in ipairs(redis.call('ZRANGEBYSCORE', key(c, ':later'), at, at, 'LIMIT', 0, 1000)) do
      if id_of(entry) == id then
        redis.call('ZREM', key(c, ':later'), entry)
        c.later = c.later - 1
        return true
      end
    end
  end
  return false
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
  if where and (tonumber(string.match(where, '^.|.-|(.-)|')) ~= attempt or not unplace(c, id, where)) then return '' end
  place(c, instance, f, shape, entry, id, attempt, 'r')
  return queued(c.where[id]).stream_id
end

-- resync: KEYS[1] root; ARGV instance, epoch, MessagePack [[id, stream id, attempt]...], entry...
-- reply: ok, generation, per running task its stream id from now on or '' (stop it: another has it, it is finished,
--        or it does not fit any more) | stale | unknown
local function resync(keys, args)
  local c, instance = begin(keys), args[1]
  local refused = refusal(c, instance, args[2])
  if refused then return refused end
  local tasks, ids, heads = cmsgpack.unpack(args[3]), {}, {}
  for i, running in ipairs(tasks) do
    ids[i], heads[i] = running[1], read_head(args[3 + i])
    shape_of(c, heads[i].shape) -- an entry that is none must fail before anything is written
  end
  local reply = { 'ok', meta(c, 'generation') or '' }
  if #ids == 0 then return reply end
  local places = redis.call('HMGET', key(c, ':where'), unpack(ids))
  local done0 = redis.call('HMGET', key(c, ':done0'), unpack(ids))
  local done1 = redis.call('HMGET', key(c, ':done1'), unpack(ids))
  for i, running in ipairs(tasks) do
    local at = queued(c.where[running[1]] or places[i])
    if at then
      local is_ours = at.instance == instance and at.attempt == running[3]
      reply[#reply + 1] = is_ours and at.stream_id or ''
    elseif done0[i] or done1[i] then
      reply[#reply + 1] = ''
    else
      reply[#reply + 1] = adopt(c, instance, running, args[3 + i], heads[i], places[i])
    end
  end
  finish_call(c)
  return reply
end

redis.register_function{ function_name = 'ty1_finish', callback = finish, flags = { 'allow-oom' } }
redis.register_function('ty1_resync', resync)
