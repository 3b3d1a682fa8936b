-- audit: compare what the cell keeps twice, and mend what can be told from the rest.
--
-- kind          what is wrong                                          mended by
-- used          the vector says other than the sum over the queue      the sum, if neither has moved since
-- vector        none, or with a tag or headroom of another             the registration, and the sum
-- flag          open, closed or held other than :closed and :held say  what those say
-- open_set      a member too many or one missing                       what the vector says
-- lease         none for an instance: it would never be evicted        a new one
-- leftover      a lease, vector, report or empty queue of no instance  removing it
-- stranded      an entry on the queue of no instance                   taking it back as evict does
-- unplaced      an entry whose task has no place                       giving it its place back
-- misplaced     an entry whose task's place says what is not so        the same
-- duplicate     an entry whose task really is elsewhere                removing it; its capacity is given back
-- ended         an entry, a place or a carried copy of an ended task   removing it
-- head          the first key of a shape, or the list of waiting indexes what is parked
-- deadline      missing, wrong, or of a task that is not parked        the entry
-- hold          one half of a hold, or a hold for nothing parked       ending it: the tick gives another
-- counter       :stats other than what is parked or waits, or a surplus of headroom  the sums
-- serving       other than the registered instances of the type        their number
-- unfinished    other than the places of that bucket, carried ones apart  their number
-- lost          a place without an entry: nobody runs the task, and while its id is known no replay brings it back.
--               Only Kafka has it still: told, with its id; its place stays, and with it the unfinished watermark
-- overcommitted a queue holds more than its instance has               not: nothing comes onto it until enough ended
-- unreadable    an entry or a registration of another make             not
--
-- What is found within one call is so: nothing moves meanwhile. A queue too long for one call is read in pages, and its
-- sums count only if its mark is the same at the last. What is mended is checked again, in the call that mends it.

do

local ENTRIES = 400 -- of queues that are read in one call, 4 us each
local INSTANCES = 10 -- of one page, about
local MAX_FIELDS = 200 -- that one page of a scan is asked for
local SURPLUS = '|headroom' -- counted beside the agent types, none of which has this name

local function new_call(c)
  c.found, c.mends, c.gone, c.points, c.counts, c.long = {}, {}, {}, {}, {}, {}
  resource_index(c, 'slots', false) -- so that to read a shape asks nothing: an error there means that it is none
  return c
end

