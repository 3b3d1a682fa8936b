-- Checks of the tasks: entries of queues, park and :later against :where, the ledger against the vector (audit.lua).
--
-- A check looks at one subject within one call, so that nothing moves meanwhile, and tells what is wrong by `found`:
-- kind; part, subject and at, which name it to `mend`; the task it is about, if one; what was seen; and the writes that
-- put it right, nil if Redis alone cannot tell. `examine` only looks; `mend` repeats the check and runs its writes.

local checks = {}

local function found(c, kind, part, subject, at, task, detail, mend)
  c.found[#c.found + 1] = { kind, part, subject, at, task, detail }
  c.mends[#c.found] = mend
end

do

local STRANDED = 'its instance was not registered'
local MENDED = 'm' -- via which a place came

-- The registration of an instance; nil if there is none, or none that can be read, which the second value tells apart.
function checks.registered(c, instance)
  if c.inst[instance] then return c.inst[instance], false end
  local packed = redis.call('HGET', key(c, ':inst'), instance)
  if not packed then return nil, false end
  local is_read, r = pcall(cmsgpack.unpack, string.sub(packed, 9))
  local is_right = is_read and type(r) == 'table' and type(r[1]) == 'string' and #r[1] >= 4 and type(r[2]) == 'table'
    and type(r[3]) == 'table' and type(r[3].slots) == 'number' and type(r[5]) == 'number'
  if not is_right then return nil, true end
  return instance_of(c, instance), false
end

-- The head of an entry, or nil if it is of another make.
local function readable(c, entry)
  local is_read, head = pcall(read_head, entry)
  return is_read and pcall(shape_of, c, head.shape) and head or nil
end

-- What a place says of where: no matter how it came there or which attempt it is.
local function spot_of(where)
  local at = queued(where)
  if at then return 'q|' .. at.stream_id .. '|' .. at.instance end
  local kind, point, shape_text = string.match(where, '^([pl])|[^|]*|([^|]*)|[^|]*|(.*)$')
  return kind == 'p' and 'p|' .. point .. '|' .. shape_text or kind and 'l|' .. point
end

-- The place that an entry must have which was found at `spot`.
local function text_of(c, spot, head, via)
  local bucket = bucket_of(c, head.arrived)
  if spot.kind == 'p' then return parked_text(bucket, tonumber(spot.at), head.attempt, head.shape) end
  if spot.kind == 'l' then return later_text(bucket, tonumber(spot.at), head.attempt, head.shape) end
  return table.concat({
    'q', bucket, via, spot.at, head.attempt, spot.instance, head.shape,
  }, '|')
end

-- How many entries of each id are parked, or wait, at one point; and whether there may be more than were looked at.
local function ids_at(c, name, point)
  local known = c.points[name .. '|' .. point]
  if known then return known end
  local rows, ids = redis.pcall('ZRANGEBYSCORE', name, point, point, 'LIMIT', 0, TIES), {}
  for _, entry in ipairs(rows) do
    local is_read, id = pcall(id_of, entry)
    if is_read then ids[id] = (ids[id] or 0) + 1 end
  end
  known = { ids = ids, is_more = #rows == TIES }
  c.points[name .. '|' .. point] = known
  return known
end

-- Whether the task is where its place says; nil if nobody can tell in one call.
local function is_there(c, id, where)
  local at = queued(where)
  if at then
    local row = redis.pcall('XRANGE', key(c, ':q:' .. at.instance), at.stream_id, at.stream_id)[1]
    if not row then return false end
    local is_read, found_id = pcall(id_of, row[2][2])
    return is_read and found_id == id
  end
  local kind, point, shape_text = string.match(where, '^([pl])|[^|]*|([^|]*)|[^|]*|(.*)$')
  if not kind then return false end
  local there = ids_at(c, key(c, kind == 'p' and ':park:' .. shape_text or ':later'), point)
  if there.ids[id] then return true end
  if there.is_more then return nil end
  return false
end

-- Places of the ids, and which of them have ended, read at once.
local function known_places(c, ids)
  if #ids == 0 then return {}, {} end
  local where = redis.call('HMGET', key(c, ':where'), unpack(ids))
  local done0 = redis.call('HMGET', key(c, ':done0'), unpack(ids))
  local done1 = redis.call('HMGET', key(c, ':done1'), unpack(ids))
  local is_ended = {}
  for i = 1, #ids do is_ended[i] = done0[i] or done1[i] end
  return where, is_ended
end

-- A task that has ended has no place, and is unfinished no more.
local function forget(c, id, where)
  local bucket = string.match(where, '^.|(%d+)|')
  drop(c, ':where', id)
  if drop(c, ':carried', id) then
    publish(c, 'x', id)
  elseif bucket then
    count_unfinished(c, bucket, -1)
  end
end

-- Take an entry away from where it was found. From a stream it goes at the very end: that cannot be undone.
local function remove(c, spot, entry, head)
  if spot.kind == 'q' then
    if free_of(c, spot.instance) then give(c, spot.instance, shape_of(c, head.shape)) end
    c.gone[#c.gone + 1] = { key(c, ':q:' .. spot.instance), spot.at }
  elseif spot.kind == 'l' then
    score(c, ':later', entry, nil)
    c.later = c.later - 1
  else
    local shape = shape_of(c, spot.shape)
    redis.call('ZREM', shape.park, entry)
    unparked(c, shape, entry, head.id, spot.at, head.deadline)
    refresh_head(c, shape)
  end
end

-- The place of one entry. spot: kind, at (stream id, key or time), instance, shape, and how the part names it (part,
-- subject, name). Returns whether it is right.
local function check_entry(c, spot, entry, head, where, is_ended)
  local id, placed = head.id, queued(where)
  local text = text_of(c, spot, head, placed and placed.via or MENDED)
  local function tell(kind, detail, mend) found(c, kind, spot.part, spot.subject, spot.name, id, detail, mend) end
  local function take_away() remove(c, spot, entry, head) end
  local function give_place() put(c, ':where', id, text) end
  if is_ended and (not where or where == text) then
    tell('ended', 'the task has ended', function()
      take_away()
      if where then forget(c, id, where) end
    end)
  elseif not where then
    tell('unplaced', 'the task has no place', give_place)
  elseif where ~= text then
    local is_same = spot_of(where) == spot_of(text)
    local is_twice = is_same and spot.set and (ids_at(c, spot.set, spot.at).ids[id] or 0) > 1
    local there = not is_same and is_there(c, id, where)
    if is_twice or there then
      tell('duplicate', 'the task is at ' .. where, take_away)
    else
      tell('misplaced', 'its place says ' .. where, there == false and give_place or nil)
    end
  else
    return true
  end
  return false
end

-- An entry on the queue of an instance that is not registered: nobody reads it.
local function check_stranded(c, spot, entry, head, where, is_ended)
  if is_ended or where ~= text_of(c, spot, head, queued(where) and queued(where).via or MENDED) then
    check_entry(c, spot, entry, head, where, is_ended)
    return
  end
  found(c, 'stranded', 'queue', spot.instance, spot.at, head.id, 'the instance is not registered', function()
    undo(c, was_at, head.id, where)
    c.free[spot.instance] = false -- its vector may be left, and its name in the open sets: it must not come back here
    again(c, entry, spot.instance, STRANDED, 0, nil)
    c.gone[#c.gone + 1] = { key(c, ':q:' .. spot.instance), spot.at }
  end)
end

-- Entries of a queue; adds what they hold to the sums, by position in the vector.
function checks.rows(c, instance, rows, sums)
  local heads, ids = {}, {}
  for i, row in ipairs(rows) do
    heads[i] = readable(c, row[2][2])
    ids[i] = heads[i] and heads[i].id or ''
  end
  local where, is_ended = known_places(c, ids)
  local record, is_unreadable = checks.registered(c, instance)
  local check = (record or is_unreadable) and check_entry or check_stranded
  for i, row in ipairs(rows) do
    local head = heads[i]
    if head then
      local shape = shape_of(c, head.shape)
      sums[FIRST] = (sums[FIRST] or 0) + shape.slots
      for n = 1, #shape.needs, 2 do sums[shape.needs[n]] = (sums[shape.needs[n]] or 0) + shape.needs[n + 1] end
      local spot = { kind = 'q', at = row[1], instance = instance, part = 'queue', subject = instance, name = row[1] }
      check(c, spot, row[2][2], head, where[i], is_ended[i])
    else
      found(c, 'unreadable', 'queue', instance, row[1], '', 'no entry that this version can read')
    end
  end
end

function checks.queue(c, instance, stream_id)
  local rows = redis.pcall('XRANGE', key(c, ':q:' .. instance), stream_id, stream_id)
  if rows[1] then checks.rows(c, instance, rows, {}) end
end

-- Changes with every change of the queue, the vector or the registration.
function checks.mark(c, instance)
  local record, queue = checks.registered(c, instance), key(c, ':q:' .. instance)
  local words = { FIRST, record and record.epoch or '', redis.call('HGET', key(c, ':free'), instance) or '' }
  if redis.call('EXISTS', queue) == 1 then
    local flat = redis.call('XINFO', 'STREAM', queue)
    for i = 1, #flat, 2 do
      if flat[i] == 'length' or flat[i] == 'last-generated-id' or flat[i] == 'entries-added' then
        words[#words + 1] = flat[i + 1]
      end
    end
  end
  return redis.sha1hex(table.concat(words, '|'))
end

-- What the flag of an instance must be.
function checks.flag(c, instance)
  if redis.call('HEXISTS', key(c, ':closed'), instance) == 1 then return CLOSED end
  return redis.call('HEXISTS', key(c, ':held'), instance) == 1 and HELD or OPEN
end

-- Make an instance a member of the open sets or not, as its vector says. Not by list_open: what that takes back is what
-- the sets should have been before.
function checks.list(c, instance, record, f)
  local is_open = f[2] == OPEN and f[FIRST] > 0
  for _, agent_type in ipairs(record.types) do checks.member(c, ':open:' .. agent_type, instance, is_open) end
  f[WAS_OPEN] = is_open
end

function checks.member(c, suffix, name, is_member)
  local members = key(c, suffix)
  if (redis.call('SISMEMBER', members, name) == 1) == is_member then return end
  undo(c, is_member and 'SREM' or 'SADD', members, name)
  redis.call(is_member and 'SADD' or 'SREM', members, name)
end

-- The vector of an instance against the sums over its whole queue. mark: nil if they were read in this call.
function checks.sums(c, instance, sums, mark)
  local record, f = checks.registered(c, instance), free_of(c, instance)
  if not record then return end
  local wrong, over, parts = {}, {}, {}
  for name, index in pairs(c.res) do
    local held, capacity = sums[FIRST - 1 + index] or 0, record.capacity[name] or 0
    local free = f and f[FIRST - 1 + index]
    if held > capacity then over[#over + 1] = name .. ' ' .. held .. ' of ' .. capacity end
    if free and free ~= capacity - held then
      wrong[#wrong + 1] = name .. ' ' .. capacity - free .. ' used, ' .. held .. ' on the queue'
    end
  end
  if f and #wrong + #over == 0 then return end
  for position, units in pairs(sums) do parts[#parts + 1] = position .. '=' .. units end
  local at = (mark or checks.mark(c, instance)) .. '|' .. table.concat(parts, ',')
  local function mend()
    local mended = f or vector_of(c, record.epoch, record.capacity)
    if not f then mended[3] = headroom.of(c, instance, record.capacity.slots) end
    for name, index in pairs(c.res) do
      local position = FIRST - 1 + index
      if mended[position] then mended[position] = (record.capacity[name] or 0) - (sums[position] or 0) end
    end
    if not f then
      mended[2] = checks.flag(c, instance)
      c.free[instance] = mended
    end
    checks.list(c, instance, record, mended)
    touch(c, instance, mended)
  end
  if not f then found(c, 'vector', 'used', instance, at, '', 'it has none', mend) end
  if #wrong > 0 then found(c, 'used', 'used', instance, at, '', table.concat(wrong, '; '), mend) end
  if #over > 0 then found(c, 'overcommitted', 'used', instance, at, '', table.concat(over, '; ')) end
end

function checks.used(c, instance, at)
  local mark, text = string.match(at, '^(.-)|(.*)$')
  if mark ~= checks.mark(c, instance) then return end -- it has moved on: the next round looks again
  local sums = {}
  for position, units in string.gmatch(text, '(%d+)=(%d+)') do sums[tonumber(position)] = tonumber(units) end
  checks.sums(c, instance, sums, mark)
end

-- Add the entries of one task at one point of a sorted set, each with the point.
local function add_entries(flat, name, point, id)
  for _, entry in ipairs(redis.pcall('ZRANGEBYSCORE', name, point, point, 'LIMIT', 0, TIES)) do
    local is_read, found_id = pcall(id_of, entry)
    if is_read and found_id == id then
      flat[#flat + 1] = entry
      flat[#flat + 1] = point
    end
  end
end

-- Parked entries, as [entry, key, ...], with their places and deadlines.
function checks.parked(c, shape_text, flat)
  local heads, ids, name = {}, {}, key(c, ':park:' .. shape_text)
  for i = 1, #flat, 2 do
    local n = (i + 1) / 2
    heads[n] = readable(c, flat[i]) or false
    ids[n] = heads[n] and heads[n].id or ''
  end
  local where, is_ended = known_places(c, ids)
  for n, head in ipairs(heads) do
    local entry, at = flat[2 * n - 1], number(tonumber(flat[2 * n]))
    local spot = {
      kind = 'p', at = at, shape = shape_text, set = name,
      part = 'park', subject = shape_text, name = at .. '|' .. ids[n],
    }
    if not head or head.shape ~= shape_text then
      found(c, 'unreadable', 'park', shape_text, spot.name, ids[n], 'no entry of this shape that this version can read')
    elseif check_entry(c, spot, entry, head, where[n], is_ended[n]) and head.deadline > 0 then
      local listed = redis.call('ZSCORE', key(c, ':deadlines'), head.id)
      if tonumber(listed or 0) ~= head.deadline then
        found(c, 'deadline', 'park', shape_text, spot.name, head.id, 'it is not listed', function()
          score(c, ':deadlines', head.id, number(head.deadline))
        end)
      end
    end
  end
end

function checks.park(c, shape_text, at)
  local point, id = string.match(at, '^(.-)|(.*)$')
  local flat = {}
  add_entries(flat, key(c, ':park:' .. shape_text), point, id)
  checks.parked(c, shape_text, flat)
end

-- Entries that wait for their retry, as [entry, due, ...].
function checks.waiting(c, flat)
  for i = 1, #flat, 2 do
    local head, at = readable(c, flat[i]), number(tonumber(flat[i + 1]))
    if head then
      local where, is_ended = known_places(c, { head.id })
      local spot = { kind = 'l', at = at, set = key(c, ':later'), part = 'later', subject = head.id, name = at }
      check_entry(c, spot, flat[i], head, where[1], is_ended[1])
    else
      found(c, 'unreadable', 'later', '', at, '', 'no entry that this version can read')
    end
  end
end

function checks.later(c, id, at)
  local flat = {}
  add_entries(flat, key(c, ':later'), at, id)
  checks.waiting(c, flat)
end

-- Places, as [id, place, ...]: is the task there?
function checks.places(c, flat)
  for i = 1, #flat, 2 do
    local id, where = flat[i], flat[i + 1]
    if is_there(c, id, where) == false then
      local _, is_ended = known_places(c, { id })
      if is_ended[1] then
        found(c, 'ended', 'place', id, '', id, 'the task has ended', function() forget(c, id, where) end)
      else
        found(c, 'lost', 'place', id, '', id, 'it is not at ' .. where)
      end
    end
  end
end

function checks.place(c, id)
  local where = redis.call('HGET', key(c, ':where'), id)
  if where then checks.places(c, { id, where }) end
end

-- A carried task must have a place: else nothing deletes its copy.
function checks.carried(c, id)
  local has_place = redis.call('HEXISTS', key(c, ':where'), id) == 1
  if has_place or redis.call('HEXISTS', key(c, ':carried'), id) == 0 then return end
  local _, is_ended = known_places(c, { id })
  if not is_ended[1] then
    found(c, 'lost', 'carried', id, '', id, 'it has no place; the topic of carried tasks has it')
    return
  end
  found(c, 'ended', 'carried', id, '', id, 'the task has ended', function()
    drop(c, ':carried', id)
    publish(c, 'x', id)
  end)
end

end
