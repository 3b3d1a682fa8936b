-- Vectors: free capacity of an instance, packed <tag u32><flag u8><headroom u16><i32 free>... in the order of :res.
-- tag: first four bytes of the epoch, so that a plan made for an older registration does not match.
-- flag: 0 open, 1 closed (cordoned or leaving), 2 held for one shape.
-- headroom: slots that only critical tasks may take.

local OPEN, CLOSED, HELD = 0, 1, 2
local FIRST = 4 -- position of the first resource, slots, in an unpacked vector

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
  local f = { struct.unpack(vector_format((#packed - 7) / 4), packed) }
  f[#f] = nil -- the position after the last value
  return f
end

local function pack_free(f)
  return struct.pack(vector_format(#f - FIRST + 1), unpack(f))
end

local function remember_free(c, instance, packed)
  c.packed[instance] = packed
  if not packed then
    c.free[instance] = false
    return false
  end
  local f = unpack_free(packed)
  c.free[instance] = f
  c.before[instance] = f[2] == OPEN and f[FIRST] > 0
  return f
end

local function free_of(c, instance)
  local f = c.free[instance]
  if f == nil then f = remember_free(c, instance, redis.call('HGET', key(c, ':free'), instance)) end
  return f
end

local function resource_index(c, name, may_add)
  if not c.res then
    c.res, c.res_count = { slots = 1 }, 0 -- every cell counts slots first
    local flat = redis.call('HGETALL', key(c, ':res'))
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
    c.res[name] = index
    put(c, ':res', 'slots', 1)
    put(c, ':res', name, index)
  end
  return index
end

-- A shape is lane|type|name=units,...|label=value,...; lane c may use headroom. An undeclared resource gets an index
-- that no vector has. needs: flat position, units, position, units, ...; slots apart, because every shape has them.
local function shape_of(c, text)
  local shape = c.shapes[text]
  if shape then return shape end
  local lane, agent_type, needs, labels = string.match(text, '^(.)|([^|]*)|([^|]*)|(.*)$')
  if not lane or not pairs_of(needs).slots then error('shape is not lane|type|needs|labels: ' .. text) end
  shape = { text = text, critical = lane == 'c', type = agent_type, slots = 1, needs = {} }
  for name, units in pairs(pairs_of(needs)) do
    if name == 'slots' then
      shape.slots = tonumber(units)
    elseif tonumber(units) > 0 then -- nothing of a resource is no need: a vector may be older than the resource
      shape.needs[#shape.needs + 1] = FIRST - 1 + (resource_index(c, name, false) or 1000)
      shape.needs[#shape.needs + 1] = tonumber(units)
    end
  end
  if labels ~= '' then shape.labels = pairs_of(labels) end
  c.shapes[text] = shape
  return shape
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
  c.dirty[instance] = true
end

local function give(c, instance, shape)
  local f, needs = free_of(c, instance), shape.needs
  if not f then return end
  f[FIRST] = f[FIRST] + shape.slots
  for i = 1, #needs, 2 do
    if f[needs[i]] then f[needs[i]] = f[needs[i]] + needs[i + 1] end
  end
  c.dirty[instance] = true
end

local function instance_of(c, instance)
  local record = c.inst[instance]
  if record == nil then
    local packed = redis.call('HGET', key(c, ':inst'), instance)
    record = false
    if packed then
      local r = cmsgpack.unpack(string.sub(packed, 9))
      record = { epoch = r[1], types = r[2], capacity = r[3], labels = r[4], lease_ms = r[5] }
    end
    c.inst[instance] = record
  end
  return record
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
  c.before[instance] = is_open
end

-- Write back every changed vector with one HSET, and keep the open sets true to them.
local function write_free(c)
  local values, before = {}, {}
  for instance in pairs(c.dirty) do
    local f = c.free[instance] -- never false: nothing is taken from or given to an instance without a vector
    local packed = pack_free(f)
    before[instance] = c.packed[instance]
    c.packed[instance] = packed
    values[#values + 1] = instance
    values[#values + 1] = packed
    local is_open = f[2] == OPEN and f[FIRST] > 0
    if is_open ~= c.before[instance] then list_open(c, instance, is_open) end
  end
  undo(c, restore_fields, ':free', values, before)
  in_chunks('HSET', key(c, ':free'), values, 4000)
  c.dirty = {}
end