-- A page of a queue behind the cursor: stream id|mark|sums of the pages before. Returns the next cursor, '' at the end.
local function walk_queue(c, instance, cursor, limit)
  local after, mark, text = string.match(cursor, '^(.-)|(.-)|(.*)$')
  if mark and mark ~= checks.mark(c, instance) then
    c.counts.moved = 1
    return ''
  end
  local sums = {}
  for position, units in string.gmatch(text or '', '(%d+)=(%d+)') do sums[tonumber(position)] = tonumber(units) end
  local rows = redis.call('XRANGE', key(c, ':q:' .. instance), after and '(' .. after or '-', '+', 'COUNT', limit)
  checks.rows(c, instance, rows, sums)
  if #rows < limit then
    checks.sums(c, instance, sums, mark)
    return ''
  end
  local parts = {}
  for position, units in pairs(sums) do parts[#parts + 1] = position .. '=' .. units end
  return rows[#rows][1] .. '|' .. (mark or checks.mark(c, instance)) .. '|' .. table.concat(parts, ',')
end

-- What a registered instance adds to the counts.
local function count_instance(c, instance, record)
  for _, agent_type in ipairs(record.types) do c.counts[agent_type] = (c.counts[agent_type] or 0) + 1 end
  local f, sum = free_of(c, instance), c.counts[SURPLUS]
  if f and sum then c.counts[SURPLUS] = sum + headroom.beyond(c, f[3], record.capacity.slots) end
end

-- Instances with their queues, but for those that are too long for this call: they are named.
local function walk_instances(c, cursor)
  local page = redis.call('HSCAN', key(c, ':inst'), cursor, 'COUNT', INSTANCES)
  local left = ENTRIES
  if headroom.told(c) then c.counts[SURPLUS] = 0 end
  for i = 1, #page[2], 2 do
    local instance = page[2][i]
    local record, size = checks.instance(c, instance), redis.call('XLEN', key(c, ':q:' .. instance))
    if record then count_instance(c, instance, record) end
    if record and size < left then
      walk_queue(c, instance, '', size + 1)
      left = left - size
    elseif record then
      c.long[#c.long + 1] = instance
    end
  end
  return page[1]
end

-- A page of a scan: what is in it as a flat list. The cursor of the last is '0', as of the first.
local function scan(c, command, suffix, cursor, limit)
  local page = redis.call(command, key(c, suffix), cursor, 'COUNT', math.min(limit, MAX_FIELDS))
  return page[1], page[2]
end

-- Fields of a hash or set that is kept for each instance: those of no instance.
local function walk_fields(c, suffix, cursor, limit)
  local next_cursor, flat = scan(c, suffix == 'lease' and 'ZSCAN' or 'HSCAN', ':' .. suffix, cursor, limit)
  for i = 1, #flat, 2 do
    if redis.call('HEXISTS', key(c, ':inst'), flat[i]) == 0 then checks.instance(c, flat[i]) end
  end
  return next_cursor
end

-- Of the queues named, one a line, those of no instance.
local function walk_queues(c, names)
  for instance in string.gmatch(names, '[^\n]+') do
    if redis.call('HEXISTS', key(c, ':inst'), instance) == 0 then
      checks.stream(c, instance)
      if redis.call('XLEN', key(c, ':q:' .. instance)) > 0 then c.long[#c.long + 1] = instance end
    end
  end
  return '0'
end

local function walk_places(c, cursor, limit)
  local next_cursor, flat = scan(c, 'HSCAN', ':where', cursor, limit)
  checks.places(c, flat)
  checks.count_places(c, flat, c.counts)
  return next_cursor
end

-- Of each walk: a function of the call, its subject, the cursor and how much to look at, that returns the next cursor.
local walks = {
  instances = function(c, _, cursor) return walk_instances(c, cursor) end,
  queue = walk_queue,
  queues = walk_queues,
  fields = walk_fields,
  places = function(c, _, cursor, limit) return walk_places(c, cursor, limit) end,
  park = function(c, shape_text, cursor, limit)
    local next_cursor, flat = scan(c, 'ZSCAN', ':park:' .. shape_text, cursor, limit)
    checks.parked(c, shape_text, flat)
    return next_cursor
  end,
  later = function(c, _, cursor, limit)
    local next_cursor, flat = scan(c, 'ZSCAN', ':later', cursor, limit)
    checks.waiting(c, flat)
    return next_cursor
  end,
}

local function each(walk, command, suffix, step, check)
  walks[walk] = function(c, subject, cursor, limit)
    local next_cursor, flat = scan(c, command, suffix .. subject, cursor, limit)
    for i = 1, #flat, step do check(c, subject, flat[i], flat[i + 1]) end
    return next_cursor
  end
end

each('heads', 'ZSCAN', ':heads:', 2, function(c, index, shape_text)
  checks.shape(c, shape_text)
  checks.astray(c, index, shape_text)
end)
each('types', 'SSCAN', ':waiting', 1, function(c, _, index) checks.index(c, index) end)
each('open', 'SSCAN', ':open:', 1, function(c, agent_type, instance) checks.open(c, agent_type, instance) end)
each('carried', 'HSCAN', ':carried', 2, function(c, _, id) checks.carried(c, id) end)
each('deadlines', 'ZSCAN', ':deadlines', 2, function(c, _, id) checks.deadline(c, id) end)
each('hold', 'HSCAN', ':hold', 2, function(c, _, shape_text, instance) checks.hold(c, shape_text, instance) end)
each('held', 'HSCAN', ':held', 2, function(c, _, instance, shape_text) checks.hold(c, shape_text, instance) end)

-- As they are told.
local function tell(c, _, field, count) c.counts[field] = tonumber(count) end
each('serving', 'HSCAN', ':serving', 2, tell)
each('unfinished', 'HSCAN', ':unfinished', 2, tell)
local tell_serving = walks.serving

function walks.serving(c, ...)
  c.counts[SURPLUS] = headroom.told(c)
  return tell_serving(c, ...)
end

-- Checks of one subject that no walk comes by.
local function once(walk, check)
  walks[walk] = function(c, subject)
    check(c, subject, '')
    return '0'
  end
end

once('instance', checks.instance)
once('shape', checks.shape)
once('counters', checks.counters)
once('count_serving', checks.serving)
once('count_headroom', checks.headroom)
once('count_unfinished', checks.unfinished)

local function flat_of(counts)
  local flat = {}
  for name, count in pairs(counts) do
    flat[#flat + 1] = name
    flat[#flat + 1] = count
  end
  return flat
end

-- examine: KEYS[1] root; ARGV walk, subject, cursor ('' at the start), limit. Writes nothing.
-- reply: next cursor ('' at the end), findings [kind, part, subject, at, task, detail]..., counts [name, count, ...],
--        instances whose queues want a walk of their own
local function examine(keys, args)
  local c, walk = new_call(begin(keys)), args[1]
  local cursor = args[3] == '' and walk ~= 'queue' and '0' or args[3]
  local next_cursor = walks[walk](c, args[2], cursor, tonumber(args[4]))
  return { next_cursor == '0' and '' or next_cursor, c.found, flat_of(c.counts), c.long }
end

-- mend: KEYS[1] root; ARGV part, subject, at of a finding. Checks it again and mends it if it can be.
-- reply: what has been mended, as examine tells it
local function mend(c, args)
  front.change(c)
  checks[args[1]](new_call(c), args[2], args[3])
  local mended = {}
  for i, finding in ipairs(c.found) do
    if c.mends[i] then
      c.mends[i]()
      mended[#mended + 1] = finding
    end
  end
  finish_call(c)
  for _, entry in ipairs(c.gone) do
    if entry[2] then redis.call('XDEL', entry[1], entry[2]) else redis.call('UNLINK', entry[1]) end
  end
  commit(c)
  return mended
end

-- audit: KEYS[1] root; ARGV instance. Compares its queue, whole, with its vector and the places. Writes nothing.
-- reply: misplaced, then per resource its name and used by the vector less the sum over the stream; empty if unknown
local function audit(keys, args)
  local c, instance = new_call(begin(keys)), args[1]
  local record, f = checks.registered(c, instance), free_of(c, instance)
  if not record or not f then return {} end
  local sums, after, rows = {}, '-', nil
  repeat
    rows = redis.call('XRANGE', key(c, ':q:' .. instance), after, '+', 'COUNT', ENTRIES)
    checks.rows(c, instance, rows, sums)
    after = rows[1] and '(' .. rows[#rows][1]
  until #rows < ENTRIES
  local reply = { #c.found }
  for name, index in pairs(c.res) do
    local position = FIRST - 1 + index
    if f[position] or sums[position] then
      reply[#reply + 1] = name
      reply[#reply + 1] = (record.capacity[name] or 0) - (f[position] or 0) - (sums[position] or 0)
    end
  end
  return reply
end

redis.register_function{ function_name = 'ty1_audit', callback = audit, flags = { 'no-writes' } }
redis.register_function{ function_name = 'ty1_examine', callback = examine, flags = { 'no-writes' } }
redis.register_function{ function_name = 'ty1_mend', callback = atomic(mend), flags = { 'allow-oom' } }

end
