-- Headroom in whole slots. Each instance has its share of its slots rounded down or up, so that all together have the
-- share of all their slots, within one: of small instances by themselves, 6 slots at 5 % say, a few would have far
-- more or less. What a rounding gives too much or too little, in thousandths of a slot, is added up in the surplus
-- (:meta headroom_surplus); the next rounding makes up for it. Who leaves takes its part along.

local headroom = {}

do

local LARGEST = 65535 -- that a vector has room for

-- The share of so many slots, in thousandths. One slot is always left to the lower priorities, or a fleet of one-slot
-- instances would shut them out; what cannot be kept free there is not looked for elsewhere.
local function share_of(c, slots)
  local most = 1000 * math.min(slots - 1, LARGEST)
  return math.floor(math.max(0, math.min(slots * setting(c, 'headroom_permille'), most)))
end

-- Headroom of one more instance beside this surplus. Rounded up if about half a slot is missing by then. About: a hash
-- of its name moves that by up to a quarter, or of two types whose instances register in turns one could get it all.
-- The surplus of those that have come so stays within three quarters of a slot.
local function round(c, instance, slots, surplus)
  local share = share_of(c, slots)
  local whole = math.floor(share / 1000)
  local rest = share - 1000 * whole
  local chance = tonumber(string.sub(redis.sha1hex(instance), 1, 6), 16) / 16777216
  if rest > 0 and rest - surplus >= 250 + 500 * chance then whole = whole + 1 end
  return whole
end

local function slots_of(record)
  local is_read, r = pcall(cmsgpack.unpack, string.sub(record, 9))
  local capacity = is_read and type(r) == 'table' and r[3]
  local slots = type(capacity) == 'table' and capacity.slots
  return type(slots) == 'number' and slots or nil
end

-- Instances with a vector and a registration that can be read: their names, and by name their slots and packed vectors.
-- One pass over the fleet, 3 us an instance.
local function fleet_of(c)
  local names, slots, packed = {}, {}, {}
  local free, records = redis.call('HGETALL', key(c, ':free')), redis.call('HGETALL', key(c, ':inst'))
  for i = 1, #free, 2 do packed[free[i]] = free[i + 1] end
  for i = 1, #records, 2 do
    local name, units = records[i], slots_of(records[i + 1])
    if units and packed[name] then
      names[#names + 1] = name
      slots[name] = units
    end
  end
  return names, slots, packed
end

-- What this headroom is more than the share, in thousandths.
function headroom.beyond(c, whole, slots)
  return 1000 * whole - share_of(c, slots)
end

-- The surplus as it is kept; nil in a cell where an older build registered instances, or nobody has yet.
function headroom.told(c)
  return tonumber(meta(c, 'headroom_surplus'))
end

function headroom.store(c, surplus)
  put(c, ':meta', 'headroom_surplus', number(surplus))
  c.meta = false
end

-- The surplus as it is.
function headroom.count(c)
  local sum = 0
  local names, slots, packed = fleet_of(c)
  for _, name in ipairs(names) do
    sum = sum + headroom.beyond(c, struct.unpack('<H', packed[name], 6), slots[name])
  end
  return sum
end

-- The headroom of an instance that has no part in the surplus, or loses it.
function headroom.of(c, instance, slots)
  return round(c, instance, slots, headroom.told(c) or headroom.count(c))
end

-- Give an instance that is about to be registered its headroom.
function headroom.assign(c, instance, slots)
  local surplus = headroom.told(c) or headroom.count(c)
  local whole = round(c, instance, slots, surplus)
  headroom.store(c, surplus + headroom.beyond(c, whole, slots))
  return whole
end

-- One is about to be forgotten. A surplus that nobody has counted yet is counted without it.
function headroom.leave(c, instance)
  local f, surplus = free_of(c, instance), headroom.told(c)
  if not f or not surplus then return end
  headroom.store(c, surplus - headroom.beyond(c, f[3], instance_of(c, instance).capacity.slots))
end

-- Give every instance its headroom anew, in the order of the names; only when the setting has changed.
function headroom.share_out(c)
  local names, slots, packed = fleet_of(c)
  local surplus = 0
  table.sort(names)
  for _, name in ipairs(names) do
    local f = remember_free(c, name, packed[name])
    f[3] = round(c, name, slots[name], surplus)
    surplus = surplus + headroom.beyond(c, f[3], slots[name])
    touch(c, name, f)
  end
  write_free(c)
  headroom.store(c, surplus)
end

end
