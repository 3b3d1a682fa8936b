-- Carrying: old unfinished tasks are kept in a topic of their own, so that one long task does not make Kafka be read
-- again from its record on after a total loss. A carried task is counted in :unfinished no more; when it ends, its id
-- goes to the outbox, so that its copy is deleted.

-- old: KEYS[1] root; ARGV cursor of a scan (0 begins), bucket, places to look at, about. Writes nothing.
-- reply: the next cursor (0: that was all), id... of unfinished tasks of earlier buckets that are not carried
local function old(keys, args)
  local c = begin(keys)
  local bucket, ids = tonumber(args[2]), {}
  local scanned = redis.call('HSCAN', key(c, ':where'), args[1], 'COUNT', args[3])
  for i = 1, #scanned[2], 2 do
    if tonumber(string.match(scanned[2][i + 1], '^.|([^|]*)|')) < bucket then ids[#ids + 1] = scanned[2][i] end
  end
  local reply = { scanned[1] }
  if #ids == 0 then return reply end
  local carried = redis.call('HMGET', key(c, ':carried'), unpack(ids))
  for i, id in ipairs(ids) do
    if not carried[i] then reply[#reply + 1] = id end
  end
  return reply
end

-- The entry of a task as it is now; '' if it has none any more.
local function entry_of(c, id, where)
  local at = queued(where)
  if at then
    local row = redis.call('XRANGE', key(c, ':q:' .. at.instance), at.stream_id, at.stream_id)[1]
    return row and row[2][2] or ''
  end
  local kind, point, shape_text = string.match(where or '', '^(.)|[^|]*|([^|]*)|[^|]*|(.*)$')
  if kind == 'p' then return parked_entry(c, shape_of(c, shape_text), point, id) or '' end
  return kind == 'l' and later_entry(c, point, id) or ''
end

-- copies: KEYS[1] root; ARGV id... Writes nothing. reply: per id its entry, '' if it has ended
local function copies(keys, args)
  local c, entries = begin(keys), {}
  if #args == 0 then return entries end
  local where = redis.call('HMGET', key(c, ':where'), unpack(args))
  for i, id in ipairs(args) do entries[i] = entry_of(c, id, where[i]) end
  return entries
end

-- Note a known task as carried. Returns whether it is.
local function note_carried(c, id, where)
  local bucket = string.match(where, '^.|([^|]*)|')
  if c.now - tonumber(bucket) * BUCKET_MS <= CARRIED_AGE_MS then return false end
  if redis.call('HEXISTS', key(c, ':carried'), id) == 0 then
    put(c, ':carried', id, bucket)
    count_unfinished(c, bucket, -1)
  end
  return true
end

-- carry: KEYS[1] root; ARGV id... whose copies are in the topic. reply: one byte per id (1 carried, 0 it has ended, or is
-- too young: its copy must be deleted). A cell that has not begun cannot tell: it refuses.
local function carry(c, args)
  if #args == 0 then return '' end
  if redis.call('HEXISTS', key(c, ':applied'), 'begun') == 0 then error('the cell has not begun') end
  local where, results = redis.call('HMGET', key(c, ':where'), unpack(args)), {}
  for i, id in ipairs(args) do
    results[i] = where[i] and note_carried(c, id, where[i]) and '1' or '0'
  end
  finish_call(c)
  return table.concat(results)
end

-- restore: KEYS[1] root; ARGV entry... of carried tasks, for a cell that has not begun. One that is known is not placed
-- again; one that has ended is told, so that its copy is deleted. reply: how many were placed or parked
local function restore(c, args)
  local restored = {}
  if #args == 0 or redis.call('HEXISTS', key(c, ':applied'), 'begun') == 1 then return 0 end
  local ids, count = {}, 0
  for i, entry in ipairs(args) do
    local head = read_head(entry)
    shape_of(c, head.shape) -- an entry that is none must fail before anything is written
    ids[i] = head.id
  end
  local known, where = known_of(c, ids), redis.call('HMGET', key(c, ':where'), unpack(ids))
  for i, entry in ipairs(args) do
    local id = ids[i]
    if not known[id] then
      known[id], restored[id] = true, true
      put(c, ':carried', id, bucket_of(c, read_head(entry).arrived))
      place_or_park(c, entry, 'c')
      count = count + 1
    elseif where[i] then
      note_carried(c, id, where[i])
    elseif not restored[id] then
      publish(c, 'x', id)
    end
  end
  finish_call(c)
  return count
end

redis.register_function{ function_name = 'ty1_old', callback = old, flags = { 'no-writes' } }
redis.register_function{ function_name = 'ty1_copies', callback = copies, flags = { 'no-writes' } }
redis.register_function{ function_name = 'ty1_carry', callback = atomic(carry), flags = { 'allow-oom' } }
redis.register_function('ty1_restore', atomic(restore))
