-- Vectors: free capacity of an instance, packed <tag u32><flag u8><headroom u16><i32 free>... in the order of :res.
-- tag: first four bytes of the epoch, so that a plan made for an older registration does not match.
-- flag: 0 open, 1 closed (cordoned or leaving), 2 held for one shape.
-- headroom: slots that only critical tasks may take.

-- Unpacked: { tag, flag, headroom, whether it was open when it was read, how it is stored (false: not at all), whether
-- it has changed since, free... }: one table each, for up to 3,000 of them are read in one call.

local OPEN, CLOSED, HELD = 0, 1, 2
local WAS_OPEN, STORED, CHANGED = 4, 5, 6
local FIRST = 7 -- position of the first resource, slots, in an unpacked vector

-- struct formats by number of resources; kept between calls, since making one costs as much as using it.
local FORMATS = {}

local function vector_format(size)
  local format = FORMATS[size]
  if not format then
    format = '<I4BH' .. string.rep('i4', size)
    FORMATS[size] = format
  end
  return format
end

local function unpack_free(packed)
  local size = (#packed - 7) / 4
  if size == 1 then
    local tag, flag, headroom, slots = struct.unpack('<I4BHi4', packed)
    return { tag, flag, headroom, flag == OPEN and slots > 0, packed, false, slots }
  end
  local values = { struct.unpack(vector_format(size), packed) }
  local f = { values[1], values[2], values[3], values[2] == OPEN and values[4] > 0, packed, false }
  for i = 1, size do f[FIRST - 1 + i] = values[3 + i] end
  return f
end

local function pack_free(f)
  return struct.pack(vector_format(#f - FIRST + 1), f[1], f[2], f[3], unpack(f, FIRST))
end

local function remember_free(c, instance, packed)
  local f = packed and unpack_free(packed)
  c.free[instance] = f
  return f
end

local function free_of(c, instance)
  local f = c.free[instance]
  if f == nil then f = remember_free(c, instance, redis.call('HGET', key(c, ':free'), instance)) end
  return f
end

-- A vector has changed: `write_free` writes it.
local function touch(c, instance, f)
  if f[CHANGED] then return end
  f[CHANGED] = true
  c.dirty[#c.dirty + 1] = instance
end

local function resource_index(c, name, may_add)
  if not c.res then
    c.res, c.res_count = { slots = 1 }, 0 -- every cell counts slots first
    local flat = redis.call('HGETALL', key(c, ':res'))
    c.numbering = c.root .. cmsgpack.pack(flat)
    for i = 1, #flat, 2 do
      c.res[flat[i]] = tonumber(flat[i + 1])
      c.res_count = c.res_count + 1
    end
    c.res_count = math.max(c.res_count, 1)
  end
  local index = c.res[name]
  if not index and may_add and c.res_count < MAX_RESOURCES then
    c.res_count = c.res_count + 1
    index = c.res_count
    c.res[name], c.numbering, c.numbered = index, c.numbering .. cmsgpack.pack({ name, index }), NONE
    put(c, ':res', 'slots', 1)
    put(c, ':res', name, index)
  end
  return index
end

-- What a text says, kept between calls: to read a registration or a shape costs as much as a command. read: a function of
-- the text and the call. group: what else its result depends on, so that what is kept is never out of date. Nobody
-- changes what is in it. kept_in: all that is kept of a group.
local kept, kept_in
do
  local MAX_KEPT, all, count = 4000, {}, 0
  kept = function(read, text, c, group)
    group = group or read
    local texts = all[group]
    local found = texts and texts[text]
    if found then return found end
    found = read(text, c)
    if count >= MAX_KEPT then all, count, texts = {}, 0, nil end
    if not texts then
      texts = {}
      all[group] = texts
    end
    texts[text], count = found, count + 1
    return found
  end

  kept_in = function(group)
    return all[group]
  end
end

-- A shape is lane|type|name=units,...|label=value,...; lane c may use headroom. An undeclared resource gets an index
-- that no vector has. needs: flat position, units, position, units, ...; slots apart, because every shape has them.
local shape_of
do
  local function read_shape(text)
    local lane, agent_type, needs, labels = string.match(text, '^(.)|([^|]*)|([^|]*)|(.*)$')
    needs = lane and pairs_of(needs) or {}
    if not needs.slots then error('shape is not lane|type|needs|labels: ' .. text) end
    local found = { critical = lane == 'c', type = agent_type, slots = tonumber(needs.slots), units = {} }
    found.index = found.critical and 'c|' .. agent_type or agent_type
    for name, units in pairs(needs) do -- nothing of a resource is no need: a vector may be older than the resource
      if name ~= 'slots' and tonumber(units) > 0 then found.units[name] = tonumber(units) end
    end
    if labels ~= '' then found.labels = pairs_of(labels) end
    return found
  end

  -- The same in this cell, where its keys are and its resources have their numbers.
  local function number_shape(text, c)
    local read, needs = kept(read_shape, text), {}
    for name, units in pairs(read.units) do
      needs[#needs + 1] = FIRST - 1 + (resource_index(c, name, false) or 1000)
      needs[#needs + 1] = units
    end
    return {
      text = text, critical = read.critical, type = read.type, index = read.index, slots = read.slots, needs = needs,
      labels = read.labels, park = key(c, ':park:' .. text), heads = key(c, ':heads:' .. read.index),
    }
  end

  shape_of = function(c, text)
    local shape = c.numbered[text] or c.plain[text]
    if shape then return shape end
    if next(kept(read_shape, text).units) then
      resource_index(c, 'slots', false)
      shape = kept(number_shape, text, c, c.numbering)
      c.numbered = kept_in(c.numbering)
    else
      shape = kept(number_shape, text, c, c.root)
      c.plain = kept_in(c.root)
    end
    return shape
  end
end

local function held_for(c, instance)
  local shape = c.held[instance]
  if shape == nil then
    shape = redis.call('HGET', key(c, ':held'), instance)
    c.held[instance] = shape
  end
  return shape
end

local function fits(c, instance, f, shape)
  local flag, left, needs = f[2], f[FIRST] - shape.slots, shape.needs
  if left < 0 or flag == CLOSED then return false end
  -- A hold gives the headroom too: a task of an instance's whole size would never fit beside it.
  if left < f[3] and not shape.critical and flag ~= HELD then return false end
  for i = 1, #needs, 2 do
    if needs[i + 1] > (f[needs[i]] or 0) then return false end
  end
  return flag == OPEN or held_for(c, instance) == shape.text
end

local function take(c, instance, f, shape)
  local needs = shape.needs
  f[FIRST] = f[FIRST] - shape.slots
  for i = 1, #needs, 2 do f[needs[i]] = f[needs[i]] - needs[i + 1] end
  touch(c, instance, f)
end

local function give(c, instance, shape)
  local f, needs = free_of(c, instance), shape.needs
  if not f then return end
  f[FIRST] = f[FIRST] + shape.slots
  for i = 1, #needs, 2 do
    if f[needs[i]] then f[needs[i]] = f[needs[i]] + needs[i + 1] end
  end
  touch(c, instance, f)
end

-- The indexes of heads that some agent types have: those of critical shapes, then the others, in the order of the types.
local function indexes_of(types)
  local count, indexes = #types, {}
  for i = 1, count do indexes[i], indexes[count + i] = 'c|' .. types[i], types[i] end
  return indexes
end

local instance_of
do
  local function read_record(packed)
    local r = cmsgpack.unpack(part_of(packed, 9))
    return {
      epoch = r[1], types = r[2], capacity = r[3], labels = r[4], lease_ms = r[5],
      indexes = type(r[2]) == 'table' and indexes_of(r[2]),
    }
  end

  instance_of = function(c, instance)
    local record = c.inst[instance]
    if record == nil then
      local packed = call('HGET', key(c, ':inst'), instance)
      record = packed and kept(read_record, packed)
      c.inst[instance] = record
    end
    return record
  end
end

-- nil if `epoch` is the instance's current one, else the reply that refuses the caller.
local function refusal(c, instance, epoch)
  local record = instance_of(c, instance)
  if not record then return { 'unknown' } end
  if record.epoch ~= epoch then return { 'stale' } end
  return nil
end

local function has_labels(c, instance, shape)
  if not shape.labels then return true end
  local record = instance_of(c, instance)
  for name, value in pairs(shape.labels) do
    if record.labels[name] ~= value then return false end
  end
  return true
end

-- Let the open sets of the instance's types follow its vector.
local function list_open(c, instance, is_open)
  for _, agent_type in ipairs(instance_of(c, instance).types) do
    local members = key(c, ':open:' .. agent_type)
    if is_open then
      undo(c, 'SREM', members, instance)
      redis.call('SADD', members, instance)
    else
      undo(c, 'SADD', members, instance)
      redis.call('SREM', members, instance)
    end
  end
end

-- Undo of the vectors that were written. before: as they were stored, in the same order, false where there was none.
local function restore_free(c, written, before)
  local values, gone = {}, {}
  for i, packed in ipairs(before) do
    local instance = written[2 * i - 1]
    if packed then
      values[#values + 1] = instance
      values[#values + 1] = packed
    else
      gone[#gone + 1] = instance
    end
  end
  in_chunks('HSET', key(c, ':free'), values, 4000)
  in_chunks('HDEL', key(c, ':free'), gone, 4000)
end

-- Write back every changed vector with one HSET, and keep the open sets true to them.
local function write_free(c)
  local values, before, n = {}, {}, 0
  for _, instance in ipairs(c.dirty) do
    local f = c.free[instance]
    if f and f[CHANGED] then -- not forgotten since, nor listed twice
      local packed, is_open = pack_free(f), f[2] == OPEN and f[FIRST] > 0
      n = n + 1
      values[2 * n - 1], values[2 * n], before[n] = instance, packed, f[STORED]
      if is_open ~= f[WAS_OPEN] then list_open(c, instance, is_open) end
      f[WAS_OPEN], f[STORED], f[CHANGED] = is_open, packed, false
    end
  end
  c.dirty = nil
  if n == 0 then return end
  undo(c, restore_free, values, before)
  in_chunks('HSET', key(c, ':free'), values, 4000)
end
