-- The cell's settings. `open` stores each under its name in :meta, and all as one text as what :applied says of `begun`:
-- apply reads that field anyway, and `kept` knows what the text says, so that a call need not read all of :meta.
-- Both are written in one call, so they are never apart. The text: 1,name=value,...; 1 alone is of builds before 16, or
-- of a cell that began before anybody opened it: they are in :meta only, if anywhere.

local settings = {}

do

-- Settings of a cell that nobody has opened yet.
local DEFAULTS = {
  headroom_permille = 50, parked_limit = 1000000, parked_bytes_limit = 4294967296, outbox_limit = 1000000,
  outbox_bytes_limit = 1073741824,
  retry_base_ms = 1000, retry_cap_ms = 60000, unknown_type_age_ms = 3600000, parked_age_ms = 86400000,
  done_limit = 500000, done_age_ms = 600000,
}

-- The settings in :meta as one text.
function settings.text(c)
  local parts = {}
  for name in pairs(DEFAULTS) do
    if meta(c, name) then parts[#parts + 1] = name .. '=' .. meta(c, name) end
  end
  table.sort(parts) -- one text for the same settings
  return table.concat({ '1', unpack(parts) }, ',')
end

local function read(text)
  local said, found = pairs_of(text), {}
  for name, default in pairs(DEFAULTS) do found[name] = tonumber(said[name]) or default end
  return found
end

-- begun: what :applied says of it, false if nothing.
function settings.learn(c, begun)
  if not begun or begun == '1' then begun = settings.text(c) end
  c.settings = kept(read, begun)
end

-- They have changed in :meta: write them where they are read.
function settings.store(c)
  c.settings = false
  if redis.call('HEXISTS', key(c, ':applied'), 'begun') == 1 then put(c, ':applied', 'begun', settings.text(c)) end
end

end

local function setting(c, name)
  if not c.settings then settings.learn(c, redis.call('HGET', key(c, ':applied'), 'begun')) end
  return c.settings[name]
end
