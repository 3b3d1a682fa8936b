-- Vectors: free capacity of an instance, packed <tag u32><flag u8><headroom u16><i32 free>... in the order of :res.
-- tag: first four bytes of the epoch, so that a plan made for an older registration does not match.
-- flag: 0 open, 1 closed (cordoned or leaving), 2 held for one shape.
-- headroom: slots that only critical tasks may take.

local OPEN, CLOSED, HELD = 0, 1, 2
local FIRST = 4 -- position of the first resource, slots, in an unpacked vector

local function vector_format(size)
  return '<I4BH' .. string.rep('i4', size)
end

local function unpack_free(packed)
  local size = (#packed - 7) / 4
  local f = { struct.unpack(vector_format(size), packed) }
  f[#f] = nil -- the position after the last value
  return f
end

local function pack_free(f)
  return struct.pack(vector_format(#f - FIRST + 1), unpack(f))
end

local function remember_free(c, instance, packed)
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
    if c.res_count == 0 and may_add then redis.call('HSET', key(c, ':res'), 'slots', 1) end
    c.res_count = math.max(c.res_count, 1)
  end
  local index = c.res[name]
  if not index and may_add and c.res_count < MAX_RESOURCES then
    c.res_count = c.res_count + 1
    index = c.res_count
    c.res[name] = index
    redis.call('HSET', key(c, ':res'), name, index)
  end
  return index
end

-- A shape is lane|type|name=units,...|label=value,...; lane c may use headroom. An undeclared resource gives need[0],
-- which no instance has.
local function shape_of(c, text)
  local shape = c.shapes[text]
  if shape then return shape end
  local lane, agent_type, needs, labels = string.match(text, '^(.)|([^|]*)|([^|]*)|(.*)$')
  if not lane then error('shape is not lane|type|needs|labels: ' .. text) end
  shape = { text = text, critical = lane == 'c', type = agent_type, need = {} }
  for name, units in pairs(pairs_of(needs)) do
    if name == 'slots' then
      shape.need[1] = tonumber(units)
    else
      shape.need[resource_index(c, name, false) or 0] = tonumber(units)
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
  if f[2] == CLOSED then return false end
  if f[2] == HELD and held_for(c, instance) ~= shape.text then return false end
  local slots = f[FIRST] - shape.need[1]
  if slots < 0 or (not shape.critical and slots < f[3]) then return false end
  for index, units in pairs(shape.need) do
    if index == 0 or units > (f[FIRST - 1 + index] or 0) then return false end
  end
  return true
end

local function take(c, instance, f, shape)
  for index, units in pairs(shape.need) do f[FIRST - 1 + index] = f[FIRST - 1 + index] - units end
  c.dirty[instance] = true
end

local function give(c, instance, shape)
  local f = free_of(c, instance)
  if not f then return end
  for index, units in pairs(shape.need) do
    if index > 0 then f[FIRST - 1 + index] = f[FIRST - 1 + index] + units end
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

-- Write back every changed vector with one HSET, and keep the open sets true to them.
local function write_free(c)
  local values = {}
  for instance in pairs(c.dirty) do
    local f = c.free[instance] -- never false: nothing is taken from or given to an instance without a vector
    values[#values + 1] = instance
    values[#values + 1] = pack_free(f)
    local is_open = f[2] == OPEN and f[FIRST] > 0
    if is_open ~= c.before[instance] then
      local command = is_open and 'SADD' or 'SREM'
      for _, agent_type in ipairs(instance_of(c, instance).types) do
        redis.call(command, key(c, ':open:' .. agent_type), instance)
      end
      c.before[instance] = is_open
    end
  end
  in_chunks('HSET', key(c, ':free'), values, 4000)
  c.dirty = {}
end
